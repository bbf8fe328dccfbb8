"""The commands on MPM chat: `mpm-lite run mpm_chat`, `mpm-lite run mpm_names` and `mpm-lite claims`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpm_lite import runtime
from mpm_lite.cache import write_atomic
from mpm_lite.cli_settings import output, sorted_out
from mpm_lite.runtime import unknown


def chat(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train MPM chat on the toy world and ask it about val (split=test: about test). Settings: fields of Chat, options of
    its recipe, and what is asked: split, count."""
    from mpm_lite.chat import Chat
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

    from mpm_lite import naming
    from mpm_lite.recipes.mpm_chat import MpmChatOptions

    fields = set(naming.Naming.__dataclass_fields__) - {"options", "reading"}
    options = set(MpmChatOptions.__dataclass_fields__)
    for key in settings:
        if key not in fields | options | {"split"}:
            raise unknown("setting", key, fields | options | {"split"})
    given = {k: v for k, v in settings.items() if k in fields}
    if "sets" in given:
        given["sets"] = tuple(given["sets"].split("+"))
    arm = naming.Naming(**given, options={k: v for k, v in settings.items() if k in options})
    print(runtime.banner())
    out, seeds = output(args, "runs/mpm_names"), range(args.seed, args.seed + (args.seeds or 1))
    written = naming.run(out, seeds, settings.get("split", "test" if not settings else "val"), arm)
    shown = pd.read_csv(written[0], keep_default_na=False).query("metric == 'choice'").drop(columns="metric")
    print(shown.round(3).to_string(index=False))
    print("Written: " + ", ".join(str(path) for path in written))


RUNS = {"mpm_chat": chat, "mpm_names": names}


def claims(args: argparse.Namespace) -> None:
    """Run claims of the papers, print the ledger, or all that it says of some; or pack the rows behind it."""
    from mpm_lite import claims as c

    if args.action == "show":
        for name in args.names or c.CLAIMS:
            print(c.told(name, Path(args.out) / "claims.json" if args.out else None) + "\n")
        return
    out = Path(args.out or "runs/claims")
    if args.action == "pack":
        from mpm_lite import ladder
        from mpm_lite.head_to_head import shelves

        every = [c.shelf(out), *shelves(out), *shelves(out, "head_to_head_real"), ladder.shelf(out)]
        for one in [one for one in every if one.files()] or every[:1]:
            print(f"Written: {one.pack()}")
        return
    ledger = out / "claims.json"
    if args.action == "run":
        print(runtime.banner())
        names = list(c.CLAIMS) if not args.names or "all" in args.names else args.names
        seeds = range(args.seed or c.FIRST_SEED, (args.seed or c.FIRST_SEED) + (args.seeds or c.SEEDS))
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
