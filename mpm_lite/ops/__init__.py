"""The GPU-bound core. Importable with torch alone; today the readable references, in which every other form is judged."""

from mpm_lite.ops.reference import Ranks, clip_loss, retrieval_ranks

__all__ = ["Ranks", "clip_loss", "retrieval_ranks"]
