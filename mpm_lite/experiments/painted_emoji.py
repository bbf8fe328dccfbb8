"""MPM paint in the real world: emoji painted after their names, by a painter that learned English names only.

The arms are the paper's (2308.12038, section 3.3): a UNet learned from scratch with an English text encoder, `minilm-en`, and
its cross-attention learns anew, from English names, with a text tower of many languages, `e5-small`; or with the English one
again, the floor. Two sorts of prompts: names in L of emoji whose picture and English name were learned, and names of emoji
held out by concept. R-precision is judged by an alignment of real towers that learned English names: is the painted emoji's
own English name the nearest of a hundred?

    mpm-lite run mpm_paint_emoji --seeds 3 --out assets/results
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from mpm_lite.core import runtime
from mpm_lite.core.keys import Key, digest
from mpm_lite.core.runtime import UserError
from mpm_lite.core.store import find_weights, keep_features, keep_weights
from mpm_lite.data import CaptionSet, load_captions
from mpm_lite.data.captionset import Part
from mpm_lite.evaluation.stats import Sample
from mpm_lite.experiments.alignment import Pairs
from mpm_lite.experiments.mpm_paint import (
    CANDIDATES,
    CROSS,
    GUIDANCE,
    WIDTHS,
    Likeness,
    encoder_of,
    fit_painter,
    weights_key,
)
from mpm_lite.experiments.system import System, digest_weights, image_tower, text_tower
from mpm_lite.recipes.align import Align
from mpm_lite.recipes.modules import diffusion
from mpm_lite.recipes.modules.diffusion import Autoencoder, AutoencoderOptions, Drawings
from mpm_lite.recipes.mpm_paint import MpmPaint, MpmPaintOptions
from mpm_lite.training import loop

SEED = 0  # of what the arms share: the autoencoder, and the painter that learned with the English encoder
ENGLISH = "minilm-en"
ENCODERS = ("e5-small", ENGLISH)
PICTURES = "emoji+clipart"  # that the autoencoder and the judge learn from
JUDGE = ("efficientnet-lite1", "use-m")  # the judge's image tower and text tower
SIDE = 32  # pixels
# One level: a square of 4 x 4 pixels is one latent vector. The toy world's, of 8 x 8, loses what tells emoji apart.
AUTOENCODER = AutoencoderOptions(widths="64")
PRETRAINED = MpmPaintOptions(learns="all", steps=15_000, batch=32, average=0.999)
SORTS = ("learned", "held out")
COUNT = 100  # emoji of each sort: as many as R-precision chooses among


def shrink_pictures(captions: CaptionSet, side: int = SIDE) -> np.ndarray:
    """The pictures of a set, averaged down to a side: uint8 (M, side, side, 3), kept on disk."""
    rows = []
    for part, indices in captions.parts:

        def compute(part: Part = part, indices: np.ndarray = indices) -> np.ndarray:
            drawn = (Image.fromarray(picture) for picture in part.pictures(indices))
            return np.stack([np.asarray(one.resize((side, side), Image.Resampling.BOX)) for one in drawn])

        decides = {"kind": "small", "side": str(side), "pictures": part.image_digest(), "which": str(indices.tolist())}
        rows.append(keep_features(Key("small pictures", decides), compute))
    return np.concatenate(rows)


@dataclass(frozen=True)
class PaintedEmoji(System):
    """The text model that reads the names; the dials of what comes before are the same for all. UserError for options."""

    name = "mpm_paint_emoji"
    Options = MpmPaintOptions
    world = "emoji"
    chance = "wrong"
    split = "test"
    looks = ("real", "wrong", "drawn", "decoded")
    asks = ("split", "sorts", "count", "looks")

    encoder: str = ENCODERS[0]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe_options(self) -> MpmPaintOptions:
        """Those of re-alignment."""
        return self.options_of(MpmPaintOptions, {"batch": 32} | self.options)

    def bench(self, progress: bool = True) -> EmojiBench:
        """Emoji as latents of an autoencoder."""
        return EmojiBench(progress)

    def towers_key(self) -> dict[str, str]:
        """The text model's weights, and how what comes before is learned."""
        learning = json.dumps({"pixels": SIDE, "autoencoder": asdict(AUTOENCODER), "from scratch": asdict(PRETRAINED)})
        readers = {f"weights of {one}": encoder_of(one).fingerprint for one in (self.encoder, ENGLISH)}
        judge = {f"judge, {one.name}": one.fingerprint for one in (image_tower(JUDGE[0]), text_tower(JUDGE[1]))}
        return readers | judge | {"options": learning}

    def data_key(self, split: str) -> dict[str, str]:
        """Pictures, and names in every language."""
        sets = {f"pictures of {of}": load_captions(PICTURES, of).digest for of in ("train", "test")}
        return sets | {f"emoji of {of}": load_captions("emoji", of, "all").digest for of in ("train", "test")}


class EmojiLikeness(Likeness):
    """The judge of painted emoji: frozen real towers, and an alignment that learned English names of training pictures as
    small as the painted ones, as drawn and as decoded from latents."""

    def __init__(self, decoded: Callable[[np.ndarray], np.ndarray], progress: bool = True) -> None:
        super().__init__(None, progress, *JUDGE, PICTURES)
        self.decoded = decoded

    @cached_property
    def alignment(self) -> Any:
        """The trained `align` recipe; a matter of seconds, once the features are there."""
        pictures = load_captions(PICTURES, "train")
        drawn, names = shrink_pictures(pictures), list(pictures.captions["en"])
        images = []
        for of in (drawn, self.decoded(drawn)):  # kept by what they show: another autoencoder decodes other pictures
            decides = {"kind": "emoji judge", "weights": self.tower.fingerprint, "pictures": digest([of.tobytes()])}
            images.append(keep_features(Key("vectors of pictures", decides), lambda of=of: self.tower.encode(list(of))))
        texts = torch.from_numpy(np.asarray(text_tower(self.text).encode(names))).float()
        data = Pairs(torch.from_numpy(np.concatenate(images)).float(), torch.cat([texts, texts]))
        torch.manual_seed(SEED)
        recipe = Align(data.images.shape[1], data.texts.shape[1])
        recipe.prepare(data.images, data.texts)
        loop.fit(recipe, data, loop.Plan(SEED, progress=self.progress, label="judge of emoji"))
        return recipe


class EmojiBench:
    """Emoji as latents of an autoencoder; trains painters on English names, and prompts them in any language. Whatever is
    trained is kept in MPM_LITE_HOME/painted, and a run that was stopped goes on."""

    def __init__(self, progress: bool = True) -> None:
        self.progress = progress

    @cached_property
    def likeness(self) -> EmojiLikeness:
        """The judge."""
        return EmojiLikeness(self.decoded, self.progress)

    def decoded(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures uint8 (N, H, H, 3), there and back through the autoencoder."""
        return diffusion.to_pictures(self.vae, diffusion.to_latents(self.vae, pictures))

    @cached_property
    def vae(self) -> Any:
        """An autoencoder of pictures of train, frozen."""
        every = shrink_pictures(load_captions(PICTURES, "train"))
        options = json.dumps(asdict(AUTOENCODER), sort_keys=True)
        key = Key("weights of an autoencoder", {"kind": "autoencoder", "options": options, "pictures": every.tobytes()})
        torch.manual_seed(SEED)
        recipe = Autoencoder(AUTOENCODER)

        def learn(work: Path) -> dict[str, Tensor]:
            plan = self._plan(SEED, "autoencoder of emoji", work)
            loop.fit(recipe, Drawings(torch.from_numpy(every), key.digest), plan)
            return recipe.vae.state_dict()

        recipe.vae.load_state_dict(keep_weights(find_weights(key, "painted"), learn, key))
        vae = recipe.vae.eval().requires_grad_(False)
        vae.register_to_config(scaling_factor=1 / float(diffusion.to_latents(vae, every[::20]).std()))
        return vae

    @cached_property
    def pairs(self) -> tuple[list[str], Tensor]:
        """English names of the training emoji, and their latents (M, C, S, S)."""
        pictures = load_captions("emoji", "train")
        return list(pictures.captions["en"]), diffusion.to_latents(self.vae, shrink_pictures(pictures))

    @cached_property
    def english(self) -> MpmPaint:
        """The painter that learned from scratch with the English encoder."""
        torch.manual_seed(SEED)
        side = SIDE // diffusion.pixels(self.vae, 1)
        unet = diffusion.small_unet(self.vae.config.latent_channels, side, CROSS, WIDTHS)
        return self._fitted(unet, ENGLISH, SEED, PRETRAINED, "from scratch")

    def train(self, arm: PaintedEmoji, seed: int) -> MpmPaint:
        """That painter, re-aligned to a text model: computed, or read back."""
        unet = copy.deepcopy(self.english.painter["unet"])
        torch.manual_seed(seed)
        return self._fitted(unet, arm.encoder, seed, arm.recipe_options, "re-aligned")

    def _fitted(self, unet: Any, encoder: str, seed: int, options: MpmPaintOptions, how: str) -> MpmPaint:
        reader, (names, latents) = encoder_of(encoder), self.pairs
        recipe = MpmPaint(unet, reader.width, replace(options, bf16=runtime.fast_bf16()))
        recipe.encoder = reader
        plan = self._plan(seed, f"emoji {how}, {encoder}, seed {seed}")
        key = weights_key(recipe, seed, names, digest_weights(self.vae))
        return fit_painter(recipe, names, lambda count: latents[:count], key, plan)

    def _plan(self, seed: int, label: str, work: Path | None = None) -> loop.Plan:
        return loop.Plan(seed, work, 250, progress=self.progress, label=label)

    def asked(self, sort: str, count: int = COUNT) -> tuple[CaptionSet, list[int]]:
        """The emoji of a sort that are prompted, as a set and the numbers of some in it, spread evenly."""
        captions = load_captions("emoji", "train" if sort == "learned" else "test", "all")
        return captions, np.unique(np.linspace(0, len(captions) - 1, min(count, len(captions))).astype(int)).tolist()

    def test(
        self, recipe: MpmPaint, seed: int, split: str = "test", sorts: Sequence[str] = SORTS, count: int = COUNT,
        looks: Sequence[str] = PaintedEmoji.looks,
    ) -> pd.DataFrame:  # fmt: skip
        """One row a sort, look, language and emoji: whether its English name is the nearest. Emoji are held out by concept for
        the test alone: UserError for another split."""
        if split != "test":
            raise UserError(
                f"Painted emoji are asked about the test split, or about what was learned: not about {split!r}."
            )
        frames = []
        for sort in sorts:
            captions, which = self.asked(sort, count)
            english = [captions.captions["en"][i] for i in which]
            drawn = shrink_pictures(captions)[which]
            noise = [seed * 100_003 + i for i in range(len(which))]
            for look in looks:
                for language in captions.languages if look == "real" else ["en"]:
                    names = [captions.captions[language][i] or "" for i in which]
                    there = [k for k, name in enumerate(names) if name]
                    if look == "drawn":
                        found = drawn
                    elif look == "decoded":
                        found = self.decoded(drawn)
                    else:
                        said = [names[k] for k in there]
                        said = said if look == "real" else [*said[1:], said[0]]
                        states, seeds = recipe.encoder.states(said), [noise[k] for k in there]
                        found = drawn.copy()
                        found[there] = diffusion.paint_pictures(
                            recipe.parts, self.vae, states, seeds, guidance=GUIDANCE
                        )
                    right = self.likeness.r_precision(self.likeness.features(found), english)[there]
                    frames.append(pd.DataFrame({
                        "sort": sort, "look": look, "language": language, "seed": seed, "lm_seed": seed, "r_precision": right,
                        "item": [captions.ids[which[k]] for k in there], "concept": [captions.concepts[which[k]] for k in there],
                    }))  # fmt: skip
        return pd.concat(frames, ignore_index=True)


def emoji_table(rows: pd.DataFrame, draws: int = 2_000) -> pd.DataFrame:
    """A line an encoder, sort and language: R-precision with its interval; and, in the line of English, that of pictures
    painted after another emoji's name, of the drawings, and of the drawings decoded from their latents."""
    found = []
    for (arm, sort, language), of in rows[rows["look"] == "real"].groupby(["arm", "sort", "language"], sort=False):
        own = rows[(rows["arm"] == arm) & (rows["sort"] == sort) & rows["language"].eq(language)]
        sample = Sample(own[own["item"].isin(of["item"])], draws)
        looks = {look: sample.score(arm, language, "r_precision", look).interval for look in own["look"].unique()}
        others = {look: of.value for look, of in looks.items() if look != "real"}
        line = {"encoder": arm, "sort": sort, "language": language, **looks["real"].columns()}
        found.append(line | others | {"n": sample.n})
    return pd.DataFrame(found).assign(chance=1 / CANDIDATES)
