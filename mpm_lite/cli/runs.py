"""What `mpm-lite run` does for each system, and `mpm-lite claims`.

`--set key=value` is sorted into what an arm says, the options of its recipe, and what is asked of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save as to_safetensors

from mpm_lite.core import runtime
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.core.store import check_writable, write_atomic
from mpm_lite.experiments import experiment

OPTIONS = "options"


def output(args: argparse.Namespace, default: str) -> Path:
    """The folder for what a command writes: --out, or its default. UserError, before any work, where it cannot be written."""
    folder = Path(args.out or default)
    check_writable(folder)
    return folder


def sorted_out(
    settings: Mapping[str, Any], arm: type, options: type, asking: Sequence[str] = (), inside: Mapping[str, type] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """What to build `arm` (a dataclass with a field `options`) from, and which of `asking` was given.

    A field whose default is a tuple takes names with commas between. `inside`: fields of the arm that are dictionaries of
    another dataclass's fields, which may be set by those. Raises UserError, with the nearest name, for a key of none.
    """
    plain = {f.name: f for f in fields(arm) if f.name != OPTIONS}
    own = {f.name for f in fields(options)}
    deeper = {f.name: (name, f) for name, kind in (inside or {}).items() for f in fields(kind) if f.name not in plain}
    given: dict[str, Any] = {OPTIONS: {}}
    asked: dict[str, Any] = {}
    for key, value in settings.items():
        if key in asking:
            asked[key] = value
        elif key in plain:
            given[key] = _listed(plain[key], value)
        elif key in own:
            given[OPTIONS][key] = value
        elif key in deeper:
            name, one = deeper[key]
            given.setdefault(name, {})[key] = _listed(one, value)
        else:
            raise unknown("setting", key, {*plain, *own, *deeper, *asking})
    return given, asked


def _listed(one: Field, value: Any) -> Any:
    """The value, in the way that the field holds it."""
    if not isinstance(one.default, tuple):
        return value
    return tuple(value) if isinstance(value, (tuple, list)) else tuple(filter(None, str(value).split(",")))


def chat(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train MPM chat on the toy world and ask it about val (split=test: about test). Settings: fields of Chat, options of
    its recipe, and what is asked: split, count."""
    from mpm_lite.experiments.mpm_chat import Chat
    from mpm_lite.recipes.mpm_chat import MpmChatOptions

    given, asked = sorted_out(settings, Chat, MpmChatOptions, ("split", "count"))
    asked = {"split": "val", **asked}
    arm, out = Chat(**given), output(args, "runs/mpm_chat")
    print(runtime.banner())
    results = arm.run(range(args.seed, args.seed + (args.seeds or 1)), **asked)
    results.save(out)
    shown = results.scores.query("look == 'real'").pivot_table(
        index="language", columns="metric", values="value", sort=False
    )
    print((100 * shown).round(1).to_string())
    print(f"Written: {out}/model.safetensors, results.parquet, items.parquet, config.json")


def names(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train language models on names and connectors on English ones, and name held-out emoji and stamps. Settings: fields
    of Naming (sets with '+'), options of its recipe, and split."""
    import pandas as pd

    from mpm_lite.experiments import picture_names
    from mpm_lite.recipes.mpm_chat import MpmChatOptions

    fields = set(picture_names.Naming.__dataclass_fields__) - {"options", "reading"}
    options = set(MpmChatOptions.__dataclass_fields__)
    for key in settings:
        if key not in fields | options | {"split"}:
            raise unknown("setting", key, fields | options | {"split"})
    given = {k: v for k, v in settings.items() if k in fields}
    if "sets" in given:
        given["sets"] = tuple(given["sets"].split("+"))
    arm = picture_names.Naming(**given, options={k: v for k, v in settings.items() if k in options})
    print(runtime.banner())
    out, seeds = output(args, "runs/mpm_names"), range(args.seed, args.seed + (args.seeds or 1))
    written = picture_names.run(out, seeds, settings.get("split", "test" if not settings else "val"), arm)
    shown = pd.read_csv(written[0], keep_default_na=False).query("metric == 'choice'").drop(columns="metric")
    print(shown.round(3).to_string(index=False))
    print("Written: " + ", ".join(str(path) for path in written))


CHAT_RUNS = {"mpm_chat": chat, "mpm_names": names}


def claims(args: argparse.Namespace) -> None:
    """Run claims of the papers, print the ledger, or all that it says of some; or pack the rows behind it."""
    from mpm_lite.claims import ledger as c

    if args.action == "show":
        for name in args.names or c.CLAIMS:
            print(c.told(name, Path(args.out) / "claims.json" if args.out else None) + "\n")
        return
    out = Path(args.out or "runs/claims")
    if args.action == "pack":
        from mpm_lite.claims import ladder
        from mpm_lite.claims.comparisons import shelves

        every = [c.shelf(out), *shelves(out), *shelves(out, "head_to_head_real"), ladder.shelf(out)]
        for one in [one for one in every if one.files()] or every[:1]:
            print(f"Written: {one.pack()}")
        return
    ledger = out / "claims.json"
    if args.action == "run":
        print(runtime.banner())
        names = list(c.CLAIMS) if not args.names or "all" in args.names else args.names
        seeds = range(
            args.seed or experiment.FIRST_SEED, (args.seed or experiment.FIRST_SEED) + (args.seeds or experiment.SEEDS)
        )
        output(args, "runs/claims")
        for one in [c.claim(name) for name in names]:  # what is wrong or missing is said before hours of running
            c.check_models(one, out, seeds)
        for one in [c.claim(name) for name in names]:
            say = lambda line: print(line, flush=True)  # noqa: E731
            c.enter(c.run(one.id, out, seeds, say=say, workers=args.workers), ledger)
        print(f"Written: {ledger}")
    shown = c.table(ledger if args.out or args.action == "run" else None)
    print(shown.to_string(index=False, na_rep="-"))
    if args.json:
        write_atomic(Path(args.json), (shown.to_json(orient="records", indent=1) + "\n").encode())


def paint(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train MPM paint on the toy world, prompt it about val (split=test: about test) in ten languages, and write the painter
    as a diffusers folder with its scores. Settings: fields of Paint, options of its recipe; painter, a diffusers folder to
    start from in the toy painter's place; and split, count, guidance, best_of."""
    from mpm_lite.experiments import mpm_paint as p
    from mpm_lite.recipes.modules.diffusion import PaintPipeline
    from mpm_lite.recipes.mpm_paint import MpmPaintOptions

    asking = ("split", "count", "guidance", "best_of", "painter")
    given, asked = sorted_out(settings, p.Paint, MpmPaintOptions, asking)
    folder, asked = asked.pop("painter", None), {"split": "val", **asked}
    arm, out = p.Paint(**given), output(args, "runs/mpm_paint")
    bench = p.PaintBench(painter=folder)
    print(runtime.banner())
    for seed in range(args.seed, args.seed + (args.seeds or 1)):
        recipe, place = bench.train(arm, seed), out / f"seed-{seed}"
        rows = bench.test(recipe, seed, looks=("real", "wrong"), as_sets=asked.get("count", 200) >= 100, **asked)
        place.mkdir(parents=True, exist_ok=True)
        pipe = PaintPipeline(*recipe.parts, bench.vae, arm.encoder, p.seed_of(recipe.encoder), arm.layer)
        pipe.save_pretrained(place / "painter")
        write_atomic(place / "items.parquet", rows.to_parquet(index=False))
        said = {"arm": asdict(arm), "options": asdict(arm.recipe_options), "seed": seed, "asked": asked}
        write_atomic(place / "config.json", json.dumps(said, indent=1).encode() + b"\n")
        scores = [name for name in ("attributes", "bound", "exact", "r_precision", "fid") if name in rows]
        print(rows.groupby(["look", "language"], sort=False)[scores].mean().round(3).to_string())
        print(f"Written: {place}/painter, items.parquet, config.json")


def rivals(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train and test whatever else could paint from prompts in other languages; a committed configuration."""
    from mpm_lite.claims import comparisons

    if settings:
        raise UserError("'mpm_paint_rivals' is a committed configuration and takes no --set; use 'mpm_paint' instead.")
    print(runtime.banner())
    for path in comparisons.run_painters(
        output(args, "runs"), args.seeds or 3, say=lambda line: print(line, flush=True)
    ):
        print(path)


def emoji(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train painters on English names of emoji and prompt them in fourteen languages; a committed configuration."""
    from mpm_lite.experiments import painted_emoji

    if settings:
        raise UserError("'mpm_paint_emoji' is a committed configuration and takes no --set.")
    print(runtime.banner())
    seeds = range(args.seed, args.seed + (args.seeds or 3))
    for path in painted_emoji.run(output(args, "runs"), seeds, lambda line: print(line, flush=True)):
        print(path)


PAINT_RUNS = {"mpm_paint": paint, "mpm_paint_rivals": rivals, "mpm_paint_emoji": emoji}


# The other three systems, and comparisons.

ASKING = ("split", "count")
SCORES = ("choice", "recall", "hard", "slots", "exact", "reply_language", "answers")


def m3p(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train M3P on code-switched captions and have it choose captions of val (split=test: of test) in all languages.
    Settings: fields of Matching (world=real: on real pictures), options of its recipe, fields of Switching, and split,
    count; switch=none for English."""
    from mpm_lite.data.toyworld.switching import Switching
    from mpm_lite.experiments import m3p
    from mpm_lite.recipes.m3p import M3pOptions

    plain = settings.get("switch") == "none"
    if "switch" in settings and not plain:
        raise UserError("switch=none leaves captions English; else set sentences, words, variant or dictionary.")
    rest = {k: v for k, v in settings.items() if k != "switch"}
    given, asked = sorted_out(rest, m3p.Matching, M3pOptions, ASKING, {"switch": Switching})
    arm = m3p.Matching(**given | ({"switch": None} if plain else {}))
    if arm.world == "real":
        from mpm_lite.experiments.worlds import MatchingReal as Bench
    else:
        Bench = m3p.M3pBench
    _run("m3p", Bench, arm, asked, args)


def mla(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train an English dual encoder, let it acquire languages (MLA), and have it choose captions of val (split=test: of
    test). Settings: fields of Acquiring (world=real: on real pictures), options of its recipe, and split, count."""
    from mpm_lite.experiments import mla
    from mpm_lite.recipes.mla import MlaOptions

    given, asked = sorted_out(settings, mla.Acquiring, MlaOptions, ASKING)
    arm = mla.Acquiring(**given)
    if arm.world == "real":
        from mpm_lite.experiments.worlds import AcquiringReal as Bench
    else:
        Bench = mla.MlaBench
    _run("mla", Bench, arm, asked, args)


def mblip(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train a Q-Former in English, re-align it to a language model of many languages (mBLIP), and ask it about val
    (split=test: about test). Settings: fields of Realigning, options of its recipe, and split, count."""
    from mpm_lite.experiments import mblip
    from mpm_lite.recipes.mblip import MblipOptions

    given, asked = sorted_out(settings, mblip.Realigning, MblipOptions, ASKING)
    _run("mblip", mblip.MblipBench, mblip.Realigning(**given), asked, args)


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
    from mpm_lite.claims import comparisons as compared

    _compared(compared.run_real, settings, args, seeds=args.seeds or 3)


def ladder(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train MPM chat on every language model of the ladder that is here, and test it; a committed configuration."""
    from mpm_lite.claims import ladder as study

    _one_seed(study.run, settings, args)


def connectors(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train and test several connectors on the strongest language models that are here; a committed configuration."""
    from mpm_lite.claims import ladder as study

    _one_seed(study.run_connectors, settings, args)


def _one_seed(run: Callable[..., Any], settings: dict[str, Any], args: argparse.Namespace) -> None:
    if args.seeds:
        raise UserError(f"{args.recipe!r} is a committed configuration and takes neither --set nor --seeds.")
    _compared(run, settings, args)


def head_to_head_real(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train and test MLA and its rivals on real pictures; a committed configuration."""
    from mpm_lite.claims import comparisons as compared

    _compared(compared.run_real, settings, args, seeds=args.seeds or 3)


def _compared(run: Callable[..., Any], settings: dict[str, Any], args: argparse.Namespace, **given: Any) -> None:
    if settings:
        raise UserError(f"{args.recipe!r} is a committed configuration and takes no --set.")
    print(runtime.banner())
    say = lambda line: print(line, flush=True)  # noqa: E731
    for path in run(output(args, "runs"), say=say, workers=args.workers, **given):
        print(path)


SYSTEM_RUNS = {
    "m3p": m3p,
    "mla": mla,
    "mblip": mblip,
    "head_to_head": head_to_head,
    "head_to_head_real": head_to_head_real,
    "ladder": ladder,
    "connectors": connectors,
}
