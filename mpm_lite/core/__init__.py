"""Core: the machine and its presets, errors, what is kept and under which key, provenance, worker processes, the style
of figures.
"""

__version__ = "0.1.0"

# Where the project lives; `mpm-lite classroom badges` rewrites this line, the badges and the install cells together.
REPOSITORY, REF = "mpm-lite/mpm_lite", "main"
