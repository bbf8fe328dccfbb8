"""Before the first test: fetch the pictures where CI asks for everything, and warm the caches that notebooks use.

nbval's cells trigger no fixture, so this happens when the session starts.
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def pytest_sessionstart(session):
    os.environ.setdefault("MPM_LITE_QUIET", "1")
    asked = [str(a) for a in session.config.args]
    if not any("notebooks" in a or a.endswith(".ipynb") for a in asked):
        return
    from mpm_lite import data, tour
    from mpm_lite.data import fetch

    if os.environ.get("CI"):
        for name in ("stamps", "clipart"):
            if not data.available(name):
                fetch.get(name, progress=False)
    if data.available("stamps"):
        tour.warm()


@pytest.fixture
def no_hub(monkeypatch):
    """A machine that cannot reach a model hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
