"""Every kind of tower and model, each through the same steps: load, run, train on it, stop, go on, save, come back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_towers_tiny as tiny
import torch

import mpm_lite as mpm
from mpm_lite.recipes import Align
from mpm_lite.recipes.modules import diffusion
from mpm_lite.recipes.mpm_chat import Exchanges, MpmChat, MpmChatOptions
from mpm_lite.recipes.mpm_paint import MpmPaint, MpmPaintOptions, Prompted
from mpm_lite.towers.prompts import load_prompt_encoder
from mpm_lite.towers.stable_diffusion import load_diffusion
from mpm_lite.training import loop


def timm_model(root: Path) -> None:
    import timm

    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("test_vit", pretrained=False), root, safe_serialization=True)


TEXT: dict[str, Callable[[Path], Any] | None] = {
    "toy": None,
    "xlm-roberta": tiny.encoder,
    "bert": lambda at: tiny.encoder(at, "bert"),
    "e5 in sentence-transformers": lambda at: tiny.sentence_model(at, "xlm-roberta"),
    "labse in sentence-transformers": lambda at: tiny.sentence_model(at, "bert", "cls", "Tanh"),
    "open_clip": tiny.open_clip_model,
    "open_clip with xlm-roberta": lambda at: tiny.open_clip_model(at, "hf"),
    "mt5's encoder": lambda at: tiny.language_model(at, "mt0"),
}
IMAGE: dict[str, Callable[[Path], Any] | None] = {
    "toy": None,
    "vit": lambda at: tiny.vision(at, "vit"),
    "clip": lambda at: tiny.vision(at, "clip"),
    "siglip": lambda at: tiny.vision(at, "siglip"),
    "siglip2": lambda at: tiny.vision(at, "siglip2"),
    "dinov2": lambda at: tiny.vision(at, "dinov2"),
    "open_clip": tiny.open_clip_model,
    "timm": timm_model,
}
LMS: dict[str, Callable[[Path], Any] | None] = {
    "toy-english": None,
    **{
        kind: (lambda at, kind=kind: tiny.language_model(at, kind))
        for kind in ("llama", "qwen2", "qwen3", "bloom", "mt0")
    },
    "qwen2 in shards": lambda at: tiny.language_model(at, "qwen2", max_shard_size="9KB"),
}
PICTURES, CAPTIONS = tiny.pictures(8, 40), [*tiny.TEXTS, "red", "blue", "the cat"]


class Stopped(Exception):
    """What stops a run in the middle."""


class Data:
    """Rows of tensors as training data."""

    digest = "rows"

    def __init__(self, **rows: torch.Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {key: value[indices] for key, value in self.rows.items()}


def name_of(tmp_path: Path, kind: str, save: Callable[[Path], Any] | None) -> str:
    if save is None:
        return kind
    save(tmp_path / "it")
    return str(tmp_path / "it")


def goes_on(make: Callable[[], tuple[Any, Any]], tmp_path: Path) -> Any:
    """Two steps at once, and the same two with a stop between them: the same weights; returns the recipe."""
    whole, data = make()
    start = {k: v.clone() for k, v in whole.state_dict().items()}
    history = loop.fit(whole, data, loop.Plan(progress=False), device="cpu")
    assert len(history.losses) == 2 and np.isfinite(history.losses).all()
    assert any(not torch.equal(v, start[k]) for k, v in whole.state_dict().items())
    plan = loop.Plan(out=tmp_path / "run", save_every=1, progress=False)
    cut, data = make()
    data.batch = stopping(data)
    with pytest.raises(Stopped):
        loop.fit(cut, data, plan, device="cpu")
    again, data = make()
    loop.fit(again, data, plan, device="cpu")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    return again


def stopping(data: Any) -> Callable[[torch.Tensor], Any]:
    """Its `batch`, which answers once."""
    plain, calls = data.batch, []

    def batch(indices: torch.Tensor) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise Stopped
        return plain(indices)

    return batch


def aligned(images: np.ndarray, texts: np.ndarray) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        torch.manual_seed(0)
        data = Data(image=torch.from_numpy(images), text=torch.from_numpy(texts))
        recipe = Align(images.shape[1], texts.shape[1], Align.Options(width=8, steps=2, batch=4))
        recipe.prepare(data.rows["image"], data.rows["text"])
        return recipe, data

    return make


@pytest.mark.parametrize("kind", TEXT)
def test_a_text_tower_through_align(tmp_path: Path, kind: str) -> None:
    name = name_of(tmp_path, kind, TEXT[kind])
    tower = mpm.load_text_tower(name, "cpu")
    texts = tower.encode(CAPTIONS)
    assert texts.shape == (8, tower.width) and np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    again = mpm.load_text_tower(name, "cpu")
    assert np.array_equal(again.encode(CAPTIONS), texts) and again.fingerprint == tower.fingerprint
    images = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    recipe = goes_on(aligned(images, texts), tmp_path)
    assert recipe.predict({"text": torch.from_numpy(texts)})["text"].shape == (8, 8)


@pytest.mark.parametrize("kind", IMAGE)
def test_an_image_tower_through_align(tmp_path: Path, kind: str) -> None:
    name = name_of(tmp_path, kind, IMAGE[kind])
    tower = mpm.load_image_tower(name, "cpu")
    images = tower.encode(PICTURES)
    assert images.shape == (8, tower.width) and np.isfinite(images).all() and np.ptp(images, axis=0).max() > 0
    again = mpm.load_image_tower(name, "cpu")
    assert np.array_equal(again.encode(PICTURES), images) and again.fingerprint == tower.fingerprint
    texts = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    goes_on(aligned(images, texts), tmp_path)


def told(lm: Any, patches: np.ndarray) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        torch.manual_seed(0)
        data = Exchanges(lm, torch.from_numpy(patches), range(8), ["the"] * 8, CAPTIONS)
        options = MpmChatOptions(steps=2, batch=4, queries=2, width=16, layers=1, heads=2)
        return MpmChat(lm, patches.shape[2], patches.shape[1], options), data

    return make


@pytest.mark.parametrize("kind", LMS)
def test_a_language_model_through_mpm_chat(tmp_path: Path, kind: str) -> None:
    name = name_of(tmp_path, kind, LMS[kind])
    lm = mpm.load_lm(name, device="cpu")
    assert len(lm.generate(["a red"], new_tokens=3)) == 1 and np.isfinite(lm.log_likelihood(["a"], ["cat"])).all()
    patches = np.random.default_rng(0).normal(size=(8, 4, 6)).astype(np.float32)
    recipe = goes_on(told(lm, patches), tmp_path)
    again = mpm.load_lm(name, device="cpu")
    assert again.fingerprint == lm.fingerprint
    for key, value in lm.model.state_dict().items():  # what is frozen stays
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert recipe.lm is lm


@pytest.mark.parametrize("kind", [kind for kind in IMAGE if kind != "toy"])
def test_an_image_towers_patches_through_mpm_chat(tmp_path: Path, kind: str) -> None:
    tower = mpm.load_image_tower(name_of(tmp_path, kind, IMAGE[kind]), "cpu")
    patches = tower.patches(PICTURES)
    assert tower.has_patches and patches.shape[0] == 8 and np.isfinite(patches).all()
    lm = mpm.load_lm(str(tiny.language_model(tmp_path / "lm", "qwen2")), device="cpu")
    goes_on(told(lm, patches), tmp_path)


@pytest.mark.parametrize("reads", ["xlm-roberta", "open_clip with xlm-roberta", "qwen2"])
def test_a_stable_diffusion_through_mpm_paint(tmp_path: Path, reads: str) -> None:
    folder = tiny.diffusion(tmp_path / "it")
    encoder = load_prompt_encoder(name_of(tmp_path / "words", reads, TEXT.get(reads) or LMS.get(reads)))
    states = encoder.states(CAPTIONS)

    parts = load_diffusion(folder, "cpu")
    latents = diffusion.to_latents(parts.vae, tiny.pictures(8, 16))

    def make() -> tuple[Any, Any]:
        torch.manual_seed(0)
        options = MpmPaintOptions(steps=2, batch=4, average=0.0)
        unet = copy.deepcopy(parts.unet)
        return MpmPaint(unet, encoder.width, options, parts.scheduler), Prompted(latents, range(8), states)

    recipe = goes_on(make, tmp_path)
    assert diffusion.sample_latents(*recipe.parts, *states.batch([0, 1]), [0, 1], steps=1).shape == (2, 4, 8, 8)
    assert load_diffusion(folder, "cpu").fingerprint == parts.fingerprint
