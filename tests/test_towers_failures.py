"""What goes wrong with a checkpoint is one sentence with what to do, and leaves nothing half-written behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import test_towers_tiny as tiny
import torch
from huggingface_hub import constants, errors

import mpm_lite as mpm
from mpm_lite import UserError, cache, runtime
from mpm_lite.towers import snapshots
from mpm_lite.towers.diffusion import load_diffusion
from mpm_lite.towers.halves import in_halves

LOADERS = {"text": mpm.load_text_tower, "image": mpm.load_image_tower, "lm": mpm.load_lm, "paint": load_diffusion}
SAVERS = {
    "text": tiny.encoder,
    "image": lambda at: tiny.vision(at, "vit"),
    "lm": lambda at: tiny.language_model(at, "qwen2"),
}


def sentence(error: pytest.ExceptionInfo) -> str:
    """What was said: one line, one sentence."""
    said = str(error.value)
    assert "\n" not in said and said.endswith(".") and 20 < len(said) < 420, said
    return said


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A hub that answers, and says what a test tells it to say."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(snapshots, "reachable", lambda: True)

    def says(error: Exception) -> None:
        def download(*args: Any, **kwargs: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    yield says
    assert not (tmp_path / "cache").exists()


def http(kind: type[Exception], status: int) -> Exception:
    response = SimpleNamespace(headers={}, status_code=status, request=None)
    return kind("the hub's own words,\nin two lines", response=response)


@pytest.mark.parametrize("kind", LOADERS)
def test_what_the_hub_refuses_is_said_as_what_to_do(hub: Any, kind: str) -> None:
    load = LOADERS[kind]
    for error, says in (
        (http(errors.GatedRepoError, 403), "'someone/it' is gated: accept its terms on its page and log in"),
        (http(errors.RepositoryNotFoundError, 404), "no open repository 'someone/it': check its spelling, or log in"),
        (http(errors.RevisionNotFoundError, 404), "has no revision 'v9': give one of its branches, tags or commits"),
        (http(errors.HfHubHTTPError, 503), "did not give 'someone/it@v9' and it is not in the cache; these"),
        (errors.LocalEntryNotFoundError("down"), "did not give 'someone/it@v9' and it is not in the cache; these"),
        (ConnectionError("broke"), "did not give 'someone/it@v9'"),
        (next(b for b in errors.HfHubHTTPError.__bases__ if b is not OSError)("broke midway"), "did not give"),
    ):
        hub(error)
        with pytest.raises(UserError) as told:
            load("someone/it@v9", device="cpu")
        assert says in sentence(told)
    hub(errors.HFValidationError("no"))
    with pytest.raises(UserError, match="neither a folder here nor a hub id"):
        load("someone/it..", device="cpu")


@pytest.mark.parametrize("kind", LOADERS)
def test_no_hub_names_what_runs_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(snapshots, "reachable", lambda: False)
    with pytest.raises(UserError) as told:
        LOADERS[kind]("someone/it", device="cpu")
    named = {"text": "use-m", "image": "efficientnet-lite0", "lm": "toy-multilingual", "paint": "toy-painter"}[kind]
    assert "cannot be reached" in sentence(told) and named in sentence(told) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", SAVERS)
def test_a_broken_folder_says_what_is_wrong_and_stays_as_it_was(tmp_path: Path, kind: str) -> None:
    good = tmp_path / "good"
    SAVERS[kind](good)
    (LOADERS[kind])(str(good), device="cpu")

    def fails(name: str, spoil: Any, says: str) -> None:
        bad = tmp_path / name
        shutil.copytree(good, bad)
        spoil(bad)
        before = {p: p.read_bytes() for p in sorted(bad.rglob("*"))}
        with pytest.raises(UserError) as told:
            LOADERS[kind](str(bad), device="cpu")
        assert says in sentence(told), name
        assert {p: p.read_bytes() for p in sorted(bad.rglob("*"))} == before

    def cut(at: Path) -> None:
        data = (at / "model.safetensors").read_bytes()
        (at / "model.safetensors").write_bytes(data[: len(data) // 2])

    def unnamed(at: Path) -> None:
        said = json.loads((at / "config.json").read_text())
        said.pop("model_type")
        (at / "config.json").write_text(json.dumps(said))

    def lacking(at: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(at / "model.safetensors")
        held.pop(next(key for key in held if key.endswith(("query.weight", "q_proj.weight"))))
        save_file(held, at / "model.safetensors", metadata={"format": "pt"})

    fails("cut", cut, "does not load: model.safetensors is cut short or damaged")
    fails("empty", lambda at: (at / "model.safetensors").write_bytes(b""), "is cut short or damaged")
    fails(
        "pickled", lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin"), "convert them to safetensors"
    )
    fails("none", lambda at: (at / "model.safetensors").unlink(), "does not load")
    fails("unnamed", unnamed, "model_type")
    fails("torn", lambda at: (at / "config.json").write_text('{"model_type": "be'), "is damaged")
    fails("lacking", lacking, "lacks weights of its own model")
    if kind != "image":
        fails("wordless", lambda at: [p.unlink() for p in at.glob("token*")], "its tokenizer's files are missing")


def test_an_open_clip_or_timm_folder_of_pickles_says_so(tmp_path: Path) -> None:
    import timm

    tiny.open_clip_model(tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_model.safetensors").rename(tmp_path / "clip" / "open_clip_pytorch_model.bin")
    for load in (mpm.load_text_tower, mpm.load_image_tower):
        with pytest.raises(UserError, match="pickled weights only .open_clip_pytorch_model.bin.*convert"):
            load(str(tmp_path / "clip"), "cpu")
    timm.models.save_for_hf(timm.create_model("test_vit"), tmp_path / "timm", safe_serialization=False)
    with pytest.raises(UserError, match="pickled weights only"):
        mpm.load_image_tower(str(tmp_path / "timm"), "cpu")


# memory


class Small:
    """A model that holds `room` items at once, and says how many it was given each time."""

    def __init__(self, inner: Any, room: int) -> None:
        self.inner, self.room, self.given = inner, room, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        n = len(next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)))
        self.given.append(n)
        if n > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nAnd more.")
        return self.inner(*args, **kwargs)


def test_a_batch_that_does_not_fit_is_computed_in_halves() -> None:
    given: list[tuple[int, int]] = []

    def compute(a: int, b: int) -> list[int]:
        given.append((a, b))
        if b - a > 3:
            raise torch.cuda.OutOfMemoryError
        return list(range(a, b))

    assert in_halves(compute, 0, 3, "it") == [[0, 1, 2]] and given == [(0, 3)]
    assert sum(in_halves(compute, 2, 13, "it"), []) == list(range(2, 13))
    with pytest.raises(UserError, match="it: the GPU's memory holds not even one item.*MPM_LITE_PRESET=t4"):
        in_halves(lambda a, b: compute(0, 99), 0, 5, "it")


@pytest.mark.parametrize("room", [3, 0])
def test_towers_go_on_in_smaller_batches_or_say_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setenv("MPM_LITE_HOME", str(tmp_path / "home"))
    text = mpm.load_text_tower(str(tiny.encoder(tmp_path / "text")), "cpu")
    tiny.vision(tmp_path / "image", "vit")
    image = mpm.load_image_tower(str(tmp_path / "image"), "cpu")
    texts, images = [*tiny.TEXTS, "red", "blue", "cat", "the"], tiny.pictures(9, 32)
    whole = text.encode(texts), image.encode(images), image.patches(images), text.tokens(texts)[0]
    text.model, image._forward = Small(text.model, room), Small(image._forward, room)
    if room:
        parts = text.encode(texts), image.encode(images), image.patches(images), text.tokens(texts)[0]
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(whole, parts, strict=True))
        assert max(text.model.given) == 9 and min(text.model.given) <= 3
        return
    for work in (
        lambda: text.encode(texts),
        lambda: image.encode(images),
        lambda: cache.features(["it"], lambda: text.encode(texts)),
    ):
        with pytest.raises(UserError, match="memory holds not even one item.*lower the batch") as told:
            work()
        sentence(told)
    assert not list((runtime.home() / "features").glob("*"))  # nothing half-made is kept


@pytest.mark.parametrize("kind", ["qwen2", "mt0"])
def test_language_models_go_on_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    lm = mpm.load_lm(str(tiny.language_model(tmp_path, kind)), device="cpu")
    prompts, told = tiny.TEXTS, ["cat"] * 5
    before = lm.log_likelihood(prompts, told), lm.layer_states(prompts), lm.generate(prompts, new_tokens=4)
    plain = lm.read
    room = [2]

    def read(few: Any, soft: Any = None) -> Any:
        if len(few) > room[0]:
            raise torch.cuda.OutOfMemoryError
        return plain(few, soft)

    monkeypatch.setattr(lm, "read", read)
    assert np.allclose(lm.log_likelihood(prompts, told), before[0], atol=1e-4)
    assert np.allclose(lm.layer_states(prompts), before[1], atol=1e-4)
    assert lm.generate(prompts, new_tokens=4) == before[2]
    room[0] = 0
    for work in (lambda: lm.log_likelihood(prompts, told), lambda: lm.generate(prompts, new_tokens=4)):
        with pytest.raises(UserError, match="not even one item"):
            work()


def test_a_model_that_does_not_fit_as_it_is_loaded_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    tiny.language_model(tmp_path, "qwen2")
    monkeypatch.setattr(PreTrainedModel, "to", full)
    with pytest.raises(
        UserError, match="does not fit in the GPU's memory: load a smaller model, or device='cpu'"
    ) as told:
        mpm.load_lm(str(tmp_path), device="cpu")
    sentence(told)
