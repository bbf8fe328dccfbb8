"""The command line, `mpm-lite`."""
