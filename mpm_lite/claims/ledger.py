"""The claims ledger: runs what a claim needs, keeps rows as they finish, judges, and writes the table.

    mpm-lite claims run C1a --seeds 5    resumes per arm and seed; OUT/claims holds a file for each
    mpm-lite claims table                the ledger; under five seeds a claim is pending
    mpm-lite claims pack --out OUT       those files as one, OUT/claims.parquet, far smaller; runs go on from it. Rows of
                                         comparisons (`mpm-lite run head_to_head`) too

Every arm that two claims share is run once. Verdicts are Holm's over all claims, those that have not run yet included, so that
a verdict cannot become weaker when the others follow.

An earlier ledger judged other rules with weaker language models. Its verdicts stay in results/first-ledger.json, each with its
rule, and stand beside today's; its figures are shown where a claim has not run again.

Where later studies disagree with the four papers, or with each other, there is a `Dispute`: a question, who answers it how
and with which figure, and the figure of the ledger and the bar that decide it. Above the bar, with the whole interval, the answer here is yes; below,
no; else it stays open.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd

from mpm_lite.claims import PENDING, Claim, claim_texts, judge, m3p, mblip, mla, mpm
from mpm_lite.core import runtime
from mpm_lite.core.keys import digest
from mpm_lite.core.provenance import commit, read_card, read_table
from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.core.store import Shelf, write_atomic
from mpm_lite.evaluation.stats import Sample, holm
from mpm_lite.experiments import system
from mpm_lite.experiments.experiment import SEEDS
from mpm_lite.experiments.system import Trial, join_trials, run_trials


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


def dispute_interval(one: Dispute, row: Mapping[str, Any]) -> tuple[float, float, float]:
    """The figure that decides a dispute, in a claim's row of the ledger: value, low, high."""
    if not one.figure:
        return row["effect"], row["low"], row["high"]
    value, low, high = row["details"][one.figure]
    return value, low, high


def answer_dispute(one: Dispute, row: Mapping[str, Any]) -> str:
    """yes, no or open."""
    _, low, high = dispute_interval(one, row)
    return "yes" if low >= one.bar else "no" if high < one.bar else "open"


def describe_dispute(one: Dispute, row: Mapping[str, Any]) -> str:
    """A dispute in a line: question, both sides, and the answer here."""
    value, low, high = dispute_interval(one, row)
    return f"disputed: {one.question} Yes: {one.yes}. No: {one.no}. Here {answer_dispute(one, row)}: {value:.2f} [{low:.2f}, {high:.2f}] {one.said} (bar {one.bar:g})."


# The ledger.

_ALL = mpm.CHAT_CLAIMS | mpm.PAINT_CLAIMS | m3p.CLAIMS | mla.CLAIMS | mblip.CLAIMS
CLAIMS = {name: _ALL[name] for name in claim_texts()}  # in the order of assets/claims.toml
DISPUTES = tuple(Dispute(name, **one) for name in CLAIMS for one in claim_texts()[name].get("disputes", ()))
FIRST_SEED = 40  # no dial was chosen with these seeds, and no other study uses them
DRAWS = 5_000  # enough for a p value that Holm multiplies by the number of claims
LEDGER, FIRST = "results/claims.json", "results/first-ledger.json"
COLUMNS = ("claim", "verdict", "effect", "low", "high", "seeds", "n", "control_effect", "commit")


def find_claim(name: str) -> Claim:
    """The claim of that name; UserError for one that is not (yet) here."""
    if name not in CLAIMS:
        raise unknown("claim", name, CLAIMS)
    return CLAIMS[name]


def shelf(out: Path, name: str = "") -> Shelf:
    """Where the rows of claims lie; `name` is the claim that a sentence on missing ones names."""
    return Shelf(out, "claims", f"mpm-lite claims run {name}".strip())


def list_trials(one: Claim, seeds: Sequence[int], split: str = "test") -> dict[str, Trial]:
    """Every arm of a claim with every seed, by a label. Seeds come first: after one round of all arms there is one seed of
    everything."""
    asked = {**one.asked, "split": split}
    every = [(arm, seed) for seed in seeds for arm in one.arms]
    return {f"{one.id}, {arm}, seed {seed}": Trial(one.arms[arm], seed, asked) for arm, seed in every}


def run_claim(
    name: str, out: Path, seeds: Sequence[int] = range(FIRST_SEED, FIRST_SEED + SEEDS), split: str = "test",
    say: Callable[[str], None] = lambda line: None, bench: Any = None, workers: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Run whatever of a claim's arms and seeds is missing, in so many processes, and judge. Returns the row for the ledger.

    Stopped at any time, the same call goes on with the next arm and seed.
    """
    one = find_claim(name)
    check_models(one, out, seeds, split)
    run_trials(list_trials(one, seeds, split), shelf(out), workers, say, bench)
    return judge_claim(one, out, seeds, split)


def check_models(one: Claim, out: Path, seeds: Sequence[int], split: str = "test") -> None:
    """UserError for language models that runs of a claim stand on and that are not here, unless their rows are kept already."""
    system.check_models(one.id, list(list_trials(one, seeds, split).values()), shelf(out))


def read_items(one: Claim, out: Path, seeds: Sequence[int], split: str = "test") -> pd.DataFrame:
    """The rows of all arms of a claim, with a column `arm`. UserError where one is missing or torn."""
    arms = [arm for _ in seeds for arm in one.arms]
    return join_trials(list_trials(one, seeds, split), arms, shelf(out, one.id))


def judge_claim(one: Claim, out: Path, seeds: Sequence[int], split: str = "test") -> dict[str, Any]:
    """What the runs say of a claim: a row of the ledger, without the verdict, which depends on the other rows."""
    if one.study:
        card = read_card(one.study)
        models = len(card["models"])
        known = {"seeds": models, "models": models, "n": int(read_table(one.study)["n"].max())}
        known |= {name: card[name] for name in ("commit", "split")}
        return {
            "claim": one.id,
            "rule": rule_digest(one),
            **known,
            "first_seed": 0,
            "on": [],
            **one.judge(None).row(models),
        }  # type: ignore[arg-type]
    rows = read_items(one, out, seeds, split)
    sample = Sample(rows, DRAWS, widened=True)
    return {
        "claim": one.id,
        "rule": rule_digest(one),
        "seeds": len(seeds),
        "models": sample.models,
        "n": sample.n,
        "commit": commit(),
        "split": split,
        "first_seed": min(seeds),
        "on": sorted(rows["on"].dropna().unique()) if "on" in rows else [],
        **one.judge(sample).row(sample.models),
    }


def rule_digest(one: Claim) -> str:
    """A digest of a claim's rule, words and code: a rule that is changed after its runs does not go unseen."""
    return digest([one.rule, inspect.getsource(one.judge)])[:12]


def judge_rows(known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of a ledger with their verdicts and reasons: Holm over all claims; "pending" off the test pictures and under five
    seeds, of which those that share their language models are one. A claim that has not run counts as one whose p value is
    1."""
    counted = {name: row for name, row in known.items() if row["models"] >= SEEDS and row["split"] == "test"}
    p = [counted[name]["p"] if name in counted else {"for": 1.0, "against": 1.0} for name in CLAIMS]
    adjusted = pd.DataFrame(p, list(CLAIMS)).apply(holm, raw=True)
    found = {}
    for name, row in known.items():
        if name in counted:
            verdict, reason = judge(row, adjusted.loc[name])
        else:
            reason = f"{row['models']} of {SEEDS} seeds with models of their own have run, on {row['split']}."
            verdict = PENDING
        found[name] = {**row, "verdict": verdict, "reason": reason}
    return found


def ledger_table(ledger: Path | None = None) -> pd.DataFrame:
    """The ledger, a row a claim, those not run yet as pending: claim, verdict, effect, low, high, seeds, n,
    control_effect, commit."""
    known = read_ledger(ledger)
    rows = [known.get(name, {"claim": name, "verdict": PENDING, "seeds": 0, "n": 0}) for name in CLAIMS]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def read_ledger(ledger: Path | None = None) -> dict[str, dict[str, Any]]:
    """What is in the ledger, by claim; the committed one where no other is named, {} where there is none."""
    path = ledger or runtime.asset() / LEDGER
    if not path.exists():
        return {}
    try:
        return {row["claim"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no ledger ({error}): make it again with `mpm-lite claims run`.") from error


@lru_cache(maxsize=1)
def read_first() -> dict[str, dict[str, Any]]:
    """The rows of the first ledger, by the claim that they are of today. `told` holds the words they were judged by."""
    return {row["claim"]: row for row in json.loads(runtime.asset(FIRST).read_text(encoding="utf-8"))}


def latest_row(name: str, ledger: Path | None = None) -> dict[str, Any] | None:
    """What is known of a claim: its row of the ledger or, of the committed one, the first ledger's where it has not run again;
    None where there is neither."""
    found = read_ledger(ledger).get(name)
    return found if found is not None or ledger is not None else read_first().get(name)


def describe_claim(name: str, ledger: Path | None = None, about: str = "") -> str:
    """All that the ledger says of a claim, in lines: statement, the paper's figure, rule, verdict, and every figure whose
    name holds `about`; where it has not run, what the first ledger found."""
    one, row, before = find_claim(name), read_ledger(ledger).get(name), read_first().get(name)
    told = {"theirs": one.theirs or "no figure that was verified", "rule": one.rule}
    lines = [f"{name} ({one.source}): {one.statement}", *(f"  {what}: {said}" for what, said in told.items())]
    if row is not None:
        lines += _figures(row, {"effect": one.effect, "control": one.control}, about)
    else:
        lines.append(
            f"  verdict: {PENDING}; `mpm-lite {f'run {one.study}' if one.study else f'claims run {name}'}` runs it"
        )
    if before is not None and ledger is None:
        lines.append(f"  first ledger: {before['verdict']}, by the rule: {before['told']['rule']}")
        lines += [f"  why another rule: {one.why}"] if one.why else []
        lines += _figures(before, before["told"], about, "verdict of the first ledger") if row is None else []
    return "\n".join(fill(line, 100, subsequent_indent="    ") for line in lines)


def _figures(row: Mapping[str, Any], told: Mapping[str, str], about: str, what: str = "verdict") -> list[str]:
    """Verdict (called `what`), effect, control, disputes and details of a row, a line each."""

    def span(value: float, low: float, high: float) -> str:
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    on = "; on " + ", ".join(row["on"]) if row.get("on") else ""
    who = "language models" if find_claim(row["claim"]).study else "seeds"
    return [
        f"  {what}: {row['verdict']} ({row['seeds']} {who}, {row['n']} pictures, commit {row['commit']}{on})",
        *([f"  reason: {row['reason']}"] if "reason" in row else []),
        f"  effect: {span(row['effect'], row['low'], row['high'])} {told['effect']}",
        f"  control: {span(row['control_effect'], row['control_low'], row['control_high'])} {told['control']}",
        *(f"  {describe_dispute(of, row)}" for of in DISPUTES if of.claim == row["claim"]),
        *(f"    {span(*of)} {what}" for what, of in row["details"].items() if about in what),
    ]


def read_details(name: str, names: Mapping[str, str], ledger: Path | None = None, first: bool = False) -> pd.DataFrame:
    """Figures that stand beside a claim's effect (`latest_row`; with `first` the first ledger's), a row each: name, value, low,
    high. `names` says which (as the ledger calls them) and what they are to be called. UserError where the claim has not run."""
    row = read_first().get(name) if first else latest_row(name, ledger)
    if row is None:
        raise UserError(f"{name} is not in the ledger yet: `mpm-lite claims run {name}` runs it.")
    found = [(said, *row["details"][what]) for what, said in names.items()]
    return pd.DataFrame(found, columns=["name", "value", "low", "high"])


def write_ledger(found: dict[str, Any], ledger: Path) -> None:
    """Put one claim's row into a ledger, in the place of the one it had, and judge all of them again."""
    known = judge_rows(read_ledger(ledger) | {found["claim"]: found})
    rows = [known[name] for name in CLAIMS if name in known]
    write_atomic(ledger, (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode())


def replies_by_share(ledger: Path | None = None) -> pd.DataFrame | None:
    """C3 a point a share: share (0 to 1), added, metric (reply_language or content), value, low, high; None where it has
    not run."""
    row = latest_row("C3", ledger)
    if row is None:
        return None
    points = []
    for metric, said in (("reply_language", "reply in L"), ("content", "content")):
        for added, tail in (("with pictures", ""), ("text alone", " of text alone")):
            for what, of in row["details"].items():
                at = re.fullmatch(rf"{said} at ([\d.]+) %{tail}|({said} at none)", what)
                if at:
                    share = float(at[1] or 0) / 100
                    found = dict(zip(("value", "low", "high"), of, strict=True))
                    points.append({"share": share, "added": added, "metric": metric, **found})
    return pd.DataFrame(points).sort_values(["metric", "added", "share"], kind="stable", ignore_index=True)
