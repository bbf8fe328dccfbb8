"""`python -m mpm_lite.cli` is `mpm-lite`."""

from mpm_lite.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
