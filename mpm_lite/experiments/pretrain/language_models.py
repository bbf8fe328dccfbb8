"""The language models that the project trains itself: which there are, how each is rebuilt, and the card it gets.

    mpm-lite pretrain toy-multilingual:0 --out assets      one model
    mpm-lite pretrain all --out assets                     every one; stopped and called again, it goes on
    mpm-lite pretrain --ladder                             those of the ladder (`claims/ladder.py`)

All variants share the tokenizer. What differs is what the documents are and, for some of the ladder, size and steps. One
language takes a tenth of the steps that ten take, and is read as often as each of them.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpm_lite.core import runtime
from mpm_lite.core.keys import Key, check_same, digest
from mpm_lite.core.provenance import Artifact
from mpm_lite.core.store import write_atomic, write_json
from mpm_lite.data.toyworld import grammar, text_mix
from mpm_lite.evaluation import text_only
from mpm_lite.recipes.pretraining.language_model import Buckets, LanguageModel, LanguageModelOptions
from mpm_lite.towers.load import load_lm
from mpm_lite.towers.text import BREAK, save_tokenizer, train_tokenizer
from mpm_lite.training import loop

VOCABULARY = 2048  # at most: byte-pair merging runs out of pairs before
DOCUMENTS = 200_000  # different ones a stage; a stage reads its `steps` buckets, some of them more than once
BUCKET = 64
IN_FULL = 5  # one document in so many counts in full, of the others what can be foreseen
# How the documents of the first stage differ: a caption and the question what colour something is, no more.
LOOKUPS = {"parallel": 0.0, "discourse": 1.0, "quoted": 0.0, "asked": 1.0, "kinds": ("colour",), "stream": 1}
SPLITS = ("val", "test")  # the gate looks at val
SPEED = ("compiled", "bf16")  # options that say how fast a machine computes, not what
_UNSEEN = ("hi", "sw")
# The words of questions that a segmenter of Chinese and Japanese keeps together.
_ASKING = ("什么", "颜色", "哪里", "是不是", "不是", "何色")


@dataclass(frozen=True)
class Variant:
    """One way of pretraining: languages read, share of translation pairs (in the second stage), seeds trained apart.

    `withheld` and `mixed` are dials of the text mix, `width` and `layers` those of the model.
    """

    name: str
    languages: tuple[str, ...]
    parallel: float
    seeds: tuple[int, ...]
    lookups: int = LanguageModelOptions.lookups  # steps of the first stage
    steps: int = LanguageModelOptions.steps  # and of the second
    withheld: int = 0
    mixed: float = 0.0
    width: int = LanguageModelOptions.width
    layers: int = LanguageModelOptions.layers

    @property
    def options(self) -> LanguageModelOptions:
        """The recipe's options."""
        return LanguageModelOptions(width=self.width, layers=self.layers, lookups=self.lookups, steps=self.steps)


_ALL = grammar.LANGUAGES
VARIANTS = {
    v.name: v
    for v in (
        Variant("toy-multilingual", _ALL, 0.05, (0, 1, 2), withheld=3),
        Variant("toy-noparallel", _ALL, 0.0, (0, 1, 2), withheld=3),
        Variant("toy-english", ("en",), 0.0, (0, 1, 2), lookups=800, steps=1_800, withheld=3),
        Variant("toy-unseen", tuple(code for code in _ALL if code not in _UNSEEN), 0.05, (0,), withheld=3),
        Variant("toy-parallel-1", _ALL, 0.01, (0,), withheld=3),
        Variant("toy-parallel-20", _ALL, 0.20, (0,), withheld=3),
        # Seven tenths of what it reads are pairs: to read a language on its own about as often, it needs longer.
        Variant("toy-parallel-70", _ALL, 0.70, (0,), steps=36_000, withheld=3),
        # Half of its discourse is in two languages. Its control reads as many documents that say a caption again in another
        # language (a third of all), and asks and answers in one language only.
        Variant("toy-mixed", _ALL, 0.20, (0, 1, 2, 3, 4), mixed=0.5),
        Variant("toy-unmixed", _ALL, 0.33, (0, 1, 2)),
        # Others: a tenth of its discourse in two languages; a twentieth of pairs; fewer steps; narrower; deeper.
        Variant("toy-mixed-10", _ALL, 0.20, (0, 1), mixed=0.1),
        Variant("toy-mixed-few", _ALL, 0.05, (0, 1), mixed=0.5),
        Variant("toy-mixed-short", _ALL, 0.20, (0, 1), mixed=0.5, lookups=4_000, steps=4_000),
        Variant("toy-unmixed-short", _ALL, 0.33, (0, 1), lookups=4_000, steps=4_000),
        Variant("toy-mixed-narrow", _ALL, 0.20, (0, 1), mixed=0.5, width=64),
        Variant("toy-mixed-deep", _ALL, 0.20, (0,), mixed=0.5, layers=6),
    )
}
# In the order in which they are made: those whose weights ship come first.
_RUNGS = (
    "toy-english:0 toy-noparallel:0 toy-multilingual:0 toy-multilingual:1 toy-multilingual:2 toy-mixed:0 toy-unmixed:0 "
    "toy-mixed-short:0 toy-unmixed-short:0 toy-mixed:1 toy-mixed-10:0 toy-mixed:2 toy-mixed-few:0 toy-mixed-narrow:0 toy-unmixed:1 "
    "toy-mixed-10:1 toy-mixed-short:1 toy-unmixed-short:1 toy-mixed-few:1 toy-unmixed:2 toy-mixed-narrow:1 toy-mixed-deep:0"
)


def ladder() -> list[tuple[Variant, int]]:
    """The models of the ladder, in the order in which they are made."""
    return chosen(_RUNGS.split())


def chosen(names: Sequence[str]) -> list[tuple[Variant, int]]:
    """The models that NAME, NAME:SEED or "all" mean, in order. UserError for one nobody knows."""
    every = [(variant, seed) for variant in VARIANTS.values() for seed in variant.seeds]
    if not names or "all" in names:
        return every
    found = []
    for name in names:
        variant, _, seed = name.partition(":")
        if variant not in VARIANTS:
            raise runtime.unknown("language model to pretrain", variant, [*VARIANTS, "all"])
        if seed and not seed.isdigit():
            raise runtime.UserError(f"{name!r}: behind the colon goes the number of a seed, such as {variant}:0.")
        seeds = (int(seed),) if seed else VARIANTS[variant].seeds
        found += [(VARIANTS[variant], one) for one in seeds]
    return found


@lru_cache(maxsize=1)
def shared_tokenizer() -> Any:
    """The tokenizer of every model here: trained on 20,000 documents of the multilingual mix, the same each time."""
    lexicons = [grammar.grammar(code).lexicon for code in grammar.LANGUAGES if not grammar.grammar(code).spaced]
    words = {form for one in lexicons for slot in one.values() for forms in slot.values() for form in forms}
    words |= {form + "的" for forms in grammar.grammar("zh").lexicon["colour"].values() for form in forms}
    together = [w for w in words if len(w) > 1 and (w[-1] in "いの" or all("\u4e00" <= c <= "\u9fff" for c in w))]
    # The words that were withheld when it was made: which words, decides which pairs are drawn.
    texts = (d.text for d in islice(text_mix.write_documents(text_mix.Mix(withheld=3)), 20_000))
    return train_tokenizer(texts, VOCABULARY, [*together, *_ASKING])


def mix(variant: Variant, seed: int) -> text_mix.Mix:
    """What a model of that variant and seed reads."""
    return text_mix.Mix(
        languages=variant.languages,
        parallel=variant.parallel,
        seed=seed,
        mixed=variant.mixed,
        withheld=variant.withheld,
    )


def corpora(variant: Variant, seed: int, count: int = DOCUMENTS) -> tuple[list[Buckets], dict[str, Any]]:
    """The documents of each stage as training data, and what they are in numbers, for the card.

    To begin with, a model learns to look one thing up; there are no translation pairs yet. Where the colour stands
    before its noun, to find it by the noun is nothing that saying a caption again would teach. Where discourse is mixed, so
    is this first one: the caption is in one language, the question and the colour in another.
    """
    what = mix(variant, seed)
    lookups, first = corpus(replace(what, **LOOKUPS), count, in_full=0)
    data, said = corpus(what, count)
    apart = text_mix.draw_withheld(seed, variant.withheld) if variant.parallel else []
    said |= {"looking_up": first, "withheld_from_pairs": sorted(apart)}
    return [lookups, data], said


def corpus(what: text_mix.Mix, count: int, in_full: int = IN_FULL) -> tuple[Buckets, dict[str, Any]]:
    """That many documents as training data, and what they are in numbers; one in `in_full` counts in full, 0: none."""
    tokenizer = shared_tokenizer()
    many = list(islice(text_mix.write_documents(what), count))
    ids = tokenizer([d.text for d in many])["input_ids"]
    rows = [row + [tokenizer.eos_token_id] for row in ids]
    line_break = tokenizer.convert_tokens_to_ids(BREAK)
    whole = [bool(in_full) and i % in_full == 0 for i in range(count)]
    counts = [counted(row, d, line_break, full) for row, d, full in zip(rows, many, whole, strict=True)]
    tokens, in_two, again, kinds = Counter(), 0, 0, Counter(d.kind for d in many)
    for document, row in zip(many, rows, strict=True):
        first, last = document.languages
        if first == last:
            tokens[first] += len(row)
        else:
            in_two += len(row)
            again += document.kind == text_mix.PARALLEL or grammar.describe(last) in document.segments
    said = {
        "documents": count,
        # Translation pairs, and mixed discourse whose answer says the caption again.
        "captions_in_two_languages": again,
        "tokens_in_two_languages": in_two,
        "documents_by_kind": dict(sorted(kinds.items())),
        "monolingual_tokens": dict(sorted(tokens.items())),
        "parallel_sentences": kinds[text_mix.PARALLEL],
    }
    return Buckets(rows, BUCKET, counts, digest=digest([str(in_full), *(d.text for d in many)])), said


def counted(row: Sequence[int], document: text_mix.Document, line_break: int, in_full: bool) -> list[bool]:
    """Which tokens of a document the loss counts: all, or those of the segments that can be foreseen.

    A line break belongs to the segment that it ends; a document without anything foreseen counts in full.
    """
    if in_full or not any(document.foreseen):
        return [True] * len(row)
    segment = np.cumsum([0, *(token == line_break for token in row[:-1])])
    return np.array(document.foreseen)[segment].tolist()


def build(
    variant: Variant,
    seed: int,
    out: Path,
    options: LanguageModelOptions | None = None,
    documents: int = DOCUMENTS,
    asked: int = text_only.SCENES,
) -> Path:
    """Train, save, measure and describe one model, unless all that is done; returns the path of its card.

    Raises OtherRun where weights of that name and seed are there already, made of another text mix or with other options.
    Weights go to OUT/lm/NAME-SEED, measures to OUT/results/lm/NAME-SEED.csv, both whole or not at all; checkpoints lie
    in the cache folder, so that a stopped run goes on where it was.
    """
    options = options or variant.options
    folder, rows = out / "lm" / f"{variant.name}-{seed}", out / "results" / "lm" / f"{variant.name}-{seed}.csv"
    make = partial(_make, variant, seed, folder, rows, options, documents, asked)
    artifact = Artifact(f"{variant.name}:{seed}", folder, rows.with_suffix(".json"), make)
    if artifact.is_intact():
        told = json.loads(artifact.card.read_text(encoding="utf-8"))
        wanted = {**asdict(mix(variant, seed)), "documents": documents, "options": asdict(options)}
        check_same(folder, _settings_key(told, wanted).describe(), _settings_key(wanted, told))
    elif options.compiled and not compiler():
        raise runtime.UserError("No C++ compiler is found, and training compiles the model: install g++ (or set CXX).")
    return artifact.build()


def _make(
    variant: Variant, seed: int, folder: Path, rows: Path, options: LanguageModelOptions, documents: int, asked: int
) -> dict[str, Any]:
    """Train, save and measure one model; what its card says."""
    started = time.perf_counter()
    data, said = corpora(variant, seed, documents)
    prepared = time.perf_counter() - started
    torch.manual_seed(seed)
    tokenizer = shared_tokenizer()
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    recipe = LanguageModel(len(tokenizer), options, **special)
    work = runtime.home() / "pretrain" / f"{variant.name}-{seed}"
    history = loop.fit(recipe, data, loop.Plan(seed, work, save_every=250, label=f"{variant.name}:{seed}"))
    seconds = prepared + history.seconds

    def extras(beside: Path) -> None:
        save_tokenizer(shared_tokenizer(), beside)
        write_json(beside / "card.json", {"languages": list(variant.languages)})

    save(recipe.decoder, folder, extras)
    lm = load_lm(str(folder))
    import pandas as pd

    apart = text_mix.draw_withheld(seed, variant.withheld)
    tables = [text_only.measure_model(lm, _ALL, apart, split, asked).assign(split=split) for split in SPLITS]
    table = pd.concat(tables)
    write_atomic(rows, table.to_csv(index=False, float_format="%.4f").encode())
    val = table[table["split"] == "val"]
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    return {
        "name": variant.name,
        "seed": seed,
        **asdict(mix(variant, seed)),
        **said,
        "options": asdict(options),
        "parameters": sum(p.numel() for p in recipe.decoder.parameters()),
        "documents_read": (options.lookups + options.steps) * BUCKET,
        "last_loss": round(sum(history.losses[-50:]) / len(history.losses[-50:]), 4),
        "gate": text_only.GATE,
        "lowest_on_val": {k: round(v, 4) for k, v in text_only.gate(val, variant.languages).items()},
        "passes": text_only.passes_gate(val, variant.languages),
        "text_transfer_on_val": {k: round(v, 4) for k, v in text_only.transfer(val, variant.languages).items()},
        "strong": text_only.is_strong(val, variant.languages),
        "seconds": seconds,
    }


def _settings_key(one: Mapping[str, Any], other: Mapping[str, Any]) -> Key:
    """What of a model's settings another description says too: a card that is older than an option says nothing of it."""
    shared = {name: value for name, value in one.items() if name in other and name != "options"}
    shared |= {f"option {k}": v for k, v in one["options"].items() if k in other["options"] and k not in SPEED}
    return Key("settings of a language model", {k: json.dumps(v) for k, v in sorted(shared.items())})


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call on a CPU, None where there is none."""
    return next(filter(None, map(shutil.which, [os.environ.get("CXX", "g++"), "clang++", "cl"])), None)


def save(model: Any, folder: Path, extras: Callable[[Path], None]) -> None:
    """Write the model as a transformers checkpoint in float16, and what `extras` writes beside it, whole or not at all."""
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    copy.deepcopy(model).half().save_pretrained(beside)
    extras(beside)
    (beside / "generation_config.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)


def cards() -> Iterator[dict[str, Any]]:
    """The cards of every model measured, in the order of VARIANTS."""
    for variant in VARIANTS.values():
        for path in sorted((runtime.asset("results") / "lm").glob(f"{variant.name}-[0-9].json")):
            yield json.loads(path.read_text())
