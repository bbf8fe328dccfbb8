"""Recipes by which the toy world's own towers, language models and painters are pretrained."""
