"""Pretrained towers: `text`, `image` and `lm`. `packaged` reads the weights that pip brings, `hub` hubs and folders."""
