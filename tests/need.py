"""What a test may need that is not in the repository."""

from __future__ import annotations

import os

import pytest

from mpm_lite.data import is_available


def require(name: str) -> None:
    """Skip where a set is missing on somebody's machine; fail where CI is set: nothing is skipped in silence."""
    if is_available(name):
        return
    message = f"{name} is not on this machine: run `mpm-lite data get {name.replace('+', ' ')}`"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
