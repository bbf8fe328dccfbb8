"""Evaluation: retrieval and its ranks, choosing among captions, captions and replies, alignment, what language models can do, intervals."""
