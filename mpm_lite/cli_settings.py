"""`--set key=value` sorted into what an arm says, the options of its recipe, and what is asked of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from mpm_lite.cache import check_writable
from mpm_lite.runtime import unknown

OPTIONS = "options"


def output(args: argparse.Namespace, default: str) -> Path:
    """The folder for what a command writes: --out, or its default. UserError, before any work, where it cannot be written."""
    folder = Path(args.out or default)
    check_writable(folder)
    return folder


def sorted_out(
    settings: Mapping[str, Any], arm: type, options: type, asking: Sequence[str] = (), inside: Mapping[str, type] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """What to build `arm` (a dataclass with a field `options`) from, and which of `asking` was given.

    A field whose default is a tuple takes names with commas between. `inside`: fields of the arm that are dictionaries of
    another dataclass's fields, which may be set by those. Raises UserError, with the nearest name, for a key of none.
    """
    plain = {f.name: f for f in fields(arm) if f.name != OPTIONS}
    own = {f.name for f in fields(options)}
    deeper = {f.name: (name, f) for name, kind in (inside or {}).items() for f in fields(kind) if f.name not in plain}
    given: dict[str, Any] = {OPTIONS: {}}
    asked: dict[str, Any] = {}
    for key, value in settings.items():
        if key in asking:
            asked[key] = value
        elif key in plain:
            given[key] = _listed(plain[key], value)
        elif key in own:
            given[OPTIONS][key] = value
        elif key in deeper:
            name, one = deeper[key]
            given.setdefault(name, {})[key] = _listed(one, value)
        else:
            raise unknown("setting", key, {*plain, *own, *deeper, *asking})
    return given, asked


def _listed(one: Field, value: Any) -> Any:
    """The value, in the way that the field holds it."""
    if not isinstance(one.default, tuple):
        return value
    return tuple(value) if isinstance(value, (tuple, list)) else tuple(filter(None, str(value).split(",")))
