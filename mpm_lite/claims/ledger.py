"""The claims ledger: runs what a claim needs, keeps rows as they finish, judges, and writes the table.

    mpm-lite claims run C1 --seeds 5     resumes per arm and seed; OUT/claims holds a file for each
    mpm-lite claims table                the ledger; under five seeds a claim is pending
    mpm-lite claims pack --out OUT       those files as one, OUT/claims.parquet, far smaller; runs go on from it. Rows of
                                         comparisons (`mpm-lite run head_to_head`) too

Every arm that two claims share is run once.

Where later studies disagree with the four papers, or with each other, there is a `Dispute`: a question, who answers it how
and with which figure, and the figure of the ledger and the bar that decide it. Above the bar, with the whole interval, the answer here is yes; below,
no; else it stays open.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd

from mpm_lite.claims import m3p, mblip, mla, mpm
from mpm_lite.claims.mpm import SHARES
from mpm_lite.core import runtime
from mpm_lite.core.keys import Key
from mpm_lite.core.provenance import commit
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.core.runtime import run as share_out
from mpm_lite.core.store import Shelf, name_of, write_atomic
from mpm_lite.evaluation.stats import BROKEN, PENDING, Claim, Found, Sample
from mpm_lite.experiments.experiment import FIRST_SEED, SEEDS, rows_key
from mpm_lite.towers import catalogue


@dataclass(frozen=True)
class Dispute:
    """`figure` is what the ledger calls it, "" for the claim's effect. Figures of others stand with their tag."""

    claim: str
    question: str
    yes: str
    no: str
    figure: str
    said: str  # what that figure is, in a few words
    bar: float


_REPLIES = "LLaVA 1.5 answers Chinese questions in Chinese after English tuning (its issue 238) [R]"
_ENGLISH = (
    "VisCPM: understood, and answered in English [R]; Centurio: 0.2-6.2 % of captions in the language asked for [S]"
)
DISPUTES = (
    Dispute(
        claim="C5",
        question="Beside English pairs, do pairs in other languages help those languages much?",
        yes="Centurio (Phi-3.5, SigLIP): half of pretraining in other languages takes five groups of languages from 19.3-34.5 to 22.8-39.5 [S]; Pangea: best at 40 % English, a sharp drop at 100 % [S]",
        no="VisCPM: native and translated Chinese pairs on top take Chinese chat from 86.3 to 88.2 [R]",
        figure="",
        said="slots right in nine languages, their pairs on top of English ones",
        bar=0.05,
    ),
    Dispute(
        claim="C15",
        question="Do closed answers in other languages need tuning data in them?",
        yes="mBLIP, whose mix translates questions' answers too [R]",
        no="Centurio: 33.0-42.9 with English alone, 36.1-42.7 with 100 languages [S]",
        figure="closed answers",
        said="closed answers right in nine languages, translated mix over English alone",
        bar=0.05,
    ),
    Dispute(
        claim="C2",
        question="Tuned on English alone and asked in another language, does a model reply in it?",
        yes=_REPLIES,
        no=_ENGLISH,
        figure="",
        said="replies in the language asked, mean of nine languages, questions in that language",
        bar=0.5,
    ),
    Dispute(
        claim="C15",
        question="And asked in English for a caption in another language?",
        yes=_REPLIES,
        no=_ENGLISH,
        figure="reply_language, others, english",
        said="captions in the language asked for, mean of nine languages",
        bar=0.5,
    ),
)  # fmt: skip


def interval(one: Dispute, row: Mapping[str, Any]) -> tuple[float, float, float]:
    """The figure that decides a dispute, in a claim's row of the ledger: value, low, high."""
    if not one.figure:
        return row["effect"], row["low"], row["high"]
    value, low, high = row["details"][one.figure]
    return value, low, high


def answer(one: Dispute, row: Mapping[str, Any]) -> str:
    """yes, no or open."""
    _, low, high = interval(one, row)
    return "yes" if low >= one.bar else "no" if high < one.bar else "open"


def dispute_told(one: Dispute, row: Mapping[str, Any]) -> str:
    """A dispute in a line: question, both sides, and the answer here."""
    value, low, high = interval(one, row)
    return f"disputed: {one.question} Yes: {one.yes}. No: {one.no}. Here {answer(one, row)}: {value:.2f} [{low:.2f}, {high:.2f}] {one.said} (bar {one.bar:g})."


# The ledger.

_ALL = mpm.CHAT_CLAIMS | mpm.PAINT_CLAIMS | m3p.CLAIMS | mla.CLAIMS | mblip.CLAIMS
CLAIMS = {
    name: _ALL[name] for name in sorted(_ALL, key=lambda name: int(name.removeprefix("C")) if name[0] == "C" else 0)
}
LEDGER = "results/claims.json"
COLUMNS = ("claim", "verdict", "effect", "low", "high", "seeds", "n", "control_effect", "commit")


def claim(name: str) -> Claim:
    """The claim of that name; UserError for one that is not (yet) here."""
    if name not in CLAIMS:
        raise unknown("claim", name, CLAIMS)
    return CLAIMS[name]


def shelf(out: Path, name: str = "") -> Shelf:
    """Where the rows of claims lie; `name` is the claim that a sentence on missing ones names."""
    return Shelf(out, "claims", f"mpm-lite claims run {name}".strip())


def key(arm: Any, seed: int, asked: Mapping[str, Any]) -> Key:
    """What decides one arm's rows of one seed; arms and questions that are the same have the same key."""
    return rows_key(arm, seed, {"asked": dict(asked), "split": asked["split"]})


def run(
    name: str,
    out: Path,
    seeds: Sequence[int] = range(FIRST_SEED, FIRST_SEED + SEEDS),
    split: str = "test",
    say: Callable[[str], None] = lambda line: None,
    bench: Any = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Run whatever of a claim's arms and seeds is missing, in so many processes, and judge. Returns the row for the ledger.

    Stopped at any time, the same call goes on with the next arm and seed. Seeds come first: after one round of all arms
    there is one seed of everything.
    """
    one, rows, jobs = claim(name), shelf(out), {}
    check_models(one, out, seeds, split)
    asked = {**one.asked, "split": split}
    todo = {(seed, arm): name_of(key(one.arms[arm], seed, asked)) for seed in seeds for arm in one.arms}
    missing = set(rows.missing(todo.values()))
    bench = bench or (one.bench() if workers == 1 and missing else None)  # others make one of their own
    # Among several, seeds begin side by side: arms of one seed would wait for what they share.
    order = sorted(todo, key=lambda pair: list(one.arms).index(pair[1])) if workers > 1 else todo
    for seed, arm in order:
        if (which := todo[seed, arm]) in missing:
            missing.remove(which)  # two arms of one name are one
            jobs[f"{name}, {arm}, seed {seed}"] = (_run, (name, arm, seed, split, out, bench))
    share_out(jobs, workers, say)
    return judged(one, out, seeds, split)


def check_models(one: Claim, out: Path, seeds: Sequence[int], split: str = "test") -> None:
    """UserError for language models that runs of a claim stand on and that are not here, unless their rows are kept already."""
    asked = {**one.asked, "split": split}
    todo = {name_of(key(arm, seed, asked)): (arm, seed) for arm in one.arms.values() for seed in seeds}
    stood_on = {model for run in shelf(out).missing(todo) for model in catalogue.models_of(*todo[run]).values()}
    gone = sorted(f"{name}:{seed}" for name, seed in stood_on if not catalogue.present(name, seed))
    if gone:
        raise UserError(
            f"{one.id} stands on language models that are not here: `mpm-lite pretrain {' '.join(gone)}` makes them (an hour "
            "each on a CPU)."
        )


def _run(name: str, arm: str, seed: int, split: str, out: Path, bench: Any = None) -> None:
    """One arm with one seed: train, test, keep the rows."""
    one = claim(name)
    bench, asked = bench or _bench(name), {**one.asked, "split": split}
    shelf(out).put(key(one.arms[arm], seed, asked), bench.test(bench.train(one.arms[arm], seed), seed, **asked))


@lru_cache(maxsize=1)
def _bench(name: str) -> Any:
    """A claim's bench, made once in a process."""
    return claim(name).bench()


def items(one: Claim, out: Path, seeds: Sequence[int], split: str = "test") -> pd.DataFrame:
    """The rows of all arms of a claim, with a column `arm`. UserError where one is missing or torn."""
    runs = [
        (arm, seed, name_of(key(what, seed, {**one.asked, "split": split})))
        for arm, what in one.arms.items()
        for seed in seeds
    ]
    rows = shelf(out, one.id).read({name: f"arm {arm!r}, seed {seed}" for arm, seed, name in runs})
    return pd.concat([rows[name].assign(arm=arm) for arm, _, name in runs], ignore_index=True)


def judged(one: Claim, out: Path, seeds: Sequence[int], split: str = "test") -> dict[str, Any]:
    """What the runs say of a claim: a row of the ledger, its details, and what was run."""
    rows = items(one, out, seeds, split)
    sample = Sample(rows)
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
        "on": sorted(rows["on"].dropna().unique()) if "on" in rows else [],
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

    on = "; on " + ", ".join(row["on"]) if row.get("on") else ""
    lines.append(f"  verdict: {row['verdict']} ({row['seeds']} seeds, {row['n']} pictures, commit {row['commit']}{on})")
    lines.append(f"  effect: {span(row['effect'], row['low'], row['high'])} {one.effect}")
    lines.append(f"  control: {span(row['control_effect'], row['control_low'], row['control_high'])} {one.control}")
    disputed = [dispute_told(of, row) for of in DISPUTES if of.claim == name]
    lines += [fill(f"  {line}", 100, subsequent_indent="    ") for line in disputed]
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
