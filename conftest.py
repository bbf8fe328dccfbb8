"""How the whole suite runs: caches are warmed before the first test, then as many files at once as there are cores.

This file lies beside `tests` and `notebooks` because pytest reads it for both. nbval's cells trigger no fixture, so what
notebooks need happens when the session starts.
"""

import os
from pathlib import Path

import pytest

# The files that take longest, longest first: a long file that begins last would keep one core busy on its own.
LONGEST = (
    "test_cli.py",
    "12_your_hypothesis.ipynb",
    "05_which_language_does_it_answer.ipynb",
    "06_mpm_paint.ipynb",
    "07_m3p.ipynb",
    "test_lm.py",
    "test_kernels.py",
    "00_start_here.ipynb",
    "test_worlds.py",
    "test_painters.py",
    "test_distributed.py",
    "test_claims.py",
    "test_ops_chunked.py",
    "test_pretrain.py",
    "test_data_properties.py",
    "test_head_to_head.py",
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker a core, each with one thread; none for a single file, which starts sooner in this process."""
    files = {str(argument).split("::")[0] for argument in config.args}
    if config.option.collectonly or (len(files) == 1 and Path(*files).is_file()):
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers inherit it, and so do their kernels and subprocesses
    return min(os.cpu_count() or 1, 8)


def pytest_sessionstart(session: pytest.Session) -> None:
    os.environ.setdefault("MPM_LITE_QUIET", "1")
    if hasattr(session.config, "workerinput"):
        return  # the process that started this worker has filled the caches
    asked = [str(a) for a in session.config.args]
    if not any("notebooks" in a or a.endswith(".ipynb") for a in asked):
        return
    from mpm_lite import data
    from mpm_lite.data import fetch_set
    from mpm_lite.report import tour

    if os.environ.get("CI"):
        for name in ("stamps", "clipart", "emoji-names", "freedict"):
            if not data.is_available(name):
                fetch_set(name, progress=False)
    if data.is_available("stamps"):
        tour.warm_caches(workers=min(os.cpu_count() or 1, 2))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks and other long files come first; within a file, everything stays in its order."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.name, len(place)), item.path.suffix != ".ipynb"))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that cannot reach a model hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
