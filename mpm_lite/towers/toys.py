"""The toy world's own language models: their names, and the folders that hold them."""

from __future__ import annotations

from pathlib import Path

from mpm_lite import runtime

TOY_LMS = ("toy-multilingual", "toy-noparallel", "toy-english", "toy-unseen")  # among the assets
# Of these the assets hold what was measured; the weights lie where this machine trained them.
LOCAL_LMS = ("toy-parallel-1", "toy-parallel-20", "toy-parallel-70")
NAMES = (*TOY_LMS, *LOCAL_LMS)


def trained_folder(name: str, seed: int) -> Path:
    """Where training keeps the checkpoints, and the weights of a model that is not among the assets."""
    return runtime.home() / "pretrain" / f"{name}-{seed}"


def seeds(name: str) -> list[int]:
    """The seeds with which models of that name were pretrained and are on this machine, in order."""
    return sorted(_there(name))


def folder(name: str, seed: int) -> Path:
    """The folder of one of them. Raises UserError that says how to make it, or which seeds there are."""
    there = _there(name)
    if seed in there:
        return there[seed]
    if not there:
        make = f"mpm-lite pretrain {name}:{seed}" + (" --out assets" if name in TOY_LMS else "")
        raise runtime.UserError(f"{name} is not on this machine: `{make}` makes it (an hour on a CPU).")
    raise runtime.UserError(f"{name} was pretrained with seeds {sorted(there)}, not {seed}: ask for one of those.")


def _there(name: str) -> dict[int, Path]:
    """The folders of that name by seed: among the assets, else where this machine trained them."""
    found = {}
    for path in (runtime.asset() / "lm").glob(f"{name}-[0-9]*"):
        found[int(path.name.rsplit("-", 1)[1])] = path
    for path in (runtime.home() / "pretrain").glob(f"{name}-[0-9]*/model"):
        found.setdefault(int(path.parent.name.rsplit("-", 1)[1]), path)
    return found
