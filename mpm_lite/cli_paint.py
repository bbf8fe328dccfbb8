"""The commands on MPM paint: `mpm-lite run mpm_paint`, `mpm_paint_rivals` and `mpm_paint_emoji`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from mpm_lite import runtime
from mpm_lite.cache import write_atomic
from mpm_lite.cli_settings import output, sorted_out
from mpm_lite.runtime import UserError


def paint(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train MPM paint on the toy world, prompt it about val (split=test: about test) in ten languages, and write the painter
    as a diffusers folder with its scores. Settings: fields of Paint, options of its recipe; painter, a diffusers folder to
    start from in the toy painter's place; and split, count, guidance, best_of."""
    from mpm_lite import painting as p
    from mpm_lite.paint import PaintPipeline
    from mpm_lite.recipes.mpm_paint import MpmPaintOptions

    asking = ("split", "count", "guidance", "best_of", "painter")
    given, asked = sorted_out(settings, p.Paint, MpmPaintOptions, asking)
    folder, asked = asked.pop("painter", None), {"split": "val", **asked}
    arm, out = p.Paint(**given), output(args, "runs/mpm_paint")
    bench = p.Bench(painter=folder)
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
    from mpm_lite import painting_rivals

    if settings:
        raise UserError("'mpm_paint_rivals' is a committed configuration and takes no --set; use 'mpm_paint' instead.")
    print(runtime.banner())
    for path in painting_rivals.run(output(args, "runs"), args.seeds or 3, say=lambda line: print(line, flush=True)):
        print(path)


def emoji(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train painters on English names of emoji and prompt them in fourteen languages; a committed configuration."""
    from mpm_lite import painting_emoji

    if settings:
        raise UserError("'mpm_paint_emoji' is a committed configuration and takes no --set.")
    print(runtime.banner())
    seeds = range(args.seed, args.seed + (args.seeds or 3))
    for path in painting_emoji.run(output(args, "runs"), seeds, lambda line: print(line, flush=True)):
        print(path)


RUNS = {"mpm_paint": paint, "mpm_paint_rivals": rivals, "mpm_paint_emoji": emoji}
