"""The commands on MPM chat: `mpm-lite run mpm_chat` and `mpm-lite claims`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mpm_lite import runtime
from mpm_lite.cache import write_atomic
from mpm_lite.runtime import unknown

CHAT = "mpm_chat"


def chat(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Train MPM chat on the toy world and ask it about val (split=test: about test). Settings: fields of Chat, options of
    its recipe, and what is asked: split, count."""
    from mpm_lite.chat import Chat
    from mpm_lite.recipes.mpm_chat import MpmChatOptions

    fields, options = set(Chat.__dataclass_fields__) - {"options"}, set(MpmChatOptions.__dataclass_fields__)
    given: dict[str, Any] = {"options": {}}
    asked: dict[str, Any] = {"split": "val"}
    for key, value in settings.items():
        if key in ("languages", "also", "targets"):
            given[key] = tuple(str(value).split(","))
        elif key in fields:
            given[key] = value
        elif key in options:
            given["options"][key] = value
        elif key in ("split", "count"):
            asked[key] = value
        else:
            raise unknown("setting", key, fields | options | {"split", "count"})
    arm, out = Chat(**given), Path(args.out or f"runs/{CHAT}")
    print(runtime.banner())
    results = arm.run(range(args.seed, args.seed + (args.seeds or 1)), **asked)
    results.save(out)
    shown = results.scores.query("look == 'real'").pivot_table(
        index="language", columns="metric", values="value", sort=False
    )
    print((100 * shown).round(1).to_string())
    print(f"Written: {out}/model.safetensors, results.parquet, items.parquet, config.json")


def claims(args: argparse.Namespace) -> None:
    """Run claims of the papers, or print the ledger."""
    from mpm_lite import claims as c

    out = Path(args.out or "runs/claims")
    ledger = out / "claims.json"
    if args.action == "run":
        print(runtime.banner())
        names = list(c.CLAIMS) if not args.names or "all" in args.names else args.names
        seeds = range(args.seed or c.FIRST_SEED, (args.seed or c.FIRST_SEED) + (args.seeds or c.SEEDS))
        for one in [c.claim(name) for name in names]:  # a name nobody knows is said before hours of running
            c.enter(c.run(one.id, out, seeds, say=lambda line: print(line, flush=True)), ledger)
        print(f"Written: {ledger}")
    shown = c.table(ledger if args.out or args.action == "run" else None)
    print(shown.to_string(index=False, na_rep="-"))
    if args.json:
        write_atomic(Path(args.json), (shown.to_json(orient="records", indent=1) + "\n").encode())
