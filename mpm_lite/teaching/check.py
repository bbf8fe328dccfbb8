"""Checked exercises: compare a learner's answer with one recomputed on the spot, and print one line about it.

An answer that is still None (or still `...`) is "not tried yet", so a notebook with open exercises runs to its end. Library code is
shown by `show`, never pasted.
"""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mpm_lite.core.runtime import UserError


def check_answer(name: str, yours: Any, ours: Any, tolerance: float = 1e-6, hint: str = "") -> None:
    """Print whether `yours` is `ours`: numbers and arrays within `tolerance`, all else by equality."""
    _say(name, None if _open(yours) else are_same(yours, ours, tolerance), hint)


def check_function(
    name: str, yours: Callable[..., Any] | None, ours: Callable[..., Any], cases: Iterable[Sequence[Any]],
    tolerance: float = 1e-6, hint: str = "",
) -> None:  # fmt: skip
    """Print whether both functions give the same on every case (a tuple of arguments), or which case differs."""
    if _open(yours):
        return _say(name, None, hint)
    for number, case in enumerate(cases, 1):
        try:
            got = yours(*case)
        except Exception as error:  # a learner's function may raise anything
            return _say(name, False, f"case {number} raised {type(error).__name__}: {error}")
        if _open(got):
            return _say(name, None, hint)
        if not are_same(got, ours(*case), tolerance):
            return _say(name, False, f"case {number}, {tuple(case)}, differs. {hint}".strip())
    return _say(name, True, "")


def check_guess(name: str, yours: float, ours: float, near: float = 0.1) -> None:
    """Print how far a prediction was from the outcome. A wrong prediction is not a failure."""
    verdict = "close" if abs(float(yours) - float(ours)) <= near else "off: that is what an experiment is for"
    print(f"{name}: you said {float(yours):.2f}, it came out as {float(ours):.2f} ({verdict})")


def are_same(yours: Any, ours: Any, tolerance: float = 1e-6) -> bool:
    """True where both are equal: numbers and arrays of one shape within `tolerance`, all else by `==`."""
    if not _numeric(ours):
        return not _numeric(yours) and bool(yours == ours)
    if not _numeric(yours):
        return False
    a, b = np.asarray(yours, dtype=float), np.asarray(ours, dtype=float)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True))


def _open(value: Any) -> bool:
    return value is None or value is Ellipsis


def _numeric(value: Any) -> bool:
    try:
        return not isinstance(value, (str, bytes)) and np.asarray(value, dtype=float).dtype == float
    except (TypeError, ValueError):
        return False


def _say(name: str, passed: bool | None, hint: str) -> None:
    word = {True: "PASS", False: "not yet", None: "not tried yet"}[passed]
    print(f"[{word}] {name}" + (f". Hint: {hint}" if hint and not passed else ""))


class ShownSource:
    """The source of a function or class: shown as code in a notebook, as plain text elsewhere."""

    def __init__(self, thing: Any) -> None:
        try:
            self.code = inspect.getsource(thing)
            self.where = inspect.getmodule(thing).__name__
        except (TypeError, OSError) as error:
            told = f"show() needs a function, class or module of Python source; {thing!r} has none."
            raise UserError(told) from error

    def __repr__(self) -> str:
        return f"# {self.where}\n{self.code}"

    def _repr_html_(self) -> str:
        # Without colours of its own it is legible on light and dark pages alike.
        return f"From <code>{html.escape(self.where)}</code>:<pre><code>{html.escape(self.code)}</code></pre>"


def show(thing: Any) -> ShownSource:
    """The source of a library function, class or module. Raises UserError where there is none."""
    return ShownSource(thing)
