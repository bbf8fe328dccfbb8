"""Sweeps: every combination of some dials, over an experiment or over any function, each kept as soon as it is done.

mpm.sweep(mpm.Experiment(), out="runs/pairs", pairs=[100, 300, 1000])
mpm.sweep(lambda lr, seed: my_table(lr, seed), out="runs/lr", lr=[1e-3, 1e-2], seed=range(3))
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from mpm_lite.cache import digest, write_atomic
from mpm_lite.experiment import Experiment, plain
from mpm_lite.ops import across
from mpm_lite.recipes import build_options, recipe_class
from mpm_lite.results import Results
from mpm_lite.runtime import UserError, unknown


def sweep(
    thing: Experiment | Callable[..., pd.DataFrame], out: str | Path | None = None, track: str = "",
    **dials: Iterable[Any],
) -> Any:  # fmt: skip
    """Every combination of the dials, joined, with a column for each dial.

    Of an Experiment a dial is a field or an option of its recipe, and what comes back is one `Results`; of a function it is
    an argument by name, and what comes back are the functions' tables as one. With `out` each combination is kept there
    (results.parquet and config.json, or a parquet file of its own): the same call goes on where it was stopped, and a
    combination that is there is not run again. Another function wants another `out`. `track` as in `Experiment.run`.
    Raises UserError for a dial nobody knows, one without values, and for kept results that cannot be read.
    """
    values = {name: list(of) for name, of in dials.items()}
    if empty := [name for name, of in values.items() if not of]:
        raise UserError(f"Dial {empty[0]!r} has no values: give a list of at least one.")
    if isinstance(thing, Experiment):
        return _experiments(thing, Path(out) if out else None, track, values)
    if not callable(thing):
        raise UserError(
            f"A sweep takes an Experiment or a function that returns a table; got a {type(thing).__name__}."
        )
    return _calls(thing, Path(out) if out else None, values)


def _settings(values: dict[str, list[Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each combination, and a name for its file."""
    for few in product(*values.values()):
        setting = dict(zip(values, few, strict=True))
        said = "_".join(f"{k}={plain(v)}" for k, v in setting.items())
        safe = re.sub(r"[^\w.=,-]", "-", said)
        # What a file may not be called, and what is long, would fall together with others.
        yield setting, safe if safe == said and len(said) < 100 else f"{safe[:80]}-{digest([said])[:8]}"


def _experiments(experiment: Experiment, out: Path | None, track: str, values: dict[str, list[Any]]) -> Results:
    changed(experiment, {name: of[0] for name, of in values.items()})
    done = []
    for setting, label in _settings(values):
        one = changed(experiment, setting)
        found = run_kept(one, out / label if out else None, track)
        done.append(found.mark(**{k: plain(v) for k, v in setting.items()}))
    return Results.join(done)


def changed(experiment: Experiment, setting: Mapping[str, Any]) -> Experiment:
    """The experiment with other fields, or other options of its recipe. UserError for a dial nobody knows."""
    fields = set(Experiment.__dataclass_fields__) - {"options"}
    choices = fields | set(recipe_class(experiment.recipe).Options.__dataclass_fields__)
    for name in setting:
        if name not in choices:
            raise unknown("dial", name, choices)
    options = experiment.options | {k: v for k, v in setting.items() if k not in fields}
    return replace(experiment, options=options, **{k: v for k, v in setting.items() if k in fields})


def run_kept(one: Experiment, folder: Path | None, track: str = "") -> Results:
    """Run an experiment, or read what an earlier call kept of this very one in the folder."""
    found = _kept(folder, one) if folder else None
    if found is None:
        found = one.run(out=folder, track=track)
        if folder and across.rank() == 0:
            found.save(folder)
    return found


def _kept(folder: Path, one: Experiment) -> Results | None:
    """What an earlier call kept of this very experiment; None where there is nothing, or something else."""
    if not (folder / "config.json").exists():
        return None
    found = Results.load(folder)
    kind = recipe_class(one.recipe)
    told = {"experiment": one.describe(), "options": asdict(build_options(kind.Options, one.all_options))}
    same = json.loads(json.dumps(told, default=str))
    return found if all(found.meta.get(k) == v for k, v in same.items()) else None


def _calls(function: Callable[..., pd.DataFrame], out: Path | None, values: dict[str, list[Any]]) -> pd.DataFrame:
    done = []
    for setting, label in _settings(values):
        path = out / f"{label}.parquet" if out else None
        if path and path.exists():
            try:
                table = pd.read_parquet(path)
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read ({error}): delete it, and it is made again.") from error
        else:
            table = function(**setting)
            if not isinstance(table, pd.DataFrame):
                raise UserError(
                    f"The function of a sweep returns a pandas table; this one returned {type(table).__name__}."
                )
            if path:
                write_atomic(path, table.to_parquet(index=False))
        done.append(table.assign(**{k: plain(v) for k, v in setting.items() if k not in table}))
    return pd.concat(done, ignore_index=True)
