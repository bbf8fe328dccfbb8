"""Core: the machine and its presets, errors, what is kept and under which key, provenance, worker processes, the style
of figures.
"""

__version__ = "0.1.0"
