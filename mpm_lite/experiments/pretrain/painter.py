"""What painting begins with, made here: an autoencoder, the reader that judges pictures, and a UNet that reads English.

    mpm-lite pretrain toy-vae scene-reader toy-painter --out assets

The UNet learned with an English text encoder, `minilm-en`, on English captions: the warm start that VisCPM-Paint has in
Stable Diffusion. Each is a file or a diffusers folder with a card; a run that was stopped goes on.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as to_safetensors

from mpm_lite.core import runtime, store
from mpm_lite.core.keys import Key, digest
from mpm_lite.core.provenance import Artifact
from mpm_lite.core.store import keep_features, write_atomic
from mpm_lite.data import CaptionSet, load_captions, toyworld
from mpm_lite.data.captionset import Part
from mpm_lite.data.toyworld.scenes import Scene, scenes
from mpm_lite.experiments.mpm_paint import SCORES, SIDE, Paint, PaintBench
from mpm_lite.experiments.pretrain.towers import crowds
from mpm_lite.recipes.modules import diffusion
from mpm_lite.recipes.modules.diffusion import Autoencoder, AutoencoderOptions, Drawings
from mpm_lite.recipes.pretraining import scene_reader
from mpm_lite.recipes.pretraining.scene_reader import SceneReader, SceneReaderOptions, classes
from mpm_lite.training import loop

SEED = 0
DRAWN = 8_000  # pictures of the toy world to learn from, half of them crowds
ENGLISH = "minilm-en"


def drawn(count: int, seed: int) -> tuple[list[Scene], np.ndarray]:
    """Scenes of train and crowds by halves, and a picture uint8 (M, H, H, 3) of each, drawn as no data set draws it."""
    many = [
        *islice(scenes("train", seed + 200), count // 2),
        *(s for group in crowds(count // 8, seed + 1) for s in group),
    ]
    return many, np.stack([toyworld.render(s, SIDE, seed=1_000 + i) for i, s in enumerate(many)])


def shrink_pictures(captions: CaptionSet, side: int) -> np.ndarray:
    """The pictures of a set, averaged down to a side: uint8 (M, side, side, 3), kept on disk."""
    rows = []
    for part, indices in captions.parts:

        def compute(part: Part = part, indices: np.ndarray = indices) -> np.ndarray:
            drawn = (Image.fromarray(picture) for picture in part.pictures(indices))
            return np.stack([np.asarray(one.resize((side, side), Image.Resampling.BOX)) for one in drawn])

        decides = {"kind": "small", "side": str(side), "pictures": part.image_digest(), "which": str(indices.tolist())}
        rows.append(keep_features(Key("small pictures", decides), compute))
    return np.concatenate(rows)


def autoencoder(
    options: AutoencoderOptions, count: int
) -> tuple[Autoencoder, Drawings, Callable[[Autoencoder], dict[str, Any]]]:
    """Toy pictures and emoji of train; measured on those of val."""
    _, toys = drawn(count, SEED)
    emoji = shrink_pictures(load_captions("emoji", "train"), SIDE)
    every = np.concatenate([toys, emoji])
    data = Drawings(torch.from_numpy(every), digest([toyworld.RENDER, every[::37].tobytes()]))

    def measured(recipe: Autoencoder) -> dict[str, Any]:
        held = {"toyworld": _val(), "emoji": shrink_pictures(load_captions("emoji", "val"), SIDE)}
        found = {}
        for name, pictures in held.items():
            back = diffusion.to_pictures(recipe.vae, diffusion.to_latents(recipe.vae, pictures))
            error = ((back.astype(float) - pictures) / 255) ** 2
            found[f"{name}, decibels"] = round(float(-10 * np.log10(error.mean())), 2)
        return found

    torch.manual_seed(SEED)
    return Autoencoder(options), data, measured


def reader(
    options: SceneReaderOptions, count: int
) -> tuple[SceneReader, Drawings, Callable[[SceneReader], dict[str, Any]]]:
    """Drawings with what each cell shows; measured on val, clean, under noise, and behind the autoencoder where it is there."""
    many, pictures = drawn(count, SEED + 1)
    known = [classes(scene) for scene in many]
    slots = {slot: torch.from_numpy(np.stack([of[slot] for of in known])) for slot in scene_reader.CLASSES}
    data = Drawings(torch.from_numpy(pictures), digest([toyworld.RENDER, *(s.id for s in many)]), **slots)
    torch.manual_seed(SEED)
    return SceneReader(options), data, accuracy


def accuracy(recipe: SceneReader) -> dict[str, Any]:
    """Share of val pictures read exactly (every thing, every attribute), as drawn, under noise, and decoded from latents."""
    many, clean, rng = toyworld.split_scenes("val"), _val(), np.random.default_rng(SEED)
    sides = {"clean": clean}
    for level in (0.05, 0.1, 0.2):
        noisy = clean / 127.5 - 1 + level * rng.standard_normal(clean.shape)
        sides[f"noise {level}"] = ((noisy.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    if (runtime.asset() / diffusion.TOY / "vae").is_dir():
        vae = diffusion.load_vae()
        sides["decoded"] = diffusion.to_pictures(vae, diffusion.to_latents(vae, clean))
    found = {}
    for name, pictures in sides.items():
        right = [set(read) == set(scene.things) for read, scene in zip(recipe.read(pictures), many, strict=True)]
        found[f"exact, {name}"] = round(float(np.mean(right)), 4)
    return found


def _val() -> np.ndarray:
    return np.stack([toyworld.render(s, SIDE) for s in toyworld.split_scenes("val")])


def build(name: str, out: Path, options: Any = None, count: int = DRAWN) -> Path:
    """Train, save, measure and describe one of BUILDS, unless all that is done; returns the path of its card."""
    if name not in BUILDS:
        raise runtime.unknown("part of painting to pretrain", name, BUILDS)
    place, work = out / BUILDS[name], runtime.home() / "pretrain" / name
    make = partial(_small, name, place, work, options, count)
    if name == "toy-painter":
        make = partial(painter, place, options or PAINTER)
    card = Artifact(name, place, out / "paint" / f"{name}.json", make).build()
    shutil.rmtree(work, ignore_errors=True)
    return card


def _small(name: str, place: Path, work: Path, options: Any, count: int) -> dict[str, Any]:
    """Train, save and measure the autoencoder or the reader; what its card says."""
    make, usual = (autoencoder, AutoencoderOptions()) if name == "toy-vae" else (reader, SceneReaderOptions())
    options = options or usual
    recipe, data, measured = make(options, count)
    history = loop.fit(recipe, data, loop.Plan(SEED, work, save_every=250, label=name))
    if name == "toy-vae":
        recipe.vae.register_to_config(
            scaling_factor=round(1 / float(diffusion.to_latents(recipe.vae, _val()).std()), 4)
        )
        _save(recipe.vae, place)
    else:
        write_atomic(place, to_safetensors({k: v.half().contiguous() for k, v in recipe.state_dict().items()}))
    return {
        "seed": SEED, "options": asdict(options), "pictures": len(data), "parameters": sum(p.numel() for p in recipe.parameters()),
        "last_loss": round(float(np.mean(history.losses[-50:])), 5), "measured_on_val": measured(recipe),
        "seconds": history.seconds,
    }  # fmt: skip


def painter(place: Path, arm: Paint) -> dict[str, Any]:
    """A UNet that learns from scratch with the English encoder, saved as a diffusers folder and measured on English val
    prompts; what its card says."""
    bench = PaintBench()
    recipe = bench.train(arm, SEED)
    _save(diffusion.PaintPipeline(*recipe.parts, bench.vae, arm.encoder), place.parent)
    rows = bench.test(recipe, SEED, "val", ("en",), ("real", "wrong"))
    by = rows.groupby(["look", "kind"])[list(SCORES)].mean().round(4)
    return {
        "seed": SEED,
        "arm": asdict(arm),
        "options": asdict(arm.recipe_options),
        "parameters": sum(p.numel() for part in recipe.parts[:2] for p in part.parameters()),
        "measured_on_val": {" ".join(key): of.dropna().to_dict() for key, of in by.iterrows()},
    }


def _save(model: Any, folder: Path) -> None:
    """Write a diffusers model or pipeline as a folder in float16, whole or not at all."""
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    whole = copy.deepcopy(model)
    (whole.to(torch.float16) if isinstance(whole, diffusion.PaintPipeline) else whole.half()).save_pretrained(beside)
    for config in beside.glob("**/config.json"):  # diffusers writes down where a part was loaded from
        said = json.loads(config.read_text())
        if said.pop("_name_or_path", None):
            store.write_json(config, said)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)


PAINTER = Paint(encoder=ENGLISH, start="", options={"learns": "all", "steps": 12_000, "average": 0.999})
# What is made, and the file or folder that says it is there; the autoencoder lies in the painter's own folder.
BUILDS = {
    "toy-vae": f"{diffusion.TOY}/vae",
    "scene-reader": "paint/scene-reader.safetensors",
    "toy-painter": f"{diffusion.TOY}/unet",
}
