"""MPM paint in the real world: emoji painted after their names, by a painter that learned English names only.

Text towers are real ones (`e5-small` reads many languages, `minilm-en` English only: the floor). Two sorts of prompts: names
in L of emoji whose picture and English name were learned, and names of emoji held out by concept. R-precision is judged
by an alignment of real towers that learned English names: is the painted emoji's own English name the nearest of a hundred?

    mpm-lite run mpm_paint_emoji --seeds 3 --out assets/results
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from mpm_lite import paint, runtime, train
from mpm_lite.cache import digest, learned, write_atomic
from mpm_lite.data import CaptionSet, load_captions
from mpm_lite.judging import Sample
from mpm_lite.likeness import CANDIDATES, Likeness
from mpm_lite.painting import CROSS, GUIDANCE, SIDE, WIDTHS, encoder_of
from mpm_lite.recipes.mpm_paint import MpmPaint, MpmPaintOptions, Prompted
from mpm_lite.studies import commit

ENCODERS = ("e5-small", "minilm-en")
OPTIONS = MpmPaintOptions(learns="all", steps=8_000, average=0.999)
SORTS = ("learned", "held out")
COUNT = 150  # emoji of each sort, as far as there are so many
LOOKS = ("real", "wrong", "drawn", "decoded")  # as in `painting`


def small(pictures: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Pictures uint8 (M, H, H, 3), averaged down to a side."""
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BOX)) for p in pictures])


class EmojiBench:
    """Emoji as latents of the toy world's autoencoder; trains painters on English names, and prompts them in any language."""

    def __init__(self, progress: bool = True) -> None:
        self.vae, self.progress = paint.load_vae(), progress

    @cached_property
    def likeness(self) -> Likeness:
        """The judge."""
        return Likeness(None, self.progress, "efficientnet-lite1", "use-m", "emoji+clipart")

    def train(self, encoder: str, seed: int, options: MpmPaintOptions = OPTIONS) -> MpmPaint:
        """A painter trained from scratch on the English names of the training emoji: computed, or read back."""
        pictures, reader = load_captions("emoji", "train"), encoder_of(encoder)
        names = pictures.captions["en"]
        torch.manual_seed(seed)
        side = SIDE // paint.pixels(self.vae, 1)
        recipe = MpmPaint(paint.small_unet(self.vae.config.latent_channels, side, CROSS, WIDTHS), reader.width, options)
        recipe.encoder = reader
        mark = digest(v.numpy().tobytes() for v in self.vae.state_dict().values())
        dials = json.dumps(asdict(options) | {"bf16": None}, sort_keys=True)
        key = digest(["emoji", mark, reader.fingerprint, dials, str(seed), *names])

        def learn(work: Path) -> dict[str, torch.Tensor]:
            latents = paint.to_latents(self.vae, small(pictures.images[:]))
            data = Prompted(latents, range(len(names)), reader.cached(names, self.progress))
            train.fit(
                recipe, data, train.Plan(seed, work, 250, progress=self.progress, label=f"emoji, {encoder}, {seed}")
            )
            return recipe.painter.state_dict()

        recipe.painter.load_state_dict(learned(runtime.home() / "painted" / f"{key}.safetensors", learn))
        return recipe.eval()

    def asked(self, sort: str, count: int = COUNT) -> tuple[CaptionSet, list[int]]:
        """The emoji of a sort that are prompted, as a set and the numbers of some in it, spread evenly."""
        captions = load_captions("emoji", "train" if sort == "learned" else "test", "all")
        return captions, np.unique(np.linspace(0, len(captions) - 1, min(count, len(captions))).astype(int)).tolist()

    def test(self, recipe: MpmPaint, seed: int, sorts: Sequence[str] = SORTS, count: int = COUNT) -> pd.DataFrame:
        """One row a sort, look, language and emoji: whether its English name is the nearest."""
        frames = []
        for sort in sorts:
            captions, which = self.asked(sort, count)
            english = [captions.captions["en"][i] for i in which]
            drawn = small(captions.images[which])
            noise = [seed * 100_003 + i for i in range(len(which))]
            for look in LOOKS:
                for language in captions.languages if look in ("real", "wrong") else ["en"]:
                    names = [captions.captions[language][i] or "" for i in which]
                    there = [k for k, name in enumerate(names) if name]
                    found = drawn if look == "drawn" else paint.to_pictures(self.vae, paint.to_latents(self.vae, drawn))
                    if look in ("real", "wrong"):
                        said = [names[k] for k in there]
                        said = said if look == "real" else [*said[1:], said[0]]
                        states, seeds = recipe.encoder.states(said), [noise[k] for k in there]
                        found = drawn.copy()
                        found[there] = paint.painted(recipe.parts, self.vae, states, seeds, guidance=GUIDANCE)
                    right = self.likeness.r_precision(self.likeness.features(found), english)[there]
                    frames.append(pd.DataFrame({
                        "sort": sort, "look": look, "language": language, "seed": seed, "lm_seed": seed, "r_precision": right,
                        "item": [captions.ids[which[k]] for k in there], "concept": [captions.concepts[which[k]] for k in there],
                    }))  # fmt: skip
        return pd.concat(frames, ignore_index=True)


def table(rows: pd.DataFrame, draws: int = 2_000) -> pd.DataFrame:
    """A line an encoder, sort and language: R-precision with its interval, and with another emoji's name."""
    found = []
    for (arm, sort, language), of in rows[rows["look"] == "real"].groupby(["arm", "sort", "language"], sort=False):
        own = rows[(rows["arm"] == arm) & (rows["sort"] == sort) & rows["language"].eq(language)]
        sample = Sample(own[own["item"].isin(of["item"])], draws)
        looks = {look: sample.score(arm, language, "r_precision", look).interval for look in own["look"].unique()}
        real = looks["real"]
        found.append({"encoder": arm, "sort": sort, "language": language, "value": real.value, "low": real.low, "high": real.high,
                      **{look: of.value for look, of in looks.items() if look != "real"}, "n": sample.n})  # fmt: skip
    return pd.DataFrame(found).assign(chance=1 / CANDIDATES)


def run(out: Path, seeds: Sequence[int], say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Train and test what is missing and write OUT/emoji.csv and its card."""
    bench, version, frames = EmojiBench(), commit(), []
    for seed in seeds:
        for encoder in ENCODERS:
            said = [encoder, json.dumps(asdict(OPTIONS), sort_keys=True), str(COUNT), str(seed)]
            path = runtime.home() / "painted" / f"emoji-{digest(said)[:16]}.parquet"
            if not path.exists():
                say(f"{encoder}, seed {seed}")
                rows = bench.test(bench.train(encoder, seed), seed)
                write_atomic(path, rows.to_parquet(index=False))
            frames.append(pd.read_parquet(path).assign(arm=encoder))
    card = {
        "study": "mpm_paint_emoji",
        "commit": version,
        "seeds": list(seeds),
        "options": asdict(OPTIONS),
        "pairs": len(load_captions("emoji", "train")),
        "command": f"mpm-lite run mpm_paint_emoji --seeds {len(seeds)} --out assets/results",
    }
    rows = table(pd.concat(frames, ignore_index=True))
    write_atomic(out / "emoji.csv", rows.to_csv(index=False, float_format="%.4f", lineterminator="\n").encode())
    write_atomic(out / "emoji.json", json.dumps(card, indent=1).encode() + b"\n")
    return [out / "emoji.csv", out / "emoji.json"]
