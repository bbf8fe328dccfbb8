"""The names of the packaged towers and of the toy world's models, and the folders of these. Listing them loads nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpm_lite.core import runtime
from mpm_lite.core.keys import digest, file_digest
from mpm_lite.core.runtime import UserError

IMAGE_TOWERS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "toy")
# Packaged name -> the name of the function in packaged.py that builds it, so that listing towers loads nothing.
TEXT_TOWERS = {"use-m": "use_m", "e5-small": "e5_small", "minilm-en": "minilm_en"}
# The toy world's own text towers, and the folder of each among the assets.
TOY_TOWERS = {"toy": "toy-text", "toy-en": "toy-text-en"}
TOKEN_TOWERS = ("e5-small", "minilm-en")  # packaged towers that have token states
TOY_LMS = ("toy-multilingual", "toy-noparallel", "toy-english", "toy-unseen")
# The same with another share of translation pairs, in percent; a command makes them.
DIAL_LMS = ("toy-parallel-1", "toy-parallel-20", "toy-parallel-70")
# With mixed discourse or, for as many steps, without it; nothing is withheld from pairs. They are the rungs of a ladder.
MIXED_LMS = ("toy-mixed", "toy-unmixed", "toy-mixed-short", "toy-unmixed-short", "toy-mixed-10", "toy-mixed-few",
             "toy-mixed-narrow", "toy-mixed-deep")  # fmt: skip
NAMES = (*TOY_LMS, *DIAL_LMS, *MIXED_LMS)


def withheld(name: str) -> int:
    """How many attributes the translation pairs of a model lack: three for the models that were made first, else none."""
    return 3 if name in TOY_LMS + DIAL_LMS else 0


def seeds(name: str) -> list[int]:
    """The seeds with which models of that name were pretrained, in order, by their cards, whether their weights ship or
    not. Other models made on this machine do not count, so that the claims take the same models in turn everywhere."""
    cards = (path.stem.removeprefix(f"{name}-") for path in (runtime.asset("results") / "lm").glob(f"{name}-*.json"))
    return sorted({int(seed) for seed in cards if seed.isdigit()} | set(shipped(name)))


def shipped(name: str) -> list[int]:
    """The seeds whose weights are among the assets, in order."""
    return sorted(_in(runtime.asset("lm"), name))


def seed_in_turn(name: str, number: int) -> int:
    """The seed of the `number`-th model of that name, starting over after the last; 0 for a name that has no seeds."""
    of = (seeds(name) if name in NAMES else []) or [0]
    return of[number % len(of)]


def folder(name: str, seed: int) -> Path:
    """The folder of a model. Raises UserError that says how to make it, or which seeds there are."""
    there = _there(name)
    if seed in there:
        return there[seed]
    if (known := seeds(name)) and seed not in known:
        raise UserError(f"{name} was pretrained with seeds {known}, not {seed}: ask for one of those.")
    raise UserError(f"{name}:{seed} is not here: `mpm-lite pretrain {name}:{seed}` makes it (an hour on a CPU).")


def is_present(name: str, seed: int) -> bool:
    """Whether the weights of a model are here, in MPM_LITE_HOME or among the assets."""
    return seed in _there(name)


def _there(name: str) -> dict[int, Path]:
    """The folders of that name by seed, in MPM_LITE_HOME and among the assets, which take precedence."""
    return _in(runtime.home() / "lm", name) | _in(runtime.asset("lm"), name)


def _in(place: Path, name: str) -> dict[int, Path]:
    found = {path.name.removeprefix(f"{name}-"): path for path in place.glob(f"{name}-[0-9]*")}
    return {int(seed): path for seed, path in found.items() if seed.isdigit()}


def models_of(arm: Any, seed: int) -> dict[str, tuple[str, int]]:
    """The language models that an arm of an experiment uses with a seed: for each of its fields that names a model,
    that name and the seed with which the model was pretrained."""
    found = {}
    for field, name in vars(arm).items():
        if isinstance(name, str) and name in NAMES:
            own = getattr(arm, f"{field}_seed", None)
            found[field] = name, seed_in_turn(name, seed) if own is None else own
    return found


def weights_digest(name: str, seed: int) -> str:
    """SHA-256 of the weights of a model: of those that are here, else, by its card, of those that the claims were run
    with. Raises UserError for a model that has neither."""
    if is_present(name, seed) or seed not in seeds(name):
        return file_digest(folder(name, seed) / "model.safetensors").hex()
    return json.loads((runtime.asset("results") / "lm" / f"{name}-{seed}.json").read_text(encoding="utf-8"))["sha256"]


def towers_digest(*folders: str) -> str:
    """SHA-256 of all weights in these folders of the assets."""
    files = sorted(file for folder in folders for file in runtime.asset(folder).rglob("*.safetensors"))
    return digest([*(file.name for file in files), *(file_digest(file) for file in files)])
