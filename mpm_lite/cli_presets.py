"""The command on presets: `mpm-lite presets`, and what `mpm-lite doctor` says of this machine's."""

from __future__ import annotations

import argparse

from mpm_lite import presets as p
from mpm_lite import runtime

SHORT = {
    "GiB, estimated": "est. GiB",
    "GiB of card": "of GiB",
    "minutes of mpm_chat, estimated": "est. chat min",
    "minutes of align, estimated": "est. align min",
}


def presets(args: argparse.Namespace) -> None:
    """What to train on which card, with the memory and minutes estimated for it."""
    found = p.table()
    names = ["language model", "image tower", "learns"]
    print(found.drop(columns=names).rename(columns=SHORT).to_string(index=False))
    print()
    for row in found.to_dict("records"):
        learns = "connector" if row["learns"] == "connector" else f"connector and {row['learns']}"
        print(f"{row['preset']:5} {row['language model']} behind {row['image tower']}; learns: {learns}")
    print(
        f"\nEstimated: memory as autograd saves it, {p.MARGIN:.0%} of the card left free; minutes at {p.UTILISATION:.0%} of the"
        "\ndata sheet's rate. MPM_LITE_PRESET chooses another than this machine's."
    )


def here() -> str:
    """This machine's preset in a line: what it trains and what that takes."""
    preset = p.named(runtime.preset().name)
    of = p.of_chat(preset).total / p.GIB
    return (
        f"{preset.name}: mpm_chat on {preset.language.hub}, batch {preset.batch} in parts={preset.parts}, takes an estimated "
        f"{of:.1f} GiB"
    )
