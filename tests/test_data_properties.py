"""Any layout of a user's own pictures: nothing of the test set in training, nothing lost or moved, and the same set each time.

A layout is drawn whole: folders and words of splits in their names, a column of splits, ids, languages under several names,
pictures that come more than once, and the format. What may be refused follows from the layout alone, and nothing else is.
"""

import io
import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import mpm_lite as mpm
from mpm_lite.core.runtime import UserError
from mpm_lite.data import sources

SPLITS = ("train", "val", "test")
FORMATS = ("bytes", "paths", "webdataset", "imagefolder")
WORDS = {"train": "train", "validation": "val", "val2017": "val", "dev": "val", "test": "test", "Test-00": "test"}
PLAIN = ("photos", "monday", "latest", "contest", "trains")  # none of these is a split
IN_COLUMN = {"train": "train", "restval": "train", "Val": "val", "test": "test"}
LANGUAGES = {"en": "en", "de": "de", "zh-CN": "zh", "zh_Hans": "zh", "zh": "zh", "caption_fr": "fr", "pt_BR": "pt-BR"}


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (5 * i, 255 - 5 * i, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def number(picture) -> int:
    return int(picture[128, 128, 0]) // 5


@dataclass(frozen=True)
class Row:
    """What was written: which picture, its id, what its column of splits says, its captions by column."""

    picture: int
    id: str | None
    split: str | None
    captions: dict[str, str | None]


@dataclass(frozen=True)
class Layout:
    """A set as it lies on the disk: files by path, each with its rows."""

    kind: str
    above: str
    files: dict[str, list[Row]]
    ids: str
    column: bool

    def said(self, path: str) -> str | None:
        """The split that a file's name says, or the nearest of its folders."""
        parts = list(Path(path).parts)
        names = [Path(parts[-1]).stem, *reversed(parts[:-1])] if self.kind != "imagefolder" else reversed(parts[:-1])
        return next((WORDS[name] for name in names if name in WORDS), None)

    def split(self, path: str, row: Row) -> str | None:
        return IN_COLUMN[row.split] if self.column else self.said(path)

    @property
    def rows(self) -> list[tuple[str, Row]]:
        return [(path, row) for path, few in self.files.items() for row in few]

    @property
    def hashed(self) -> bool:
        return not self.column and not {self.said(path) for path in self.files} & {"val", "test"}

    def pool(self, path: str, row: Row) -> str:
        return "" if self.hashed else self.split(path, row) or "train"

    @property
    def places(self) -> dict[int, set[str]]:
        """The splits that each picture is put into."""
        found: dict[int, set[str]] = {}
        for path, row in self.rows:
            found.setdefault(row.picture, set()).add(self.pool(path, row))
        return found

    @property
    def repeats(self) -> bool:
        """Whether a picture is in two splits."""
        return any(len(few) > 1 for few in self.places.values())

    @property
    def contradicts(self) -> bool:
        """Whether a name and a column disagree about a split, some files say none, or an id is missing or has two pictures."""
        if self.column and any(self.said(p) not in (None, IN_COLUMN[r.split]) for p, r in self.rows):
            return True
        said = [self.said(path) is None for path, _ in self.rows]
        if not self.column and any(said) and not all(said):
            return True
        if self.kind == "webdataset":
            return False  # a key that comes again is told apart by its file
        pictures: dict[tuple[str, str], set[int]] = {}
        for path, row in self.rows:
            if row.id is not None:
                pictures.setdefault((self.pool(path, row), row.id), set()).add(row.picture)
        missing = [row.id is None for _, row in self.rows]
        return (any(missing) and not all(missing)) or any(len(few) > 1 for few in pictures.values())


@st.composite
def layouts(draw):
    kind = draw(st.sampled_from(FORMATS))
    ids = draw(st.sampled_from(("none", "unique", "picture", "null", "few")))
    column = draw(st.booleans()) and kind != "webdataset"
    columns = (
        ["txt"] if kind == "webdataset" else draw(st.lists(st.sampled_from(list(LANGUAGES)), min_size=1, unique=True))
    )
    folder = st.sampled_from([*PLAIN, *WORDS])
    split_words = draw(st.booleans())
    names = st.sampled_from([*PLAIN, *WORDS] if split_words else PLAIN)
    files, counter = {}, 0
    for k in range(draw(st.integers(1, 3))):
        path = draw(st.lists(names, max_size=2).map("/".join))
        end = {"webdataset": ".tar", "imagefolder": ""}.get(kind, ".parquet")
        name = draw(names) if kind != "imagefolder" else f"f{k}"
        path = "/".join(piece for piece in (path, name + end) if piece)
        if path in files:
            continue
        rows = []
        for _ in range(draw(st.integers(1, 6))):
            picture = draw(st.integers(0, 11))
            own = {
                "none": None,
                "unique": f"n{counter}",
                "picture": f"p{picture}",
                "null": draw(st.sampled_from([None, f"n{counter}"])),
                "few": f"k{draw(st.integers(0, 3))}",
            }[ids]
            captions = {c: draw(st.sampled_from([f"{c} said of {picture} {counter}", None])) for c in columns[1:]}
            captions[columns[0]] = f"{columns[0]} said of {picture} {counter}"
            split = draw(st.sampled_from(list(IN_COLUMN))) if column else None
            rows.append(Row(picture, own, split, captions))
            counter += 1
        files[path] = rows
    return Layout(kind, draw(folder), files, ids, column)


def write(layout: Layout, at: Path, torn: int = -1) -> str:
    """The layout on the disk; returns the set's name. torn: the picture whose bytes end too soon."""

    def encoded(i: int) -> bytes:
        return png(i)[: 50 if i == torn else None]

    root = at / layout.above / "set"
    for number, (path, rows) in enumerate(layout.files.items()):
        file = root / path
        if layout.kind == "imagefolder":
            file.mkdir(parents=True)
            lines = []
            for k, row in enumerate(rows):
                (file / f"{k}.png").write_bytes(encoded(row.picture))
                lines.append(json.dumps({"file_name": f"{k}.png", **columns_of(layout, row)}))
            (file / "metadata.jsonl").write_text("\n".join(lines))
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if layout.kind == "webdataset":
            with tarfile.open(file, "w") as tar:
                for k, row in enumerate(rows):
                    key = row.id if layout.ids == "unique" else f"{k:03d}"
                    for end, data in (("png", encoded(row.picture)), ("txt", row.captions["txt"].encode())):
                        info = tarfile.TarInfo(f"{key}.{end}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
            continue
        pictures = [encoded(row.picture) for row in rows]
        if layout.kind == "paths":
            pictures = []
            for row in rows:
                pictures.append(f"{number}-{row.picture}.png")  # a path that two folders have is refused
                (file.parent / pictures[-1]).write_bytes(encoded(row.picture))
        table = [columns_of(layout, row) for row in rows]
        texts = {c: pa.array([one[c] for one in table], pa.string() if c != "no" else None) for c in table[0]}
        pq.write_table(pa.table({"image": pictures, **texts}), file)
    return f"{layout.kind if layout.kind in ('webdataset', 'imagefolder') else 'parquet'}:{root}"


def columns_of(layout: Layout, row: Row) -> dict[str, str | None]:
    own = {} if layout.ids == "none" else {"image_id": row.id}
    return {**own, **({"split": row.split} if layout.column else {}), **row.captions, "no": row.picture}


def read(name: str, **how: bool) -> dict[str, list]:
    """Everything that a set says: by split, each picture's id, which it is by its pixels, its captions, and digests of all."""
    found = {}
    for split in SPLITS:
        whole = mpm.load_captions(name, split, "all", **how)
        part = whole.parts[0][0]
        several = whole.several
        pixels = [number(one) for one in whole.images[:]]
        assert len(set(whole.ids)) == len(whole)
        found[split] = [
            (one, pixels[k], {c: of[k] for c, of in several.items() if of[k]}) for k, one in enumerate(whole.ids)
        ]
        found[f"{split} digests"] = [part.image_digest(), *(part.text_digest(c) for c in whole.languages)]
    return found


def captions_written(layout: Layout) -> dict[int, list[tuple[str, str]]]:
    """All captions of each picture, with their languages."""
    found: dict[int, list[tuple[str, str]]] = {}
    for _, row in layout.rows:
        said = found.setdefault(row.picture, [])
        said += [(LANGUAGES.get(c, "en"), text) for c, text in row.captions.items() if text]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for all layouts: a set that is rewritten in place must not come back as it was."""
    at = tmp_path_factory.mktemp("layouts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", at / "cache")
        patch.setenv("MPM_LITE_HOME", str(at / "home"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield at / "sets"


bounded = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


@bounded
@given(layout=layouts())
def test_any_layout_is_read_whole_and_the_same_or_refused_for_a_reason(place, layout):
    shutil.rmtree(place, ignore_errors=True)
    name = write(layout, place)
    try:
        found = read(name)
    except UserError as error:
        assert layout.contradicts or layout.repeats, f"refused without a reason: {error}"
        assert "\n" not in str(error)
        return
    # no picture's bytes in two splits
    pictures = [{i for _, i, _ in found[split]} for split in SPLITS]
    assert not pictures[0] & pictures[1] and not pictures[0] & pictures[2] and not pictures[1] & pictures[2]
    # no caption lost or moved to another picture, and every picture where the set says it is
    kept: dict[int, list[tuple[str, str]]] = {}
    for split in SPLITS:
        for _, i, several in found[split]:
            kept.setdefault(i, []).extend((c, text) for c, texts in several.items() for text in texts)
    written = captions_written(layout)
    assert {i: sorted(few) for i, few in kept.items()} == {i: sorted(few) for i, few in written.items()}
    if not layout.hashed:
        for path, row in layout.rows:
            assert row.picture in pictures[SPLITS.index(layout.pool(path, row))]
    # the same set read twice is the same set, in this process and (its parts forgotten) in the next
    assert read(name) == found
    sources._parts.cache_clear()
    assert read(name) == found
    # and a set that contradicts itself is never read
    assert not layout.contradicts and not layout.repeats


@settings(bounded, max_examples=60)
@given(layout=layouts())
def test_what_is_left_out_is_what_is_torn_or_in_two_splits_and_nothing_else(place, layout):
    shutil.rmtree(place, ignore_errors=True)
    name, torn = write(layout, place, torn=3), 3
    try:
        found = read(name, skip_bad=True)
    except UserError as error:
        assert layout.contradicts or set(layout.places) == {torn}, f"refused without a reason: {error}"
        return
    assert not layout.contradicts
    for i, places in layout.places.items():
        there = [split for split in SPLITS if i in {one for _, one, _ in found[split]}]
        if i == torn:
            assert there == []
        elif layout.hashed:
            assert len(there) == 1
        else:
            assert there == [next(split for split in ("test", "val", "train") if split in places)]
    left = sum(len(mpm.load_captions(name, split, "all", skip_bad=True).left_out) for split in SPLITS)
    assert (left > 0) == (torn in layout.places or layout.repeats)


SPLIT_OF: list[dict[int, str]] = []  # where each picture went, an entry a layout


@settings(bounded, max_examples=25)
@given(order=st.permutations(range(12)), kind=st.sampled_from(FORMATS), files=st.integers(1, 3))
def test_where_a_picture_goes_by_its_hash_depends_on_the_picture_alone(place, order, kind, files):
    rows = [Row(i, f"n{i}", None, {"en" if kind != "webdataset" else "txt": f"said of {i}"}) for i in order]
    layout = Layout(kind, "photos", {f"x{k}" + {"webdataset": ".tar", "imagefolder": ""}.get(kind, ".parquet"): rows[k::files]
                                     for k in range(files)}, "unique", False)  # fmt: skip
    shutil.rmtree(place, ignore_errors=True)
    found = read(write(layout, place))
    split_of = {i: split for split in SPLITS for _, i, _ in found[split]}
    SPLIT_OF.append(split_of)
    assert split_of == SPLIT_OF[0] and set(split_of) == set(range(12))
