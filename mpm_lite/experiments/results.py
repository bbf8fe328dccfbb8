"""Results: a tidy table that knows its intervals, joins, saves and plots itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import save as to_safetensors

from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.core.store import write_atomic
from mpm_lite.data.languages import REGIONAL
from mpm_lite.evaluation import stats

MIN_QUERIES = 100  # fewer are shown, but enter no mean, count or correlation
ARM = ["recipe", "text", "image", "lm", "train", "test", "condition"]
SAID = ("seed", "model_seed", "scene_kind", "gold", "said", "picked")  # columns of items, neither an arm's nor a score
SAID_OF = ("set", "sort")  # columns that tell one part of a test from another


class Results:
    """Scores of one or many experiments.

    table: one row a score (recipe, text, image, lm, train, test, condition, seed, language, metric, value, n, chance).
    items: one row a query, the same fields and a column a metric. models: the trained recipes by seed.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        items: pd.DataFrame,
        models: dict[Any, Any] | None = None,
        meta: dict[str, Any] | None = None,
        galleries: dict[str, Any] | None = None,
    ) -> None:
        self.table, self.items = table, items
        self.models, self.meta, self.galleries = models or {}, meta or {}, galleries or {}

    @staticmethod
    def of_looks(
        rows: pd.DataFrame, named: dict[str, Any], chance: str = "blind", models: dict[Any, Any] | None = None,
        meta: dict[str, Any] | None = None, pivot: str = "en",
    ) -> Results:  # fmt: skip
        """Results of a system's test: `rows`, one a seed, look, language and picture with a column a score; `named` are the
        columns of ARM. The condition is the look; chance is what the look `chance` scores in the same language."""
        # Names that a sweep's dial may have.
        renamed = {"look": "condition", "lm_seed": "model_seed", "kind": "scene_kind"}
        rows = rows.drop(columns=["lm"], errors="ignore").rename(columns=renamed)
        rows = rows.dropna(axis="columns", how="all")  # scores that were not asked for
        flags = [c for c in rows.select_dtypes("bool") if c not in SAID]
        rows = rows.astype(dict.fromkeys(flags, float)).astype({"item": str})
        metrics = [c for c in rows.select_dtypes("number") if c not in SAID]
        if not metrics:
            raise UserError("Nothing was scored: ask for a score that this system has.")
        by = [c for c in ("seed", *SAID_OF, "language", "item") if c in rows]
        again = rows.groupby(["condition", *by]).cumcount()  # a picture that a split has twice is two
        rows["item"] = rows["item"].where(again == 0, rows["item"] + " (" + (again + 1).astype(str) + ")")
        least = rows[rows["condition"] == chance].set_index(by)[metrics]
        items = rows.join(least.add_prefix("chance "), on=by)
        same = [c for c in by if c != "language"]
        untold = ~items["language"].isin(rows[rows["condition"] == chance]["language"])
        if untold.any() and pivot in least.index.get_level_values("language"):  # then the pivot's chance
            usual = items[same].join(least.xs(pivot, level="language").add_prefix("chance "), on=same)
            items.loc[untold, usual.columns] = usual[untold]
        # What the pivot gains over its own chance, on top of the chance in this language: then gains are what is compared.
        own = items[items["language"] == pivot].set_index(["condition", *same])
        if len(own):
            gain = pd.DataFrame({m: own[m] - own[f"chance {m}"] for m in metrics})
            items = items.join(gain.add_prefix("pivot "), on=["condition", *same])
            for metric in metrics:
                items[f"pivot {metric}"] += items[f"chance {metric}"]
        items = items.assign(**{name: value or "" for name, value in named.items()})
        groups = items.groupby([*ARM, *(c for c in SAID_OF if c in items), "seed", "language"], sort=False)
        value = groups[metrics].mean().stack(future_stack=True)
        least = groups[[f"chance {m}" for m in metrics]].mean().stack(future_stack=True)
        table = value.rename_axis([*value.index.names[:-1], "metric"]).rename("value").reset_index()
        table["chance"] = least.to_numpy()
        table["n"] = groups[metrics].count().stack(future_stack=True).to_numpy()
        return Results(table[table["n"] > 0].reset_index(drop=True), items, models, meta)

    def mark(self, **columns: Any) -> Results:
        """The same results with these columns added to both tables (a sweep's dials)."""
        new = {k: v for k, v in columns.items() if k not in ARM or k in ("text", "image", "lm") and not self._has(k, v)}
        return Results(self.table.assign(**new), self.items.assign(**new), self.models, self.meta, self.galleries)

    def _has(self, column: str, value: Any) -> bool:
        return column in self.table and self.table[column].astype(str).str.startswith(str(value)).all()

    @property
    def usual_metric(self) -> str:
        """The score that is meant where none is named: recall at ten where there is retrieval, else the first there is."""
        there = list(dict.fromkeys(self.table["metric"]))
        return "t2i_r@10" if "t2i_r@10" in there or not there else there[0]

    def relabel(self, **columns: str) -> Results:
        """The same results with other names in these columns of both tables."""
        table, items = (of.assign(**columns) for of in (self.table, self.items))
        return Results(table, items, self.models, self.meta, self.galleries)

    @staticmethod
    def join(several: list[Results]) -> Results:
        """Several results as one; models and galleries are those of the first."""
        first = several[0]
        table = pd.concat([r.table for r in several], ignore_index=True)
        items = pd.concat([r.items for r in several], ignore_index=True)
        return Results(table, items, first.models, {"joined": [r.meta for r in several]}, first.galleries)

    def where(self, **equal: Any) -> Results:
        """Only the rows whose columns have these values."""
        table, items = self.table, self.items
        for column, value in equal.items():
            table = table[table[column] == value]
            items = items[items[column] == value] if column in items else items
        return Results(table, items, self.models, self.meta, self.galleries)

    def arms(self) -> list[str]:
        """The columns that tell one arm from another: those of the contract and the dials of a sweep."""
        metrics = [c.removeprefix("chance ") for c in self.items.columns if c.startswith("chance ")]
        hits = {*metrics, *(f"{p} {m}" for m in metrics for p in ("pivot", "chance", "text", "pivot text"))}
        return [c for c in self.items.columns if c not in hits and c not in {*SAID, "language", "item", "concept"}]

    def retention(self, metric: str | None = None, floor: str | None = None, draws: int = 2000) -> pd.DataFrame:
        """rho by arm and language: (score_L - chance) / (score_P - chance), English asked exactly L's queries.

        Intervals: paired hierarchical bootstrap over seed, concept and item, ratios resampled jointly.
        p: one-sided, score above chance; p_holm over the languages of an arm. With `floor` (the name of an English-only
        text tower among these results) rho_floor puts its score in L in the place of chance, NaN in a language that it was not
        asked in. `counts`: at least 100 queries and no regional variant of another row. Where a caption in the pivot language
        also stood in the picture's place, t and e with their intervals: retention = t * e (`stats.Identity`), NaN where English
        gains too little for a ratio; e is also NaN where the language may gain too little from text. Raises UserError where the
        floor's rows are missing, and where the pivot is not among the test sets' languages.
        """
        metric = metric or self.usual_metric
        self._has_pivot(metric)
        rows, arms = [], self.arms()
        low = self.items[(self.items["text"] == floor) & (self.items["condition"] == "real")]
        floors = {test: dict(list(of.groupby("language"))) for test, of in low.groupby("test")}
        for values, items in self.items.groupby(arms, sort=False, dropna=False):
            arm = dict(zip(arms, values, strict=True))
            if floor is not None and arm["test"] not in floors:
                raise UserError(f"No rows of the floor {floor!r} on {arm['test']}; run it on the same test first.")
            rows += self._arm(arm, items, metric, floors.get(arm["test"]), draws)
        return pd.DataFrame(rows)

    def _has_pivot(self, metric: str) -> None:
        if f"pivot {metric}" not in self.items:
            raise UserError(
                "Retention compares with the pivot language (English unless `pivot` says otherwise), but these results were not "
                "asked in it, or not for this metric: put it among the languages of `test`, and run again."
            )

    def _arm(
        self, arm: dict[str, Any], items: pd.DataFrame, metric: str, floor: dict[str, pd.DataFrame] | None, draws: int
    ) -> list[dict[str, Any]]:
        weights, seed_weights, place = _resample(items, draws)
        rows = []
        for language, said in items.groupby("language", sort=False):
            mean, drawn, n = {}, {}, said["item"].nunique()
            there = f"text {metric}" in said and said[f"text {metric}"].notna().any()
            for name in ("", "pivot ", "chance ", *(("text ", "pivot text ") if there else ())):
                mean[name], drawn[name] = _score(said, name + metric, weights, seed_weights, place)
            rho = stats.summarise(*(_ratio(of[""], of["chance "], of["pivot "]) for of in (mean, drawn)))
            above = stats.summarise(mean[""] - mean["chance "], drawn[""] - drawn["chance "])
            scores = {"score": mean[""], "pivot_score": mean["pivot "], "chance": mean["chance "]}
            counts = n >= MIN_QUERIES and language not in REGIONAL
            row = {**arm, "language": language, **rho.columns("rho"), **scores, "n": n, "p": above.p, "counts": counts}
            if there:
                row |= _two_factors(mean, drawn)
            if floor is not None:
                row |= _above_floor(floor.get(language), metric, mean, drawn, (weights, seed_weights, place))
            rows.append(row)
        for row, p in zip(rows, stats.holm(np.array([r["p"] for r in rows])), strict=True):
            row["p_holm"] = p
        return rows

    def scores(
        self, metric: str | None = None, languages: Sequence[str] | None = None, draws: int = 2000
    ) -> pd.DataFrame:
        """The score by arm and language with its interval, resampled over seed, concept and item: the arm's columns, then
        language, value, low, high, chance, n. Raises UserError for a language without rows."""
        metric = metric or self.usual_metric
        if missing := sorted(set(languages or ()) - set(self.items["language"])):
            raise unknown("language of these results", missing[0], sorted(set(self.items["language"])))
        rows, arms = [], self.arms()
        for arm, items in self.items.groupby(arms, sort=False, dropna=False):
            sample = _resample(items, draws)
            for language, said in items.groupby("language", sort=False):
                if languages is not None and language not in languages:
                    continue
                found = stats.summarise(*_score(said, metric, *sample))
                chance = float(said[f"chance {metric}"].mean())
                row = {"language": language, **found.columns(), "chance": chance, "n": said["item"].nunique()}
                rows.append(dict(zip(arms, arm, strict=True)) | row)
        return pd.DataFrame(rows)

    def compare(self, by: str | Sequence[str], languages: Sequence[str] = ("en",), metric: str | None = None) -> Any:
        """Arms beside each other: a point with its interval for each value of the columns `by` and each language; returns the
        matplotlib figure. Raises UserError for a column that is not there, and where one point would be several arms."""
        metric = metric or self.usual_metric
        from mpm_lite.core import figures

        by = [by] if isinstance(by, str) else list(by)
        table = self.scores(metric, languages)
        if missing := [column for column in by if column not in table]:
            raise unknown("column of these results", missing[0], self.arms())
        if table.duplicated([*by, "language"]).any():
            more = [c for c in self.arms() if c not in by and table[c].nunique(dropna=False) > 1]
            raise UserError(
                f"The arms differ in {', '.join(more)} too: name that in `by`, or narrow down with .where()."
            )
        said = table[by].astype(str).agg(", ".join, axis=1)
        shown = table.assign(name=said + ": " + table["language"], group=table["language"])
        return figures.draw_intervals(shown, f"{metric}, by {', '.join(by)}")

    def mean_retention(self, languages: list[str], metric: str | None = None, draws: int = 2000) -> stats.Interval:
        """Mean rho over languages (those with enough queries), resampled jointly. One arm only.

        Raises UserError where the results hold several arms, and for a language that is not there or has too few queries.
        """
        return stats.summarise(*self.mean_retention_draws(languages, metric, draws))

    def mean_retention_draws(
        self, languages: list[str], metric: str | None = None, draws: int = 2000
    ) -> tuple[float, np.ndarray]:
        """What `mean_retention` summarises: the value and its bootstrap draws (B,). Draw b is the same draw in every arm."""
        metric = metric or self.usual_metric
        self._has_pivot(metric)
        if self.items.groupby(self.arms(), dropna=False).ngroups != 1:
            raise UserError("mean_retention needs one arm; narrow down with .where(text=..., test=..., condition=...).")
        asked = self._of_languages(languages)
        if few := [code for code, said in asked.items() if said["item"].nunique() < MIN_QUERIES]:
            raise UserError(
                f"{', '.join(few)}: fewer than {MIN_QUERIES} queries, too few for retention; leave them out."
            )
        sample = _resample(self.items, draws)
        values, draws_of = [], []
        for said in asked.values():
            mean, drawn = zip(*(_score(said, p + metric, *sample) for p in ("", "chance ", "pivot ")), strict=True)
            values.append(_ratio(*mean))
            draws_of.append(_ratio(*drawn))
        return float(np.mean(values)), np.mean(draws_of, axis=0)

    def identity(self, languages: Sequence[str], metric: str | None = None, draws: int = 2000) -> stats.Identity:
        """Retention and its two factors over several languages together: of the means of their gains, each beside what the pivot
        gains on the same queries. One arm only.

        Raises UserError where the results hold several arms, for a language without rows, and where no caption in the pivot language
        stood in the picture's place.
        """
        metric = metric or self.usual_metric
        self._has_pivot(metric)
        if self.items.groupby(self.arms(), dropna=False).ngroups != 1:
            raise UserError("identity needs one arm; narrow down with .where(text=..., test=..., condition=...).")
        if f"pivot text {metric}" not in self.items:
            raise UserError(
                "In these results no caption stood in the picture's place: every test picture needs one in the pivot language."
            )
        of, sample = self._of_languages(languages), _resample(self.items, draws)
        scores = {
            name: stats.average_figures(stats.Drawn(*_score(said, name + metric, *sample)) for said in of.values())
            for name in ("", "text ", "pivot ", "pivot text ", "chance ")
        }
        chance = scores.pop("chance ")
        return stats.Identity(*(score - chance for score in scores.values()))

    def mean_score_draws(
        self, languages: list[str], metric: str | None = None, draws: int = 2000, column: str = ""
    ) -> tuple[float, np.ndarray]:
        """The mean score over languages and its bootstrap draws (B,), paired as those of `mean_retention_draws`; with
        column="pivot ", that of the pivot language on the same queries. One arm only."""
        metric = metric or self.usual_metric
        if self.items.groupby(self.arms(), dropna=False).ngroups != 1:
            raise UserError("mean_score needs one arm; narrow down with .where(text=..., test=..., condition=...).")
        sample = _resample(self.items, draws)
        found = [_score(said, column + metric, *sample) for said in self._of_languages(languages).values()]
        return float(np.mean([value for value, _ in found])), np.mean([drawn for _, drawn in found], axis=0)

    def _of_languages(self, languages: Sequence[str]) -> dict[str, pd.DataFrame]:
        """The rows of each of these languages, in the order of the results. UserError for one that is not there, and for none."""
        there = {code: said for code, said in self.items.groupby("language", sort=False) if code in languages}
        if missing := [code for code in languages if code not in there] or ([""] if not there else []):
            raise unknown("language of these results", missing[0], sorted(set(self.items["language"])))
        return there

    def save(self, folder: str | Path) -> Path:
        """Write model.safetensors (first seed), results.parquet, items.parquet and config.json, each whole or not at all."""
        folder = Path(folder)
        for name, frame in (("results", self.table), ("items", self.items)):
            write_atomic(folder / f"{name}.parquet", frame.to_parquet())
        if self.models:
            recipe = next(iter(self.models.values()))
            weights = {k: v.contiguous() for k, v in recipe.state_dict().items()}
            write_atomic(folder / "model.safetensors", to_safetensors(weights))
        write_atomic(folder / "config.json", json.dumps(self.meta, indent=1, default=str).encode())
        return folder

    @staticmethod
    def load(folder: str | Path) -> Results:
        """What `save` wrote, without the models. Raises UserError where it is not there or cannot be read."""
        folder = Path(folder)
        try:
            table, items = (pd.read_parquet(folder / f"{name}.parquet") for name in ("results", "items"))
            meta = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if not isinstance(meta, dict):
                raise ValueError("config.json holds no dictionary")
            return Results(table, items, meta=meta)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} holds no readable results ({error}): delete it, and run the experiment again."
            ) from error

    def plot(self, metric: str | None = None) -> Any:
        """Bars of the score by language with chance; returns the matplotlib figure."""
        metric = metric or self.usual_metric
        if metric not in set(self.table["metric"]):
            raise unknown("metric of these results", metric, sorted(set(self.table["metric"])))
        from mpm_lite.core import figures

        return figures.language_bars(self.table[self.table["metric"] == metric])

    def _repr_html_(self) -> str:
        shown = self.table.pivot_table(index="language", columns=["text", "condition", "metric"], values="value")
        return shown.round(3).to_html()


def _resample(items: pd.DataFrame, draws: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Bootstrap weights over all items of a test, and each item's column."""
    known = items.drop_duplicates("item")[["item", "concept"]]
    weights, seed_weights = stats.draw_weights(known["concept"].tolist(), items["seed"].nunique(), draws)
    return weights, seed_weights, {item: i for i, item in enumerate(known["item"])}


def _score(
    said: pd.DataFrame, column: str, weights: np.ndarray, seed_weights: np.ndarray, place: dict[str, int]
) -> tuple[float, np.ndarray]:
    """The mean of a column over seeds and items, and the same under every draw. `said` is one language of one arm."""
    said = said.sort_values(["seed", "item"])
    hits = said[column].to_numpy().reshape(said["seed"].nunique(), -1)  # (S, Q): every seed asks the same
    weights = weights[:, [place[item] for item in said["item"].iloc[: hits.shape[1]]]]
    there = np.isfinite(hits)
    if there.all():
        return float(hits.mean()), stats.average_draws(hits, weights, seed_weights)
    over, share = (stats.average_draws(x, weights, seed_weights) for x in (np.nan_to_num(hits), there * 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw may hold no picture that has a value
        return float(np.nanmean(hits)), over / share


def _above_floor(
    same: pd.DataFrame | None, metric: str, mean: dict[str, float], drawn: dict[str, np.ndarray], sample: tuple
) -> dict[str, float]:
    """Retention with the floor's score in the place of chance; `same` are the floor's rows of the language, None where it was not
    asked in it."""
    if same is None:
        return dict.fromkeys(("floor", "rho_floor", "rho_floor_low", "rho_floor_high"), float("nan"))
    low, low_drawn = _score(same, metric, *sample)
    found = stats.summarise(_ratio(mean[""], low, mean["pivot "]), _ratio(drawn[""], low_drawn, drawn["pivot "]))
    return {"floor": low, "rho_floor": found.value, "rho_floor_low": found.low, "rho_floor_high": found.high}


def _two_factors(mean: dict[str, float], drawn: dict[str, np.ndarray]) -> dict[str, float]:
    """Text transfer t and pivot efficiency e with their intervals, from the scores of one language and of the pivot on the same
    queries: of pictures, and of captions in the pivot language in their place."""
    gains = (
        stats.Drawn(mean[name] - mean["chance "], drawn[name] - drawn["chance "])
        for name in ("", "text ", "pivot ", "pivot text ")
    )
    return factor_columns(stats.Identity(*gains))


def factor_columns(identity: stats.Identity) -> dict[str, float]:
    """t and e with their intervals as columns of a table: t, t_low, t_high, e, e_low, e_high; NaN where no ratio is told."""
    told, row, untold = identity.table(), {}, stats.Interval(*[float("nan")] * 3)
    for name in ("t", "e"):
        of = told.get(name, untold)
        row |= {name: of.value, f"{name}_low": of.low, f"{name}_high": of.high}
    return row


def _ratio(score: Any, chance: Any, pivot: Any) -> Any:
    """(score - chance) / (pivot - chance); NaN where English itself is not above chance."""
    over = np.asarray(pivot - chance)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(over > 1e-9, (score - chance) / over, np.nan)
    return found if found.ndim else float(found)
