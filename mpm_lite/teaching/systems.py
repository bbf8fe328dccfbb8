"""What the notebook on all systems shows: the committed comparison, or a sentence until it has run."""

from __future__ import annotations

from mpm_lite import report_systems
from mpm_lite.teaching import widgets


def comparison() -> widgets.Page:
    """The comparison at equal budgets as a figure, a panel a table that has run; a sentence till then."""
    if not report_systems.has(report_systems.NAME):
        said = "The comparison, mpm-lite run head_to_head, has not run yet; its figure will stand here."
        return widgets.Page(f"<p>{said}</p>", said)
    return widgets.figure(report_systems.figure())
