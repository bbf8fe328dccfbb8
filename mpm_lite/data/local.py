"""A caption set in your own files: which files belong to it, which split each is in, and where the pictures are.

Only what lies below the folder that you give counts: a folder named `train` above it says nothing.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePath

from mpm_lite.core.keys import digest
from mpm_lite.core.runtime import UserError

# The files that hold the rows of each kind of set, by patterns of their names; capitals do not matter.
ENDS = {
    "parquet": ("*.parquet",),
    "webdataset": ("*.tar",),
    "imagefolder": ("metadata.jsonl", "metadata.csv", "metadata.parquet"),
}
# Files that hold rows too, but compressed, so that they cannot be read here.
PACKED = {
    "parquet": ("*.parquet.gz", "*.parquet.zip"),
    "webdataset": ("*.tar.gz", "*.tgz", "*.tar.bz2", "*.tar.xz", "*.tar.zst"),
    "imagefolder": (),
}
# Other names of the splits. `restval` is the part of COCO's validation pictures that is for training in Karpathy's split.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def is_local(name: str) -> bool:
    """Whether a name says where your own files are, as `parquet:PATH` does."""
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind in ENDS


def place(name: str) -> Path:
    """The absolute path of a local set's folder or file, since the working directory may change later."""
    if not (path := name.partition(":")[2].strip()):
        raise UserError(f"{name!r} names no folder or file: say where the set is, as in {name.strip()}photos.")
    return Path(path).expanduser().absolute()


def is_present(name: str) -> bool:
    """Whether a local set's folder or file is on this machine."""
    return is_local(name) and place(name).exists()


def set_names(name: str, is_set: Callable[[str], bool]) -> list[str]:
    """The sets that a name joins with '+'. The path of a local set may contain a '+' too, so the path that exists is taken.

    is_set: whether a text is the name of a set, or begins like one (`parquet:photos`).
    Raises UserError where a name can be read in two ways, because both `photos` and `photos+emoji` exist.
    """
    pieces = name.split("+")
    starts = [is_set(piece.strip()) for piece in pieces]
    readings = list(_readings(pieces, starts))
    if len(readings) > 1:
        ways = " or ".join(" and ".join(map(repr, reading)) for reading in readings[:2])
        raise UserError(f"{name!r} may mean {ways}, which are all there: rename one of the folders.")
    found = readings[0] if readings else _nearest_reading(pieces)
    places: dict[object, str] = {}  # two spellings of one folder are one set
    for one in found:
        places.setdefault((one.partition(":")[0], place(one).resolve()) if is_local(one) else one, one)
    return list(places.values())


def _readings(pieces: Sequence[str], starts: Sequence[bool], at: int = 0) -> Iterable[list[str]]:
    """All ways to read the pieces from `at` on such that every set is known and every path exists."""
    if at == len(pieces):
        yield []
        return
    if not starts[at]:
        return
    local = is_local(pieces[at].strip())
    for end in range(at + 1, (len(pieces) if local else at + 1) + 1):
        one = "+".join(pieces[at:end]).strip()
        if not local or is_present(one):
            yield from ([one, *rest] for rest in _readings(pieces, starts, end))


def _nearest_reading(pieces: Sequence[str]) -> list[str]:
    """The sets that were probably meant, where no reading fits, so that an error can name the wrong one."""
    found, at = [], 0
    while at < len(pieces):
        end = at + 1
        if is_local(pieces[at].strip()):
            there = [e for e in range(end, len(pieces) + 1) if is_present("+".join(pieces[at:e]))]
            # An empty piece, or one with a slash and no colon, can only be the rest of a path.
            while not there and end < len(pieces) and re.fullmatch("|[^:]*/[^:]*", pieces[end]):
                end += 1
            end = max(there, default=end)
        found.append("+".join(pieces[at:end]).strip())
        at = end
    return found


def shown_names(names: Sequence[str]) -> dict[str, str]:
    """The name of each set in tables and ids: of a local path only as many folders as it takes to tell two sets apart."""
    found = {name: name for name in names}
    local = {name: Path(os.path.normpath(place(name))).parts for name in names if is_local(name)}
    for name, parts in local.items():
        kind = name.partition(":")[0]
        others = [of for other, of in local.items() if other != name and other.partition(":")[0] == kind]
        depth = 1
        while depth < len(parts) and any(of[-depth:] == parts[-depth:] for of in others):
            depth += 1
        found[name] = f"{kind}:{'/'.join(parts[-depth:])}"
    return found


def files(name: str) -> list[Path]:
    """The files that hold the rows of a local set, in order. Raises UserError if there are none, or compressed ones."""
    kind, root = name.partition(":")[0], place(name)
    if not root.exists():
        raise UserError(f"There is nothing at {str(root)!r}: give the folder or file of a {kind} set.")
    found = [root]
    if root.is_dir():
        # Hidden files do not belong to the set: .ipynb_checkpoints holds copies of what Jupyter opened.
        seen = [file for file in walk(root) if not any(piece.startswith(".") for piece in below(file, root).parts)]
        found = [file for file in seen if _ends(file, ENDS[kind])]
        if packed := [file for file in seen if _ends(file, PACKED[kind])]:
            raise UserError(
                f"{name}: {below(packed[0], root)} is compressed and cannot be read so: unpack it, or move it away."
            )
    if not found and kind == "imagefolder":
        raise UserError(
            f"{name} has no captions: there is none of {', '.join(ENDS[kind])} under it, with a column file_name and a "
            "column of captions."
        )
    if not found:
        raise UserError(f"There is no {ENDS[kind][0]} under {root}: give the folder of a {kind} set.")
    return found


def tar_fields(file: Path) -> set[str]:
    """The endings of the members of a tar file, after the first dot of their names: png, txt, de."""
    with tarfile.open(file) as tar:
        return {PurePath(member.name).name.partition(".")[2] for member in tar if member.isfile()} - {""}


def check_whole(file: Path, shown: str) -> None:
    """Raises UserError for a tar file whose end is missing. shown: the file's name in the error."""
    with open(file, "rb") as opened:
        opened.seek(max(0, file.stat().st_size - tarfile.BLOCKSIZE))
        if opened.read().strip(b"\0"):
            raise UserError(
                f"{shown} ends in the middle, and what comes after that is lost: copy or make the file again."
            )


def walk(root: Path) -> list[Path]:
    """All files below a folder, in order. Links to folders are followed, and each folder is visited once."""
    found, seen = [], set()
    for folder, inner, names in os.walk(root, followlinks=True):
        seen.add(os.path.realpath(folder))
        inner[:] = [one for one in inner if os.path.realpath(os.path.join(folder, one)) not in seen]
        found += [Path(folder, name) for name in names]
    return sorted(found)


def _ends(file: Path, patterns: Iterable[str]) -> bool:
    return any(fnmatch(file.name.lower(), pattern) for pattern in patterns)


def below(file: Path, root: Path) -> PurePath:
    """The path of a file below the folder that was given; only its name if the file itself was given."""
    return file.relative_to(root) if root.is_dir() else PurePath(file.name)


def split_of_name(name: str, shown: str) -> str | None:
    """The split that the name of a file or folder says: train, val, test or None. Raises UserError if it says two."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]  # testA is a test set
    said = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if len(said) > 1:
        raise UserError(
            f"{shown}: the name {name!r} says both {' and '.join(sorted(said))}: rename it, so that it says one."
        )
    return next(iter(said), None)


def split_of_folders(path: PurePath, shown: str) -> str | None:
    """The split that the nearest folder of a path says, if any."""
    return next((s for folder in reversed(path.parent.parts) if (s := split_of_name(folder, shown))), None)


def picture_file(said: str, folders: Sequence[Path], shown: str) -> tuple[Path | None, list[Path]]:
    """The file of a picture that a set names by its path (None if it is missing or cannot be read), and all places tried.

    folders: where to look for a relative path: the folder of the set, and the folder of the file that names the picture.
    Raises UserError if the path fits two different files.
    """
    path = Path(said)
    tried = [path] if path.is_absolute() else list(dict.fromkeys(folder / path for folder in folders))
    found = [one for one in tried if os.path.isfile(one) and os.access(one, os.R_OK)]
    if len(found) > 1 and not all(os.path.samefile(one, found[0]) for one in found):
        raise UserError(f"{shown}: the path {said!r} may be {found[0]} or {found[1]}: name the folder in the path.")
    return (found[0] if found else None), tried


def stamp(name: str) -> str:
    """A digest of the names, sizes and times of a local set's files, which differs after a change; "" for other sets."""
    if not is_present(name):
        return ""
    root = place(name)
    return stamp_of(walk(root) if root.is_dir() else [root])


def stamp_of(paths: Iterable[Path]) -> str:
    """The names, sizes and times of these files as one digest; that a file is missing counts too.

    The time of the last change of a file's status is included, because copies and archives may set back the other time.
    """
    pieces = []
    for path in paths:
        try:
            facts = path.stat()
        except (OSError, ValueError):
            pieces.append(f"{path} is not there")
            continue
        if not path.is_dir():
            pieces.append(f"{path} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino}")
    return digest(pieces)
