"""The feature cache: whole parts only, read back as stored, rebuilt when damaged, nothing left by a killed run."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from worlds import Meaning

from mpm_lite.core import store
from mpm_lite.core.keys import Key
from mpm_lite.core.runtime import UserError
from mpm_lite.data import CaptionSet, Part
from mpm_lite.towers.feature_cache import image_features, text_features

KEY = Key("numbers", {"kind": "k"})


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path))
    return tmp_path


def part(name="made/test", n=9):
    captions = {"en": [f"thing {i}" for i in range(n)], "de": [f"Ding {i}" if i % 3 else "" for i in range(n)]}
    return Part(
        name,
        [f"{name}/{i}" for i in range(n)],
        captions,
        [str(i) for i in range(n)],
        lambda i: np.full((256, 256, 3), i, np.uint8),
    )


def test_computed_once_and_read_back():
    calls = []

    def compute():
        calls.append(1)
        return np.arange(6, dtype=np.float32).reshape(2, 3)

    first, second = store.keep_features(KEY, compute), store.keep_features(KEY, compute)
    assert len(calls) == 1 and np.array_equal(first, second)
    assert store.digest(["ab", "c"]) != store.digest(["a", "bc"])


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "garbage"])
def test_a_damaged_entry_is_made_again(damage, capsys):
    good = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    store.keep_features(KEY, lambda: good)
    path = next(store.folder().glob("*.safetensors"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes({"flip": bytes(raw), "truncate": bytes(raw[:50]), "empty": b"", "garbage": b"x" * 100}[damage])
    assert np.array_equal(store.keep_features(KEY, lambda: good), good)
    assert "damaged" in capsys.readouterr().err
    assert np.array_equal(store.keep_features(KEY, lambda: pytest.fail("it was made again already")), good)


def test_a_killed_run_leaves_no_entry_and_no_litter(own_home):
    code = (
        "import os, signal, numpy as np\nfrom mpm_lite.core import keys, store\n"
        "real = os.replace\nos.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.keep_features(keys.Key('numbers', {'kind': 'k'}), lambda: np.ones((2, 2), np.float32))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
    assert not list(store.folder().glob("*.safetensors"))
    store.keep_features(KEY, lambda: np.ones((2, 2), np.float32))
    assert [p.name for p in store.folder().iterdir()] == [next(store.folder().glob("*.safetensors")).name]


def test_a_part_is_encoded_whole_whatever_is_asked():
    tower, whole = Meaning(), CaptionSet([(part(), np.arange(9))], ["en", "de"])
    few = whole.take([2, 5])
    assert image_features(few, tower).shape == (2, 24) and tower.calls == [9]
    assert np.array_equal(image_features(whole, tower)[[2, 5]], image_features(few, tower)) and tower.calls == [9]
    german = text_features(few, "de", tower)
    assert tower.calls == [9, 6] and np.isfinite(german).all()
    assert np.isnan(text_features(whole, "de", tower)[[0, 3, 6]]).all()


def test_other_weights_or_other_content_are_other_entries():
    whole = CaptionSet([(part(), np.arange(9))])
    image_features(whole, Meaning(seed=0)), image_features(whole, Meaning(seed=1))
    image_features(CaptionSet([(part("made/other"), np.arange(9))]), Meaning(seed=0))
    assert len(list(store.folder().glob("*.safetensors"))) == 3


def test_not_finite_is_not_cached():
    with pytest.raises(UserError, match="not finite"):
        store.keep_features(KEY, lambda: np.full((2, 2), np.nan, np.float32))
    assert not store.folder().exists()


def test_a_full_or_forbidden_disk_is_one_sentence(monkeypatch, own_home):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        store.keep_features(KEY, lambda: np.ones((2, 2), np.float32))
    assert not list(store.folder().iterdir())


def test_what_was_learned_is_learned_once_and_kept_whole(tmp_path):
    import torch

    asked = []

    def learn(work):
        asked.append(work)
        work.mkdir(parents=True)
        return {"a": torch.full((2,), 1.5), "b": torch.ones(2, 3).T}

    path = tmp_path / "some" / "weights.safetensors"
    first, again = store.keep_weights(path, learn), store.keep_weights(path, learn)
    assert len(asked) == 1 and not asked[0].exists() and first["a"].dtype == torch.float32
    assert all(torch.equal(first[k], again[k]) for k in ("a", "b"))

    def stopped(work):
        work.mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.keep_weights(tmp_path / "other.safetensors", stopped)
    assert (tmp_path / "other.run").is_dir() and not (tmp_path / "other.safetensors").exists()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="is torn"):
        store.keep_weights(path, learn)


def test_what_another_process_is_writing_stays_and_what_a_dead_one_left_goes(tmp_path):
    writing, left = tmp_path / f".x.json.{os.getppid()}.tmp", tmp_path / ".x.json.999999999.tmp"
    writing.touch()
    left.touch()
    store.write_atomic(tmp_path / "x.json", b"{}")
    assert writing.exists() and not left.exists()
