"""Keys: what decides something that is kept, part by part, and why it is computed again when a part has changed."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from mpm_lite import runtime

KEY = "key"  # under which a kept file says what decided it
CARD, STATE = "config.json", "state.json"  # where folders of results and of checkpoints do
SHOWN = 400  # letters of a key's part that are shown as they are


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 over the parts, each with its length, so that ("ab", "c") and ("a", "bc") differ."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


@dataclass(frozen=True)
class Key:
    """What decides something that is kept. `what` says in words what is kept; `parts` names everything that it depends
    on (weights, data, settings), each as a text, as bytes or as several of these. Equal parts give an equal digest."""

    what: str
    parts: Mapping[str, str | bytes | Sequence[str | bytes]]

    @property
    def digest(self) -> str:
        """SHA-256 over the values of all parts, in their order: the name under which the thing is kept."""
        return digest(one for part in self.parts.values() for one in _several(part))

    def describe(self) -> dict[str, Any]:
        """The key in words, as JSON-able values: {"what", "digest", "parts"}. A part that is long, or several, is shown as
        its own digest."""
        return {"what": self.what, "digest": self.digest, "parts": {k: _shown(v) for k, v in self.parts.items()}}


def _several(part: str | bytes | Sequence[str | bytes]) -> Sequence[str | bytes]:
    return [part] if isinstance(part, (str, bytes)) else part


def _shown(part: str | bytes | Sequence[str | bytes]) -> str:
    if isinstance(part, str) and len(part) <= SHOWN:
        return part
    few = _several(part)
    return f"{len(few)} parts, SHA-256 {digest(few)}" if len(few) != 1 else f"SHA-256 {digest(few)}"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of the parts in which two described keys differ."""
    these, those = one.get("parts", {}), other.get("parts", {})
    return [name for name in dict.fromkeys([*these, *those]) if these.get(name) != those.get(name)]


def code_of(thing: type | Callable[..., Any]) -> str:
    """What tells a class's or a function's code from another's: of one of this library its name and the library's version; of
    any other its source, with that of the classes it derives from and with the plain values it takes from where it was
    defined. Raises UnreadableCode where the source cannot be read.
    """
    from mpm_lite import __version__

    several = [one for one in thing.__mro__ if one is not object] if isinstance(thing, type) else [thing]
    told = []
    for one in several:
        module = str(getattr(one, "__module__", ""))
        if module.split(".")[0] in ("mpm_lite", "torch"):
            told.append(f"{module}.{one.__qualname__} of mpm_lite {__version__}")
            continue
        try:
            told.append(inspect.getsource(one))
        except (OSError, TypeError) as error:
            raise UnreadableCode(
                f"The source of {getattr(one, '__qualname__', one)!r} cannot be read, so nobody could tell whether kept results "
                "are still its own: define it in a notebook or a file, or keep nothing (leave `out` out)."
            ) from error
        if inspect.isfunction(one):
            around = inspect.getclosurevars(one)
            told += [
                f"{k}={v!r}" for k, v in sorted({**around.globals, **around.nonlocals}.items()) if isinstance(v, _PLAIN)
            ]
    return told[0] if len(told) == 1 else digest(told)


_PLAIN = (str, int, float, bool, type(None))


class UnreadableCode(runtime.UserError):
    """The source of a recipe or function cannot be read, so nobody can tell whether it has changed."""


class OtherRun(runtime.UserError):
    """What is kept in a place was made by something else."""


def check_same(place: Path, told: Mapping[str, Any], key: Key) -> None:
    """Raises OtherRun, naming what differs, where something kept says that another key than this made it."""
    if told.get("digest") != key.digest:
        differ = ", ".join(differences(told, key.describe())) if told else "it does not say what made it"
        raise OtherRun(
            f"{place} holds what another configuration made ({differ}): choose another out, or delete that and run again."
        )


_FILES: dict[str, tuple[tuple[int, ...], bytes]] = {}
SETTLED = 2.0  # seconds after which a second change of a file is sure to show in its time


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's bytes. They are read again whenever the file's size, time or inode has changed, and as long as it
    was changed so recently that its time need not tell the next change."""
    stat = path.stat()
    state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev)
    where = str(path.absolute())
    if where in _FILES and _FILES[where][0] == state:
        return _FILES[where][1]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
    _FILES.pop(where, None)
    if time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED:
        _FILES[where] = state, found
    return found


def read_key(path: Path) -> dict[str, Any] | None:
    """What a kept file, or a folder of results or checkpoints, says of its key (`Key.describe`); None where it says nothing."""
    try:
        if path.is_dir():
            found = [read_key(path / name) for name in (CARD, STATE) if (path / name).exists()]
            return next((one for one in found if one), None)
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                told = (file.metadata() or {}).get(KEY)
            return json.loads(told) if told else None
        if path.suffix == ".parquet":
            told = (pq.read_schema(path).metadata or {}).get(b"PANDAS_ATTRS")
            return json.loads(told).get(KEY) if told else None
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8")).get(KEY)
    except (SafetensorError, OSError, ValueError, AttributeError, pa.ArrowException):
        pass
    return None


def explain(path: Path) -> list[str]:
    """Why something was computed: the parts of its key, and in which of them the most similar thing beside it differs.

    Raises UserError for a file that is not there, or that says nothing of a key.
    """
    if not path.exists():
        raise runtime.UserError(f"There is no file or folder {path}.")
    told = read_key(path)
    if told is None:
        raise runtime.UserError(
            f"{path} says nothing of what decided it: give a file of features, weights or rows, or a folder with results."
        )
    lines = [f"{told['what']}, kept under {told['digest'][:16]}; decided by"]
    lines += [f"  {name}: {value}" for name, value in told["parts"].items()]
    beside = {other: key for other in path.parent.iterdir() if other != path and (key := read_key(other))}
    alike = {other: key for other, key in beside.items() if key.get("what") == told["what"]}
    if not alike:
        return [*lines, "Nothing else of that kind lies beside it."]
    nearest = min(alike, key=lambda other: (len(differences(told, alike[other])), other.name))
    differ = differences(told, alike[nearest])
    lines.append(
        f"The most similar of {len(alike)} beside it, {nearest.name}, differs in {', '.join(differ) or 'nothing'}"
    )
    lines += [f"  {name}: there {alike[nearest]['parts'].get(name, 'nothing')}" for name in differ]
    return lines
