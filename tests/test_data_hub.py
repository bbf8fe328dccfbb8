"""Captioned sets through `datasets`: every layout written small, read by the real code; columns, splits, streams, errors."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

import mpm_lite as mpm
from mpm_lite.core.runtime import UserError
from mpm_lite.data import sources
from mpm_lite.data.picture import photo
from mpm_lite.data.rows import Columns, guess_columns

COLOURS = [(20 * i, 255 - 20 * i, 40) for i in range(12)]
EN, DE = [f"a card number {i}" for i in range(12)], [f"eine Karte Nummer {i}" for i in range(12)]


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """Caches of its own, no hub."""
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def encoded(i, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), COLOURS[i]).save(buffer, kind)
    return buffer.getvalue()


def parquet(folder, split="", rows=range(12), **columns):
    """A file of rows whose pictures are as `datasets` keeps them; `columns`: name -> values."""
    folder.mkdir(exist_ok=True)
    picture = columns.pop("picture", "image")
    table = {picture: [{"bytes": encoded(i), "path": None} for i in rows]}
    made = datasets.Dataset.from_dict(table | {k: [v[i] for i in rows] for k, v in columns.items()})
    made.cast_column(picture, datasets.Image(decode=False)).to_parquet(folder / f"{split or 'data'}-00000.parquet")
    return f"parquet:{folder}"


def whole(name, languages="all", **how):
    """All three splits as one: id -> (colour in the middle, captions)."""
    found = {}
    for split in ("train", "val", "test"):
        part = mpm.load_captions(name, split, languages, **how)
        for k, one in enumerate(part.ids):
            found[one.rpartition("/")[2]] = (
                tuple(part.images[k][128, 128]),
                {c: part.captions[c][k] for c in part.languages},
            )
    return found


def test_parquet_with_a_column_a_language_and_our_three_splits(tmp_path):
    for split, rows in (("train", range(8)), ("validation", range(8, 10)), ("test", range(10, 12))):
        name = parquet(tmp_path / "set", split, rows, en=EN, de=DE, image_id=[f"p{i}" for i in range(12)])
    sizes = [len(mpm.load_captions(name, split)) for split in ("train", "val", "test", "train+val")]
    assert sizes == [8, 2, 2, 10]
    found = whole(name)
    assert found["p3"] == (COLOURS[3], {"en": EN[3], "de": DE[3]}) and len(found) == 12
    one = mpm.load_captions(name, "train", ["de"], limit=5)
    assert len(one) == 5 and one.images.shape == (5, 256, 256, 3) and set(one.captions) == {"de"}
    assert mpm.load_captions(name, "train").concepts[0] == "card"


def test_a_set_without_our_splits_is_split_by_its_ids(tmp_path):
    ids = [f"id{i}" for i in range(12)]
    name = parquet(tmp_path / "set", rows=range(12), caption=EN, key=ids)
    places = {s: mpm.load_captions(name, s).ids for s in ("train", "val", "test")}
    assert sum(map(len, places.values())) == 12 and len(places["train"]) > 4
    backwards = parquet(tmp_path / "other", rows=range(11, -1, -1), caption=EN, key=ids)  # whatever the order of rows
    short = lambda many: {i.rpartition("/")[2] for i in many}  # noqa: E731
    assert {s: short(mpm.load_captions(backwards, s).ids) for s in places} == {s: short(i) for s, i in places.items()}


@pytest.mark.parametrize(
    "columns",
    [
        {"image": "bild", "id": "nr", "captions": {"en": "englisch", "de": "deutsch"}},
        {"image": "bild", "id": "nr", "captions": "both"},
    ],
)
def test_other_names_need_a_map(tmp_path, columns):
    both = [{"en": e, "de": [d]} for e, d in zip(EN, DE, strict=True)]
    name = parquet(tmp_path / "s", picture="bild", nr=list(range(12)), englisch=EN, deutsch=DE, both=both)
    with pytest.raises(UserError, match="no column of pictures is called as usual; there are bild, nr, englisch"):
        mpm.load_captions(name)
    assert whole(name, columns=columns)["4"] == (COLOURS[4], {"en": EN[4], "de": DE[4]})


def test_a_row_a_caption_as_wit_has_them(tmp_path):
    rows = [
        (i, code, text) for i in range(6) for code, text in (("en", EN[i]), ("de", DE[i])) if (i, code) != (2, "de")
    ]
    many = list(zip(*rows, strict=True))
    folder = tmp_path / "wit"
    folder.mkdir()
    pictures = [{"bytes": encoded(i), "path": None} for i in many[0]]
    table = {
        "image": pictures,
        "image_url": list(map(str, many[0])),
        "language": list(many[1]),
        "caption": list(many[2]),
    }
    datasets.Dataset.from_dict(table).to_parquet(folder / "data.parquet")
    columns = {"image": "image", "id": "image_url", "captions": "caption", "language": "language"}
    found = whole(f"parquet:{folder}", columns=columns)
    assert len(found) == 6 and found["1"][1] == {"en": EN[1], "de": DE[1]} and found["2"][1] == {"en": EN[2], "de": ""}


def webdataset(folder):
    """Six members, each a picture and a text."""
    folder.mkdir()
    with tarfile.open(folder / "train-000.tar", "w") as tar:
        for i in range(6):
            for end, data in (("png", encoded(i)), ("txt", EN[i].encode())):
                info = tarfile.TarInfo(f"{i:04d}.{end}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return f"webdataset:{folder}"


def imagefolder(folder):
    """Five files of train and three of test, with metadata beside them."""
    for split, rows in (("train", range(5)), ("test", range(5, 8))):
        (folder / split).mkdir(parents=True)
        lines = [json.dumps({"file_name": f"{i}.png", "en": EN[i], "de": DE[i], "id": f"n{i}"}) for i in rows]
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))
        for i in rows:
            (folder / split / f"{i}.png").write_bytes(encoded(i))
    return f"imagefolder:{folder}"


def test_webdataset_and_imagefolder(tmp_path):
    found = whole(webdataset(tmp_path / "web"))
    assert len(found) == 6 and found["0002"] == (COLOURS[2], {"en": EN[2]})
    name = imagefolder(tmp_path / "folder")
    assert [len(mpm.load_captions(name, s)) for s in ("train", "val", "test")] == [5, 0, 3]
    assert whole(name)["n6"] == (COLOURS[6], {"en": EN[6], "de": DE[6]})


def test_a_stream_reads_the_first_rows_and_the_same(tmp_path):
    name = parquet(tmp_path / "set", "train", range(10), en=EN, id=list(map(str, range(12))))
    parquet(tmp_path / "set", "test", range(10, 12), en=EN, id=list(map(str, range(12))))
    plain, stream = mpm.load_captions(name), mpm.load_captions(name, limit=7, streaming=True)
    assert [i.rpartition("/")[2] for i in stream.ids] == [str(i) for i in range(7)]
    assert stream.captions["en"] == plain.captions["en"][:7] and np.array_equal(stream.images[:], plain.images[:7])
    with pytest.raises(UserError, match="needs a limit"):
        mpm.load_captions(name, streaming=True)


KNOWN = {
    "multi30k": {
        "en": [[e] * 5 for e in EN],
        "de": [[d] * 5 for d in DE],
        "fr": [[d] for d in DE],
        "cs": [[d] for d in DE],
    },
    "coco-cn": {"caption_en": [[e] * 5 for e in EN], "caption_zh": [[d] for d in DE]},
    "flickr8k": {f"caption_{k}": [f"{e} {k}" for e in EN] for k in range(5)},
    "flickr30k": {"caption": [[f"{e} {k}" for k in range(5)] for e in EN]},
    "xm3600": {"image_id": list(map(str, range(12))), "captions": [[e, f"{e} again"] for e in EN]},
    "xtd": {"image_id": list(map(str, range(12))), "caption": EN},
    "wit": {"image_url": list(map(str, range(12))), "language": ["en"] * 12, "caption": EN},
}


def fetched(tmp_path, monkeypatch, name):
    """What lies in the set's repository, written here in its layout; everything but the fetching is the real thing. Returns
    what was asked of the hub."""
    by_split = ("en", "de") if name in ("xm3600", "xtd") else ("train", "test")
    for split in by_split:
        parquet(tmp_path / "repo", split, range(12), **KNOWN[name])
    files = {split: str(tmp_path / "repo" / f"{split}-00000.parquet") for split in by_split}
    plain, asked = datasets.load_dataset, []

    def load(repo, **how):
        asked.append((repo, how.pop("revision")))
        return plain("parquet", data_files=files, **how)

    monkeypatch.setattr(datasets, "load_dataset", load)
    sources._parts.cache_clear()
    return asked


@pytest.mark.parametrize("name", sources.KNOWN)
def test_sets_of_the_hub_by_their_layout(tmp_path, monkeypatch, name):
    asked = fetched(tmp_path, monkeypatch, name)
    found = mpm.load_captions(name, "train", "all", revision="v1")
    assert asked == [(sources.KNOWN[name].repo, "v1")] and len(found) and found.images[0].shape == (256, 256, 3)
    if name == "multi30k":
        assert [len(found.several[c][0]) for c in ("en", "de", "fr", "cs")] == [5, 5, 1, 1]
        assert found.take([0, 1]).several["en"][1] == [EN[1]] * 5
    if name in ("xm3600", "xtd"):
        assert set(found.languages) == {"en", "de"} and len(set(found.ids)) == len(found.ids)


def test_what_is_wrong_with_columns_is_one_sentence(tmp_path):
    name = parquet(tmp_path / "s", "train", en=EN, year=list(range(12)), note=EN)
    wrong = (
        (
            {"image": "imag", "captions": "en"},
            "Unknown column of .* 'imag'. Did you mean 'image'.* en, image, note, year",
        ),
        ({"image": "image", "captions": {"en": "nots"}}, "Did you mean 'note'"),
        ({"image": "image", "captions": {"en": "year"}}, "holds int, no text"),
        ({"image": "year", "captions": "en"}, "'year' holds int, no picture"),
        ({"image": "image", "caption": "en"}, "Unknown key of columns 'caption'. Did you mean 'captions'"),
        ({"image": "image"}, "columns needs 'captions'"),
    )
    for columns, said in wrong:
        with pytest.raises(UserError, match=said):
            mpm.load_captions(name, columns=columns)
    torn = datasets.Dataset.from_dict({"image": [{"bytes": b"no picture", "path": None}] * 2, "en": EN[:2]})
    (tmp_path / "torn").mkdir()
    torn.to_parquet(tmp_path / "torn/train.parquet")
    with pytest.raises(UserError, match="picture '000000': A picture cannot be decoded"):
        mpm.load_captions(f"parquet:{tmp_path / 'torn'}").images[0]
    assert guess_columns("x", ["IMG", "caption_en", "caption_de"]) == Columns(
        "IMG", {"en": "caption_en", "de": "caption_de"}
    )


def test_what_cannot_be_had_is_one_sentence(tmp_path, monkeypatch):
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    with pytest.raises(UserError, match="nothing at"):
        mpm.load_captions(f"parquet:{tmp_path / 'none'}")
    with pytest.raises(UserError, match="no .*.parquet under"):
        mpm.load_captions(f"parquet:{tmp_path}")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match="cannot be read .*check its files"):
        mpm.load_captions(f"parquet:{tmp_path / 'bad.parquet'}")
    with pytest.raises(UserError, match="Did you mean 'multi30k'"):
        mpm.load_captions("multi30")
    with pytest.raises(UserError, match="columns, revision and streaming are for other sets"):
        mpm.load_captions("emoji", revision="v1")
    with pytest.raises(UserError, match="need no hub"):
        mpm.load_captions("hub:nobody/nothing-of-the-kind")

    class Answer:
        status_code, headers, request, url, reason, text = 404, {}, None, "", "", ""

    kinds = (
        (GatedRepoError, "is gated: accept its terms"),
        (RevisionNotFoundError, "no revision 'v9'"),
        (datasets.exceptions.DatasetNotFoundError, "no open set 'a/b'"),
    )
    for kind, said in kinds:

        def fail(*args, kind=kind, **how):
            raise kind("said so") if kind.__module__.startswith("datasets") else kind("said so", response=Answer())

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(UserError, match=said):
            mpm.load_captions("hub:a/b", revision="v9")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (1, 900), (700, 3), (40, 30)])
def test_any_mode_and_size_is_a_picture(mode, size):
    buffer = io.BytesIO()
    if mode.startswith("I"):
        Image.fromarray(np.full(size[::-1], 40_000, np.uint16)).save(buffer, "PNG")
    else:
        Image.new("RGB", size, (200, 30, 30)).convert(mode).save(buffer, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    found = photo(buffer.getvalue())
    assert found.shape == (256, 256, 3) and found.dtype == np.uint8
    if mode.startswith("I"):
        assert np.abs(found.astype(int) - 156).min() < 3
    assert (found < 250).any()  # however thin, it is there


def test_a_turned_photograph_is_turned_back():
    buffer, picture = io.BytesIO(), Image.new("RGB", (40, 20), (255, 255, 255))
    picture.paste((200, 0, 0), (0, 0, 20, 20))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    picture.save(buffer, "PNG", exif=exif)
    assert photo(buffer.getvalue())[20, 128, 1] < 60  # red on top


def test_an_experiment_on_files_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    for split, rows in (("train", range(8)), ("validation", range(8, 10)), ("test", range(10, 12))):
        name = parquet(tmp_path / "set", split, rows, en=EN, de=DE, id=list(map(str, range(12))))
    one = mpm.Experiment(
        text="toy",
        image="toy",
        train=(name, ["en"]),
        val=(name, None),
        test=(name, "all"),
        steps=3,
        seeds=1,
        options={"batch": 4},
    )
    table = one.run(progress=False).table
    assert set(table["language"]) == {"en", "de"} and set(table["n"]) == {2}


def test_the_list_names_what_the_hub_has_without_asking(monkeypatch, capsys):
    from mpm_lite.cli import main

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("the hub was asked"))
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in sources.KNOWN) and "parquet:PATH" in said
