"""Pretrained towers: `text`, `image` and `lm`. `packaged` reads the weights that pip brings, `pretrained` hubs and
folders, and `load` opens either by name.
"""
