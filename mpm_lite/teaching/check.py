"""Checked exercises by name: `check("08.2", rho, scores=scores)` compares a learner's answer with the library's and says what is
wrong with it.

An answer that is still None (or still `...`) is "not tried yet", so a notebook with open exercises runs to its end. References
and named mistakes are in `exercises`. Library code is shown by `show`, never pasted.
"""

from __future__ import annotations

import copy
import html
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mpm_lite.core import REF, REPOSITORY
from mpm_lite.core.runtime import UserError
from mpm_lite.teaching import mpm_exercises, study_exercises, system_exercises  # noqa: F401  (they register their exercises)
from mpm_lite.teaching.exercises import EXERCISES, Exercise, find_exercise

PASSED, NOT_YET, NOT_TRIED = "PASS", "not yet", "not tried yet"
_session: dict[str, tuple[str, str]] = {}


def check(name: str, yours: Any, **given: Any) -> None:
    """Print whether an answer to exercise `name` ("08.2") is right, or the reason why not. `given` hands in the notebook's objects
    that the reference needs. Raises UserError where no exercise has that name, or an object is missing from `given`."""
    known = find_exercise(name)
    try:
        inspect.signature(known.cases or known.reference).bind(**given)
    except TypeError as error:
        raise UserError(f"check({name!r}, ...) needs other objects by keyword: {error}.") from error
    reason = find_reason(known, yours, given)
    state = NOT_TRIED if reason is None else NOT_YET if reason else PASSED
    _session[name] = (state, time.strftime("%H:%M:%S"))
    print(f"[{state}] {name} {known.title}" + (f": {reason}" if reason else ""))


def compare_guess(name: str, yours: Any, ours: float, near: float = 0.1) -> None:
    """Print how far a prediction was from the outcome. A wrong prediction is not a failure."""
    came = float(np.asarray(_plain(ours)).reshape(()))
    if _open(yours):
        return print(f"{name}: it came out as {came:.2f} (no prediction yet: next time, write one first)")
    guess = float(np.asarray(_plain(yours)).reshape(()))
    gap = abs(guess - came)
    print(
        f"{name}: you predicted {guess:.2f}, it came out as {came:.2f}, "
        + ("close" if gap <= near else f"{gap:.2f} apart")
    )


def summary() -> None:
    """Print every exercise of the notebooks that this session has checked something of: passed, not yet or not tried, and when."""
    books = {name.split(".")[0] for name in _session}
    rows = [(name, known.title, *_session.get(name, (NOT_TRIED, ""))) for name, known in EXERCISES.items()]
    rows = sorted(row for row in rows if row[0].split(".")[0] in books)
    if not rows:
        return print("No exercise has been checked in this session yet.")
    wide = max(len(row[1]) for row in rows)
    for name, title, state, when in rows:
        print(f"{name:6} {title:{wide}}  {state:13}  {when}".rstrip())
    print(f"{sum(row[2] == PASSED for row in rows)} of {len(rows)} passed")


# --- what is wrong with an answer ---


def find_reason(known: Exercise, yours: Any, given: dict[str, Any]) -> str | None:
    """Why an answer is wrong, in words; "" where it is right, None where it was not tried."""
    if known.cases is not None:
        return _reason_of_function(known, yours, known.cases(**given))
    if _open(yours) or (isinstance(yours, (tuple, list)) and any(_open(part) for part in yours)):
        return None
    ours = known.reference(**given)
    if are_same(yours, ours, known.tolerance):
        return ""
    for reason, wrong in known.mistakes.items():
        if are_same(yours, wrong(**given), known.tolerance):
            return reason
    return explain_difference(yours, ours, known.tolerance)


def explain_difference(yours: Any, ours: Any, tolerance: float) -> str:
    """What sort of difference it is: type, shape, sign, ratio, percent, or only the direction."""
    if isinstance(ours, tuple):
        if not isinstance(yours, (tuple, list)) or len(yours) != len(ours):
            return f"{len(ours)} values are asked for"
        pairs = enumerate(zip(yours, ours, strict=True), 1)
        wrong = [(i, a, b) for i, (a, b) in pairs if not are_same(a, b, tolerance)]
        number, a, b = wrong[0]
        return f"value {number} of {len(ours)}: {explain_difference(a, b, tolerance)}"
    if isinstance(ours, str):
        return "it is another one" if isinstance(yours, str) else f"a text is asked for, this is {_kind(yours)}"
    a, b = _numbers(yours), _numbers(ours)
    if b is None:
        return "it is not the same"
    if a is None:
        return f"a number is asked for, this is {_kind(yours)}"
    if a.size != b.size or (a.shape != b.shape and b.size > 1):
        turned = a.ndim > 1 and a.T.shape == b.shape
        return f"the shape is {a.shape}, and {b.shape} is expected" + (" (transposed?)" if turned else "")
    a = a.reshape(b.shape)
    if np.isnan(a).any() and not np.isnan(b).any():
        return "it has values that are not a number (nan)"
    close = lambda x, y, near=tolerance: bool(np.allclose(x, y, rtol=0, atol=near))  # noqa: E731
    if close(-a, b):
        return "the sign is the wrong way round"
    if close(a / 100, b):
        return "it is 100 times too large: a percentage, where a fraction is asked for"
    if a.any() and np.allclose(100 * a, b, rtol=0.02, atol=0):  # a rounded fraction has few digits left
        return "it is 100 times too small: a fraction, where a percentage is asked for"
    with np.errstate(divide="ignore", invalid="ignore"):
        if not close(a, 0 * b) and close(1 / a, b):
            return "the ratio is the wrong way round"
    if b.ndim > 1 and b.shape[0] == b.shape[1] and close(a.T, b):
        return "it is transposed"
    if b.size > 1:
        wrong = ~np.isclose(a, b, rtol=0, atol=tolerance)
        return f"{int(wrong.sum())} of {b.size} numbers differ"
    if abs(a - b) < 50 * tolerance and tolerance < abs(b) / 100:
        return "it is close, but further off than rounding explains"
    return "it is too large" if a > b else "it is too small"


def _reason_of_function(known: Exercise, yours: Any, cases: Sequence[tuple[Any, ...]]) -> str | None:
    if _open(yours):
        return None
    if not callable(yours):
        return f"a function is asked for, this is {_kind(yours)}"
    got = [_run(yours, case, known.gradient) for case in cases]
    if _open(got[0][0]) and got[0][2] is None:
        return None
    right = [_run(known.reference, case, known.gradient) for case in cases]
    for _, _, error in right:
        if error is not None:
            raise error
    reasons = [_reason_of_case(a, b, known) for a, b in zip(got, right, strict=True)]
    if not any(reasons):
        return ""
    slopes = known.gradient and all(are_same(a[0], b[0], known.tolerance) for a, b in zip(got, right, strict=True))
    values_only = known if slopes else replace(known, gradient=False)  # a wrong value is named by its value
    for reason, wrong in known.mistakes.items():
        as_wrong = [_run(wrong, case, known.gradient) for case in cases]
        compared = [_reason_of_case(a, b, values_only) for a, b in zip(got, as_wrong, strict=True) if b[2] is None]
        if len(compared) == len(cases) and not any(compared):
            return reason
    number, reason = next((i, reason) for i, reason in enumerate(reasons, 1) if reason)
    return f"case {number} of {len(cases)}: {reason}"


def _reason_of_case(got: Any, right: Any, known: Exercise) -> str:
    (yours, slopes, error), (ours, expected, _) = got, right
    if error is not None:
        lines = str(error).splitlines() or [""]
        return f"it raised {type(error).__name__}: {lines[0]}"
    if _open(yours):
        return "it returned None"
    if not are_same(yours, ours, known.tolerance):
        return explain_difference(yours, ours, known.tolerance)
    if not known.gradient:
        return ""
    if not slopes and any(slope.any() for slope in expected.values()):
        return "the value is right, but no gradient can flow through it: it left torch, or everything was detached"
    for name, wanted in expected.items():
        slope = slopes.get(name, torch.zeros_like(wanted))
        if torch.allclose(slope, wanted, rtol=1e-4, atol=known.tolerance / 10):
            continue
        if not wanted.any():
            return f"a gradient reaches {name}, and none should: a stop-gradient (detach) is missing"
        if not slope.any():
            return f"no gradient reaches {name}, and it should: a stop-gradient (detach) is in the wrong place"
        return f"the value is right, but the gradient that reaches {name} differs"
    return ""


def _run(function: Callable[..., Any], case: tuple[Any, ...], gradient: bool) -> Any:
    """The result on copies of the arguments, gradients by argument, and what was raised."""
    args = [_copy(value, gradient) for value in case]
    with _seeded():
        try:
            result = function(*args)
            return result, _gradients(result, args, gradient), None
        except Exception as error:  # a learner's function may raise anything
            return None, {}, error


def _gradients(result: Any, args: list[Any], wanted: bool) -> dict[str, torch.Tensor]:
    """What reaches each floating tensor, and each parameter of a module, among the arguments; empty where nothing can flow."""
    parts = [result] if torch.is_tensor(result) else list(result) if isinstance(result, (tuple, list)) else []
    parts = [part for part in parts if torch.is_tensor(part) and part.requires_grad]
    if not wanted or not parts:
        return {}
    # Weights that differ from number to number, so that gradients which cancel in a plain sum are seen.
    weights = [torch.linspace(0.5, 1.5, part.numel(), dtype=part.dtype).view_as(part) for part in parts]
    sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True)).backward()
    leaves = {}
    for number, value in enumerate(args, 1):
        if torch.is_tensor(value) and value.requires_grad:
            leaves[f"argument {number}"] = value
        elif isinstance(value, torch.nn.Module):
            leaves |= {f"{key} of argument {number}": p for key, p in value.named_parameters() if p.requires_grad}
    return {key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for key, leaf in leaves.items()}


def _copy(value: Any, gradient: bool) -> Any:
    if torch.is_tensor(value):
        return value.detach().clone().requires_grad_(gradient and value.is_floating_point())
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(part, False) for part in value)
    return copy.deepcopy(value) if isinstance(value, (np.ndarray, dict, set, torch.nn.Module)) else value


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random draws for every function that is compared; the notebook's own state is left as it was."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(state)


def are_same(yours: Any, ours: Any, tolerance: float = 1e-6) -> bool:
    """True where both are equal: numbers and arrays of one shape within `tolerance`, texts without case and outer blanks, tuples
    part by part, all else by `==`. One number may come as text, in an array of one element, or as a tensor."""
    if isinstance(ours, tuple):
        if not isinstance(yours, (tuple, list)) or len(yours) != len(ours):
            return False
        return all(are_same(a, b, tolerance) for a, b in zip(yours, ours, strict=True))
    if isinstance(ours, str):
        return isinstance(yours, str) and yours.strip().casefold() == ours.strip().casefold()
    b = _numbers(ours)
    if b is None:
        return _numbers(yours) is None and bool(yours == ours)
    a = _numbers(yours)
    if a is None or a.size != b.size or (a.shape != b.shape and b.size > 1):
        return False
    # A hair above the tolerance: 0.005 itself is within, whatever its last bit says.
    return bool(np.allclose(a.reshape(b.shape), b, rtol=0, atol=tolerance * (1 + 1e-6), equal_nan=True))


def _numbers(value: Any) -> np.ndarray | None:
    """As an array of floats, a text that reads as one number too; None where it is no number."""
    try:
        if isinstance(value, bytes) or isinstance(value, str) and not value.strip():
            return None
        found = np.asarray(_plain(value))
        return found.astype(float) if found.dtype != object and found.dtype.kind in "biufUS" else None
    except (TypeError, ValueError):
        return None


def _plain(value: Any) -> Any:
    """Tensors as arrays, inside lists and tuples too; all else as it is."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value.detach().float().cpu().numpy() if torch.is_tensor(value) else value


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"


def _open(value: Any) -> bool:
    return value is None or value is Ellipsis


# --- library code ---


class ShownSource:
    """The source of a function, class or module: its docstring, then its code in colours with a link; plain text elsewhere."""

    def __init__(self, thing: Any) -> None:
        try:
            lines, start = inspect.getsourcelines(thing)
            self.code, self.where = "".join(lines), inspect.getmodule(thing).__name__
        except (TypeError, OSError) as error:
            told = f"show() needs a function, class or module of Python source; {thing!r} has none."
            raise UserError(told) from error
        self.told = inspect.getdoc(thing) or ""
        file = self.where.replace(".", "/") + (
            "/__init__.py" if hasattr(inspect.getmodule(thing), "__path__") else ".py"
        )
        start = max(start, 1)
        self.link = ""
        if self.where.startswith("mpm_lite"):
            self.link = f"https://github.com/{REPOSITORY}/blob/{REF}/{file}#L{start}-L{start + len(lines) - 1}"

    def __repr__(self) -> str:
        return f"# {self.where}\n{self.code}"

    def _repr_html_(self) -> str:
        where = f"<code>{html.escape(self.where)}</code>"
        where = f'<a href="{self.link}">{where}</a>' if self.link else where
        told = f'<div style="white-space:pre-line">{html.escape(self.told)}</div>' if self.told else ""
        # Lines are scrolled, not broken; the box has no background of its own, so it is legible on light and dark pages.
        box = "overflow-x:auto;white-space:pre;word-break:normal;overflow-wrap:normal"
        return (
            f'{told}From {where}:<pre style="{box}"><code style="white-space:pre">{colour_code(self.code)}</code></pre>'
        )


def colour_code(code: str) -> str:
    """Python as HTML in colours of middling lightness, at least 4 to 1 against both a white and a nearly black page."""
    from pygments import lex
    from pygments.lexers import PythonLexer
    from pygments.token import Comment, Keyword, Name, Number, Operator, String

    colours = {Comment: "#767676", Keyword: "#a355d3", Operator.Word: "#a355d3", String: "#2b8339", Number: "#b7600f"}
    colours |= {Name.Function: "#0b74d1", Name.Class: "#0b74d1", Name.Decorator: "#b7600f", Name.Builtin: "#0b74d1"}
    pieces = []
    for kind, text in lex(code, PythonLexer(stripnl=False)):
        colour = next((c for known, c in colours.items() if kind in known), None)
        text = html.escape(text)
        pieces.append(f'<span style="color:{colour}">{text}</span>' if colour and text.strip() else text)
    return "".join(pieces)


def show(thing: Any) -> ShownSource:
    """The source of a library function, class or module. Raises UserError where there is none."""
    return ShownSource(thing)
