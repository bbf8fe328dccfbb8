"""The toy world's own language models: their names, and the folders that hold them."""

from __future__ import annotations

from pathlib import Path

from mpm_lite import runtime

TOY_LMS = ("toy-multilingual", "toy-noparallel", "toy-english", "toy-unseen")
DIAL_LMS = (
    "toy-parallel-1",
    "toy-parallel-20",
    "toy-parallel-70",
)  # the same with another share of pairs, percent; made by command
NAMES = (*TOY_LMS, *DIAL_LMS)


def seeds(name: str) -> list[int]:
    """The seeds with which models of that name were pretrained, in order."""
    return sorted(_there(name))


def folder(name: str, seed: int) -> Path:
    """The folder of one of them. Raises UserError that says how to make it, or which seeds there are."""
    there = _there(name)
    if seed in there:
        return there[seed]
    if not there:
        make = f"mpm-lite pretrain {name}:{seed} --out assets"
        raise runtime.UserError(f"{name} is not among the assets: `{make}` makes it (an hour on a CPU).")
    raise runtime.UserError(f"{name} was pretrained with seeds {sorted(there)}, not {seed}: ask for one of those.")


def _there(name: str) -> dict[int, Path]:
    """The folders of that name among the assets, by seed."""
    return {int(path.name.rsplit("-", 1)[1]): path for path in (runtime.asset() / "lm").glob(f"{name}-[0-9]*")}
