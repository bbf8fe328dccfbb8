"""Sweeps: every combination of some dials, over an experiment or over any function, each kept as soon as it is done.

mpm.sweep(mpm.Experiment(), out="runs/pairs", pairs=[100, 300, 1000])
mpm.sweep(lambda lr, seed: my_table(lr, seed), out="runs/lr", lr=[1e-3, 1e-2], seed=range(3))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from mpm_lite.core.keys import CARD, KEY, Key, check_same, code_of, digest, value_of
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.core.store import write_table
from mpm_lite.experiments.experiment import Experiment, option_names, plain
from mpm_lite.experiments.results import Results
from mpm_lite.ops import distributed


def sweep(
    thing: Experiment | Callable[..., pd.DataFrame], out: str | Path | None = None, track: str = "",
    **dials: Iterable[Any],
) -> Any:  # fmt: skip
    """Every combination of the dials, joined, with a column for each dial.

    Of an Experiment a dial is a field or an option of its recipe, and what comes back is one `Results`; of a function it is
    an argument by name, and what comes back are the functions' tables as one. With `out` each combination is kept there
    (results.parquet and config.json, or a parquet file of its own) with the key of all that decides it: the same call goes
    on where it was stopped, and a combination that is there is not run again. What else a function reads (files, lists,
    objects, functions of other modules) is no part of its key. `track` as in `Experiment.run`.
    Raises UserError for a dial nobody knows, one without values, and for kept results that cannot be read; OtherRun where
    other weights, other data, another recipe or another function made what is kept.
    """
    values = {name: _values(of) for name, of in dials.items()}
    if empty := [name for name, of in values.items() if not of]:
        raise UserError(f"Dial {empty[0]!r} has no values: give a list of at least one.")
    if isinstance(thing, Experiment):
        return _experiments(thing, Path(out) if out else None, track, values)
    if not callable(thing):
        raise UserError(
            f"A sweep takes an Experiment or a function that returns a table; got a {type(thing).__name__}."
        )
    return _calls(thing, Path(out) if out else None, values)


def _values(of: Any) -> list[Any]:
    """The values of a dial. What cannot be gone through, a text and a dictionary are one value, not several."""
    several = isinstance(of, Iterable) and not isinstance(of, (str, bytes, Mapping, type))
    return list(of) if several else [of]


def _settings(values: dict[str, list[Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Each combination, what a table shows of it, and a name for its file."""
    shown = {name: _told_apart(of) for name, of in values.items()}
    for few in product(*(range(len(of)) for of in values.values())):
        setting = {name: values[name][i] for name, i in zip(values, few, strict=True)}
        labels = {name: shown[name][i] for name, i in zip(values, few, strict=True)}
        said = "_".join(f"{k}={v}" for k, v in labels.items())
        safe = re.sub(r"[^\w.=,-]", "-", said)
        # What a file may not be called, and what is long, would fall together with others.
        yield setting, labels, safe if safe == said and len(said) < 100 else f"{safe[:80]}-{digest([said])[:8]}"


def _told_apart(values: list[Any]) -> list[Any]:
    """What a table shows of each value of a dial; of several towers of one name, their weights' fingerprints too."""
    shown = [plain(value) for value in values]
    for i, value in enumerate(values):
        if sum(plain(other) == plain(value) for other in values) > 1 and hasattr(value, "fingerprint"):
            shown[i] = f"{plain(value)}@{value.fingerprint[:8]}"
    if twice := [one for i, one in enumerate(shown) if one in shown[:i]]:
        raise UserError(f"A dial has the value {twice[0]} twice: give each once, and different things different names.")
    return shown


def _experiments(experiment: Experiment, out: Path | None, track: str, values: dict[str, list[Any]]) -> Results:
    change_experiment(experiment, {name: of[0] for name, of in values.items()})
    done = []
    for setting, labels, label in _settings(values):
        one = change_experiment(experiment, setting)
        found = run_kept(one, out / label if out else None, track)
        # Of towers, the column that says which arm a row is of must tell them apart too.
        apart = {k: v for k, v in labels.items() if k in ("text", "image") and v != plain(setting[k])}
        done.append(found.relabel(**apart).mark(**labels))
    return Results.join(done)


def change_experiment(experiment: Experiment, setting: Mapping[str, Any]) -> Experiment:
    """The experiment with other fields, or other options of its recipe. UserError for a dial nobody knows."""
    fields = set(Experiment.__dataclass_fields__) - {"options"}
    choices = fields | option_names(experiment.recipe)
    for name in setting:
        if name not in choices:
            raise unknown("dial", name, choices)
    options = experiment.options | {k: v for k, v in setting.items() if k not in fields}
    return replace(experiment, options=options, **{k: v for k, v in setting.items() if k in fields})


def run_kept(
    one: Experiment, folder: Path | None, track: str = "", progress: bool = True, models: bool = True
) -> Results:
    """Run an experiment, or read what an earlier call kept of this very one in the folder; without `models`, checkpoints and
    weights are not kept there. Raises OtherRun where what is kept there was made by something else."""
    found = read_kept(folder, one.key) if folder else None
    if found is None:
        found = one.run(out=folder if models else None, progress=progress, track=track)
        found.models = found.models if models else {}
        if folder and distributed.rank() == 0:
            found.save(folder)
    return found


def read_kept(folder: Path, key: Callable[[], Key]) -> Results | None:
    """The results in a folder, None where there are none. Raises OtherRun where another key made them."""
    if not (folder / CARD).exists():
        return None
    found = Results.load(folder)
    check_same(folder, found.meta.get(KEY) or {}, key())
    return found


def _calls(function: Callable[..., pd.DataFrame], out: Path | None, values: dict[str, list[Any]]) -> pd.DataFrame:
    done = []
    code = code_of(function) if out else ""
    for setting, labels, label in _settings(values):
        path = out / f"{label}.parquet" if out else None
        key = Key("a table of a function", {"function": code, **{k: value_of(v) for k, v in setting.items()}})
        if path and path.exists():
            try:
                table = pd.read_parquet(path)
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read ({error}): delete it, and it is made again.") from error
            check_same(path, table.attrs.pop(KEY, {}), key)
        else:
            table = function(**setting)
            if not isinstance(table, pd.DataFrame):
                raise UserError(
                    f"The function of a sweep returns a pandas table; this one returned {type(table).__name__}."
                )
            if path:
                write_table(path, table, key, index=False)
        done.append(table.assign(**{k: v for k, v in labels.items() if k not in table}))
    return pd.concat(done, ignore_index=True)
