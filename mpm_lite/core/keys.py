"""Keys: a list of everything that decides something kept, so that it is computed again, and says why, when a part changes."""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from mpm_lite.core import __version__
from mpm_lite.core.runtime import UserError

KEY = "key"  # the name under which a kept file holds its key
CARD, STATE = "config.json", "state.json"  # the files in which folders of results and of checkpoints hold theirs
SHOWN = 400  # parts of a key up to so many letters are shown as they are


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 over the parts and the length of each, so that ("ab", "c") and ("a", "bc") differ."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


@dataclass(frozen=True)
class Key:
    """What decides something that is kept. `what` says in words what that is; `parts` names everything that it depends
    on (weights, data, settings), each as a text, as bytes or as several of these. Equal parts give an equal digest."""

    what: str
    parts: Mapping[str, str | bytes | Sequence[str | bytes]]

    @property
    def digest(self) -> str:
        """SHA-256 over the values of all parts, in order: the name under which the thing is kept."""
        return digest(one for part in self.parts.values() for one in _several(part))

    def describe(self) -> dict[str, Any]:
        """The key for readers, in values that JSON can hold: {"what", "digest", "parts"}. A part that is long, or that
        consists of several, is shown as its own digest."""
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
    """A text that changes whenever the code of a class or function does.

    For code of this library it is the name and the library's version. For any other code it is the source, together
    with the source of the classes that it derives from and of the functions and classes of the same module that it
    uses, and with the plain values that it takes from its surroundings, from its defaults and from the attributes of
    its classes. Lists are left out, since functions often note in them what they did. Raises UnreadableCode where the
    source cannot be read, and for a method, whose object may hold anything.
    """
    if inspect.ismethod(thing) and not isinstance(thing.__self__, type):
        raise UnreadableCode(
            f"{thing.__qualname__!r} is a method of an object, and what the object holds cannot be told from what it held "
            "earlier: give a function, or keep nothing (leave `out` out)."
        )
    told: dict[Any, str] = {}
    _tell(thing, told, thing.__module__ if hasattr(thing, "__module__") else "")
    return next(iter(told.values())) if len(told) == 1 else digest(told.values())


_PLAIN = (str, int, float, bool, type(None))


def _tell(thing: Any, told: dict[Any, str], module: str) -> None:
    """Add the code of a class or function, and of those of its module that it uses, to what is told; each once."""
    if thing in told:
        return
    library = str(getattr(thing, "__module__", "")).split(".")[0] in ("mpm_lite", "torch", "abc")
    try:
        named = f"{thing.__module__}.{thing.__qualname__} of mpm_lite {__version__}" if library else ""
        told[thing] = named or inspect.getsource(thing)
    except (OSError, TypeError) as error:
        raise UnreadableCode(
            f"The source of {getattr(thing, '__qualname__', thing)!r} cannot be read, so nobody could tell whether kept results "
            "are still its own: define it in a notebook or a file, or keep nothing (leave `out` out)."
        ) from error
    for base in thing.__mro__[1:-1] if isinstance(thing, type) else ():
        _tell(base, told, module)
    if library:
        return
    used = _used_by(thing)
    told[thing] += "".join(f"\n{k}={v!r}" for k, v in used if _is_plain(v) and not isinstance(v, list))
    for _, one in used:
        if (inspect.isfunction(one) or isinstance(one, type)) and one.__module__ == module:
            _tell(one, told, module)


def _used_by(thing: Any) -> list[tuple[str, Any]]:
    """What a function or a class's methods take from around them and from their defaults, and the class's own
    attributes, each with its name, in the order of names."""
    used, functions = {}, [thing]
    if isinstance(thing, type):
        used |= {f"{thing.__qualname__}.{k}": v for k, v in vars(thing).items() if not k.startswith("__")}
        held = [getattr(v, "__func__", getattr(v, "fget", v)) for v in vars(thing).values()]
        functions = [one for one in held if callable(one) and not isinstance(one, type)]
    for one in functions:
        if inspect.isfunction(one) and inspect.unwrap(one).__code__.co_filename == "<string>":
            continue  # written by `dataclass`: the fields, which are in the class's own source, decide it
        for f in filter(inspect.isfunction, (one, inspect.unwrap(one))):
            around = inspect.getclosurevars(f)
            given = {**dict(enumerate(f.__defaults__ or ())), **(f.__kwdefaults__ or {})}
            used |= {**around.globals, **around.nonlocals} | {f"{f.__qualname__}: {k}": v for k, v in given.items()}
    return sorted(used.items(), key=lambda pair: pair[0])


def _is_plain(value: Any) -> bool:
    """Whether Python writes a value out in full: a number, a text, or a list, tuple or dict of such."""
    if isinstance(value, Mapping):
        return all(_is_plain(one) for pair in value.items() for one in pair)
    return isinstance(value, _PLAIN) or (isinstance(value, (list, tuple)) and all(map(_is_plain, value)))


def value_of(value: Any) -> str:
    """A text that changes whenever a value does: of weights their fingerprint, of a caption set its digest, of a class
    or function its code, of plain values how Python writes them, of anything else its pickled bytes. Raises UserError
    for a value that has no bytes.
    """
    for own in ("fingerprint", "digest"):
        if isinstance(getattr(value, own, None), str):
            return getattr(value, own)
    if _is_plain(value):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return digest(map(value_of, value))
    if isinstance(value, Mapping):
        return digest(one for k, v in value.items() for one in (value_of(k), value_of(v)))
    if isinstance(value, type) or inspect.isroutine(value):
        return code_of(value)
    if isinstance(value, np.generic):  # a number from an array of settings is that number
        return repr(value.item())
    try:
        return digest([f"{type(value).__module__}.{type(value).__qualname__}", pickle.dumps(value)])
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UserError(
            f"A dial has a value of type {type(value).__name__}, and it cannot be told from other values ({error}): give its "
            "class a `fingerprint`, a text that changes whenever the value does, or keep nothing (leave `out` out)."
        ) from error


class UnreadableCode(UserError):
    """The source of a recipe or function cannot be read, so nobody can tell whether it has changed."""


class OtherRun(UserError):
    """What is kept in a place was made by something else."""


def check_same(place: Path, told: Mapping[str, Any], key: Key) -> None:
    """Raises OtherRun, naming what differs, where something kept says that it was made under another key than this."""
    if told.get("digest") != key.digest:
        differ = ", ".join(differences(told, key.describe())) if told else "it does not say what made it"
        raise OtherRun(
            f"{place} holds what another configuration made ({differ}): choose another out, or delete that and run again."
        )


_FILES: dict[str, tuple[tuple[int, ...], bytes]] = {}
SETTLED = 2.0  # seconds after which another change of a file is sure to show in its time


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's bytes. They are read again whenever the file's size, time or inode has changed, and also
    while its last change is so recent that another one might not show in its time."""
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
    """The key that a kept file, or a folder of results or checkpoints, holds (`Key.describe`); None where it holds none."""
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


def explain_key(path: Path) -> list[str]:
    """Why something was computed: the parts of its key, and those in which the most similar thing beside it differs.

    Raises UserError for a file that is not there, or that says nothing of a key.
    """
    if not path.exists():
        raise UserError(f"There is no file or folder {path}.")
    told = read_key(path)
    inside = [one for one in sorted(path.iterdir()) if read_key(one)] if path.is_dir() and told is None else []
    if inside:
        raise UserError(
            f"{path} holds {len(inside)} results, each with a key of its own: ask about one of them, such as {inside[0]}."
        )
    if told is None:
        raise UserError(
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
    lines += [
        f"The most similar of {len(alike)} beside it, {nearest.name}, differs in {', '.join(differ) or 'nothing'}"
    ]
    lines += [f"  {name}: there {alike[nearest]['parts'].get(name, 'nothing')}" for name in differ]
    return lines
