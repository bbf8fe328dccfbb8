"""A Stable Diffusion from a diffusers folder: its parts as diffusers reads them, and MPM's re-alignment to a text tower."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import test_towers_tiny as tiny
import torch

from mpm_lite import UserError
from mpm_lite.recipes.modules import diffusion
from mpm_lite.recipes.mpm_paint import MpmPaint, MpmPaintOptions, Prompted
from mpm_lite.towers.prompts import load_prompt_encoder
from mpm_lite.towers.stable_diffusion import load_diffusion
from mpm_lite.training import loop


def test_the_parts_are_those_that_diffusers_reads(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    parts = load_diffusion(tiny.diffusion(tmp_path / "it"), "cpu")
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "it", local_files_only=True, safety_checker=None)
    for name in ("unet", "vae", "text_encoder"):
        for key, value in getattr(theirs, name).state_dict().items():
            assert torch.equal(value, getattr(parts, name).state_dict()[key]), (name, key)
    prompts = ["a red cat", "cat"]
    states, mask = parts.states(prompts)
    assert states.shape == (2, 12, 16) and parts.width == 16 and parts.side == 16 and mask.all()
    assert torch.allclose(states, theirs.encode_prompt(prompts, "cpu", 1, False)[0], atol=1e-6)
    assert parts.scheduler.config.prediction_type == "epsilon" and len(parts.fingerprint) == 64
    learns = {n: any(p.requires_grad for p in getattr(parts, n).parameters()) for n in ("unet", "vae", "text_encoder")}
    assert learns == {"unet": True, "vae": False, "text_encoder": False}


def test_its_cross_attention_is_re_aligned_to_a_text_tower_and_comes_back_from_disk(tmp_path: Path) -> None:
    parts = load_diffusion(tiny.diffusion(tmp_path / "it"), "cpu")
    words = str(tiny.encoder(tmp_path / "words"))
    encoder = load_prompt_encoder(words)
    images, prompts = tiny.pictures(4, parts.side), ["a red cat", "the blue dog", "dog", "cat"]
    data = Prompted(diffusion.to_latents(parts.vae, images), range(4), encoder.states(prompts))
    options = MpmPaintOptions(steps=1, batch=4, average=0.0)
    before = {k: v.clone() for k, v in parts.unet.state_dict().items()}
    recipe = MpmPaint(parts.unet, encoder.width, options, parts.scheduler)
    history = loop.fit(recipe, data, loop.Plan(progress=False))
    assert len(history.losses) == 1 and np.isfinite(history.losses).all()
    moved = {k for k, v in parts.unet.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(".attn2." in key for key in moved)
    pipeline = diffusion.PaintPipeline(*recipe.parts, vae=parts.vae, encoder=words)
    painted = pipeline(prompts[:2], seeds=3, steps=2)
    pipeline.save_pretrained(tmp_path / "painter")
    again = diffusion.load_painter(tmp_path / "painter")
    assert painted.shape == (2, 16, 16, 3) and np.array_equal(again(prompts[:2], seeds=3, steps=2), painted)


def test_what_is_no_stable_diffusion_says_so(tmp_path: Path) -> None:
    root = tiny.diffusion(tmp_path / "it")
    unet = root / "unet" / "diffusion_pytorch_model.safetensors"
    data = unet.read_bytes()
    unet.write_bytes(data[:-10])
    with pytest.raises(UserError, match="unet does not load: diffusion_pytorch_model.safetensors is cut short"):
        load_diffusion(root, "cpu")
    unet.rename(unet.with_suffix(".bin"))
    with pytest.raises(UserError, match="unet has pickled weights only"):
        load_diffusion(root, "cpu")
    unet.write_bytes(data)
    said = json.loads((root / "unet" / "config.json").read_text())
    (root / "unet" / "config.json").write_text(json.dumps(said | {"_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(UserError, match="holds a SD3Transformer2DModel, not a UNet2DConditionModel"):
        load_diffusion(root, "cpu")
    shutil.rmtree(root / "scheduler")
    with pytest.raises(UserError, match="has no scheduler/"):
        load_diffusion(root, "cpu")
