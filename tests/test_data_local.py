"""Pictures of one's own: nothing of the test set in training, nothing lost, and one sentence where the set is in doubt."""

import io
import json
import os
import pickle
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_data_hub import apart  # noqa: F401
from worlds import Meaning

import mpm_lite as mpm
from mpm_lite.core.runtime import UserError
from mpm_lite.data import local, sources, splits
from mpm_lite.data.captionset import CaptionSet, Part
from mpm_lite.data.picture import photo
from mpm_lite.data.rows import Columns, guess_columns
from mpm_lite.evaluation import retrieval
from mpm_lite.towers import feature_cache as features

SPLITS = ("train", "val", "test")
EN = [f"a picture with the number {i}" for i in range(40)]


def colour(i):
    return (5 * i, 255 - 5 * i, 40)


def png(i, mode="RGB"):
    """A small picture whose colour is its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour(i)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def number(picture):
    return int(picture[128, 128, 0]) // 5


def parquet(file, pictures, **columns):
    """A parquet file whose pictures are bytes (numbers stand for those of `png`) or paths; returns the name of its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    held = [png(one) if isinstance(one, int) else one for one in pictures]
    pq.write_table(pa.table({"image": held, **columns}), file)
    return f"parquet:{file.parent}"


def tar(file, members):
    """A tar file of (key, number, caption)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as made:
        for key, i, text in members:
            for end, data in (("png", png(i)), ("txt", text.encode())):
                info = tarfile.TarInfo(f"{key}.{end}")
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))


def imagefolder(folder, pictures, metadata="", **columns):
    """Pictures {path: number} below a folder, and their metadata, in the folder `metadata` below it."""
    rows = []
    for k, (path, i) in enumerate(pictures.items()):
        (folder / metadata / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / metadata / path).write_bytes(png(i))
        rows.append(json.dumps({"file_name": path, "en": EN[i], **{c: v[k] for c, v in columns.items()}}))
    (folder / metadata / "metadata.jsonl").write_text("\n".join(rows))
    return f"imagefolder:{folder}"


def read(name, **how):
    """The set as {split: [(id, number of the picture, its captions by language)]}."""
    found = {}
    for split in SPLITS:
        part = mpm.load_captions(name, split, "all", **how)
        short = [one.removeprefix(f"{part.parts[0][0].name}/") for one in part.ids]
        several = [{c: part.several[c][k] for c in part.languages if part.several[c][k]} for k in range(len(part))]
        found[split] = [(i, number(p), s) for i, p, s in zip(short, part.images[:], several, strict=True)]
    return found


def numbers(name, **how):
    return {split: [i for _, i, _ in few] for split, few in read(name, **how).items()}


def everything(name, **how):
    """All pictures of a set, whatever their split: {number: captions}; no picture is there twice."""
    found = [one for few in read(name, **how).values() for one in few]
    assert len({i for _, i, _ in found}) == len(found)
    return {i: said for _, i, said in found}


# Splits


def test_a_folder_called_train_above_the_set_says_nothing(tmp_path):
    at = tmp_path / "train" / "photos"
    for split, few in (("train", [0, 1, 2]), ("val", [3]), ("test", [4, 5])):
        name = parquet(at / f"{split}.parquet", few, en=[EN[i] for i in few])
    assert numbers(name) == {"train": [0, 1, 2], "val": [3], "test": [4, 5]}
    name = imagefolder(tmp_path / "test" / "folder", {"0.png": 0}, "train")
    imagefolder(tmp_path / "test" / "folder", {"1.png": 1}, "val")
    assert numbers(name) == {"train": [0], "val": [1], "test": []}
    tar(tmp_path / "dev" / "web" / "train-0.tar", [("a", 0, EN[0])])
    tar(tmp_path / "dev" / "web" / "test2017-0.tar", [("b", 1, EN[1])])
    assert numbers(f"webdataset:{tmp_path / 'dev' / 'web'}") == {"train": [0], "val": [], "test": [1]}


def test_a_files_own_name_comes_first_then_the_nearest_folder(tmp_path):
    parquet(tmp_path / "s" / "train" / "val.parquet", [0], en=EN[:1])
    parquet(tmp_path / "s" / "test" / "train" / "more" / "x.parquet", [1], en=EN[1:2])
    parquet(tmp_path / "s" / "test" / "x.parquet", [2], en=EN[2:3])
    assert numbers(f"parquet:{tmp_path / 's'}") == {"train": [1], "val": [0], "test": [2]}


@pytest.mark.parametrize("silent", ["more", "minival", "devtest", "testset"])
def test_a_file_that_says_no_split_beside_others_that_do_is_refused(tmp_path, silent):
    parquet(tmp_path / "s" / "train.parquet", [0, 1], en=EN[:2])
    name = parquet(tmp_path / "s" / f"{silent}.parquet", [2, 3], en=EN[2:4])
    with pytest.raises(UserError, match=f"{silent}.parquet, row 0 says no split.*says train"):
        mpm.load_captions(name)


@pytest.mark.parametrize("test", ["testA", "Test2014", "TEST", "photosTest"])
def test_a_capital_letter_begins_a_word(tmp_path, test):
    parquet(tmp_path / "s" / "train.parquet", [0, 1], en=EN[:2])
    assert numbers(parquet(tmp_path / "s" / f"{test}.parquet", [2], en=EN[2:3])) == {
        "train": [0, 1],
        "val": [],
        "test": [2],
    }


@pytest.mark.parametrize("path", ["train-test.parquet", "val_train/x.parquet"])
def test_two_splits_in_one_name_are_refused(tmp_path, path):
    parquet(tmp_path / "s" / path, [0], en=EN[:1])
    with pytest.raises(UserError, match=f"{path}: the name .* says both"):
        mpm.load_captions(f"parquet:{tmp_path / 's'}")


def test_a_column_of_splits_is_followed(tmp_path):
    said = ["train", "restval", "Validation", "test", "dev"] * 4
    for column in ("split", "Split"):
        name = parquet(tmp_path / column / "data.parquet", list(range(20)), en=EN[:20], **{column: said})
        found = {"train": [0, 1], "val": [2, 4], "test": [3]}
        assert numbers(name) == {s: sorted(i + 5 * k for i in few for k in range(4)) for s, few in found.items()}
    name = imagefolder(tmp_path / "folder", {f"{i}.png": i for i in range(3)}, split=["test", "val", "train"])
    assert numbers(name) == {"train": [2], "val": [1], "test": [0]}


def test_a_column_of_splits_by_another_name_is_refused_until_it_is_named(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1, 2], en=EN[:3], partition=["train", "test", "dev"])
    with pytest.raises(UserError, match='column \'partition\' seems to say the splits.*"split": "partition"'):
        mpm.load_captions(name)
    told = {"image": "image", "captions": {"en": "en"}}
    assert numbers(name, columns={**told, "split": "partition"}) == {"train": [0], "val": [2], "test": [1]}
    assert sorted(everything(name, columns={**told, "split": None})) == [0, 1, 2]


def test_a_column_of_splits_may_be_one_of_class_labels(tmp_path):
    labels = datasets.ClassLabel(names=["test", "train", "validation"])
    kinds = datasets.Features({"image": datasets.Value("binary"), "en": datasets.Value("string"), "split": labels})
    table = {"image": [png(i) for i in range(3)], "en": EN[:3], "split": [1, 0, 2]}
    (tmp_path / "s").mkdir()
    datasets.Dataset.from_dict(table, features=kinds).to_parquet(tmp_path / "s" / "x.parquet")
    assert numbers(f"parquet:{tmp_path / 's'}") == {"train": [0], "val": [2], "test": [1]}


def test_folders_inside_a_tar_file_say_splits(tmp_path):
    tar(tmp_path / "s" / "x.tar", [("train/0", 0, EN[0]), ("val2014/1", 1, EN[1]), ("more/test/2", 2, EN[2])])
    assert numbers(f"webdataset:{tmp_path / 's'}") == {"train": [0], "val": [1], "test": [2]}


def test_folders_that_are_links_are_part_of_a_set(tmp_path):
    parquet(tmp_path / "elsewhere" / "x.parquet", [0, 1], en=EN[:2])
    name = parquet(tmp_path / "s" / "test.parquet", [2], en=EN[2:3])
    (tmp_path / "s" / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "s")  # a circle
    assert numbers(name) == {"train": [0, 1], "val": [], "test": [2]}
    parquet(tmp_path / "elsewhere" / "x.parquet", [5, 6], en=EN[5:7])
    assert numbers(name)["train"] == [5, 6]


def test_endings_in_capitals_are_endings(tmp_path):
    parquet(tmp_path / "s" / "train.parquet", [0, 1], en=EN[:2])
    name = parquet(tmp_path / "s" / "test.PARQUET", [2], en=EN[2:3])
    assert numbers(name) == {"train": [0, 1], "val": [], "test": [2]}


def test_compressed_shards_are_refused_not_left_out(tmp_path):
    tar(tmp_path / "s" / "a.tar", [("0", 0, EN[0])])
    (tmp_path / "s" / "b.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="b.tar.gz is compressed.*unpack it"):
        mpm.load_captions(f"webdataset:{tmp_path / 's'}")


def test_hidden_copies_are_no_part_of_a_set(tmp_path):
    parquet(tmp_path / "s" / ".ipynb_checkpoints" / "test-checkpoint.parquet", [0], en=EN[:1])
    parquet(tmp_path / "s" / "train.parquet", [0, 1], en=EN[:2])
    assert numbers(parquet(tmp_path / "s" / "test.parquet", [2], en=EN[2:3])) == {
        "train": [0, 1],
        "val": [],
        "test": [2],
    }


def test_a_column_that_says_train_alone_leaves_no_test_set(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", list(range(30)), en=EN[:30], split=["train"] * 30)
    assert [len(few) for few in numbers(name).values()] == [30, 0, 0]


def test_a_column_of_other_splits_is_refused_until_it_is_left_out_or_named(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1], en=EN[:2], split=["train", "spare"], fold=["val", "test"])
    with pytest.raises(UserError, match="x.parquet, row 1: column 'split' says 'spare', which is no split"):
        mpm.load_captions(name)
    assert sorted(everything(name, columns={"image": "image", "captions": "en", "split": None})) == [0, 1]
    assert numbers(name, columns={"image": "image", "captions": "en", "split": "fold"})["val"] == [0]


def test_a_file_and_a_column_that_disagree_are_refused(tmp_path):
    name = parquet(tmp_path / "s" / "train-0.parquet", [0, 1], en=EN[:2], split=["train", "test"])
    with pytest.raises(
        UserError, match="train-0.parquet, row 1: the name of the file says train, its column 'split' says test"
    ):
        mpm.load_captions(name)
    assert sorted(everything(name, columns={"image": "image", "captions": "en", "split": None})) == [0, 1]


def test_a_picture_of_a_train_is_named_and_a_set_of_named_splits_is_split(tmp_path):
    name = imagefolder(tmp_path / "s", {"train.png": 0, "cat.png": 1})
    with pytest.raises(UserError, match="the picture train.png is called as one of train would be.* rename it"):
        mpm.load_captions(name)
    name = imagefolder(tmp_path / "t", {"train.png": 0, "cat.png": 1}, split=["test", "train"])
    assert numbers(name) == {"train": [1], "val": [], "test": [0]}
    assert numbers(imagefolder(tmp_path / "u", {"train_1.png": 0, "test_1.png": 1}))["test"] == [1]
    assert numbers(imagefolder(tmp_path / "v", {"train/1.png": 0, "test/a train.png": 1}))["test"] == [1]


def test_a_folder_of_pictures_without_captions_says_so(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "train.png").write_bytes(png(0))
    with pytest.raises(UserError, match="has no captions: there is none of metadata.jsonl"):
        mpm.load_captions(f"imagefolder:{tmp_path / 's'}")


# One picture, one split


@pytest.mark.parametrize("kind", ["bytes", "paths", "tar"])
def test_a_row_a_caption_without_ids_is_one_picture(tmp_path, kind):
    rows = [i for _ in range(3) for i in range(20)]
    texts = [f"{EN[i]}, said {k // 20}" for k, i in enumerate(rows)]
    (tmp_path / "s").mkdir()
    if kind == "tar":
        tar(tmp_path / "s" / "x.tar", [(f"{k:03d}", i, t) for k, (i, t) in enumerate(zip(rows, texts, strict=True))])
        found = everything(f"webdataset:{tmp_path / 's'}", columns={"image": "png", "captions": "txt"})
    else:
        for i in range(20):
            (tmp_path / "s" / f"{i}.png").write_bytes(png(i))
        pictures = rows if kind == "bytes" else [f"{i}.png" for i in rows]
        found = everything(parquet(tmp_path / "s" / "x.parquet", pictures, en=texts))
    assert found == {i: {"en": [f"{EN[i]}, said {k}" for k in range(3)]} for i in range(20)}


def test_one_picture_under_two_ids_is_in_one_split(tmp_path):
    name = parquet(
        tmp_path / "s" / "x.parquet", [i for i in range(30) for _ in range(2)], en=EN[:30] * 2, key=list(range(60))
    )
    found = read(name)
    pictures = [{i for _, i, _ in few} for few in found.values()]
    assert sum(map(len, found.values())) == 60 and sum(map(len, pictures)) == 30 and len(pictures[2]) > 0


def test_one_picture_in_two_splits_is_refused_or_left_out_of_training(tmp_path, capsys):
    for split, few in (("train", [0, 1, 2]), ("val", [1, 3]), ("test", [2, 3, 4])):
        name = parquet(tmp_path / "s" / f"{split}.parquet", few, en=[EN[i] for i in few])
    with pytest.raises(UserError, match=r"val.parquet, row 1\): its picture is also in test \(test.parquet, row 1\)"):
        mpm.load_captions(name, "test")
    assert numbers(name, skip_bad=True) == {"train": [0], "val": [1], "test": [2, 3, 4]}
    left = mpm.load_captions(name, skip_bad=True).left_out
    assert len(left) == 2 and "also in val (val.parquet, row 0)" in left[0] and "also in test" in left[1]
    assert "2 of 3 pictures of parquet:" in capsys.readouterr().err


def test_what_was_read_is_not_read_again(tmp_path, monkeypatch):
    from mpm_lite.data import rows

    name = parquet(tmp_path / "s" / "x.parquet", list(range(9)), en=EN[:9])
    first = read(name)
    sources._parts.cache_clear()
    monkeypatch.setattr(rows.Row, "encoded", lambda row: pytest.fail("a picture was read again"))
    parts = sources.parts(name)
    assert [len(parts[s]) for s in SPLITS] == [len(first[s]) for s in SPLITS]


def test_a_stream_splits_as_the_whole_set_does(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", list(range(30)), en=EN[:30])
    whole, stream = numbers(name), numbers(name, limit=20, streaming=True)
    assert {s: [i for i in few if i < 20] for s, few in whole.items()} == stream


def test_a_cache_that_cannot_be_written_to_costs_time_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "file" / "home"))
    assert sorted(everything(parquet(tmp_path / "s" / "x.parquet", [0, 1], en=EN[:2]))) == [0, 1]


def test_a_set_is_found_again_from_another_folder(tmp_path, monkeypatch):
    for folder, few in (("one", [0, 1]), ("two", [2, 3])):
        parquet(tmp_path / folder / "s" / "test.parquet", few, en=EN[:2])
        for file in (tmp_path / folder / "s").iterdir():
            os.utime(file, ns=(10**18, 10**18))
    monkeypatch.chdir(tmp_path / "one")
    first = mpm.load_captions("parquet:s", "test")
    monkeypatch.chdir(tmp_path / "two")
    assert numbers("parquet:s")["test"] == [2, 3] and [number(p) for p in first.images[:]] == [0, 1]


# Sets of the hub


def hub_set(tmp_path, monkeypatch, **splits):
    """A repository hub:a/b of these splits, each a table."""
    files = {}
    for split, table in splits.items():
        parquet(tmp_path / "repo" / f"{split}.parquet", **table)
        files[split] = str(tmp_path / "repo" / f"{split}.parquet")
    plain = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, revision=None, **how: plain("parquet", data_files=files, **how)
    )
    sources._parts.cache_clear()
    return "hub:a/b"


def test_a_repository_of_one_split_follows_its_column(tmp_path, monkeypatch):
    table = {"pictures": [0, 1, 2], "en": EN[:3], "split": ["train", "val", "test"]}
    assert numbers(hub_set(tmp_path, monkeypatch, test=table)) == {"train": [0], "val": [1], "test": [2]}


def test_a_repositorys_own_splits_stay_and_two_words_for_one_are_joined(tmp_path, monkeypatch):
    name = hub_set(
        tmp_path,
        monkeypatch,
        train={"pictures": [0], "en": EN[:1], "split": ["spare"]},
        val={"pictures": [1], "en": EN[1:2], "split": ["spare"]},
        validation={"pictures": [2], "en": EN[2:3], "split": ["spare"]},
    )
    assert numbers(name) == {"train": [0], "val": [1, 2], "test": []}


def test_a_repository_without_ids_or_splits_puts_no_picture_into_two(tmp_path, monkeypatch):
    name = hub_set(
        tmp_path, monkeypatch, a={"pictures": [0, 1, 2], "en": EN[:3]}, b={"pictures": [2, 3], "en": EN[3:5]}
    )
    found = everything(name)
    assert sorted(found) == [0, 1, 2, 3] and found[2] == {"en": [EN[2], EN[3]]}


def test_a_repository_whose_guessed_id_has_two_pictures_is_refused(tmp_path, monkeypatch):
    name = hub_set(tmp_path, monkeypatch, test={"pictures": [0, 1], "en": EN[:2], "filename": ["a", "a"]})
    with pytest.raises(UserError, match="id 'a' twice.* split test, row 0 and split test, row 1"):
        mpm.load_captions(name)


# Ids


def samples(file, members):
    """A tar file of (name, bytes)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as made:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return f"webdataset:{file.parent}"


def test_captions_that_the_first_samples_lack_are_not_lost(tmp_path):
    members = [(f"{i}.{end}", data) for i in range(8) for end, data in (("png", png(i)), ("txt", EN[i].encode()))]
    name = samples(tmp_path / "s" / "a.tar", [*members, ("7.de", b"ein Bild")])
    with pytest.raises(UserError, match=r"end in \.de would be lost"):
        mpm.load_captions(name)
    few = [
        (f"{i}.{end}", data) for i in range(8) for end, data in (("png", png(i)), ("txt", b"a cat" if i > 6 else b""))
    ]
    found = everything(samples(tmp_path / "t" / "a.tar", few))
    assert found == {i: {"en": ["a cat"]} if i > 6 else {} for i in range(8)}


def test_a_tar_file_that_ends_in_the_middle_is_refused(tmp_path):
    tar(tmp_path / "s" / "a.tar", [(f"{i}", i, EN[i]) for i in range(8)])
    whole = (tmp_path / "s" / "a.tar").read_bytes()
    (tmp_path / "s" / "a.tar").write_bytes(whole[: 16 * 512])  # between two members
    with pytest.raises(UserError, match="ends in the middle"):
        mpm.load_captions(f"webdataset:{tmp_path / 's'}")


def test_captions_that_are_not_read_are_named(tmp_path, capsys):
    parquet(
        tmp_path / "s" / "x.parquet", [0, 1], caption=EN[:2], text=EN[2:4], caption_2=EN[4:6], am=EN[:2], site=EN[:2]
    )
    assert everything(f"parquet:{tmp_path / 's'}") == {0: {"en": EN[:1]}, 1: {"en": EN[1:2]}}
    assert "the texts of text, caption_2, am are not read" in capsys.readouterr().err


def test_shards_that_restart_their_keys_keep_every_picture(tmp_path):
    for shard in range(2):
        tar(tmp_path / "s" / f"{shard}.tar", [(f"{k:04d}", 3 * shard + k, EN[3 * shard + k]) for k in range(3)])
    found = [one for few in read(f"webdataset:{tmp_path / 's'}").values() for one in few]
    assert sorted(found) == sorted((f"{i // 3}/{i % 3:04d}", i, {"en": [EN[i]]}) for i in range(6))


def test_an_id_of_two_pictures_is_refused_until_rows_are_numbered(tmp_path):
    name = imagefolder(tmp_path / "s", {"0.png": 0}, "monday", filename=["001"])
    imagefolder(tmp_path / "s", {"0.png": 1}, "tuesday", filename=["001"])
    with pytest.raises(
        UserError, match="id '001' twice.* monday/metadata.jsonl, row 0 and tuesday/metadata.jsonl, row 0"
    ):
        mpm.load_captions(name)
    found = everything(name, columns={"image": "image", "captions": "en", "id": None})
    assert found == {i: {"en": [EN[i]]} for i in range(2)}


def test_rows_of_one_id_that_show_the_same_picture_are_one(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1, 0], en=EN[:3], image_id=["a", "b", "a"])
    assert everything(name) == {0: {"en": [EN[0], EN[2]]}, 1: {"en": [EN[1]]}}


@pytest.mark.parametrize("ids", [[1, None, None], ["a", "", "b"], [1.0, float("nan"), 2.0]])
def test_a_missing_id_is_refused(tmp_path, ids):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1, 2], en=EN[:3], key=ids)
    with pytest.raises(UserError, match="x.parquet, row 1 has no id in column 'key'.* to number the rows"):
        mpm.load_captions(name)
    assert sorted(everything(name, columns={"image": "image", "captions": "en", "id": None})) == [0, 1, 2]


def test_a_column_of_ids_that_is_empty_is_no_column_of_ids(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1, 2], en=EN[:3], key=pa.array([None] * 3, pa.string()))
    assert sorted(everything(name)) == [0, 1, 2]


def test_an_experiment_refuses_pictures_that_two_of_its_sets_share(tmp_path):
    for name, few in (("a/train", [0, 1]), ("a/val", [2]), ("b/test", [1, 3]), ("c/test", [2]), ("d/test", [4])):
        parquet(tmp_path / f"{name}.parquet", few, en=EN[: len(few)])
    sets = {of: (f"parquet:{tmp_path / of}", ["en"]) for of in "abcd"}
    tower = {"text": Meaning(), "image": Meaning(seed=1)}
    for test, val, said in (("b", "a", "training set"), ("c", "a", "validation set"), ("c", None, "training set")):
        with pytest.raises(UserError, match=f"1 pictures of the test set .* are in the {said}"):
            mpm.Experiment(**tower, train=sets["a"], val=val and sets[val], test=sets[test], steps=1).run(
                progress=False
            )
    mpm.Experiment(**tower, train=sets["a"], val=sets["a"], test=sets["d"], steps=1, seeds=1).run(progress=False)


def test_what_is_no_dictionary_no_number_and_no_kind_of_set_is_refused(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1], en=EN[:2])
    for given, how, said in (
        (name, {"columns": "en"}, "columns='en' is no dictionary"),
        (name, {"limit": "5"}, "limit='5' is no whole number"),
        (name, {"limit": 0}, "limit=0 is no whole number"),
        (str(tmp_path / "s"), {}, f"which kind of set.*parquet:{tmp_path / 's'}"),
    ):
        with pytest.raises(UserError, match=said):
            mpm.load_captions(given, **how)


def test_two_sets_of_one_name_are_told_apart(tmp_path):
    for year in ("2023", "2024"):
        parquet(tmp_path / year / "photos" / "test.parquet", [int(year) % 7], en=EN[:1], id=["a"])
    names = [f"parquet:{tmp_path / year / 'photos'}" for year in ("2023", "2024")]
    both = mpm.load_captions("+".join(names), "test")
    assert both.ids == ["parquet:2023/photos/test/a", "parquet:2024/photos/test/a"]
    assert mpm.load_captions(names[0], "test").ids == ["parquet:photos/test/a"]
    assert len(mpm.load_captions(f"{names[0]}+{names[0]}/", "test")) == 1  # one folder, spelled in two ways
    one, other = (mpm.load_captions(name, "test") for name in names)
    with pytest.raises(UserError, match="picture 'parquet:photos/test/a', and not the same one: load them in one call"):
        one + other
    assert len(one + one) == 2


# Columns


def test_captions_in_indonesian_are_captions(tmp_path):
    said = [f"seekor kucing nomor {i % 2}" for i in range(5)]
    name = parquet(tmp_path / "s" / "x.parquet", list(range(5)), en=EN[:5], id=said)
    assert everything(name) == {i: {"en": [EN[i]], "id": [said[i]]} for i in range(5)}


def test_an_id_that_may_be_a_caption_is_refused(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1], en=["cat", "dog"], id=["kucing", "anjing"])
    with pytest.raises(
        UserError, match="column 'id' may hold ids of pictures or captions in Indonesian, such as 'kucing'"
    ):
        mpm.load_captions(name)
    assert len(everything(name, columns={"image": "image", "id": "id", "captions": "en"})) == 2
    assert everything(name, columns={"image": "image", "captions": {"id": "id"}})[0] == {"id": ["kucing"]}


def test_an_id_of_one_word_beside_sentences_is_an_id(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1, 0], en=EN[:3], id=["a", "b", "a"])
    assert everything(name) == {0: {"en": [EN[0], EN[2]]}, 1: {"en": [EN[1]]}}


@pytest.mark.parametrize("code", ["no", "is", "it", "id"])
def test_a_column_of_numbers_is_no_language(tmp_path, code):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1, 2], en=EN[:3], **{code: [7, 8, 9]})
    assert everything(name) == {i: {"en": [EN[i]]} for i in range(3)}


def test_a_column_without_a_value_is_no_language(tmp_path):
    empty = pa.array([None] * 2, pa.string())
    name = parquet(
        tmp_path / "s" / "x.parquet", [0, 1], en=EN[:2], de=empty, fr=pa.array([[], []], pa.list_(pa.string()))
    )
    assert mpm.load_captions(name, "train", "all").languages == ["en"]
    name = parquet(tmp_path / "t" / "x.parquet", [0, 1], en=empty)
    with pytest.raises(UserError, match=r"no column of captions .* there are image, en \(en without a value\)"):
        mpm.load_captions(name)


def test_two_names_of_one_language_are_joined_in_order(tmp_path):
    names = ["zh-CN", "zh_Hans", "zh-Hans", "zh", "pt_BR"]
    name = parquet(tmp_path / "s" / "x.parquet", [0], en=EN[:1], **{c: [c] for c in names})
    assert everything(name)[0] == {"en": [EN[0]], "zh": names[:4], "pt-BR": ["pt_BR"]}
    told = {"image": "image", "captions": {"zh": "zh", "zh-CN": ["zh_Hans", "zh-CN"]}}
    assert everything(name, columns=told)[0] == {"zh": ["zh", "zh_Hans", "zh-CN"]}
    name = parquet(tmp_path / "t" / "x.parquet", [0], captions=[{"zh-CN": ["eins"], "zh": ["zwei"]}])
    assert everything(name, columns={"image": "image", "captions": "captions"})[0] == {"zh": ["eins", "zwei"]}


def test_a_plain_caption_beside_a_language_is_english():
    assert guess_columns("x", ["image", "caption", "de"]) == Columns("image", {"en": "caption", "de": "de"})


def test_a_wrong_column_of_captions_is_named(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1], en=EN[:2], year=[None, 7])
    with pytest.raises(UserError, match="column 'year' holds int, no text"):
        mpm.load_captions(name, columns={"image": "image", "captions": {"en": "en", "de": "year"}})
    with pytest.raises(UserError, match="column 'year' holds int, no text"):
        mpm.load_captions(name, columns={"image": "image", "captions": {"en": ["en", "year"]}})


def test_a_caption_whose_language_is_missing_is_refused(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1], caption=EN[:2], language=["en", None])
    with pytest.raises(UserError, match="x.parquet, row 1 has a caption, and no language in column 'language'"):
        mpm.load_captions(name)


# Paths


def test_a_relative_path_belongs_to_the_set(tmp_path, monkeypatch):
    (tmp_path / "elsewhere" / "img").mkdir(parents=True)
    (tmp_path / "elsewhere" / "img" / "0.png").write_bytes(png(9))
    monkeypatch.chdir(tmp_path / "elsewhere")
    name = parquet(tmp_path / "s" / "x.parquet", ["img/0.png"], en=EN[:1])
    with pytest.raises(UserError, match=r"row 0\): the picture 'img/0.png' is not there \(looked for .*s/img/0.png\)"):
        mpm.load_captions(name)
    (tmp_path / "s" / "img").mkdir()
    (tmp_path / "s" / "img" / "0.png").write_bytes(png(3))
    assert list(everything(name)) == [3]
    assert list(everything(f"parquet:{tmp_path / 's' / 'x.parquet'}")) == [3]


def test_a_relative_path_beside_the_file_that_names_it(tmp_path):
    for k, day in enumerate(("monday", "tuesday")):
        name = f"parquet:{parquet(tmp_path / 's' / day / 'x.parquet', ['0.png'], en=EN[k : k + 1]) and tmp_path / 's'}"
        (tmp_path / "s" / day / "0.png").write_bytes(png(k))
    assert everything(name) == {k: {"en": [EN[k]]} for k in range(2)}
    (tmp_path / "s" / "0.png").write_bytes(png(5))
    with pytest.raises(UserError, match="x.parquet, row 0: the path '0.png' may be .*s/0.png or .*monday/0.png"):
        mpm.load_captions(name)


def test_captions_that_the_first_members_of_a_tar_file_lack_are_not_lost(tmp_path):
    (tmp_path / "s").mkdir()
    with tarfile.open(tmp_path / "s" / "x.tar", "w") as made:
        for i in range(6):
            for end, data in (("png", png(i)), ("txt" if i < 5 else "de", b"some words here")):
                info = tarfile.TarInfo(f"{i}.{end}")
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
    with pytest.raises(
        UserError, match="x.tar, members that end in .de would be lost, since the first pictures have none"
    ):
        mpm.load_captions(f"webdataset:{tmp_path / 's'}")


def test_a_row_without_a_picture_is_refused_or_left_out(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [0, None, b"", 1], en=EN[:4])
    with pytest.raises(UserError, match=r"x.parquet, row 1\): there is no picture"):
        mpm.load_captions(name)
    assert everything(name, skip_bad=True) == {0: {"en": [EN[0]]}, 1: {"en": [EN[3]]}}


def test_files_of_different_columns_are_read_as_they_are(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "2.png").write_bytes(png(2))
    parquet(tmp_path / "s" / "a.parquet", [0], en=EN[:1], de=pa.array([None], pa.null()))
    parquet(tmp_path / "s" / "b.parquet", [1], en=EN[1:2], de=["eine Eins"])
    parquet(tmp_path / "s" / "c.parquet", [], en=pa.array([], pa.string()))
    name = parquet(tmp_path / "s" / "d.parquet", ["2.png"], en=EN[2:3])
    assert everything(name) == {0: {"en": [EN[0]]}, 1: {"en": [EN[1]], "de": ["eine Eins"]}, 2: {"en": [EN[2]]}}
    for i, more in enumerate(({"de": None}, {"de": "eine Eins"}, {})):
        at = tmp_path / "t" / str(i)
        at.mkdir(parents=True)
        (at / "x.png").write_bytes(png(i))
        (at / "metadata.jsonl").write_text(json.dumps({"file_name": "x.png", "en": EN[i], **more}))
    assert everything(f"imagefolder:{tmp_path / 't'}") == everything(name)


def test_an_address_is_not_fetched(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", ["https://example.org/0.png"], en=EN[:1])
    with pytest.raises(UserError, match="is an address, and pictures are not fetched"):
        mpm.load_captions(name)


# What was replaced


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_replaced_pictures_are_encoded_anew(tmp_path, where):
    at = tmp_path / ("s/img" if where == "inside" else "other")
    at.mkdir(parents=True)
    for i in range(3):
        (at / f"{i}.png").write_bytes(png(i))
    name = parquet(tmp_path / "s" / "train.parquet", [str(at / f"{i}.png") for i in range(3)], en=EN[:3])
    tower = Meaning()
    before = features.image_features(mpm.load_captions(name), tower)
    assert np.array_equal(features.image_features(mpm.load_captions(name), tower), before) and len(tower.calls) == 1
    for i in range(3):
        (at / f"{i}.png").write_bytes(png(i + 9))
        os.utime(at / f"{i}.png", ns=(1, 10**18 + i))
    after = features.image_features(mpm.load_captions(name), tower)
    assert sum(numbers(name).values(), []) == [9, 10, 11]
    assert np.array_equal(after, tower.encode(np.stack(mpm.load_captions(name).images[:]))) and not np.array_equal(
        after, before
    )


def test_a_rewritten_file_of_the_same_time_is_read_anew(tmp_path):
    for few in ([0, 1, 2], [5, 6]):
        name = parquet(tmp_path / "s" / "x.parquet", few, en=EN[: len(few)])
        os.utime(tmp_path / "s" / "x.parquet", ns=(10**18, 10**18))
        assert sorted(everything(name)) == few


def test_captions_rewritten_with_the_same_size_and_time_are_read_anew(tmp_path):
    for text in ("a red cat", "a red dog"):
        name = parquet(tmp_path / "s" / "x.parquet", [0, 1, 2], en=[text] * 3)
        os.utime(tmp_path / "s" / "x.parquet", ns=(10**18, 10**18))
        assert set(map(str, everything(name).values())) == {str({"en": [text]})}


# Bad pictures


def broken(tmp_path):
    """Four good pictures of six: one is torn, one is not there."""
    (tmp_path / "s").mkdir()
    for i in range(5):
        (tmp_path / "s" / f"{i}.png").write_bytes(png(i) if i != 2 else png(i)[:50])
    return parquet(
        tmp_path / "s" / "train.parquet", [f"{i}.png" for i in range(6)], en=EN[:6], key=[f"k{i}" for i in range(6)]
    )


def test_a_torn_picture_is_named_with_its_file(tmp_path):
    name = broken(tmp_path)
    (tmp_path / "s" / "5.png").write_bytes(png(5))
    (tmp_path / "s" / "9.png").write_bytes(png(9))
    parquet(tmp_path / "s" / "val.parquet", ["9.png"], en=EN[:1], key=["k9"])
    with pytest.raises(UserError, match="picture 'k2': A picture cannot be decoded: .* It is in .*s/2.png"):
        mpm.load_captions(name, "train").images[:]


def test_bad_pictures_are_left_out_counted_and_listed(tmp_path, capsys, monkeypatch):
    from mpm_lite.data import splits

    name = broken(tmp_path)
    assert sorted(everything(name, skip_bad=True)) == [0, 1, 3, 4]
    left = [why for split in SPLITS for why in mpm.load_captions(name, split, skip_bad=True).left_out]
    assert len(left) == 2 and all(any(f"'{k}'" in why for why in left) for k in ("k2", "k5"))
    assert any("cannot be decoded" in why for why in left) and any("is not there" in why for why in left)
    assert "left_out lists them" in capsys.readouterr().err
    sources._parts.cache_clear()
    calls = []
    monkeypatch.setattr(splits, "photo", lambda data: calls.append(1) or photo(data))
    again = [why for part in sources.parts(name, skip_bad=True).values() for why in part.left_out]
    assert (
        len(again) == 2 and len(calls) == 1
    )  # the verdict is kept; only what is bad is looked at again, for the reason
    assert mpm.load_captions("emoji", "val", skip_bad=True).left_out == []


def test_a_set_of_bad_pictures_alone_is_refused(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [b"no picture"], en=EN[:1])
    with pytest.raises(UserError, match="parquet:s: no picture can be used. .*cannot be decoded"):
        mpm.load_captions(name, skip_bad=True)


def memory(n, name="made/test", split="train"):
    return Part(
        name, [f"{name}/{i}" for i in range(n)], {"en": ["x"] * n}, ["x"] * n, Solid(), size=4, made_by=f"solid {n}"
    )  # fmt: skip


class Solid:
    """Draws the number of a picture as its colour."""

    def __call__(self, i):
        return np.full((4, 4, 3), i % 251, np.uint8)


class Batches:
    """A tower whose last bits tell how its batches were cut: it sees 512 at a time, or what is left."""

    name, width, fingerprint = "batches", 3, "batches-1"

    def __init__(self, dies_at=None):
        self.seen, self.dies_at = [], dies_at

    def encode(self, pictures, progress=False):
        if self.dies_at is not None and len(self.seen) == self.dies_at:
            raise KeyboardInterrupt
        self.seen.append(len(pictures))
        x = pictures.astype(np.float32).mean((1, 2))
        return x / len(pictures) + x.mean(0, keepdims=True)


@pytest.mark.parametrize("n", [1, 512, 2048, 2049, 4700])
def test_blocks_change_no_bit(tmp_path, monkeypatch, n):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path))
    part, tower = memory(n), Batches()
    plain = np.concatenate([tower.encode(part.pictures(range(a, min(a + 512, n)))) for a in range(0, n, 512)])
    found = features.image_features(CaptionSet([(part, np.arange(n))]), tower)
    assert found.dtype == np.float32 and np.array_equal(found, plain)


def test_a_run_that_dies_in_the_last_block_loses_that_block_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path))
    whole, dying, again = CaptionSet([(memory(4700), np.arange(4700))]), Batches(dies_at=9), Batches()
    with pytest.raises(KeyboardInterrupt):
        features.image_features(whole, dying)
    found = features.image_features(whole, again)
    assert sum(dying.seen) == 4608 and again.seen == [512, 92] and found.shape == (4700, 3)


def test_a_set_without_rows_has_features_of_no_row(tmp_path):
    parquet(tmp_path / "s" / "train.parquet", [0, 1], en=EN[:2])
    name = parquet(tmp_path / "s" / "test.parquet", [2], en=EN[:1])
    empty, tower = mpm.load_captions(name, "val"), Meaning()
    assert features.image_features(empty, tower).shape == (0, 24) == features.text_features(empty, "en", tower).shape
    assert features.image_features(CaptionSet([]), tower).dtype == np.float32 and tower.calls == []
    assert len(features.image_features(mpm.load_captions(name, "train+val"), tower)) == 2
    assert features.patch_features(empty, tower).shape == (0, 0, 24)


def test_a_last_fit_on_a_set_without_val(tmp_path):
    parquet(tmp_path / "s" / "train.parquet", list(range(8)), en=EN[:8])
    name = parquet(tmp_path / "s" / "test.parquet", [8, 9], en=EN[8:10])
    how = {
        "train": (name, ["en"]),
        "val": None,
        "test": (name, ["en"]),
        "steps": 2,
        "seeds": 1,
        "options": {"batch": 4},
    }
    table = mpm.Experiment(text="toy", image="toy", **how).run(progress=False).table
    assert set(table["n"]) == {2}


# Pictures of many bits


def test_floats_from_0_to_1_are_scaled_and_others_refused():
    def tiff(values):
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(values, np.float32)).save(buffer, "TIFF")
        return buffer.getvalue()

    assert abs(int(photo(tiff(np.full((8, 8), 0.5)))[128, 128, 0]) - 128) <= 1
    for bad in (255.0, -0.1, np.nan):
        with pytest.raises(UserError, match="picture of floats has values .* save it with 8 or 16 bits"):
            photo(tiff(np.full((8, 8), bad)))


def test_whole_numbers_of_32_bits_are_refused_and_of_16_are_read():
    for kind, dtype in (("TIFF", np.int32), ("TIFF", np.uint16), ("PNG", np.uint16)):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8), 40_000, dtype)).save(buffer, kind)
        if dtype == np.int32:
            with pytest.raises(UserError, match="whole numbers of 32 bits"):
                photo(buffer.getvalue())
        else:
            assert photo(buffer.getvalue())[128, 128, 0] == 40_000 >> 8


# Names with '+', and workers


def test_a_folder_with_a_plus_in_its_name(tmp_path):
    parquet(tmp_path / "c++" / "a+b" / "test.parquet", [2], en=EN[2:3])
    name = parquet(tmp_path / "c++" / "a+b" / "train.parquet", [0, 1], en=EN[:2])
    assert mpm.load_captions(name).ids == ["parquet:a+b/train/000000", "parquet:a+b/train/000001"]
    assert len(mpm.load_captions(f"{name}+emoji", "val")) == len(mpm.load_captions("emoji", "val"))
    assert len(mpm.load_captions(f"emoji+{name}", "val")) == len(mpm.load_captions("emoji", "val"))
    with pytest.raises(UserError, match="Unknown caption set 'emojj'. Did you mean 'emoji'"):
        mpm.load_captions(f"{name}+emojj")
    with pytest.raises(UserError, match=r"nothing at '.*c\+\+/none'"):
        mpm.load_captions(f"parquet:{tmp_path / 'c++' / 'none'}")
    parquet(tmp_path / "c++" / "a" / "train.parquet", [0, 1], en=EN[:2])
    parquet(tmp_path / "c++" / "a+emoji" / "train.parquet", [0, 1], en=EN[:2])
    with pytest.raises(UserError, match="may mean .* or .* which are all there: rename"):
        mpm.load_captions(f"parquet:{tmp_path / 'c++' / 'a'}+emoji")


def test_a_folder_with_the_signs_of_patterns_in_its_name(tmp_path):
    assert len(everything(parquet(tmp_path / "p[1]*?" / "x.parquet", [0, 1], en=EN[:2]))) == 2


@pytest.mark.parametrize("kind", ["emoji", "toyworld", "parquet", "paths", "webdataset", "imagefolder", "stream"])
def test_every_caption_set_can_be_pickled(tmp_path, kind):
    how = {"limit": 2, "streaming": True} if kind == "stream" else {"limit": 2}
    if kind in ("emoji", "toyworld"):
        name = kind
    elif kind == "webdataset":
        tar(tmp_path / "s" / "train.tar", [("a", 0, EN[0]), ("b", 1, EN[1])])
        tar(tmp_path / "s" / "test.tar", [("c", 2, EN[2])])
        name = f"webdataset:{tmp_path / 's'}"
    elif kind == "imagefolder":
        name = imagefolder(tmp_path / "s", {"train/0.png": 0, "train/1.png": 1, "test/2.png": 2})
    else:
        (tmp_path / "s").mkdir()
        for i in range(3):
            (tmp_path / "s" / f"{i}.png").write_bytes(png(i))
        pictures = ["0.png", "1.png", "2.png"] if kind == "paths" else [0, 1, 2]
        parquet(tmp_path / "s" / "test.parquet", pictures[2:], en=EN[2:3])
        name = parquet(tmp_path / "s" / "train.parquet", pictures[:2], en=EN[:2])
    whole = mpm.load_captions(name, "val" if kind in ("emoji", "toyworld") else "train", ["en"], **how)
    again = pickle.loads(pickle.dumps(whole))
    assert (
        again.ids == whole.ids and again.captions == whole.captions and np.array_equal(again.images[:], whole.images[:])
    )


def test_names_of_sets_show_no_more_folders_than_needed(tmp_path):
    names = [f"parquet:{tmp_path / a / b / 'photos'}" for a, b in (("1", "x"), ("2", "x"), ("2", "y"))]
    shown = list(local.shown_names([*names, "emoji"]).values())
    assert shown == ["parquet:1/x/photos", "parquet:2/x/photos", "parquet:y/photos", "emoji"]


def test_datasets_shows_its_bars_again(tmp_path):
    name = parquet(tmp_path / "s" / "x.parquet", [0, 1], en=EN[:2])
    was = datasets.is_progress_bar_enabled()
    everything(name)
    assert datasets.is_progress_bar_enabled() == was


def test_a_caption_that_a_csv_reader_takes_for_nothing_is_refused(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    captions = ["a cat", "None", "a dog"]
    rows = [f"{i}.png,{caption}" for i, caption in enumerate(captions)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,en", *rows]))
    with pytest.raises(UserError, match="row 1: 'None' in column 'en' is taken for nothing.*metadata.jsonl"):
        mpm.load_captions(f"imagefolder:{tmp_path}")
    (tmp_path / "metadata.csv").unlink()
    told = [json.dumps({"file_name": f"{i}.png", "en": caption}) for i, caption in enumerate(captions)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(told))
    parts = [mpm.load_captions(f"imagefolder:{tmp_path}", split) for split in ("train", "val", "test")]
    assert sorted(text for part in parts for text in part.captions["en"]) == sorted(captions)


def test_a_csv_file_whose_rows_do_not_fit_its_header_is_refused(tmp_path):
    """A text with a comma shifts a row, and a column that is named twice would be lost."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    for header, row, said in (
        ("en,file_name", "a dog, running,{}.png", "put texts that hold commas between quotes"),
        ("file_name,en,en", "{}.png,a dog,a cat", "two columns named 'en'"),
    ):
        (tmp_path / "metadata.csv").write_text("\n".join([header, *(row.format(i) for i in range(3))]))
        with pytest.raises(UserError, match=said):
            mpm.load_captions(f"imagefolder:{tmp_path}")


def test_what_is_no_text_and_no_language_is_refused(tmp_path):
    captions = pa.array([*(text.encode() for text in EN[:9]), b"ein K\xe4fer"], pa.binary())
    with pytest.raises(UserError, match="no text"):
        mpm.load_captions(parquet(tmp_path / "a" / "x.parquet", range(10), en=captions))
    with pytest.raises(UserError, match="says the language '..', which is no code"):
        mpm.load_captions(
            parquet(tmp_path / "b" / "x.parquet", range(10), caption=EN[:10], language=[*["en"] * 9, ".."])
        )
    for name in ("parquet:", "", "emoji+"):
        with pytest.raises(UserError, match="names no"):
            mpm.load_captions(name)


def test_one_picture_under_two_ids_is_right_for_both(tmp_path):
    """Ids that number the rows make five pictures of one: they are alike all the same."""
    name = parquet(
        tmp_path / "x.parquet", [i // 5 for i in range(50)], en=[f"{t}!" for t in (EN * 2)[:50]], id=range(50)
    )
    held = mpm.load_captions(name, "train")
    assert len(held) > 2 and "" not in held.same_pictures
    groups = retrieval.group_captions(held.captions["en"], held.same_pictures)
    of = {}
    for i, picture in enumerate(held.same_pictures):
        assert of.setdefault(picture, groups[i]) == groups[i]
    with pytest.raises(UserError, match="take.. wants whole numbers"):
        held.take([0.5])
    with pytest.raises(UserError, match="take.. wants whole numbers"):
        held.take(np.array([True, False]))


def test_files_that_say_train_alone_are_told_what_is_held_out(tmp_path, capsys):
    name = parquet(tmp_path / "train.parquet", range(40), en=EN[:40])
    assert len(mpm.load_captions(name, "train")) < 40
    assert "a tenth of its pictures is held out" in capsys.readouterr().err


def test_a_split_of_the_hub_says_what_its_words_say():
    meant = {name: splits._split_meant(name, name, False) for name in ("test_2016_flickr", "validation", "train", "de")}
    assert meant == {"test_2016_flickr": "test", "validation": "val", "train": "train", "de": ""}
