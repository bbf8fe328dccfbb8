"""Checked exercises: compare a learner's answer with one recomputed on the spot, and print one line about it.

An answer that is still None (or still `...`) is "not tried yet": a notebook with open exercises runs from top to bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np


def answer(name: str, yours: Any, ours: Any, tolerance: float = 1e-6, hint: str = "") -> bool:
    """True where `yours` is `ours`: numbers and arrays within `tolerance`, all else by equality. Prints one line."""
    if _open(yours):
        return _say(name, None, hint)
    return _say(name, _same(yours, ours, tolerance), hint)


def function(
    name: str,
    yours: Callable[..., Any] | None,
    ours: Callable[..., Any],
    cases: Iterable[Sequence[Any]],
    tolerance: float = 1e-6,
    hint: str = "",
) -> bool:
    """True where both functions give the same on every case (a tuple of arguments). Says which case differs."""
    if _open(yours):
        return _say(name, None, hint)
    for number, case in enumerate(cases, 1):
        try:
            got = yours(*case)
        except Exception as error:  # a learner's function may raise anything
            return _say(name, False, f"case {number} raised {type(error).__name__}: {error}")
        if _open(got):
            return _say(name, None, hint)
        if not _same(got, ours(*case), tolerance):
            return _say(name, False, hint or f"case {number} differs")
    return _say(name, True, "")


def guess(name: str, yours: float | None, ours: float, near: float = 0.1) -> bool:
    """Say how far a prediction was from what came. A wrong prediction is no failure: True where one was made."""
    if _open(yours):
        return _say(name, None, "write down a number before you run on")
    off = abs(float(yours) - float(ours))
    verdict = "close" if off <= near else "off: that is what an experiment is for"
    print(f"{name}: you said {float(yours):.2f}, it came out as {float(ours):.2f} ({verdict})")
    return True


def _open(value: Any) -> bool:
    return value is None or value is Ellipsis


def _same(yours: Any, ours: Any, tolerance: float) -> bool:
    if isinstance(ours, (bool, np.bool_, str)) or not _numeric(ours):
        return type(yours) is not float and bool(yours == ours)
    if not _numeric(yours):
        return False
    a, b = np.asarray(yours, dtype=float), np.asarray(ours, dtype=float)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True))


def _numeric(value: Any) -> bool:
    try:
        np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)


def _say(name: str, passed: bool | None, hint: str) -> bool:
    word = {True: "PASS", False: "not yet", None: "not tried yet"}[passed]
    print(f"[{word}] {name}" + (f". Hint: {hint}" if hint and not passed else ""))
    return bool(passed)
