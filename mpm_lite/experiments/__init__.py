"""Experiments: what each system is trained on, what it is asked, and its scores, item by item."""
