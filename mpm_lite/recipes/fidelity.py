"""Fidelity tables: what a paper did, what its recipe does here, why they differ, and what the difference is known to do.

Figures carry their tag: [R] read in the authors' release, [S] from a secondary source. What was done here is read off the
recipe, never typed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError
from mpm_lite.recipes.base import Recipe, Stage
from mpm_lite.recipes.m3p import M3p
from mpm_lite.recipes.mblip import Mblip
from mpm_lite.recipes.mla import Mla
from mpm_lite.recipes.mpm_chat import MpmChat
from mpm_lite.recipes.mpm_paint import MpmPaint

UNKNOWN = "not known"


@dataclass(frozen=True)
class FidelityRow:
    """One line: a component, loss, stage, set of data or metric."""

    part: str
    paper: str
    here: str
    why: str
    effect: str = UNKNOWN


def table(recipe: Recipe) -> list[FidelityRow]:
    """The fidelity table of a recipe. UserError for one that reproduces no paper."""

    tables = _TABLES | TABLES
    if recipe.name not in tables:
        raise UserError(f"Recipe {recipe.name!r} has no fidelity table: it follows no one paper.")
    return tables[recipe.name](recipe)


def millions(recipe: Recipe, part: str) -> str:
    """How many parameters of a recipe have names that begin so."""
    return f"{sum(p.numel() for n, p in recipe.named_parameters() if n.startswith(part)) / 1e6:.2f} M parameters"


def stage_said(stage: Stage) -> str:
    """A stage in a few words."""
    return f"{stage.steps:,} steps of {stage.batch}, lr {stage.lr:g}; frozen: {', '.join(stage.frozen) or 'nothing'}"


def _mpm_chat(recipe: MpmChat) -> list[FidelityRow]:
    o, lm, small = recipe.options, recipe.lm, "fits a CPU; nothing else differs between arms"
    stages = {stage.name: stage_said(stage) for stage in recipe.stages()}
    inside = o.connector == "queries"
    return [
        FidelityRow(
            "image encoder",
            "BEiT-3 large, 24 layers, 224 px [R]; it learned with text",
            "a small vision transformer that never met a word, "
            + ("trained too" if o.vision == "trained" else "frozen"),
            "whatever crosses languages here comes from the language model alone",
            "the linear probe on its card: every attribute is there",
        ),
        FidelityRow(
            "queries",
            "64 learned vectors behind the patches inside the encoder, through its language expert [R]",
            f"{o.queries} inside the encoder"
            if inside
            else f"{recipe.visual.queries} soft tokens, {o.connector} on its patches",
            "the paper's arrangement" if inside else "frozen patches are computed once; connector='queries' is theirs",
        ),
        FidelityRow(
            "projection",
            "linear, GELU, linear into the language model's width [R]",
            f"{millions(recipe, 'visual')}, soft tokens scaled like embeddings",
            "soft tokens of another length are no words to a small model",
        ),
        FidelityRow(
            "language model",
            "CPM-Bee, 10 B parameters, Chinese and English [R]",
            f"{lm.name}, {millions(recipe, 'decoder')}, {len(lm.languages)} languages, text only",
            "its diet is a dial: share of translation pairs, languages read",
            "the claims ledger, C7",
        ),
        FidelityRow(
            "injection",
            "the vectors take the place of marked tokens in a structured input with fields [R]",
            "between the beginning of the text and the question",
            "no field and no tag may name a language",
        ),
        FidelityRow(
            "loss",
            "cross-entropy of the answer's tokens [R]",
            recipe.stages()[0].objective,
            "the same",
            "none",
        ),
        FidelityRow(
            "stage 1",
            "English pairs only, 100 M [S] or about 150 M [R]; 180,000 steps of 768, lr 1e-5; language model frozen [S]",
            stages.get("alignment", "done before: this connector was aligned already"),
            small,
            "claims C1, C4, C8",
        ),
        FidelityRow(
            "stage 2",
            "LLaVA-150K in English and machine-translated Chinese [R]; 80,000 steps of 64, lr 1e-5; all learns [S]",
            stages.get("instruction tuning", "left out: set tuned='all' or 'lora'"),
            "the share of target-language data is a dial, from none",
            "claims C2, C3",
        ),
        FidelityRow(
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


def _mpm_paint(recipe: MpmPaint) -> list[FidelityRow]:
    o, unet, small = recipe.options, recipe.now["unet"].config, "fits a CPU; nothing else differs between arms"
    stage, whole = recipe.stages()[0], o.learns == "all"
    side, reads = unet.sample_size, getattr(recipe.encoder, "name", "a frozen text model")
    return [
        FidelityRow(
            "text model",
            "CPM-Bee, 10 B parameters, Chinese and English, frozen; last hidden states of a structured prompt [R]",
            f"{reads}, frozen; last hidden states of the bare prompt",
            "its diet is a dial: share of translation pairs, languages read; no field may name a language",
            "claim C6, the arm without pairs",
        ),
        FidelityRow(
            "between text and UNet",
            "linear without bias into the width of the cross-attention, LayerNorm [R]",
            f"{recipe.now['bridge'].turn.in_features} to {unet.cross_attention_dim}, the same; a learned vector for no prompt",
            "the same",
            "none",
        ),
        FidelityRow(
            "UNet",
            "Stable Diffusion 2.1 base, pretrained with an English text encoder [R]",
            f"{millions(recipe, 'now.unet')}, "
            + ("from scratch" if whole else "pretrained with an English text encoder"),
            small,
            _rival("from scratch"),
        ),
        FidelityRow(
            "autoencoder",
            "Stable Diffusion's, frozen [R]",
            f"latents of {unet.in_channels} x {side} x {side}; trained here, frozen",
            "the toy world needs no more",
            "what decoding alone costs stands with claim C6",
        ),
        FidelityRow(
            "loss",
            "squared error of the noise, uniform steps of time [R]",
            stage.objective,
            "reaches the same pictures in fewer steps",
        ),
        FidelityRow(
            "what learns",
            "cross-attention and the linear block, bit by bit [S, R]",
            "the whole UNet" if whole else "cross-attention, linear map and LayerNorm, from the first step",
            "there are not steps enough to unfreeze in turns",
        ),
        FidelityRow(
            "data and steps",
            "LAION-2B, English only; 200,000 steps at 384 px, 100,000 at 512 px, batch 4,096, lr 1e-4 [S]",
            f"English captions of 24,000 drawings of 48 px; {stage_said(stage)}",
            small,
        ),
        FidelityRow(
            "sampling",
            "50 steps, guidance 7.5 [R]; of four pictures the one that Chinese-CLIP likes best is shown [R]",
            "20 steps of DPM-Solver, guidance 4; the one picture that was asked for",
            "a hidden choice would hide what the painter got wrong",
            _rival("MPM, best of four"),
        ),
        FidelityRow(
            "metric",
            "FID on 30,000 COCO captions, Chinese ones machine-translated [R]",
            "attributes and their binding by a network that learned from drawings; FID, KID and R-precision on toy features",
            "the truth is known, in every language alike",
            "their figures and ours are not on one scale",
        ),
    ]


_TABLES: dict[str, Callable[..., list[FidelityRow]]] = {MpmChat.name: _mpm_chat, MpmPaint.name: _mpm_paint}


# The other three systems.

SMALL = "fits a CPU; nothing else differs between arms"
TRUTH = "the truth is known, in every language alike"
SCALE = "their figures and ours are not on one scale"
CHOICE = "ten captions, five of them wrong in one attribute: is the picture's own the best? Chance is the blind picture"


def m3p(recipe: M3p) -> list[FidelityRow]:
    """2006.02635."""
    o, config = recipe.options, recipe.encoder.config
    stages = {stage.name: stage_said(stage) for stage in recipe.stages()}
    regions = len(recipe.boxes)
    return [
        FidelityRow(
            "encoder",
            "12 layers of 768, 12 heads, XLM-R's vocabulary; nothing frozen [R]",
            f"{config.num_hidden_layers} layers of {config.hidden_size}, {config.num_attention_heads} heads, "
            f"{config.vocab_size:,} tokens, {millions(recipe, 'encoder')}; nothing frozen",
            SMALL,
        ),
        FidelityRow(
            "start",
            "XLM-R [R]",
            f"xMLM alone first, {stages.get('text', 'left out')}",
            "no pretrained model of this world exists; like XLM-R, it has read no translations",
        ),
        FidelityRow(
            "regions",
            "100 boxes of a detector, 2,048 numbers each, and a box embedding [R]",
            f"{regions} cells of a grid over a frozen tower's patches, with their boxes",
            "no detector; a thing lies in one cell",
            "easier than boxes of any size",
        ),
        FidelityRow(
            "tasks",
            "xMLM, MC-MLM, MC-MRM, MC-VLM, summed; a sample hides words or regions, by halves [R]",
            next((s.objective for s in recipe.stages() if s.name == "pretraining"), "left out") + "; the same",
            "the same",
            "none",
        ),
        FidelityRow(
            "masking",
            "15 %; of these 80 % masked, 10 % another token, 10 % left [R]",
            f"{100 * o.hidden:.0f} %, all masked, at least one a sample; of the cells, those that hold a thing",
            "short captions; a detector's regions hold things too",
        ),
        FidelityRow(
            "regions' targets",
            "1,600 classes of the detector, and the feature [R]; the paper matches class distributions [S]",
            f"{recipe.classify.out_features} classes by number (what, in which colour), and the feature",
            "the detector's classes, likewise, are no words to the model",
        ),
        FidelityRow(
            "matching",
            "4 captions a picture, one its own, each by itself; among them, as an option [R]",
            f"{o.captions} captions a picture: its own, half of other pictures, the rest wrong in one attribute; {o.matching}",
            "from nothing, in so few steps, each by itself learns nothing; chance captions differ in many attributes",
        ),
        FidelityRow(
            "code-switching",
            "each word with chance beta, in a random language [S]; released pretraining: one word of a switched sentence [R]",
            "both, by `Switching`; dictionaries of the grammars' content words",
            "rate, variant and dictionary are dials",
            "claim C9",
        ),
        FidelityRow(
            "data",
            "CC3M and SBU captions in shards [R]; text of 100 languages, by p^alpha [S]",
            "24,000 drawings with English captions; 40,000 sentences in ten languages, by p^alpha",
            SMALL,
        ),
        FidelityRow(
            "fine-tuning",
            "batch 24, accumulation 4, inverse square root, 5e-5 [R]",
            stages.get("fine-tuning", "left out: set fine_steps"),
            SMALL,
            "claim C10",
        ),
        FidelityRow("metric", "mean recall on Multi30K and COCO [S]", CHOICE, TRUTH, SCALE),
    ]


def mla(recipe: Mla) -> list[FidelityRow]:
    """2206.11091."""
    o, stages = recipe.options, {stage.name: stage_said(stage) for stage in recipe.stages()}
    table = recipe.acquirers.enter.words.weight
    width = recipe.english.encoder.config.hidden_size
    each = next((n for name, n in recipe.weights.items() if name != "embedding"), 0)
    return [
        FidelityRow(
            "frozen model",
            "CLIP ViT-B/32, image and text [R]",
            f"a dual encoder trained here on English pairs, {millions(recipe, 'english')}, over a frozen image tower",
            SMALL,
        ),
        FidelityRow(
            "non-native embedding",
            "mBERT's table, 119,547 x 768, trained on, and linear to 512 [R]",
            f"a multilingual tower's table, {table.shape[0]:,} x {table.shape[1]}, trained on, and linear to {width}",
            "the same at another size",
            "none",
        ),
        FidelityRow(
            "acquirers",
            "one a language behind each of 12 layers: 512, 256, ReLU, 512, residual; 3.15 M a language [R]",
            f"one a language behind each of {recipe.english.encoder.config.num_hidden_layers} layers: "
            f"{width}, {o.bottleneck}, ReLU, {width}, residual; {each:,} a language",
            "the same at another size",
            "claim C13",
        ),
        FidelityRow(
            "sentence vector",
            "the state at the last token [R]",
            "mean of the token states",
            "as the English encoder was pretrained",
        ),
        FidelityRow(
            "Native Language Transfer",
            "squared error to CLIP's vector of the English sentence, unnormalised [R]",
            f"{recipe.stages()[0].objective}; {stages.get('transfer', 'left out')}",
            "the same",
            "claim C12",
        ),
        FidelityRow(
            "Language Exposure",
            "symmetric InfoNCE, scale 100, no English term [R]",
            f"symmetric InfoNCE, scale {o.scale:g}; {stages.get('exposure', 'left out')}",
            "small batches",
            "claim C12",
        ),
        FidelityRow(
            "batches",
            "one language a batch, 128 [R]",
            f"one language a batch, {o.batch}",
            "the same",
            "none",
        ),
        FidelityRow(
            "data",
            "300,000 images of CC with machine-translated captions in six languages [R]",
            "sentences and captions of the toy world, with as many mistakes as `noise` says",
            "how good the translation is, is a dial",
            "claim C12",
        ),
        FidelityRow("metric", "average recall on Multi30K and COCO [R]", CHOICE, TRUTH, SCALE),
    ]


def mblip(recipe: Mblip) -> list[FidelityRow]:
    """2307.06930."""
    o, stages = recipe.options, {stage.name: stage_said(stage) for stage in recipe.stages()}
    former = recipe.visual.qformer
    return [
        FidelityRow(
            "image encoder",
            "EVA-CLIP ViT-g, 224 px, frozen [R]",
            "a small vision transformer that never met a word, frozen",
            SMALL,
        ),
        FidelityRow(
            "Q-Former",
            "BLIP-2's, which learned with Flan-T5-XL; trained [R]",
            f"{former.queries.shape[1]} queries, {millions(recipe, 'visual.qformer')}, learned as BLIP-2's in two stages here",
            "the same at another size",
            "claim C14",
        ),
        FidelityRow(
            "language model",
            "mT0-XL in 8 bits, before its encoder; or BLOOMZ-7B1 in 4 bits [R]",
            f"{recipe.lm.name}, {recipe.lm.kind}, in float32",
            "fits as it is",
        ),
        FidelityRow(
            "LoRA",
            "rank 8, alpha 16, dropout 0.05, on every linear layer [R]",
            f"rank {o.rank}, alpha {2 * o.rank}, no dropout, on every linear layer" if o.rank else "none",
            "short training",
        ),
        FidelityRow(
            "warm-up",
            "projection alone, translated captions, 8,000 steps of 128, lr 5e-3; BLOOMZ skips it [R]",
            stages.get("warm-up", "left out"),
            SMALL,
        ),
        FidelityRow(
            "re-alignment",
            "2 epochs of 128; Q-Former and projection lr 1e-5, LoRA 2e-4, cosine [R]",
            f"{next(s for name, s in stages.items() if name != 'warm-up')}; LoRA lr {o.lora_lr:g}",
            SMALL,
        ),
        FidelityRow(
            "tasks",
            "captions, details, conversations, VQA and its questions, matching with hard negatives, naming, explanations [R]",
            "eight types after these, made by the grammars",
            TRUTH,
            "claim C15",
        ),
        FidelityRow(
            "translation",
            "NLLB-200-distilled-1.3B; each example in one language, shared out as mC4 is [R]",
            "grammars with mistakes, as many as `noise` says; shared out evenly, tempered, or as mC4 is",
            "quality and sampling are dials",
            "claim C16",
        ),
        FidelityRow(
            "metric",
            "CIDEr on XM3600, accuracy on xGQA, XVNLI, MaRVL, answers in English [R]",
            "captions by a parser, attribute by attribute, and CIDEr-D; closed answers; reply language",
            TRUTH,
            SCALE,
        ),
    ]


TABLES = {M3p.name: m3p, Mla.name: mla, Mblip.name: mblip}
