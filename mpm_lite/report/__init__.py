"""README, pages of results, the tour and the toy world's page: what people read who run nothing."""

from __future__ import annotations

from typing import Any

import jinja2

from mpm_lite.core import runtime
from mpm_lite.core.provenance import format_interval, format_percent, has_table, read_card, read_table
from mpm_lite.data.languages import display_name


def fill(template: str, **names: Any) -> str:
    """A template of assets/templates with what it names filled in: `names`, and the functions that all templates share."""
    environment = jinja2.Environment(
        # A name that nobody gives is a mistake, and no empty place.
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    shared = {f.__name__: f for f in (read_card, has_table, read_table, format_percent, format_interval, display_name)}
    text = (runtime.asset("templates") / template).read_text(encoding="utf-8")
    return environment.from_string(text, shared).render(names)
