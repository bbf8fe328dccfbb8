"""Studies of two aligned towers: how retention follows what an encoder read, how many pairs it takes, and its controls.

Rules, splits and dials were fixed before these runs, and no dial was chosen on seeds 10-14 or on the test pictures. Two
earlier configurations of `retention` were tested on them too: one without the last fit on train + val, and one on two
image towers side by side with 300 steps (English 43.5 with use-m), given up for the time its second tower took. Emoji in a
hundred languages and text transfer were added later, to the third configuration as it was. When their code was tried for
the first time, test scores of `e5-small` with seed 0 were seen; of what decides a score, nothing was changed after that but
the names filed as Kalaallisut, which were left out. The rows on having been read, the floor by cell and the comparison of
translators with `use-m` were added after the test, and are descriptions. An arm that was run is kept under OUT/arms and not
run again, so a study can be stopped and continued.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mpm_lite.claims import Say, silent
from mpm_lite.core import runtime
from mpm_lite.core.provenance import commit
from mpm_lite.core.runtime import UserError
from mpm_lite.core.store import write_study
from mpm_lite.data import is_available, load_captions
from mpm_lite.data.languages import base, english_first
from mpm_lite.data.translators import TRANSLATORS, load_translator
from mpm_lite.evaluation import stats, text_only
from mpm_lite.experiments import correlations, results
from mpm_lite.experiments.experiment import Experiment, text_tower
from mpm_lite.experiments.results import Results
from mpm_lite.experiments.sweep import run_kept

TOWERS, FLOOR = ("use-m", "e5-small"), "minilm-en"
METRIC = "t2i_r@10"
FIRST_SEED, SEEDS = 10, 5
FULL = ("emoji+stamps+clipart", ["en"])
SAME = "emoji+stamps"  # pictures that people captioned in many languages
LANGUAGES = ("zh", "de", "ja", "ru", "ar")
SIZES = (100, 300, 1000, None)  # None: all
TESTS = [("stamps", "all"), ("emoji", "all")]
ALIKE = ["recipe", "image", "lm", "train", "condition"]  # columns that all rows of a table would have alike


def retention_arms() -> dict[str, Experiment]:
    """Both towers and the English-only floor, English captions only, every language. UserError without the names of emoji, so
    that nobody takes fourteen languages for a hundred."""
    if not is_available("emoji-names"):
        raise UserError("This study asks in a hundred languages: run `mpm-lite data get emoji-names` first.")
    return {f"english-{text}": Experiment(text=text, train=FULL, val=None, test=TESTS) for text in (*TOWERS, FLOOR)}


def pairs_arms() -> dict[str, Experiment]:
    """How the other languages move as English pairs grow."""
    return {
        f"{text}-{n or 'all'}": Experiment(text=text, train=FULL, val=None, test=("stamps", "all"), pairs=n)
        for text in TOWERS
        for n in (500, 1000, 2000, None)
    }


def control_arms() -> dict[str, Experiment]:
    """What could sink the claim: wrong pairs, one picture for all, noise for pictures, an encoder that reads English only."""
    arms = {
        f"{condition}-{text}": Experiment(text=text, train=FULL, val=None, condition=condition)
        for text in TOWERS
        for condition in ("real", "shuffled", "blind", "random-image")
    }
    return arms | {f"real-{FLOOR}": Experiment(text=FLOOR, train=FULL, val=None)}


def crossing_arms() -> dict[str, Experiment]:
    """In-language training at four sizes, English on the same pictures, both together, and English on everything.

    The captions in L are human translations: in-language, not native. Each arm is selected on its own validation split.
    150 small steps, so that the 255 runs take minutes: English scores lie below those of `retention`.
    """
    one = Experiment(steps=150, options={"batch": 128})
    arms = {"english-everything": replace(one, train=FULL, test=("stamps", ["en", *LANGUAGES]))}
    for code in LANGUAGES:
        here = replace(one, test=("stamps", ["en", code]))
        for n in SIZES:
            size = n or "all"
            in_language = replace(here, train=(SAME, [code]), require=("en",), pairs=n)
            english = replace(here, train=(SAME, ["en"]), require=(code,), pairs=n)
            both = replace(here, train=(FULL[0], ["en", code]), pairs={"en": None, code: n}, val=(SAME, [code]))
            arms[f"in-language-{code}-{size}"] = in_language
            arms[f"english-same-pictures-{code}-{size}"] = english
            if n in (SIZES[0], SIZES[-1]):
                arms[f"english-and-in-language-{code}-{size}"] = both
    return arms


def translator_languages(name: str) -> dict[str, list[str]]:
    """By test set, the languages that a translator knows, with English before them."""
    known, tests = load_translator(name).languages, [test for test, _ in TESTS]
    there = {test: load_captions(test, "test", "all").languages for test in tests}
    return {test: ["en", *(code for code in codes if code in known)] for test, codes in there.items()}


def translator_arms() -> dict[str, Experiment]:
    """An English text tower behind real translators, as it is, and beside it the pivot's two towers, which read the captions
    themselves. A perfect translator is the English tower's score on the English captions of the same queries."""
    known = {name: translator_languages(name) for name in TRANSLATORS}
    both = {test: english_first(code for of in known.values() for code in of[test]) for test, _ in TESTS}
    one = Experiment(text=FLOOR, train=FULL, val=None, test=list(both.items()))
    arms = {"untranslated": one} | {f"pivot, {text}": replace(one, text=text) for text in TOWERS}
    return arms | {name: replace(one, translator=name, test=list(of.items())) for name, of in known.items()}


def run_arms(arms: dict[str, Experiment], out: Path, seeds: int, progress: bool = True) -> dict[str, Results]:
    """Run what is not there yet; every finished arm is saved at once."""
    done = {}
    for name, arm in (bar := tqdm(arms.items(), disable=not progress or runtime.quiet())):
        bar.set_description(name)
        one = replace(arm, seed=FIRST_SEED, seeds=seeds)
        done[name] = run_kept(one, out / "arms" / name, progress=progress, models=False)
    return done


def retention_tables(done: dict[str, Results]) -> dict[str, pd.DataFrame]:
    """Retention by language with its two factors, alignment and cell, means by cell, and the associations between them."""
    joined, known = Results.join(list(done.values())), []
    for test, _ in TESTS:  # what a tower makes of captions is measured on the training captions of the same set
        captions = text_only.sample(test)
        measured = pd.concat([text_only.measure_alignment(text_tower(text), captions) for text in TOWERS])
        known.append(measured.merge(text_only.measure_spelling(captions), on="language").assign(test=test))
    by = ["test", "text", "language"]
    rho = joined.retention(METRIC, floor=FLOOR).merge(pd.concat(known), on=by, how="left", suffixes=("", "_alignment"))
    means = []
    for (text, test, cell), rows in rho[rho["counts"] & (rho["language"] != "en")].groupby(["text", "test", "cell"]):
        arm, codes = joined.where(text=text, test=test), rows["language"].tolist()
        said = {"text": text, "test": test, "cell": cell, "languages": len(rows), "codes": " ".join(codes)}
        floor = (rows["floor"] - rows["chance"]) / (rows["pivot_score"] - rows["chance"])
        said["floor"] = float(floor.mean())  # retention of the English-only tower: shared spelling
        said |= arm.mean_retention(codes, METRIC).columns("rho")
        means.append(said | results.factor_columns(arm.identity(codes, METRIC)))
    return {
        "retention": rho.drop(columns=ALIKE),
        "retention-cells": pd.DataFrame(means),
        "associations": pd.concat(
            correlations.association_table(rho[rho["test"] == test], joined, *how).assign(test=test)
            for test, how in (("stamps", ()), ("emoji", ("t", "chrf")))
        ),
    }


def translator_tables(done: dict[str, Results]) -> dict[str, pd.DataFrame]:
    """Two tables. By test, translator and language: R@10 behind the translator, of a perfect one, untranslated and of the pivot; how
    often every word was translated, how near the translation comes to the English caption (chrF), and milliseconds a caption.
    And the means over those languages that count and that a tower read, with what each adds to or takes from the pivot on that
    tower, in paired draws."""
    by_language, means = [], []
    for test, _ in TESTS:
        of = {name: result.where(test=test) for name, result in done.items()}
        scores = {name: result.retention(METRIC).set_index("language") for name, result in of.items()}
        for name in TRANSLATORS:
            codes = [code for code in scores[name].index if code != "en"]
            for code in codes:
                row = scores[name].loc[code]
                said = {"test": test, "translator": name, "language": code}
                said |= {"score": row["score"], "perfect": row["pivot_score"]}
                said |= {arm: scores[arm].loc[code, "score"] for arm in done if arm not in TRANSLATORS}
                said |= {k: row[k] for k in ("chance", "rho", "t", "e", "n", "counts")}
                by_language.append(said | measure_translation(name, test, code))
            codes = [code for code in codes if scores[name].loc[code, "counts"]]
            for text in TOWERS:  # each tower is compared in the languages that it read
                read, pivot = [code for code in codes if base(code) in text_tower(text).languages], f"pivot, {text}"
                if not read:
                    continue
                drawn = {arm: of[arm].mean_score_draws(read, METRIC) for arm in (name, pivot, "untranslated")}
                drawn["perfect"] = of[name].mean_score_draws(read, METRIC, column="pivot ")
                for arm, (value, draws) in drawn.items():
                    less = stats.summarise(value - drawn[pivot][0], draws - drawn[pivot][1])
                    said = {"test": test, "translator": name, "read_by": text, "arm": arm, "languages": len(read)}
                    over = {"over_pivot": less.value, "over_low": less.low, "over_high": less.high}
                    codes_of = {"codes": " ".join(read)}
                    means.append(said | stats.summarise(value, draws).columns("score") | over | codes_of)
    return {"translators": pd.DataFrame(by_language), "translators-means": pd.DataFrame(means)}


def measure_translation(name: str, test: str, code: str) -> dict[str, float]:
    """What a translator makes of the test captions in a language: share translated whole, chrF to the English captions (0 to 1),
    milliseconds a caption."""
    from sacrebleu.metrics import CHRF

    captions, translator = load_captions(test, "test", ["en", code]), load_translator(name)
    there = captions.with_caption(code)
    said, english = ([captions.captions[c][i] for i in there] for c in (code, "en"))
    started = time.perf_counter()
    found, whole = translator.translate(said, code)
    spent = time.perf_counter() - started
    chrf = CHRF().corpus_score([one.casefold() for one in found], [[one.casefold() for one in english]]).score / 100
    return {"translated": float(whole.mean()), "chrf": chrf, "ms": 1000 * spent / len(said)}


def pairs_tables(done: dict[str, Results]) -> dict[str, pd.DataFrame]:
    """Score and retention of every language at each number of English pairs."""
    rows = []
    for result in done.values():
        rows.append(result.retention(METRIC).drop(columns=ALIKE).assign(pairs=result.meta["pairs"]["en"]))
    return {"english-pairs": pd.concat(rows)}


def control_tables(done: dict[str, Results]) -> dict[str, pd.DataFrame]:
    """Score by condition over all languages that count, with chance and a joint interval."""
    rows = []
    for result in done.values():
        rho = result.retention(METRIC)
        named = result.items.iloc[0]
        others = rho[rho["counts"] & (rho["language"] != "en")]["language"].tolist()
        for group, codes in (("en", ["en"]), ("all others", others)):
            items = result.items[result.items["language"].isin(codes)]
            gain = items[METRIC] - items[f"chance {METRIC}"]
            by_item = gain.groupby([items["seed"], items["item"]]).mean().unstack()
            concepts = items.drop_duplicates("item").set_index("item")["concept"].loc[by_item.columns].tolist()
            drawn = stats.average_draws(by_item.to_numpy(), *stats.draw_weights(concepts, len(by_item)))
            over = stats.summarise(float(by_item.to_numpy().mean()), drawn)
            score = {"score": items[METRIC].mean(), "chance": items[f"chance {METRIC}"].mean()}
            score |= over.columns("over_chance")
            said = {"text": named["text"], "condition": named["condition"], "group": group, "languages": len(codes)}
            rows.append(said | score | {"seeds": len(by_item), "n": by_item.shape[1]})
    return {"controls": pd.DataFrame(rows)}


def crossing_tables(done: dict[str, Results]) -> dict[str, pd.DataFrame]:
    """Scores by arm, language and size; and what English-only is worth in in-language pairs."""
    rows, rates = [], []
    for code in LANGUAGES:
        curves: dict[str, list[tuple[int, np.ndarray]]] = {}
        everything = done["english-everything"]
        for arm in ("in-language", "english-same-pictures", "english-and-in-language", "english-everything"):
            names = [arm] if arm in done else [f"{arm}-{code}-{n or 'all'}" for n in SIZES]
            for name in names:
                if name not in done:
                    continue
                value, drawn, n, chance = _score(done[name], code)
                pairs = done[name].meta["pairs"]
                size = sum(v for k, v in pairs.items() if k == code or arm.startswith("english-same")) or pairs["en"]
                curves.setdefault(arm, []).append((size, value, drawn))
                said = {"language": code, "arm": arm, "pairs": size} | stats.summarise(value, drawn).columns("score")
                rows.append(said | {"n": n, "chance": chance, "seeds": everything.items["seed"].nunique()})
        rates += exchange_rates(code, curves)
    return {"native-crossing": pd.DataFrame(rows), "exchange-rates": pd.DataFrame(rates)}


def _score(result: Results, code: str) -> tuple[float, np.ndarray, int, float]:
    items = result.items[result.items["language"] == code].sort_values(["seed", "item"])
    hits = items[METRIC].to_numpy().reshape(items["seed"].nunique(), -1)
    concepts = items["concept"].iloc[: hits.shape[1]].tolist()
    drawn = stats.average_draws(hits, *stats.draw_weights(concepts, len(hits)))
    return float(hits.mean()), drawn, hits.shape[1], float(items[f"chance {METRIC}"].mean())


def exchange_rates(code: str, curves: dict[str, list[tuple[int, float, np.ndarray]]]) -> list[dict[str, Any]]:
    """In-language pairs needed to match an English-only score in L: by log-linear interpolation of the rising curve.

    Beyond the curve's ends the rate is only bounded: infinity above (shown as "> all"), the smallest size below.
    """
    curve = curves["in-language"]
    sizes = [size for size, _, _ in curve]
    rows = []
    for against in ("english-same-pictures", "english-everything"):
        _, value, drawn = curves[against][-1]
        point = crossing(sizes, [v for _, v, _ in curve], value)
        many = np.array([crossing(sizes, [d[b] for _, _, d in curve], drawn[b]) for b in range(len(drawn))])
        low, high = np.quantile(many, [0.025, 0.975], method="nearest")
        said = {"language": code, "english_arm": against, "pairs": curves[against][-1][0], "worth": point}
        said |= {"low": low, "high": high, "all_in_language": sizes[-1], "beyond_all": float(np.isinf(many).mean())}
        gain_low, gain_high = np.percentile(drawn - curve[-1][2], [2.5, 97.5])
        gain = {"gain_over_all_in_language": value - curve[-1][1], "gain_low": gain_low, "gain_high": gain_high}
        rows.append(said | gain)
    return rows


def crossing(sizes: list[int], scores: list[float], level: float) -> float:
    """The size at which the rising envelope of the scores reaches `level`, log-linear between sizes; inf beyond the last."""
    rising = np.maximum.accumulate(scores)
    if level <= rising[0]:
        return float(sizes[0])
    if level > rising[-1]:
        return float("inf")
    right = int(np.searchsorted(rising, level))
    share = (level - rising[right - 1]) / max(rising[right] - rising[right - 1], 1e-12)
    return float(np.exp(np.log(sizes[right - 1]) + share * np.log(sizes[right] / sizes[right - 1])))


Tables = Callable[[dict[str, Results]], dict[str, pd.DataFrame]]
ALIGNMENTS: dict[str, tuple[Callable[[], dict[str, Experiment]], Tables]] = {
    "retention": (retention_arms, retention_tables),
    "english-pairs": (pairs_arms, pairs_tables),
    "controls": (control_arms, control_tables),
    "native-crossing": (crossing_arms, crossing_tables),
    "translators": (translator_arms, translator_tables),
}


def run_alignments(
    name: str, out: Path, seeds: int | None = None, say: Say = silent, workers: int = 1, progress: bool = True
) -> list[Path]:
    """Run a study, in this process, and write its tables as CSV, with a card that says commit, seeds and configuration; returns the files."""
    arms, tables = ALIGNMENTS[name]
    version, seeds = commit(), seeds or SEEDS
    done = run_arms(arms(), out / name, seeds, progress)
    options = next(iter(done.values())).meta["options"]
    seen = list(range(FIRST_SEED, FIRST_SEED + seeds))
    return write_study(out, name, tables(done), {"options": options}, name, version, seen, digits="%.5g")
