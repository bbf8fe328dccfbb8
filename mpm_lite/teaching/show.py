"""Library code is shown in notebooks, never pasted."""

from __future__ import annotations

import inspect
from typing import Any

from mpm_lite.runtime import UserError


class Source:
    """The source of a function or class: highlighted in a notebook, plain elsewhere."""

    def __init__(self, thing: Any) -> None:
        try:
            self.code = inspect.getsource(thing)
            self.where = f"{inspect.getmodule(thing).__name__}"
        except (TypeError, OSError) as error:
            raise UserError(f"show() needs a function, class or module of Python source; {thing!r} has none.") from error

    def __repr__(self) -> str:
        return f"# {self.where}\n{self.code}"

    def _repr_markdown_(self) -> str:
        return f"From `{self.where}`:\n```python\n{self.code}```"


def show(thing: Any) -> Source:
    """The source of a library function, class or module. Raises UserError where there is none."""
    return Source(thing)
