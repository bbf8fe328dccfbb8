"""The commands on the other systems: `mpm-lite run m3p`, `mpm-lite run mla` and `mpm-lite run mblip`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd
from safetensors.torch import save as to_safetensors

from mpm_lite import runtime
from mpm_lite.cache import write_atomic
from mpm_lite.cli_settings import output, sorted_out
from mpm_lite.runtime import UserError

ASKING = ("split", "count")
SCORES = ("choice", "recall", "hard", "slots", "exact", "reply_language", "answers")


def m3p(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train M3P on code-switched captions and have it choose captions of val (split=test: of test) in all languages.
    Settings: fields of Matching (world=real: on real pictures), options of its recipe, fields of Switching, and split,
    count; switch=none for English."""
    from mpm_lite import matching
    from mpm_lite.data.switching import Switching
    from mpm_lite.recipes.m3p import M3pOptions

    plain = settings.get("switch") == "none"
    if "switch" in settings and not plain:
        raise UserError("switch=none leaves captions English; else set sentences, words, variant or dictionary.")
    rest = {k: v for k, v in settings.items() if k != "switch"}
    given, asked = sorted_out(rest, matching.Matching, M3pOptions, ASKING, {"switch": Switching})
    arm = matching.Matching(**given | ({"switch": None} if plain else {}))
    if arm.world == "real":
        from mpm_lite.real_matching import MatchingReal as Bench
    else:
        Bench = matching.Bench
    _run("m3p", Bench, arm, asked, args)


def mla(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train an English dual encoder, let it acquire languages (MLA), and have it choose captions of val (split=test: of
    test). Settings: fields of Acquiring (world=real: on real pictures), options of its recipe, and split, count."""
    from mpm_lite import acquiring
    from mpm_lite.recipes.mla import MlaOptions

    given, asked = sorted_out(settings, acquiring.Acquiring, MlaOptions, ASKING)
    arm = acquiring.Acquiring(**given)
    if arm.world == "real":
        from mpm_lite.real import AcquiringReal as Bench
    else:
        Bench = acquiring.Bench
    _run("mla", Bench, arm, asked, args)


def mblip(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train a Q-Former in English, re-align it to a language model of many languages (mBLIP), and ask it about val
    (split=test: about test). Settings: fields of Realigning, options of its recipe, and split, count."""
    from mpm_lite import realigning
    from mpm_lite.recipes.mblip import MblipOptions

    given, asked = sorted_out(settings, realigning.Realigning, MblipOptions, ASKING)
    _run("mblip", realigning.Bench, realigning.Realigning(**given), asked, args)


def _run(name: str, bench: Callable[[], Any], arm: Any, asked: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Train and test an arm once a seed, print its scores, and write weights (of the first seed), rows and configuration."""
    print(runtime.banner())
    out, asked, frames = output(args, f"runs/{name}"), {"split": "val", **asked}, []
    if "count" in asked:
        runtime.whole_number("count", asked["count"])
    bench = bench()
    for seed in range(args.seed, args.seed + (args.seeds or 1)):
        recipe = bench.train(arm, seed)
        frames.append(bench.test(recipe, seed, **asked))
        if seed == args.seed:
            weights = {k: v.contiguous().clone() for k, v in recipe.state_dict().items()}
            write_atomic(out / "model.safetensors", to_safetensors(weights))
    rows = pd.concat(frames, ignore_index=True)
    write_atomic(out / "items.parquet", rows.to_parquet(index=False))
    said = {"recipe": name, "arm": asdict(arm), "options": asdict(arm.recipe_options), "asked": dict(asked)}
    write_atomic(out / "config.json", json.dumps(said, indent=1).encode() + b"\n")
    scores = [score for score in SCORES if score in rows and rows[score].notna().any()]
    print((100 * rows.groupby(["look", "language"], sort=False)[scores].mean()).round(1).to_string())
    print(f"Written: {out}/model.safetensors, items.parquet, config.json")


def head_to_head(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train and test the four systems and their rivals at equal budgets; a committed configuration."""
    from mpm_lite import head_to_head as compared

    _compared(compared.run, settings, args, seeds=args.seeds or 3)


def ladder(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train MPM chat on every language model of the ladder that is here, and test it; a committed configuration."""
    from mpm_lite import ladder as study

    _one_seed(study.run, settings, args)


def connectors(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train and test several connectors on the strongest language models that are here; a committed configuration."""
    from mpm_lite import ladder as study

    _one_seed(study.run_connectors, settings, args)


def _one_seed(run: Callable[..., Any], settings: dict[str, Any], args: argparse.Namespace) -> None:
    if args.seeds:
        raise UserError(f"{args.recipe!r} is a committed configuration and takes neither --set nor --seeds.")
    _compared(run, settings, args)


def head_to_head_real(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train and test MLA and its rivals on real pictures; a committed configuration."""
    from mpm_lite import head_to_head_real as compared

    _compared(compared.run, settings, args, seeds=args.seeds or 3)


def _compared(run: Callable[..., Any], settings: dict[str, Any], args: argparse.Namespace, **given: Any) -> None:
    if settings:
        raise UserError(f"{args.recipe!r} is a committed configuration and takes no --set.")
    print(runtime.banner())
    say = lambda line: print(line, flush=True)  # noqa: E731
    for path in run(output(args, "runs"), say=say, workers=args.workers, **given):
        print(path)


RUNS = {
    "m3p": m3p,
    "mla": mla,
    "mblip": mblip,
    "head_to_head": head_to_head,
    "head_to_head_real": head_to_head_real,
    "ladder": ladder,
    "connectors": connectors,
}
