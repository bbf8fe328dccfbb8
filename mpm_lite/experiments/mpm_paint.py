"""MPM paint on the toy world as an experiment: what it learns from, how it is prompted, and the scores, picture by picture.

    bench = PaintBench()
    bench.test(bench.train(Paint(encoder="toy-multilingual"), seed=0), seed=0, split="val")

Every arm is asked with the same prompts, and paints each from the same noise in every language. Nothing is painted more
often than asked, and nothing is chosen afterwards unless `best_of` asks for it. What a picture shows is read off by
a `SceneReader`.

A `Likeness` compares painted pictures with drawn ones on frozen features: as sets (FID, KID) and beside prompts
(R-precision). FID (1706.08500) and KID (1801.01401) are torchmetrics', on the toy image tower's features in Inception's
place; they say nothing outside this world, and little without the floor of drawings against other drawings of the same
scenes, at the same n. R-precision (1711.10485): is a picture's own English caption the nearest of a hundred, by an alignment
that learned English captions? It is asked in English whatever language the prompt was in, so that no judge's grasp of a
language counts.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from mpm_lite.core import runtime
from mpm_lite.core.keys import Key, file_digest
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.core.store import find_weights, keep_features, keep_weights
from mpm_lite.data import toyworld
from mpm_lite.data.toyworld import grammar
from mpm_lite.data.toyworld.exchanges import ask_captions
from mpm_lite.data.toyworld.scenes import Scene
from mpm_lite.evaluation.chat import seed_of
from mpm_lite.experiments.alignment import Alignment
from mpm_lite.experiments.system import System, deciding_dials, digest_weights, image_tower, shared_bench, text_tower
from mpm_lite.recipes.modules import diffusion
from mpm_lite.recipes.mpm_paint import MpmPaint, MpmPaintOptions, Prompted
from mpm_lite.recipes.pretraining import scene_reader
from mpm_lite.towers import catalogue
from mpm_lite.towers.folders import loaded_once
from mpm_lite.towers.prompts import LAST, PromptEncoder, load_prompt_encoder
from mpm_lite.training import loop

# How near painted pictures are to drawn ones.

CANDIDATES = 100  # captions to choose from, the right one among them
SUBSETS = 50  # of KID, each of half the pictures


class _AsTheyAre(nn.Module):
    """Features, where torchmetrics expects a network that makes some of pictures."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x


def measure_fid(real: Tensor, painted: Tensor) -> float:
    """Frechet distance of two sets of features (N, D), in float64. UserError for fewer than two rows."""
    _check(real, painted)
    metric = FrechetInceptionDistance(feature=_AsTheyAre(real.shape[1])).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(painted.double(), real=False)
    return float(metric.compute())


def measure_kid(real: Tensor, painted: Tensor) -> float:
    """Kernel distance of two sets of features (N, D): the mean over random halves, the same ones each time."""
    _check(real, painted)
    half = min(len(real), len(painted)) // 2 + 1
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of features kept in memory: they are few
        torch.manual_seed(0)
        metric = KernelInceptionDistance(feature=_AsTheyAre(real.shape[1]), subsets=SUBSETS, subset_size=half)
        metric.update(real, real=True)
        metric.update(painted, real=False)
        return float(metric.compute()[0])


def _check(*sets: Tensor) -> None:
    for one in sets:
        if len(one) < 2 or not torch.isfinite(one).all():
            raise UserError("Two sets of pictures are compared: each needs two and more, and finite features.")


class Likeness:
    """The toy image tower, and an alignment of it with the toy text tower that learned so many English captions."""

    def __init__(self, pairs: int | None = 8_000, progress: bool = True) -> None:
        self.tower, self.pairs, self.progress = image_tower("toy"), pairs, progress

    def features(self, pictures: np.ndarray) -> Tensor:
        """Pictures uint8 (N, H, H, 3) -> float32 (N, D)."""
        return torch.from_numpy(np.asarray(self.tower.encode(list(pictures)))).float()

    @cached_property
    def alignment(self) -> Any:
        """The trained `align` recipe, kept in MPM_LITE_HOME/likeness."""
        english = ("toyworld", ["en"])
        one = Alignment(text="toy", image="toy", train=english, val=english, test=english, pairs=self.pairs)
        place = runtime.home() / "likeness" / f"toy-toy-toyworld-{self.pairs}"
        return one.bench(self.progress).train(0, one.recipe_options, place / "seed-0")[0]

    def _near(self, pictures: Tensor, captions: Sequence[str]) -> np.ndarray:
        """Cosines of pictures' features (N, D) and M captions, (N, M)."""
        texts = torch.from_numpy(np.asarray(text_tower("toy").encode(list(captions)))).float()
        alignment = self.alignment  # trained now, if it was not yet: with gradients
        with torch.no_grad():
            on = runtime.device_of(alignment)
            said = alignment.predict({"image": pictures.to(on), "text": texts.to(on)})
        return (F.normalize(said["image"], dim=-1) @ F.normalize(said["text"], dim=-1).T).cpu().numpy()

    def nearness(self, pictures: Tensor, captions: Sequence[str]) -> np.ndarray:
        """Cosine of each picture's features (N, D) and its own caption, (N,): what a hidden reranker chooses by."""
        return self._near(pictures, captions).diagonal()

    def r_precision(self, pictures: Tensor, captions: Sequence[str]) -> np.ndarray:
        """For each picture's features (N, D), 1.0 where its own caption of N is nearer than CANDIDATES - 1 others that
        read otherwise, float64 (N,). UserError for fewer captions than that."""
        if len(set(captions)) < CANDIDATES:
            raise UserError(f"R-precision chooses among {CANDIDATES} captions and there are {len(set(captions))}.")
        near, different = self._near(pictures, captions), np.array(captions)
        found, rng = np.zeros(len(captions)), np.random.default_rng(0)
        for i, own in enumerate(captions):
            rivals = rng.choice(np.flatnonzero(different != own), CANDIDATES - 1, replace=False)
            found[i] = float(near[i, i] > near[i, rivals].max())
        return found


# The experiment.

LOOKS = ("real", "wrong", "none", "drawn", "decoded")
PROMPTED = ("real", "wrong")  # the scene's own prompt, or another scene's; the others have none, and no language:
# no prompt at all; the drawing of the scene in the picture's place; that drawing through the autoencoder and back.
SCORES = (*scene_reader.SLOTS, "attributes", "one", "pair")
OF_SETS = ("fid", "kid", "r_precision")
SIDE = 48  # pixels
CROSS, WIDTHS = 64, (64, 64)  # of the UNet: its cross-attention, its levels
GUIDANCE, STEPS = 4.0, 20
BLOCK = 1_000  # training pictures whose latents are kept together
STARTS = ("", "pretrained")


@dataclass(frozen=True)
class Paint(System):
    """One arm: which text model reads the prompts and behind which of its layers its states are taken (-1: the last), whether
    the UNet starts as the bench's ("pretrained") or from scratch (""), and on which pairs it learns:
    captions of `pairs` pictures in `languages` (one each, drawn evenly) and of `also_pairs` more in `also`. `painter` is a
    diffusers folder to start from, such as Stable Diffusion's, in the toy painter's place ("").

    encoder_seed None takes, for seed s, the s-th of the language models pretrained apart. UserError for what nobody knows.
    """

    name = "mpm_paint"
    Options = MpmPaintOptions
    chance = "wrong"
    looks = ("real", "wrong")
    asks = (*System.asks, "guidance", "best_of", "as_sets")

    encoder: str = "toy-multilingual"
    encoder_seed: int | None = None
    layer: int = LAST
    start: str = "pretrained"
    languages: tuple[str, ...] = ("en",)
    pairs: int = 24_000
    also: tuple[str, ...] = ()
    also_pairs: int = 0
    painter: str = field(default="", metadata={"added": True})
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for language in (*self.languages, *self.also):
            grammar.grammar(language)
        if self.start not in STARTS:
            raise unknown("UNet to start from", self.start, STARTS)
        most = toyworld.COUNTS["train"]
        if not 2 <= self.pairs + self.also_pairs <= most:
            raise UserError(f"{self.pairs} + {self.also_pairs} pairs: toyworld has 2 to {most} training pictures.")
        if not self.start and self.recipe_options.learns != "all":
            raise UserError("From scratch the whole UNet must learn: set learns='all', or a start.")

    @property
    def shown(self) -> tuple[str, ...]:
        """What decides the pictures that its bench shows."""
        return (*super().shown, self.painter)

    def bench(self, progress: bool = True) -> PaintBench:
        """The toy world as latents of its autoencoder."""
        return PaintBench(progress, self.painter or None)

    def questions(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """With enough pictures, OF_SETS too."""
        return super().questions({"as_sets": asked.get("count", 200) >= CANDIDATES} | dict(asked))

    def towers_key(self) -> dict[str, str]:
        """The toy world's towers, and what painting begins with."""
        other = {} if self.encoder in catalogue.NAMES else {"text weights": encoder_of(self.encoder).fingerprint}
        folder, ends = Path(self.painter).expanduser(), (".safetensors", ".bin", ".json")
        files = sorted(f for f in folder.rglob("*") if f.suffix in ends) if self.painter else []
        other |= {f"painter, {file.relative_to(folder)}": file_digest(file).hex() for file in files}
        return {"toy towers": catalogue.towers_digest("towers", "paint")} | other

    def save(self, recipe: MpmPaint, seed: int, folder: Path) -> list[str]:
        """Write the painter as a diffusers folder."""
        (place := folder / f"seed-{seed}").mkdir(parents=True, exist_ok=True)
        vae, encoder_seed = shared_bench(self).vae, seed_of(recipe.encoder)
        pipe = diffusion.PaintPipeline(*recipe.parts, vae, self.encoder, encoder_seed, self.layer)
        pipe.save_pretrained(place / "painter")
        return [f"seed-{seed}/painter"]


@loaded_once(8)
def encoder_of(name: str, seed: int | None = None, turn: int = 0, layer: int = LAST) -> PromptEncoder:
    """A prompt encoder, loaded once a process; of a toy language model with seed None the `turn`-th there is."""
    return load_prompt_encoder(name, catalogue.seed_in_turn(name, turn) if seed is None else seed, layer)


@lru_cache(maxsize=4)
def _prompts(start: int, count: int, languages: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """A caption of each of so many training pictures; arms that differ in their text model alone share them."""
    many = toyworld.split_scenes("train")[start : start + count]
    return tuple(one.reply for one in ask_captions(many, languages, seed))


def weights_key(recipe: MpmPaint, seed: int, prompts: Sequence[str], autoencoder: str) -> Key:
    """Everything that a recipe's weights will depend on: what it starts from, reads, and how it learns. `autoencoder` is the
    mark of its weights."""
    options = json.dumps(deciding_dials(recipe.options), sort_keys=True)
    start = [v.numpy().tobytes() for v in recipe.now["unet"].state_dict().values()]
    decides = {"autoencoder": autoencoder, "predicts": recipe.predicts, "prompt encoder": recipe.encoder.fingerprint}
    learns = {"options": options, "seed": str(seed), "prompts": list(prompts), "starting weights": start}
    return Key("weights of mpm_paint", decides | learns)


def fit_painter(
    recipe: MpmPaint, prompts: Sequence[str], latents: Callable[[int], Tensor], key: Key, plan: loop.Plan
) -> MpmPaint:
    """The recipe, trained on as many latents as there are prompts: computed, or read back from the file of that key.
    Only what learned is kept; a run that was stopped goes on."""

    def learn(work: Path) -> dict[str, Tensor]:
        states = recipe.encoder.cached(prompts, plan.progress)
        data = Prompted(latents(len(prompts)), range(len(prompts)), states)
        loop.fit(recipe, data, replace(plan, out=work))
        names = {n.removeprefix("now.") for n, p in recipe.named_parameters() if p.requires_grad}
        of = recipe.painter.state_dict()
        return {name: of[name] for name in sorted(names)}

    recipe.painter.load_state_dict(recipe.now.state_dict() | keep_weights(find_weights(key, "painted"), learn, key))
    return recipe.eval()


class PaintBench:
    """The toy world as latents of one autoencoder, cached; trains arms on them, and has them paint.

    `painter` is a diffusers folder with autoencoder, UNet and noise schedule, such as Stable Diffusion's; None is the toy
    world's own. Pictures are as large as its UNet wants them, and are painted in `steps` steps if nothing else is asked.
    """

    def __init__(self, progress: bool = True, painter: str | Path | None = None, steps: int = STEPS) -> None:
        self.folder, self.progress = Path(painter).expanduser() if painter else None, progress
        self.vae, self.side, self.steps = diffusion.load_vae(self.folder), SIDE, steps
        if self.folder:
            self.side = diffusion.pixels(self.vae, diffusion.load_unet(self.folder)[0].config.sample_size)
        self.reader = scene_reader.load_scene_reader()
        self._mark = digest_weights(self.vae)

    def latents(self, count: int) -> Tensor:
        """Of the first training pictures, float16 (M, C, S, S); cached block by block."""
        many, found = toyworld.split_scenes("train"), []
        for start in range(0, count, BLOCK):

            def compute(start: int = start) -> np.ndarray:
                block = range(start, min(start + BLOCK, len(many)))
                drawn = np.stack([toyworld.render(many[i], self.side, seed=i) for i in block])
                return diffusion.to_latents(self.vae, drawn).half().numpy()

            decides = {"kind": "latents", "pictures": toyworld.RENDER, "side": str(self.side)}
            key = Key("latents of pictures", decides | {"autoencoder": self._mark, "block": str(start)})
            found.append(keep_features(key, compute))
        return torch.from_numpy(np.concatenate(found))[:count]

    def pairs(self, arm: Paint, seed: int) -> list[str]:
        """The prompts of an arm's training pictures, in their order."""
        more = _prompts(arm.pairs, arm.also_pairs, tuple(arm.also) or ("en",), seed + 1) if arm.also_pairs else ()
        return [*_prompts(0, arm.pairs, tuple(arm.languages), seed), *more]

    def _untrained(self, arm: Paint, seed: int) -> tuple[MpmPaint, list[str], Key]:
        """The recipe as it starts, the prompts that it is to learn from, and the key of what it learns."""
        encoder, options = encoder_of(arm.encoder, arm.encoder_seed, seed, arm.layer), arm.recipe_options
        torch.manual_seed(seed)
        unet, schedule = self.start(arm)
        recipe, prompts = MpmPaint(unet, encoder.width, options, schedule), self.pairs(arm, seed)
        recipe.encoder = encoder
        return recipe, prompts, weights_key(recipe, seed, prompts, self._mark)

    def key(self, arm: Paint, seed: int) -> Key:
        """Everything that decides what an arm learns."""
        return self._untrained(arm, seed)[2]

    def file(self, arm: Paint, seed: int) -> Path:
        """The file that holds, or is to hold, what an arm learned."""
        return find_weights(self.key(arm, seed), "painted")

    def train(self, arm: Paint, seed: int) -> MpmPaint:
        """The trained recipe: computed, or read back from MPM_LITE_HOME/painted or the assets; a run that was stopped
        goes on. Only what learned is kept."""
        recipe, prompts, key = self._untrained(arm, seed)
        plan = loop.Plan(seed, None, 250, progress=self.progress, label=f"{arm.encoder} painting, seed {seed}")
        return fit_painter(recipe, prompts, self.latents, key, plan)

    def start(self, arm: Paint) -> tuple[Any, Any]:
        """The UNet that an arm starts from, a copy of its own, and its noise schedule."""
        if arm.start:
            return diffusion.load_unet(self.folder or runtime.asset() / diffusion.TOY)
        side = self.side // diffusion.pixels(self.vae, 1)
        return diffusion.small_unet(self.vae.config.latent_channels, side, CROSS, WIDTHS), diffusion.noise_schedule()

    def paint(
        self, recipe: MpmPaint, prompts: Sequence[str], seeds: Sequence[int], told: bool = True,
        guidance: float = GUIDANCE, steps: int | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Pictures uint8 (N, H, H, 3), one a prompt, each from the noise of its seed; `steps` None takes the bench's."""
        how = {"guidance": guidance, "steps": self.steps if steps is None else steps, "told": told}
        return diffusion.paint_pictures(recipe.parts, self.vae, recipe.encoder.states(prompts), seeds, **how)

    def test(
        self, recipe: MpmPaint, seed: int, split: str = "test", languages: Sequence[str] = grammar.LANGUAGES,
        looks: Sequence[str] = ("real",), count: int = 200, guidance: float = GUIDANCE, best_of: int = 1,
        as_sets: bool = False, pictures: dict[tuple[str, str], np.ndarray] | None = None, first: int = 0,
    ) -> pd.DataFrame:  # fmt: skip
        """One row a look, language and scene: its scores. The pictures go into `pictures`, by (look, language), if given.

        A look without a prompt is asked in the first language only. With `as_sets`, OF_SETS too: what is said of a set of
        pictures stands in each of its rows. With `best_of`, that many are painted of each prompt, and the one that the
        alignment of `likeness` puts nearest to the prompt's English is kept.
        """
        many, frames = toyworld.split_scenes(split)[first : first + count], []
        drawn = np.stack([toyworld.render(scene, self.side, seed=seed) for scene in many])
        english = [grammar.in_order(scene, "en")[0] for scene in many]
        apart = None
        if as_sets:  # drawings that no look shows
            other = [toyworld.render(scene, self.side, seed=seed + 50_000) for scene in many]
            apart = self.likeness.features(np.stack(other))
        for look in looks:
            if look not in LOOKS:
                raise unknown("way to prompt", look, LOOKS)
            for language in languages if look in PROMPTED else languages[:1]:
                found = self._looked(recipe, many, look, language, drawn, seed, guidance, best_of, english)
                if pictures is not None:
                    pictures[look, language] = found
                known = {"seed": seed, "lm": recipe.encoder.name.split(":")[0], "lm_seed": seed_of(recipe.encoder)}
                sets = {} if apart is None else self._as_sets(found, apart, english)
                frames.append(self.scored(found, many).assign(look=look, language=language, **known, **sets))
        return pd.concat(frames, ignore_index=True)

    def _looked(
        self, recipe: MpmPaint, many: Sequence[Scene], look: str, language: str, drawn: np.ndarray, seed: int,
        guidance: float, best_of: int, english: Sequence[str],
    ) -> np.ndarray:  # fmt: skip
        """The pictures of one look in one language."""
        if look == "drawn":
            return drawn
        if look == "decoded":
            return diffusion.to_pictures(self.vae, diffusion.to_latents(self.vae, drawn))
        prompts = [grammar.in_order(scene, language)[0] for scene in many]
        if look == "wrong":
            prompts = [*prompts[1:], prompts[0]]
        tries = []
        for k in range(best_of):
            noise = [(seed + 7 * k) * 100_003 + i for i in range(len(many))]
            tries.append(self.paint(recipe, prompts, noise, look != "none", guidance))
        if best_of == 1:
            return tries[0]
        near = np.stack([self.likeness.nearness(self.likeness.features(of), english) for of in tries])  # (best_of, N)
        return np.stack(tries)[near.argmax(axis=0), np.arange(len(many))]

    @cached_property
    def likeness(self) -> Any:
        """Judges of sets of pictures, made when first asked for."""
        return Likeness(progress=self.progress)

    def _as_sets(self, pictures: np.ndarray, real: Tensor, english: Sequence[str]) -> dict[str, Any]:
        """FID and KID against the features of other drawings of the same scenes, and R-precision of each picture."""
        painted = self.likeness.features(pictures)
        found = {"fid": measure_fid(real, painted), "kid": measure_kid(real, painted)}
        return found | {"r_precision": self.likeness.r_precision(painted, english)}

    def scored(self, pictures: np.ndarray, many: Sequence[Scene]) -> pd.DataFrame:
        """The scores of pictures against scenes, a row each: those of `scene_reader`; attributes: mean of shape, colour and
        size; one: attributes of scenes of one thing; pair: bound, of scenes of two (NaN of any other scene)."""
        read = self.reader.read(pictures)
        frame = pd.DataFrame([scene_reader.score_scene(of, scene) for of, scene in zip(read, many, strict=True)])
        kind = np.array([s.kind for s in many])
        frame["attributes"] = frame[["shape", "colour", "size"]].mean(axis=1)
        frame["one"] = frame["attributes"].where(kind == "one")
        frame["pair"] = frame["bound"].where(kind == "pair")
        concepts = [" ".join(scene.things[0].pair) for scene in many]
        return frame.assign(item=[s.id for s in many], concept=concepts, kind=kind)
