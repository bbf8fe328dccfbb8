"""Data that come in a package of Debian and Ubuntu: where they lie, and how they are unpacked without root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError


@dataclass(frozen=True)
class DebianPackage:
    """The package that a set comes in.

    `set` is the name of the set and `name` that of the package; `inside` is the folder of its files in the package. Where
    `wanted` names files or folders in it, these have to be there, and no other folder is kept. `missing` says that the files are not on this
    machine, and `size` how much there is to download.
    """

    set: str
    name: str
    inside: Path
    missing: str
    size: str
    wanted: tuple[str, ...] = ()

    def places(self) -> list[Path]:
        """Where the files may be, first the fetched copy."""
        return [runtime.home() / "data" / self.name / self.inside, Path(os.sep) / self.inside]

    def present(self) -> bool:
        """Whether the files are on this machine."""
        return any(self._is_whole(place) for place in self.places())

    def _is_whole(self, place: Path) -> bool:
        return place.is_dir() and all((place / entry).exists() for entry in self.wanted)

    def root(self) -> Path:
        """The folder of the files. Raises UserError, which says the one command that gets them."""
        for place in self.places():
            if self._is_whole(place):
                return place
        raise UserError(f"{self.missing}: run `mpm-lite data get {self.set}` ({self.size}, once; no root needed).")

    def fetch(self, say: Callable[[str], None]) -> None:
        """Download the package into a temporary folder, unpack it beside its place and rename the result, so that nothing
        half unpacked remains. `say` is told what happens. Raises UserError if there is no apt-get, or if the download or the
        unpacking fails."""
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise self._failed(f"there is no {tool} on this machine")
        home = runtime.home() / "data"
        home.mkdir(parents=True, exist_ok=True)
        place, beside = home / self.name, home / f".{self.name}.{os.getpid()}.tmp"
        with tempfile.TemporaryDirectory(prefix="mpm-lite-") as folder:
            say(f"{self.set}: downloading the package {self.name} ...")
            file = self._download(Path(folder))
            say(f"{self.set}: unpacking ...")
            try:
                run_tool(["dpkg-deb", "-x", str(file), str(beside)], Path(folder))
                if not self._is_whole(beside / self.inside):
                    raise self._failed(f"the package {self.name} does not hold {self.inside}")
                if self.wanted:
                    for entry in (beside / self.inside).iterdir():
                        if entry.is_dir() and entry.name not in self.wanted:
                            shutil.rmtree(entry)
                if place.exists():  # left by hand or by another version, and `present()` found nothing in it
                    shutil.rmtree(place)
                os.replace(beside, place)
            except (OSError, subprocess.CalledProcessError) as error:
                if self.present():  # somebody else was faster
                    return
                raise self._failed(f"unpacking failed: {_reason(error)}") from error
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        say(f"{self.set}: ready.")

    def _download(self, folder: Path) -> Path:
        """The .deb file in `folder`, found by the machine's package lists or else by lists that are fetched into `folder`."""
        failure = "no reason given"
        for options in ([], _own_lists(folder)):
            try:
                if options:
                    run_tool(["apt-get", *options, "update", "-q"], folder)
                run_tool(["apt-get", *options, "-q", "download", self.name], folder)
            except (OSError, subprocess.CalledProcessError) as error:
                failure = _reason(error)
            if found := sorted(folder.glob("*.deb")):
                return found[-1]
        raise self._failed(f"{self.name} could not be downloaded ({failure})")

    def _failed(self, why: str) -> UserError:
        return UserError(
            f"Could not fetch {self.set}: {why}. On Debian or Ubuntu run `apt-get install {self.name}`; "
            f"elsewhere copy that package's folder {self.inside} to {runtime.home() / 'data' / self.name / self.inside}."
        )


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


def run_tool(command: list[str], folder: Path) -> None:
    """Run apt-get or dpkg-deb in a folder. Raises CalledProcessError if it fails."""
    how = {"capture_output": True, "text": True, "timeout": 1800}
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(command, cwd=folder, check=True, env=environment, **how)


def _reason(error: Exception) -> str:
    """The tool's own words for what went wrong: its last line that begins with E:, or else its last line."""
    text = getattr(error, "stderr", "") or str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return (errors or lines or ["unknown"])[-1].removeprefix("E: ").rstrip(".")
