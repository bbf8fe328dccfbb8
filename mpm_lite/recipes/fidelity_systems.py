"""Fidelity tables of M3P, MLA and mBLIP; see `fidelity`."""

from __future__ import annotations

from mpm_lite.recipes.fidelity import Row, millions, stage_said
from mpm_lite.recipes.m3p import M3p
from mpm_lite.recipes.mblip import Mblip
from mpm_lite.recipes.mla import Mla

SMALL = "fits a CPU; nothing else differs between arms"
TRUTH = "the truth is known, in every language alike"
SCALE = "their figures and ours are not on one scale"
CHOICE = "ten captions, five of them wrong in one attribute: is the picture's own the best? Chance is the blind picture"


def m3p(recipe: M3p) -> list[Row]:
    """2006.02635."""
    o, config = recipe.options, recipe.encoder.config
    stages = {stage.name: stage_said(stage) for stage in recipe.stages()}
    regions = len(recipe.boxes)
    return [
        Row(
            "encoder",
            "12 layers of 768, 12 heads, XLM-R's vocabulary; nothing frozen [R]",
            f"{config.num_hidden_layers} layers of {config.hidden_size}, {config.num_attention_heads} heads, "
            f"{config.vocab_size:,} tokens, {millions(recipe, 'encoder')}; nothing frozen",
            SMALL,
        ),
        Row(
            "start",
            "XLM-R [R]",
            f"xMLM alone first, {stages.get('text', 'left out')}",
            "no pretrained model of this world exists; like XLM-R, it has read no translations",
        ),
        Row(
            "regions",
            "100 boxes of a detector, 2,048 numbers each, and a box embedding [R]",
            f"{regions} cells of a grid over a frozen tower's patches, with their boxes",
            "no detector; a thing lies in one cell",
            "easier than boxes of any size",
        ),
        Row(
            "tasks",
            "xMLM, MC-MLM, MC-MRM, MC-VLM, summed; a sample hides words or regions, by halves [R]",
            next((s.objective for s in recipe.stages() if s.name == "pretraining"), "left out") + "; the same",
            "the same",
            "none",
        ),
        Row(
            "masking",
            "15 %; of these 80 % masked, 10 % another token, 10 % left [R]",
            f"{100 * o.hidden:.0f} %, all masked, at least one a sample; of the cells, those that hold a thing",
            "short captions; a detector's regions hold things too",
        ),
        Row(
            "regions' targets",
            "1,600 classes of the detector, and the feature [R]; the paper matches class distributions [S]",
            f"{recipe.classify.out_features} classes by number (what, in which colour), and the feature",
            "the detector's classes, likewise, are no words to the model",
        ),
        Row(
            "matching",
            "4 captions a picture, one its own, each by itself; among them, as an option [R]",
            f"{o.captions} captions a picture: its own, half of other pictures, the rest wrong in one attribute; {o.matching}",
            "from nothing, in so few steps, each by itself learns nothing; chance captions differ in many attributes",
        ),
        Row(
            "code-switching",
            "each word with chance beta, in a random language [S]; released pretraining: one word of a switched sentence [R]",
            "both, by `Switching`; dictionaries of the grammars' content words",
            "rate, variant and dictionary are dials",
            "claim C9",
        ),
        Row(
            "data",
            "CC3M and SBU captions in shards [R]; text of 100 languages, by p^alpha [S]",
            "24,000 drawings with English captions; 40,000 sentences in ten languages, by p^alpha",
            SMALL,
        ),
        Row(
            "fine-tuning",
            "batch 24, accumulation 4, inverse square root, 5e-5 [R]",
            stages.get("fine-tuning", "left out: set fine_steps"),
            SMALL,
            "claim C10",
        ),
        Row("metric", "mean recall on Multi30K and COCO [S]", CHOICE, TRUTH, SCALE),
    ]


def mla(recipe: Mla) -> list[Row]:
    """2206.11091."""
    o, stages = recipe.options, {stage.name: stage_said(stage) for stage in recipe.stages()}
    table = recipe.acquirers.enter.words.weight
    width = recipe.english.encoder.config.hidden_size
    each = next((n for name, n in recipe.weights.items() if name != "embedding"), 0)
    return [
        Row(
            "frozen model",
            "CLIP ViT-B/32, image and text [R]",
            f"a dual encoder trained here on English pairs, {millions(recipe, 'english')}, over a frozen image tower",
            SMALL,
        ),
        Row(
            "non-native embedding",
            "mBERT's table, 119,547 x 768, trained on, and linear to 512 [R]",
            f"a multilingual tower's table, {table.shape[0]:,} x {table.shape[1]}, trained on, and linear to {width}",
            "the same at another size",
            "none",
        ),
        Row(
            "acquirers",
            "one a language behind each of 12 layers: 512, 256, ReLU, 512, residual; 3.15 M a language [R]",
            f"one a language behind each of {recipe.english.encoder.config.num_hidden_layers} layers: "
            f"{width}, {o.bottleneck}, ReLU, {width}, residual; {each:,} a language",
            "the same at another size",
            "claim C13",
        ),
        Row(
            "sentence vector",
            "the state at the last token [R]",
            "mean of the token states",
            "as the English encoder was pretrained",
        ),
        Row(
            "Native Language Transfer",
            "squared error to CLIP's vector of the English sentence, unnormalised [R]",
            f"{recipe.stages()[0].objective}; {stages.get('transfer', 'left out')}",
            "the same",
            "claim C12",
        ),
        Row(
            "Language Exposure",
            "symmetric InfoNCE, scale 100, no English term [R]",
            f"symmetric InfoNCE, scale {o.scale:g}; {stages.get('exposure', 'left out')}",
            "small batches",
            "claim C12",
        ),
        Row(
            "batches",
            "one language a batch, 128 [R]",
            f"one language a batch, {o.batch}",
            "the same",
            "none",
        ),
        Row(
            "data",
            "300,000 images of CC with machine-translated captions in six languages [R]",
            "sentences and captions of the toy world, with as many mistakes as `noise` says",
            "how good the translation is, is a dial",
            "claim C12",
        ),
        Row("metric", "average recall on Multi30K and COCO [R]", CHOICE, TRUTH, SCALE),
    ]


def mblip(recipe: Mblip) -> list[Row]:
    """2307.06930."""
    o, stages = recipe.options, {stage.name: stage_said(stage) for stage in recipe.stages()}
    former = recipe.visual.qformer
    return [
        Row(
            "image encoder",
            "EVA-CLIP ViT-g, 224 px, frozen [R]",
            "a small vision transformer that never met a word, frozen",
            SMALL,
        ),
        Row(
            "Q-Former",
            "BLIP-2's, which learned with Flan-T5-XL; trained [R]",
            f"{former.queries.shape[1]} queries, {millions(recipe, 'visual.qformer')}, learned as BLIP-2's in two stages here",
            "the same at another size",
            "claim C14",
        ),
        Row(
            "language model",
            "mT0-XL in 8 bits, before its encoder; or BLOOMZ-7B1 in 4 bits [R]",
            f"{recipe.lm.name}, {recipe.lm.kind}, in float32",
            "fits as it is",
        ),
        Row(
            "LoRA",
            "rank 8, alpha 16, dropout 0.05, on every linear layer [R]",
            f"rank {o.rank}, alpha {2 * o.rank}, no dropout, on every linear layer" if o.rank else "none",
            "short training",
        ),
        Row(
            "warm-up",
            "projection alone, translated captions, 8,000 steps of 128, lr 5e-3; BLOOMZ skips it [R]",
            stages.get("warm-up", "left out"),
            SMALL,
        ),
        Row(
            "re-alignment",
            "2 epochs of 128; Q-Former and projection lr 1e-5, LoRA 2e-4, cosine [R]",
            f"{next(s for name, s in stages.items() if name != 'warm-up')}; LoRA lr {o.lora_lr:g}",
            SMALL,
        ),
        Row(
            "tasks",
            "captions, details, conversations, VQA and its questions, matching with hard negatives, naming, explanations [R]",
            "eight types after these, made by the grammars",
            TRUTH,
            "claim C15",
        ),
        Row(
            "translation",
            "NLLB-200-distilled-1.3B; each example in one language, shared out as mC4 is [R]",
            "grammars with mistakes, as many as `noise` says; shared out evenly, tempered, or as mC4 is",
            "quality and sampling are dials",
            "claim C16",
        ),
        Row(
            "metric",
            "CIDEr on XM3600, accuracy on xGQA, XVNLI, MaRVL, answers in English [R]",
            "captions by a parser, attribute by attribute, and CIDEr-D; closed answers; reply language",
            TRUTH,
            SCALE,
        ),
    ]


TABLES = {M3p.name: m3p, Mla.name: mla, Mblip.name: mblip}
