"""Fidelity tables: what a paper did, what its recipe does here, why they differ, and what the difference is known to do.

Figures carry their tag: [R] read in the authors' release, [S] from a secondary source. What was done here is read off the
recipe, never typed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from mpm_lite import runtime
from mpm_lite.recipes.base import Recipe, Stage
from mpm_lite.recipes.mpm_chat import MpmChat
from mpm_lite.recipes.mpm_paint import MpmPaint
from mpm_lite.runtime import UserError

UNKNOWN = "not known"


@dataclass(frozen=True)
class Row:
    """One line: a component, loss, stage, set of data or metric."""

    part: str
    paper: str
    here: str
    why: str
    effect: str = UNKNOWN


def table(recipe: Recipe) -> list[Row]:
    """The fidelity table of a recipe. UserError for one that reproduces no paper."""
    from mpm_lite.recipes import fidelity_systems  # which takes its rows from here

    tables = _TABLES | fidelity_systems.TABLES
    if recipe.name not in tables:
        raise UserError(f"Recipe {recipe.name!r} has no fidelity table: it follows no one paper.")
    return tables[recipe.name](recipe)


def millions(recipe: Recipe, part: str) -> str:
    """How many parameters of a recipe have names that begin so."""
    return f"{sum(p.numel() for n, p in recipe.named_parameters() if n.startswith(part)) / 1e6:.2f} M parameters"


def stage_said(stage: Stage) -> str:
    """A stage in a few words."""
    return f"{stage.steps:,} steps of {stage.batch}, lr {stage.lr:g}; frozen: {', '.join(stage.frozen) or 'nothing'}"


def _mpm_chat(recipe: MpmChat) -> list[Row]:
    o, lm, small = recipe.options, recipe.lm, "fits a CPU; nothing else differs between arms"
    stages = {stage.name: stage_said(stage) for stage in recipe.stages()}
    inside = o.connector == "queries"
    return [
        Row(
            "image encoder",
            "BEiT-3 large, 24 layers, 224 px [R]; it learned with text",
            "a small vision transformer that never met a word, "
            + ("trained too" if o.vision == "trained" else "frozen"),
            "whatever crosses languages here comes from the language model alone",
            "the linear probe on its card: every attribute is there",
        ),
        Row(
            "queries",
            "64 learned vectors behind the patches inside the encoder, through its language expert [R]",
            f"{o.queries} inside the encoder"
            if inside
            else f"{recipe.visual.queries} soft tokens, {o.connector} on its patches",
            "the paper's arrangement" if inside else "frozen patches are computed once; connector='queries' is theirs",
        ),
        Row(
            "projection",
            "linear, GELU, linear into the language model's width [R]",
            f"{millions(recipe, 'visual')}, soft tokens scaled like embeddings",
            "soft tokens of another length are no words to a small model",
        ),
        Row(
            "language model",
            "CPM-Bee, 10 B parameters, Chinese and English [R]",
            f"{lm.name}, {millions(recipe, 'decoder')}, {len(lm.languages)} languages, text only",
            "its diet is a dial: share of translation pairs, languages read",
            "the claims ledger, C7",
        ),
        Row(
            "injection",
            "the vectors take the place of marked tokens in a structured input with fields [R]",
            "between the beginning of the text and the question",
            "no field and no tag may name a language",
        ),
        Row(
            "loss",
            "cross-entropy of the answer's tokens [R]",
            recipe.stages()[0].objective,
            "the same",
            "none",
        ),
        Row(
            "stage 1",
            "English pairs only, 100 M [S] or about 150 M [R]; 180,000 steps of 768, lr 1e-5; language model frozen [S]",
            stages.get("alignment", "done before: this connector was aligned already"),
            small,
            "claims C1, C4, C8",
        ),
        Row(
            "stage 2",
            "LLaVA-150K in English and machine-translated Chinese [R]; 80,000 steps of 64, lr 1e-5; all learns [S]",
            stages.get("instruction tuning", "left out: set tuned='all' or 'lora'"),
            "the share of target-language data is a dial, from none",
            "claims C2, C3",
        ),
        Row(
            "metric",
            "GPT-4 as a judge, relative scores, 90 questions, Chinese ones machine-translated and partly mended [R]",
            "exact by a parser, attribute by attribute, closed answers, reply language; chance is the blind picture",
            "the truth is known, in every language alike",
            "their figures and ours are not on one scale",
        ),
    ]


def _rival(arm: str) -> str:
    """What doing it so gives, by the committed table of what else could paint."""
    rows = pd.read_csv(runtime.asset("results/paint.csv")).query("metric == 'attributes'")
    english = rows["language"] == "en"
    said = []
    for name in (arm, "MPM"):
        of = rows[rows["arm"] == name]["value"]
        said.append(f"{of[english].mean():.2f} in English and {of[~english].mean():.2f} in others")
    return f"{arm}: attributes {said[0]}; as here {said[1]}"


def _mpm_paint(recipe: MpmPaint) -> list[Row]:
    o, unet, small = recipe.options, recipe.now["unet"].config, "fits a CPU; nothing else differs between arms"
    stage, whole = recipe.stages()[0], o.learns == "all"
    side, reads = unet.sample_size, getattr(recipe.encoder, "name", "a frozen text model")
    return [
        Row(
            "text model",
            "CPM-Bee, 10 B parameters, Chinese and English, frozen; last hidden states of a structured prompt [R]",
            f"{reads}, frozen; last hidden states of the bare prompt",
            "its diet is a dial: share of translation pairs, languages read; no field may name a language",
            "claim C6, the arm without pairs",
        ),
        Row(
            "between text and UNet",
            "linear without bias into the width of the cross-attention, LayerNorm [R]",
            f"{recipe.now['bridge'].turn.in_features} to {unet.cross_attention_dim}, the same; a learned vector for no prompt",
            "the same",
            "none",
        ),
        Row(
            "UNet",
            "Stable Diffusion 2.1 base, pretrained with an English text encoder [R]",
            f"{millions(recipe, 'now.unet')}, "
            + ("from scratch" if whole else "pretrained with an English text encoder"),
            small,
            _rival("from scratch"),
        ),
        Row(
            "autoencoder",
            "Stable Diffusion's, frozen [R]",
            f"latents of {unet.in_channels} x {side} x {side}; trained here, frozen",
            "the toy world needs no more",
            "what decoding alone costs stands with claim C6",
        ),
        Row(
            "loss",
            "squared error of the noise, uniform steps of time [R]",
            stage.objective,
            "reaches the same pictures in fewer steps",
        ),
        Row(
            "what learns",
            "cross-attention and the linear block, bit by bit [S, R]",
            "the whole UNet" if whole else "cross-attention, linear map and LayerNorm, from the first step",
            "there are not steps enough to unfreeze in turns",
        ),
        Row(
            "data and steps",
            "LAION-2B, English only; 200,000 steps at 384 px, 100,000 at 512 px, batch 4,096, lr 1e-4 [S]",
            f"English captions of 24,000 drawings of 48 px; {stage_said(stage)}",
            small,
        ),
        Row(
            "sampling",
            "50 steps, guidance 7.5 [R]; of four pictures the one that Chinese-CLIP likes best is shown [R]",
            "20 steps of DPM-Solver, guidance 4; the one picture that was asked for",
            "a hidden choice would hide what the painter got wrong",
            _rival("MPM, best of four"),
        ),
        Row(
            "metric",
            "FID on 30,000 COCO captions, Chinese ones machine-translated [R]",
            "attributes and their binding by a network that learned from drawings; FID, KID and R-precision on toy features",
            "the truth is known, in every language alike",
            "their figures and ours are not on one scale",
        ),
    ]


_TABLES: dict[str, Callable[..., list[Row]]] = {MpmChat.name: _mpm_chat, MpmPaint.name: _mpm_paint}
