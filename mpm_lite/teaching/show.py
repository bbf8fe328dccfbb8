"""Library code is shown in notebooks, never pasted."""

from __future__ import annotations

import html
import inspect
from typing import Any

from mpm_lite.runtime import UserError


class Source:
    """The source of a function or class: set as code in a notebook, plain elsewhere."""

    def __init__(self, thing: Any) -> None:
        try:
            self.code = inspect.getsource(thing)
            self.where = f"{inspect.getmodule(thing).__name__}"
        except (TypeError, OSError) as error:
            raise UserError(
                f"show() needs a function, class or module of Python source; {thing!r} has none."
            ) from error

    def __repr__(self) -> str:
        return f"# {self.where}\n{self.code}"

    def _repr_html_(self) -> str:
        # Without colours of its own it is legible on light and dark pages alike.
        return f"From <code>{html.escape(self.where)}</code>:<pre><code>{html.escape(self.code)}</code></pre>"


def show(thing: Any) -> Source:
    """The source of a library function, class or module. Raises UserError where there is none."""
    return Source(thing)
