"""The recipes that pretrain the toy world's own towers, language models and painters."""
