"""The tour: heads trained on English captions only are asked in every language there is. It makes a table, two figures, and
a page on which you pick a query in any language and see the pictures that the heads find for it.
"""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mpm_lite import data
from mpm_lite.claims.two_towers import FLOOR, METRIC, TOWERS
from mpm_lite.core import __version__, figures, runtime
from mpm_lite.core.keys import Key, OtherRun
from mpm_lite.core.provenance import format_interval
from mpm_lite.core.store import write_atomic
from mpm_lite.data import CaptionSet
from mpm_lite.data.emoji import LANGUAGES as EMOJI_LANGUAGES
from mpm_lite.data.languages import base, display_name, is_rtl
from mpm_lite.data.picture import data_uri
from mpm_lite.evaluation import text_only
from mpm_lite.experiments.experiment import Experiment, image_tower, text_tower
from mpm_lite.experiments.results import Results
from mpm_lite.report import fill
from mpm_lite.towers.feature_cache import image_features, text_features

# The page.

TOP, SIDE = 8, 88
READER = "e5-small"  # reads the most languages of the towers: it answers on the page, and is asked about emoji in all of them


def find_neighbours(results: Results, test: str, text: Any, image: Any, top: int = TOP) -> dict[str, list[list[int]]]:
    """For each language, a row for each captioned picture: its number, then the numbers of the `top` pictures found for its
    caption. The heads are those of the first seed."""
    gallery, recipe = results.galleries[test], next(iter(results.models.values()))
    found = {}
    with torch.inference_mode():
        seen = recipe.predict({"image": torch.from_numpy(image_features(gallery, image).copy())})["image"]
        for language in gallery.languages:
            asked = gallery.with_caption(language)
            said = torch.from_numpy(text_features(gallery, language, text)[asked])
            order = (recipe.predict({"text": said})["text"] @ seen.T).argsort(dim=1, descending=True, stable=True)
            found[language] = [[int(i), *row] for i, row in zip(asked, order[:, :top].tolist(), strict=True)]
    return found


def build_page(results: Results, tests: list[str]) -> str:
    """The page as one HTML string. Pictures, captions and results are inside: it makes no request to anywhere."""
    text, image, worlds = text_tower(READER), image_tower(results.table["image"].iloc[0]), {}
    for test in tests:
        gallery = results.galleries[test]
        worlds[test] = {
            "pictures": [data_uri(picture, SIDE) for picture in gallery.images[:]],
            "english": gallery.captions["en"],
            "captions": gallery.captions,
            "found": find_neighbours(results, test, text, image),
            "names": {code: display_name(code) for code in gallery.languages},
            "rtl": [code for code in gallery.languages if is_rtl(code)],
        }
    shown = json.dumps(worlds, ensure_ascii=False).replace("</", "<\\/")
    return fill("search.html", data=shown, text=READER, trained=html.escape(str(results.table["train"].iloc[0])))


# The tour.


def training_sets() -> str:
    """The training sets on this machine: always emoji, and stamps and clip art where they were fetched."""
    return "+".join(name for name in ("emoji", "stamps", "clipart") if data.is_available(name))


def base_experiment(
    seed: int = 0, seeds: int = 3, device: str | None = None, text: str = TOWERS[0], condition: str = "real"
) -> Experiment:
    """Training in English only, tests on held-out stamps in every language and on held-out emoji, which READER is asked about in
    every language too, and the other towers in 14."""
    tests = [(name, languages_of(name, text)) for name in test_sets()]
    how = {"seed": seed, "seeds": seeds, "device": device, "text": text, "condition": condition}
    return Experiment(train=(training_sets(), ["en"]), val=None, test=tests, **how)


def test_sets() -> list[str]:
    """The sets on this machine that the tour tests on."""
    return [name for name in ("stamps", "emoji") if data.is_available(name)]


def languages_of(test: str, text: str) -> Any:
    """The languages in which a text tower is asked about a test set. Reading 276 emoji in a hundred languages takes a minute."""
    return "all" if test == "stamps" or text == READER else list(EMOJI_LANGUAGES)


def run_tour(
    seed: int = 0, seeds: int = 3, device: str | None = None, progress: bool = True
) -> tuple[Results, pd.DataFrame]:
    """The results of all arms of the tour, and the alignment table of its towers.

    Arms: use-m and e5-small on real pairs; the English-only floor; use-m on shuffled pairs and on one picture for all
    (the last two with one seed: `mpm-lite run controls` is where they are judged).
    """
    # READER comes first: its heads and galleries are those that the joined results keep.
    arms = [base_experiment(seed, seeds, device, text) for text in sorted((*TOWERS, FLOOR), key=lambda t: t != READER)]
    arms += [base_experiment(seed, 1, device, condition=condition) for condition in ("shuffled", "blind")]
    results = Results.join([_run_kept(arm, progress) for arm in arms])
    captions = load_alignment_sample()
    known = [text_only.measure_alignment(text_tower(text, device), captions, progress=progress) for text in TOWERS]
    return results, pd.concat(known, ignore_index=True)


def load_alignment_sample() -> CaptionSet:
    """The captions that the towers' own alignment is measured on."""
    return text_only.sample("stamps" if data.is_available("stamps") else "emoji")


def _run_kept(arm: Experiment, progress: bool) -> Results:
    """Run an arm with its checkpoints in the cache: a stopped tour continues, a repeated one trains nothing again."""
    told = {"version": __version__, "torch": torch.__version__}
    told["experiment"] = json.dumps(arm.describe(), sort_keys=True)
    folder = find_runs() / Key("checkpoints of the tour", told).digest[:16]
    try:
        return arm.run(out=folder, progress=progress)
    except OtherRun:
        shutil.rmtree(folder)  # the pictures or captions on this machine have changed since
        return arm.run(out=folder, progress=progress)


def find_runs() -> Path:
    """Where the tour keeps its checkpoints."""
    return runtime.home() / "runs" / "tour"


def warm_caches(workers: int = 1) -> None:
    """Let every tower read everything once, in `workers` processes, so that notebooks and tests find the cache full.

    A job is one tower and one set, and the slowest tower comes first: no process then works on for long when the others
    have nothing left to do.
    """
    learned = [(training_sets(), split, ("en",)) for split in ("train+val", "val")]

    def read_by(text: str) -> dict[str, runtime.Job]:
        every = [[(name, "test", languages_of(name, text))] for name in test_sets()] + [learned]
        return {f"captions of {sets[0][0]}, {text}": (_warm_captions, (text, sets)) for sets in every}

    jobs = read_by("e5-small") | {"alignment, e5-small": (_warm_alignment, ("e5-small",))}
    jobs |= {
        f"pictures of {sets[0][0]}": (_warm_pictures, (sets,))
        for sets in [learned] + [[(name, "test", ("en",))] for name in test_sets()]
    }
    jobs |= read_by(FLOOR) | read_by("use-m") | {"alignment, use-m": (_warm_alignment, ("use-m",))}
    runtime.run_jobs(jobs, workers)


def _warm_pictures(sets: list[tuple[str, str, Any]]) -> None:
    image = image_tower(base_experiment().image)
    for one in sets:
        image_features(data.load_captions(*one), image)


def _warm_captions(text: str, sets: list[tuple[str, str, Any]]) -> None:
    tower = text_tower(text)
    for one in sets:
        captions = data.load_captions(*one)
        for language in captions.languages:
            text_features(captions, language, tower)


def _warm_alignment(text: str) -> None:
    text_only.measure_alignment(text_tower(text), load_alignment_sample())


def retention(results: Results, known: pd.DataFrame) -> pd.DataFrame:
    """Retention of the real arms beside alignment and cell; one row for each tower, test and language."""
    rho = results.where(condition="real").retention(METRIC, floor=FLOOR)
    told = known[["text", "language", "alignment", "unknown_rate", "cell", "family"]]
    return rho.merge(told, on=["text", "language"], how="left")


def format_table(results: Results, rho: pd.DataFrame, test: str) -> str:
    """The table to read: a line for each language, with both towers, the floor and chance, grouped by use-m's cell."""
    of = rho[rho["test"] == test]
    lines = [
        f"Text-to-image R@10 on {of['n'].max()} held-out {test}, heads trained on English captions only "
        "(percent; rho: share of English kept, 95 % interval)",
        f"{'language':24}{'n':>5}{'chance':>8} |{'use-m':>7}  {'rho':<20}|{'e5-small':>9}  {'rho':<20}|{'floor':>6}",
    ]
    by_language = {code: rows.set_index("text") for code, rows in of.groupby("language")}
    first = of[of["text"] == TOWERS[0]].copy()
    first["rank"] = first["cell"].map(text_only.CELLS.index, na_action="ignore").fillna(len(text_only.CELLS))
    seen = None
    for row in first.sort_values(["rank", "score"], ascending=[True, False]).itertuples():
        if row.cell != seen:
            seen = row.cell
            lines.append(f"-- use-m: {seen if isinstance(seen, str) else 'too few training captions to place'} --")
        towers = by_language[row.language]
        cells = []
        for text, width in ((TOWERS[0], 7), (TOWERS[1], 9)):
            t = towers.loc[text]
            kept = "English itself" if row.language == "en" else f"{t['rho']:5.2f} [{t['low']:5.2f}, {t['high']:5.2f}]"
            cells.append(f"{100 * t['score']:{width}.1f}  {kept:<20}")
        cells.append(f"{100 * towers.loc[FLOOR]['score']:6.1f}")
        few = "" if row.counts or row.language == "en" else "  *"
        name = f"{display_name(row.language)} ({row.language})"
        lines.append(f"{name:24.24}{row.n:5d}{100 * row.chance:8.1f} |{'|'.join(cells)}{few}")
    lines.append("* under 100 queries or a regional variant: shown, in no mean.")
    return "\n".join(lines)


def format_factors(rho: pd.DataFrame) -> str:
    """What READER keeps of each language's names of emoji, and why: a line for each language, retention with its two factors."""
    of = rho[(rho["test"] == "emoji") & (rho["text"] == READER) & (rho["language"] != "en")]
    lines = [
        f"{READER}, held-out emoji: retention rho = text transfer t x pivot efficiency e (-: too little is read for a ratio)",
        f"{'language':24}{'n':>5}{'R@10':>7}  {'rho':<20}{'t':>6}{'e':>6}",
    ]
    for row in of.sort_values("rho", ascending=False).itertuples():
        name = f"{display_name(row.language)} ({row.language})"
        kept = f"{row.rho:5.2f} [{row.low:5.2f}, {row.high:5.2f}]"
        t, e = ("-" if np.isnan(value) else f"{value:.2f}" for value in (row.t, row.e))
        lines.append(f"{name:24.24}{row.n:5d}{100 * row.score:7.1f}  {kept:<20}{t:>6}{e:>6}")
    return "\n".join(lines)


def summary(results: Results, rho: pd.DataFrame, test: str) -> list[str]:
    """The results of the tour in a few lines."""
    of = rho[(rho["test"] == test) & rho["counts"] & (rho["language"] != "en")]
    lines = []
    for text in TOWERS:
        english = rho[(rho["test"] == test) & (rho["text"] == text) & (rho["language"] == "en")].iloc[0]
        score, chance = 100 * english["score"], 100 * english["chance"]
        lines.append(f"{text}: English R@10 {score:.1f} (chance {chance:.1f}, n {english['n']})")
        arm = results.where(text=text, condition="real", test=test)
        for cell in text_only.CELLS:
            codes = of[(of["text"] == text) & (of["cell"] == cell)]["language"].tolist()
            if codes:
                mean = arm.mean_retention(codes, METRIC)
                kept = format_interval(mean.value, mean.low, mean.high)
                lines.append(f"  {cell:18} {len(codes):3d} languages, mean retention {kept}")
    reader = results.where(text=READER, condition="real", test="emoji")
    there, known = reader.galleries["emoji"].languages, text_tower(READER).languages
    read = [code for code in there if base(code) in known and code != "en"]
    factors = reader.identity(read, METRIC).table()
    told = ", ".join(f"{name} {format_interval(of.value, of.low, of.high)}" for name, of in factors.items())
    lines.append(f"{READER}, emoji in the {len(read)} languages that it read: {told}")
    for condition in ("shuffled", "blind"):
        said = results.where(text=TOWERS[0], condition=condition, test=test, metric=METRIC).table
        score, chance = 100 * said["value"].mean(), 100 * said["chance"].mean()
        control = f"control, {condition} pairs ({TOWERS[0]})"
        lines.append(f"{control}: mean R@10 over all languages {score:.1f}, chance {chance:.1f}")
    return lines


def to_json(results: Results) -> bytes:
    """{"rows": [...]} with the columns of the contract, and no times: the same seed gives the same bytes."""
    columns = "recipe text image lm train test condition seed language metric value n chance".split()
    rows = json.loads(results.table[columns].to_json(orient="records", double_precision=9))
    return json.dumps({"rows": rows}, ensure_ascii=False, indent=0).encode()


def write_files(results: Results, rho: pd.DataFrame, test: str, json_path: Path, out: Path) -> list[Path]:
    """tour.json, the two figures and the page; returns what was written."""
    paths = [json_path, out / "tour-retention.png", out / "tour-languages.png", out / "tour.html"]
    write_atomic(paths[0], to_json(results))
    for path, figure in zip(paths[1:3], draw_figures(rho, test), strict=True):
        write_atomic(path, figures.png(figure))
    tests = list(dict.fromkeys(results.table["test"]))
    write_atomic(paths[3], build_page(results, [test for test in tests if test in results.galleries]).encode())
    return paths


def draw_figures(rho: pd.DataFrame, test: str) -> list[Any]:
    """The retention-against-alignment scatter and the bars by language."""
    of = rho[(rho["test"] == test) & rho["text"].isin(TOWERS)]
    scatter = figures.retention_against(of[of["counts"] & (of["language"] != "en") & of["alignment"].notna()])
    bars = rho[(rho["test"] == test) & (rho["counts"] | (rho["language"] == "en"))].rename(columns={"score": "value"})
    order = bars[bars["text"] == TOWERS[0]].sort_values("value", ascending=False)["language"].tolist()
    title = f"R@10 on held-out {test}, trained on English only"
    return [scatter, figures.language_bars(bars, order=order, title=title)]
