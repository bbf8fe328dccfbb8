"""The claims ledger: runs what a claim needs, keeps rows as they finish, judges, and writes the table.

    mpm-lite claims run C1 --seeds 5     resumes per arm and seed; OUT/claims holds a file for each
    mpm-lite claims table                the ledger; under five seeds a claim is pending
    mpm-lite claims pack --out OUT       those files as one, OUT/claims.parquet, far smaller; runs go on from it

Every arm that two claims share is run once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd

from mpm_lite import claims_chat, claims_m3p, claims_mblip, claims_mla, claims_paint, runtime
from mpm_lite.cache import digest, write_atomic
from mpm_lite.claims_chat import C7_ARMS, OTHERS, SHARES
from mpm_lite.judging import BROKEN, PENDING, Claim, Found, Sample
from mpm_lite.runtime import UserError, unknown
from mpm_lite.studies import commit

FIRST_SEED, SEEDS = 20, 5  # no dial was chosen with these seeds
_ALL = claims_chat.CLAIMS | claims_paint.CLAIMS | claims_m3p.CLAIMS | claims_mla.CLAIMS | claims_mblip.CLAIMS
CLAIMS = {
    name: _ALL[name] for name in sorted(_ALL, key=lambda name: int(name.removeprefix("C")) if name[0] == "C" else 0)
}
LEDGER = "results/claims.json"
DIGITS = 3  # of a score in a packed row
COLUMNS = ("claim", "verdict", "effect", "low", "high", "seeds", "n", "control_effect", "commit")


def claim(name: str) -> Claim:
    """The claim of that name; UserError for one that is not (yet) here."""
    if name not in CLAIMS:
        raise unknown("claim", name, CLAIMS)
    return CLAIMS[name]


def place(out: Path, arm: Any, seed: int, asked: Any) -> Path:
    """The file that holds one arm's rows of one seed; arms and questions that are the same have the same file."""
    key = digest([json.dumps(asdict(arm), sort_keys=True), json.dumps(dict(asked), sort_keys=True)])[:16]
    return out / "claims" / f"{key}-{seed}.parquet"


def run(
    name: str,
    out: Path,
    seeds: Sequence[int] = range(FIRST_SEED, FIRST_SEED + SEEDS),
    split: str = "test",
    say: Callable[[str], None] = lambda line: None,
    bench: Any = None,
) -> dict[str, Any]:
    """Run whatever of a claim's arms and seeds is missing, and judge. Returns the row for the ledger.

    Stopped at any time, the same call goes on with the next arm and seed. Seeds come first: after one round of all arms
    there is one seed of everything.
    """
    one = claim(name)
    bench = bench or one.bench()
    todo, packed = [(seed, arm) for seed in seeds for arm in one.arms], set(_packed(out)["key"])
    for k, (seed, arm) in enumerate(todo, 1):
        path = place(out, one.arms[arm], seed, {**one.asked, "split": split})
        if path.exists() or path.stem in packed:
            continue
        say(f"{name} {k} of {len(todo)}: {arm}, seed {seed}")
        rows = bench.test(bench.train(one.arms[arm], seed), seed, split=split, **one.asked)
        rows = rows.dropna(axis="columns", how="all")
        rows = rows.astype(dict.fromkeys(_scores(rows), "float32"))
        write_atomic(path, rows.to_parquet(compression="zstd", index=False))
    return judged(one, out, seeds, split)


def items(one: Claim, out: Path, seeds: Sequence[int], split: str = "test") -> pd.DataFrame:
    """The rows of all arms of a claim, with a column `arm`. UserError where one is missing or torn."""
    frames, packed = [], dict(list(_packed(out).groupby("key")))
    for arm, what in one.arms.items():
        for seed in seeds:
            path = place(out, what, seed, {**one.asked, "split": split})
            if path.stem in packed:
                frames.append(packed[path.stem].assign(arm=arm))
                continue
            try:
                frames.append(pd.read_parquet(path).assign(arm=arm))
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{one.id}: the rows of arm {arm!r}, seed {seed}, are not readable at {path}: delete that file, and "
                    f"`mpm-lite claims run {one.id}` makes it again."
                ) from error
    return pd.concat(frames, ignore_index=True)


def _packed(out: Path) -> pd.DataFrame:
    """The rows in OUT/claims.parquet, whose column `key` is the name of the file that each was in; none where there is none."""
    path = out / "claims.parquet"
    if not path.exists():
        return pd.DataFrame({"key": []})
    try:
        rows = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not readable: delete it, and `mpm-lite claims run` makes its rows again."
        ) from error
    # Back from categories, which a grouping would cross with each other.
    return rows.astype({name: str for name, kind in rows.dtypes.items() if kind == "category"})


def pack(out: Path) -> Path:
    """Put the rows of all files under OUT/claims into OUT/claims.parquet, scores to DIGITS places, and delete the files."""
    loose, packed = sorted((out / "claims").glob("*.parquet")), _packed(out)
    there = set(packed["key"])
    try:
        frames = [pd.read_parquet(path).assign(key=path.stem) for path in loose if path.stem not in there]
    except (OSError, ValueError) as error:
        raise UserError(
            f"A file under {out / 'claims'} is not readable ({error}): delete it and run its claim."
        ) from error
    if not loose:
        raise UserError(f"No rows lie under {out / 'claims'}: `mpm-lite claims run --out {out}` makes some.")
    rows = pd.concat([*([packed] if len(packed) else []), *frames], ignore_index=True)
    scores = _scores(rows)
    rows[scores] = rows[scores].astype("float64").round(DIGITS).astype("float32")
    names = [column for column in rows if column not in scores and rows[column].dtype != "int64"]
    rows = rows.astype(dict.fromkeys(names, "category")).sort_values("key", kind="stable", ignore_index=True)
    write_atomic(out / "claims.parquet", rows.to_parquet(compression="zstd", compression_level=19, index=False))
    for path in loose:
        path.unlink()
    return out / "claims.parquet"


def _scores(rows: pd.DataFrame) -> list[str]:
    """The columns that hold scores: those of floating-point numbers."""
    return rows.select_dtypes("floating").columns.tolist()


def judged(one: Claim, out: Path, seeds: Sequence[int], split: str = "test") -> dict[str, Any]:
    """What the runs say of a claim: a row of the ledger, its details, and what was run."""
    sample = Sample(items(one, out, seeds, split))
    found = one.judge(sample)
    return {
        "claim": one.id,
        "verdict": verdict(found, len(seeds), split),
        "effect": round(found.effect.value, 4),
        "low": round(found.effect.low, 4),
        "high": round(found.effect.high, 4),
        "seeds": len(seeds),
        "n": sample.n,
        "control_effect": round(found.control.value, 4),
        "commit": commit(),
        "control_low": round(found.control.low, 4),
        "control_high": round(found.control.high, 4),
        "split": split,
        "first_seed": min(seeds),
        "details": {k: [round(v, 4) for v in (i.value, i.low, i.high)] for k, i in found.details.items()},
    }


def verdict(found: Found, seeds: int, split: str = "test") -> str:
    """The verdict of the rule; "pending" under five seeds or off the test pictures, "control failed" before all else."""
    if seeds < SEEDS or split != "test":
        return PENDING
    return found.verdict if found.control_holds else BROKEN


def table(ledger: Path | None = None) -> pd.DataFrame:
    """The ledger, a row a claim, those not run yet as pending: claim, verdict, effect, low, high, seeds, n,
    control_effect, commit."""
    known = read(ledger)
    rows = [known.get(name, {"claim": name, "verdict": PENDING, "seeds": 0, "n": 0}) for name in CLAIMS]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def read(ledger: Path | None = None) -> dict[str, dict[str, Any]]:
    """What is in the ledger, by claim; the committed one where no other is named, {} where there is none."""
    path = ledger or runtime.asset() / LEDGER
    if not path.exists():
        return {}
    try:
        return {row["claim"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no ledger ({error}): make it again with `mpm-lite claims run`.") from error


def told(name: str, ledger: Path | None = None, about: str = "") -> str:
    """All that the ledger says of a claim, in lines: statement, the paper's figure, rule, verdict, and every figure whose
    name holds `about`."""
    one, row = claim(name), read(ledger).get(name)
    lines = [
        f"{name} ({one.source}): {one.statement}",
        f"  theirs: {one.theirs or 'no figure that was verified'}",
        f"  rule: {one.rule}",
    ]
    lines = [fill(line, 100, subsequent_indent="    ") for line in lines]
    if row is None:
        return "\n".join([*lines, f"  verdict: {PENDING}; `mpm-lite claims run {name}` runs it"])

    def span(value: float, low: float, high: float) -> str:
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    lines.append(f"  verdict: {row['verdict']} ({row['seeds']} seeds, {row['n']} pictures, commit {row['commit']})")
    lines.append(f"  effect: {span(row['effect'], row['low'], row['high'])} {one.effect}")
    lines.append(f"  control: {span(row['control_effect'], row['control_low'], row['control_high'])} {one.control}")
    return "\n".join([*lines, *(f"    {span(*of)} {what}" for what, of in row["details"].items() if about in what)])


def details(name: str, names: Mapping[str, str], ledger: Path | None = None) -> pd.DataFrame:
    """Figures that stand beside a claim's effect in the ledger, a row each: name, value, low, high. `names` says which (as the
    ledger calls them) and what they are to be called. UserError where the claim has not run."""
    row = read(ledger).get(name)
    if row is None:
        raise UserError(f"{name} is not in the ledger yet: `mpm-lite claims run {name}` runs it.")
    found = [(said, *row["details"][what]) for what, said in names.items()]
    return pd.DataFrame(found, columns=["name", "value", "low", "high"])


def enter(found: dict[str, Any], ledger: Path) -> None:
    """Put one claim's row into a ledger, in the place of the one it had."""
    known = read(ledger) | {found["claim"]: found}
    rows = [known[name] for name in CLAIMS if name in known]
    write_atomic(ledger, (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode())


def sight_by_language(ledger: Path | None = None) -> pd.DataFrame | None:
    """C7 a point a language: lm (as its arm is called), language, alignment, rho, low, high; None where it has not run."""
    row = read(ledger).get("C7")
    if row is None:
        return None
    rows = [
        {
            "lm": arm,
            "language": code,
            "alignment": claims_chat.alignment(C7_ARMS[arm].lm, code),
            **dict(zip(("rho", "low", "high"), row["details"][f"rho of {code}, {arm}"], strict=True)),
        }
        for arm in C7_ARMS
        for code in OTHERS
    ]
    return pd.DataFrame(rows)


def replies_by_share(ledger: Path | None = None) -> pd.DataFrame | None:
    """C3 a point a share: share (0 to 1), added, metric (reply_language or content), value, low, high; None where it has
    not run."""
    row = read(ledger).get("C3")
    if row is None:
        return None
    names = {"reply_language": "reply in L", "content": "content"}
    rows = []
    for metric, said in names.items():
        for added, tail in (("with pictures", ""), ("text alone", " of text alone")):
            for share in (0.0, *SHARES):
                name = f"{said} at {100 * share:g} %{tail}" if share else f"{said} at none"
                found = dict(zip(("value", "low", "high"), row["details"][name], strict=True))
                rows.append({"share": share, "added": added, "metric": metric, **found})
    return pd.DataFrame(rows)
