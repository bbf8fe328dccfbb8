"""What the notebook on all systems shows: the committed comparison, or a sentence until it has run."""

from __future__ import annotations

from mpm_lite import report_systems
from mpm_lite.teaching import widgets

CAPTIONS = {
    "iglue": "Toy-IGLUE at equal pairs: English, mean of nine others (chance of those)",
    "advice": "What to choose when: figures of nine languages at equal pairs",
    "real": "Real pictures, equal pairs",
}


def comparison() -> widgets.Page:
    """The comparison at equal budgets as a figure, a panel a table that has run; a sentence till then."""
    if not report_systems.has(report_systems.NAME):
        return _not_yet(report_systems.NAME, "figure")
    return widgets.figure(report_systems.figure())


def table(name: str) -> widgets.Page:
    """A table of the comparison: what is held equal (pairs, updates or parameters), "iglue", "advice", or "real"; a sentence
    where it has not run."""
    of = report_systems.REAL if name == "real" else report_systems.NAME
    if not report_systems.has(of) or (name in report_systems.TITLES and name not in report_systems.titles()):
        return _not_yet(of, "table")
    made = {"iglue": report_systems.iglue, "advice": report_systems.advice, "real": report_systems.real}
    header, lines = made[name]() if name in made else report_systems.table(name)
    return widgets.table(lines, header, CAPTIONS.get(name) or f"Choices right: {report_systems.TITLES[name]}")


def _not_yet(name: str, what: str) -> widgets.Page:
    """The sentence in the place of what a comparison has not made yet."""
    said = f"The comparison, mpm-lite run {name.replace('-', '_')}, has not run yet; its {what} will stand here."
    return widgets.Page(f"<p>{said}</p>", said)
