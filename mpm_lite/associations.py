"""Does retention follow alignment? Rank correlations with a bootstrap over language families, and a difference of differences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mpm_lite import evaluate
from mpm_lite.results import Results

NEVER = ("relative read", "no relative read", "unreadable pieces")


def rank(x: np.ndarray) -> np.ndarray:
    """Ranks with ties averaged, (K,) -> (K,); of a matrix (K, B), column by column."""
    return (pd.Series(x) if x.ndim == 1 else pd.DataFrame(x)).rank().to_numpy()


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation; NaN where one side does not vary."""
    a, b = rank(x), rank(y)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


def partial_spearman(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """Spearman's correlation of x and y with z held fixed: what is left of the ranks after a line in z's ranks."""
    a, b, c = rank(x), rank(y), rank(z)
    if c.std() == 0:
        return spearman(x, y)
    left, right = (v - np.polyval(np.polyfit(c, v, 1), c) for v in (a, b))
    return float(np.corrcoef(left, right)[0, 1]) if left.std() > 1e-9 and right.std() > 1e-9 else float("nan")


def by_family(rows: pd.DataFrame, statistic: str, draws: int = 2000) -> evaluate.Interval:
    """A correlation with an interval from drawing whole families: languages of one family are not independent."""

    def value(of: pd.DataFrame) -> float:
        x, y, z = (of[c].to_numpy() for c in ("alignment", "rho", "unknown_rate"))
        return partial_spearman(x, y, z) if statistic == "partial" else spearman(x, y)

    rng = np.random.default_rng(0)
    groups = [g for _, g in rows.groupby("family")]
    drawn = [value(pd.concat([groups[i] for i in rng.integers(len(groups), size=len(groups))])) for _ in range(draws)]
    return evaluate.summarise(value(rows), np.array(drawn))


def table(rho: pd.DataFrame, results: Results, draws: int = 2000) -> pd.DataFrame:
    """One row a statement: what, text, languages, families, value, low, high. rho: retention with alignment and cells."""
    of = rho[rho["counts"] & (rho["language"] != "en") & rho["alignment"].notna() & rho["rho"].notna()]
    rows = []
    for text, mine in of.groupby("text"):
        parts = {
            "within read": mine[mine["cell"] == "read"],
            "within never-read": mine[mine["cell"].isin(NEVER)],
            "pooled": mine,
        }
        for where, some in parts.items():
            for statistic in ("spearman", "partial"):
                if len(some) < 6:
                    continue
                found = by_family(some, statistic, draws)
                rows.append(
                    {
                        "what": f"{statistic} of alignment and retention, {where}",
                        "text": text,
                        "languages": len(some),
                        "families": some["family"].nunique(),
                        "value": found.value,
                        "low": found.low,
                        "high": found.high,
                    }
                )
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

    found = evaluate.summarise(float(contrast(0)), contrast(1))
    return {
        "what": f"difference in differences: {more} less {less}, {len(only)} languages only {more} read less {len(both)} both read",
        "text": f"{more} - {less}",
        "languages": len(only) + len(both),
        "families": of["family"].nunique(),
        "value": found.value,
        "low": found.low,
        "high": found.high,
    }
