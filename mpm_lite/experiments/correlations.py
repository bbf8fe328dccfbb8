"""What retention goes with over languages: alignment or text transfer, spelling, script, and having been read.

Rank correlations and differences at equal transfer, with a bootstrap over language families.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from mpm_lite.evaluation import stats
from mpm_lite.experiments.results import Results

NEVER = ("relative read", "no relative read", "unreadable pieces")


def average_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks with ties averaged, (K,) -> (K,); of a matrix (K, B), column by column."""
    return (pd.Series(x) if x.ndim == 1 else pd.DataFrame(x)).rank().to_numpy()


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation; NaN where one side does not vary."""
    a, b = average_ranks(x), average_ranks(y)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


def partial_spearman(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """Spearman's correlation of x and y with z held fixed: what is left of the ranks after a line in z's ranks."""
    a, b, c = average_ranks(x), average_ranks(y), average_ranks(z)
    if c.std() == 0:
        return spearman(x, y)
    left, right = (v - np.polyval(np.polyfit(c, v, 1), c) for v in (a, b))
    return float(np.corrcoef(left, right)[0, 1]) if left.std() > 1e-9 and right.std() > 1e-9 else float("nan")


def group_effect(rho: np.ndarray, premise: np.ndarray, group: np.ndarray) -> float:
    """How much higher retention is in a group of languages (1, the others 0) at an equal premise, such as text transfer: the
    coefficient of `group` in a least-squares fit of rho on 1, premise and group. NaN where all are of one kind."""
    fit, *_ = np.linalg.lstsq(np.stack([np.ones_like(premise), premise, group], axis=1), rho, rcond=None)
    return float(fit[2]) if group.std() else float("nan")


def by_family(
    rows: pd.DataFrame, statistic: Callable[..., float], columns: Sequence[str], draws: int = 2000
) -> stats.Interval:
    """A statistic of some columns, with an interval from drawing whole families: languages of one family are not independent."""
    rng = np.random.default_rng(0)
    values = rows[list(columns)].to_numpy(dtype=float).T  # (K, languages)
    groups = list(rows.reset_index(drop=True).groupby("family").indices.values())
    drawn = []
    for _ in range(draws):
        picked = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        drawn.append(statistic(*values[:, picked]))
    return stats.summarise(statistic(*values), np.array(drawn))


def association_table(
    rho: pd.DataFrame, results: Results, premise: str = "alignment", fixed: str = "unknown_rate", draws: int = 2000
) -> pd.DataFrame:
    """One row a statement: what, text, languages, families, value, low, high. rho: retention with cells, of one test.

    `premise` is the column that retention is correlated with, "alignment" or "t" (text transfer), and `fixed` the one that is held
    fixed in partial correlations. At an equal premise, there is also how much more the languages keep that are in Latin script, and
    those that the tower was trained on.
    """
    name = {"t": "text transfer"}.get(premise, premise)
    of = rho[rho["counts"] & (rho["language"] != "en")].dropna(subset=[premise, "rho", "cell"])
    of = of.assign(latin=of["script"] == "Latin", read=of["cell"] == "read")
    rows = []
    for text, mine in of.groupby("text"):
        parts = {
            "within read": mine[mine["cell"] == "read"],
            "within never-read": mine[mine["cell"].isin(NEVER)],
            "pooled": mine,
        }
        for where, some in parts.items():
            asked = [
                (f"spearman of {name} and retention", spearman, (premise, "rho")),
                (f"partial of {name} and retention", partial_spearman, (premise, "rho", fixed)),
                (f"Latin script on retention at equal {name}", group_effect, ("rho", premise, "latin")),
            ]
            if where == "pooled":
                asked.append((f"having been read on retention at equal {name}", group_effect, ("rho", premise, "read")))
            for what, statistic, columns in asked:
                if len(some) >= 6:
                    found = by_family(some, statistic, columns, draws)
                    how_many = {"languages": len(some), "families": some["family"].nunique()}
                    rows.append({"what": f"{what}, {where}", "text": text} | how_many | found.columns())
    towers = list(of["text"].unique())
    if len(towers) == 2:
        rows.append(difference_in_differences(of, results, towers, draws))
    return pd.DataFrame(rows)


def difference_in_differences(of: pd.DataFrame, results: Results, towers: list[str], draws: int) -> dict[str, object]:
    """(second - first tower's retention) in languages only the second read, less the same in languages both read.

    The interval draws seeds, concepts and items, jointly over towers; the languages are taken as given. Two towers only.
    """
    cells = of.pivot(index="language", columns="text", values="cell")
    less, more = sorted(towers, key=lambda t: int((cells[t] == "read").sum()))
    only = cells.index[(cells[less] != "read") & (cells[more] == "read")].tolist()
    both = cells.index[(cells[less] == "read") & (cells[more] == "read")].tolist()
    test = of["test"].iloc[0]
    mean = {
        (t, g): results.where(text=t, test=test).mean_retention_draws(codes, draws=draws)
        for t in towers
        for g, codes in (("only", only), ("both", both))
    }

    def contrast(i: int) -> np.ndarray:
        return (mean[more, "only"][i] - mean[less, "only"][i]) - (mean[more, "both"][i] - mean[less, "both"][i])

    found = stats.summarise(float(contrast(0)), contrast(1))
    what = f"difference in differences: {more} less {less}, {len(only)} languages only {more} read less {len(both)} both read"
    how_many = {
        "languages": len(only) + len(both),
        "families": of[of["language"].isin(only + both)]["family"].nunique(),
    }
    return {"what": what, "text": f"{more} - {less}"} | how_many | found.columns()
