"""Runs that do not wait for each other, shared out among processes.

A GPU that trains one toy model is hardly busy, and a CPU with many cores computes many such models side by side faster than
one with all of them. What two runs share, such as a Q-Former, one of them makes while the other waits (`cache.alone`).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from mpm_lite.runtime import UserError

Job = tuple[Callable[..., Any], tuple[Any, ...]]  # a function of a module, and what it is called with


def check(workers: int) -> None:
    """UserError for a number of workers that does nothing."""
    if workers < 1:
        raise UserError(f"{workers} workers do nothing: take at least 1.")


def run(jobs: Mapping[str, Job], workers: int = 1, say: Callable[[str], None] = lambda line: None) -> None:
    """Do every job, by its label: one after the other here, or in so many processes. `say` hears which begins, or is done.
    The first error stops the rest. UserError for no worker."""
    check(workers)
    if workers == 1:
        for number, (label, (call, given)) in enumerate(jobs.items(), 1):
            say(f"{number} of {len(jobs)}: {label}")
            call(*given)
        return
    # Forked processes would share what torch has already begun.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs) or 1), spawned, _begin, (workers,)) as pool:
        running = {pool.submit(call, *given): label for label, (call, given) in jobs.items()}
        try:
            for number, done in enumerate(as_completed(running), 1):
                done.result()
                say(f"{number} of {len(jobs)} done: {running[done]}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(workers: int) -> None:
    """In each process, before its first job: its share of the cores, and no bars across each other."""
    import torch

    os.environ["MPM_LITE_QUIET"] = "1"
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
