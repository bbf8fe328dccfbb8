"""What ships and is pretrained here: language models, towers, the painter, connectors; each with its card."""
