"""Fetch the stamps and the clip art: `mpm-lite data get stamps clipart`. Needs apt-get and dpkg-deb, but no root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mpm_lite.core import runtime
from mpm_lite.data import SETS, clipart, stamps

_SOURCES = {"stamps": stamps, "clipart": clipart}


def get(name: str, progress: bool = True) -> Path:
    """Make a set present and return its folder; says so where it already is.

    The Debian package is downloaded into a temporary folder, unpacked beside its place and renamed, so nothing half
    unpacked remains. Raises UserError for an unknown set, where there is no apt-get, or where the download fails.
    """
    say = (lambda text: print(text, file=sys.stderr)) if progress else (lambda text: None)
    if name in SETS and name not in _SOURCES:
        say(f"{name} comes with the installation; nothing to fetch.")
        return Path(SETS[name].items()[0].file).parent
    if name not in _SOURCES:
        raise runtime.unknown("data set", name, SETS)
    source = _SOURCES[name]
    if source.present():
        say(f"{name} is already there.")
        return source.root()
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise runtime.UserError(_by_hand(name, f"there is no {tool} on this machine"))
    home = runtime.home() / "data"
    home.mkdir(parents=True, exist_ok=True)
    place, beside = home / source.PACKAGE, home / f".{source.PACKAGE}.{os.getpid()}.tmp"
    with tempfile.TemporaryDirectory(prefix="mpm-lite-") as folder:
        say(f"{name}: downloading the package {source.PACKAGE} ...")
        package = _download(name, source.PACKAGE, Path(folder))
        say(f"{name}: unpacking ...")
        try:
            _run(["dpkg-deb", "-x", str(package), str(beside)], Path(folder))
            if not (beside / source.INSIDE).is_dir():
                raise runtime.UserError(_by_hand(name, f"the package {source.PACKAGE} does not hold {source.INSIDE}"))
            if place.exists():  # left by hand or by another version, and `present()` found nothing in it
                shutil.rmtree(place)
            os.replace(beside, place)
        except (OSError, subprocess.CalledProcessError) as error:
            if source.present():  # somebody else was faster
                return source.root()
            raise runtime.UserError(_by_hand(name, f"unpacking failed: {_reason(error)}")) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    say(f"{name}: ready.")
    return source.root()


def _download(name: str, package: str, folder: Path) -> Path:
    """The .deb in `folder`: by the machine's package lists, else by lists of our own fetched into `folder`."""
    failure = ""
    for options in ([], _own_lists(folder)):
        try:
            if options:
                _run(["apt-get", *options, "update", "-q"], folder)
            _run(["apt-get", *options, "-q", "download", package], folder)
        except (OSError, subprocess.CalledProcessError) as error:
            failure = _reason(error)
        found = sorted(folder.glob("*.deb"))
        if found:
            return found[-1]
    raise runtime.UserError(_by_hand(name, f"{package} could not be downloaded ({failure or 'no reason given'})"))


def _own_lists(folder: Path) -> list[str]:
    """Options that keep apt's lists, cache and logs in `folder`, so that `apt-get update` needs no root."""
    for piece in ("lists/partial", "cache/archives/partial", "log"):
        (folder / "apt" / piece).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::lists": folder / "apt/lists",
        "Dir::Cache": folder / "apt/cache",
        "Dir::Log": folder / "apt/log",
        "Dir::Cache::archives": folder / "apt/cache/archives",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "1",
    }
    return [piece for key, value in settings.items() for piece in ("-o", f"{key}={value}")]


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )


def _reason(error: Exception) -> str:
    text = getattr(error, "stderr", "") or str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return (errors or lines or ["unknown"])[-1].removeprefix("E: ").rstrip(".")


def _by_hand(name: str, why: str) -> str:
    source = _SOURCES[name]
    target = runtime.home() / "data" / source.PACKAGE / source.INSIDE
    return (
        f"Could not fetch {name}: {why}. On Debian or Ubuntu run `apt-get install {source.PACKAGE}`; "
        f"elsewhere copy that package's folder {source.INSIDE} to {target}."
    )


def listing() -> list[dict[str, object]]:
    """One row a set for `mpm-lite data list`; pictures and languages are None where the set is absent."""
    rows = []
    for name, info in SETS.items():
        here = info.present()
        items = info.items() if here else []
        where = f"mpm-lite data get {name}"
        if here:
            where = str(_SOURCES[name].root()) if name in _SOURCES else "installed"
        languages = len({code for item in items for code in item.captions}) if here else None
        rows.append(
            {
                "name": name,
                "pictures": len(items) if here else None,
                "languages": languages,
                "licence": info.licence,
                "where": where,
                "present": here,
            }
        )
    return rows
