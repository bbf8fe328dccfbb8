"""The tour: heads trained on English captions only, asked in every language there is; one table, two figures, and a page on
which you pick a query in any language and see the pictures that they find for it.
"""

from __future__ import annotations

import html
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mpm_lite import data
from mpm_lite.claims.retention import FLOOR, METRIC, TOWERS
from mpm_lite.core import __version__, figures, runtime
from mpm_lite.core import runtime as parallel
from mpm_lite.core.keys import Key, OtherRun
from mpm_lite.core.store import write_atomic
from mpm_lite.data.languages import display_name, is_rtl
from mpm_lite.data.picture import data_uri
from mpm_lite.evaluation import text_only
from mpm_lite.experiments.experiment import Experiment, image_tower, text_tower
from mpm_lite.experiments.experiment import image_tower as tower_of
from mpm_lite.experiments.results import Results
from mpm_lite.towers.features import image_features, text_features

# The page.

TOP, SIDE = 8, 88


def neighbours(
    results: Results, test: str, text_tower: Any, image_tower: Any, top: int = TOP
) -> dict[str, list[list[int]]]:
    """For each language, a row a captioned picture: [its number, the numbers of the `top` pictures found], first seed."""
    gallery, recipe = results.galleries[test], next(iter(results.models.values()))
    found = {}
    with torch.inference_mode():
        seen = recipe.predict({"image": torch.from_numpy(image_features(gallery, image_tower).copy())})["image"]
        for language in gallery.languages:
            asked = gallery.with_caption(language)
            said = torch.from_numpy(text_features(gallery, language, text_tower)[asked])
            order = (recipe.predict({"text": said})["text"] @ seen.T).argsort(dim=1, descending=True, stable=True)[
                :, :top
            ]
            found[language] = [[int(i), *row] for i, row in zip(asked, order.tolist(), strict=True)]
    return found


def build(results: Results, tests: list[str], text_tower: Any, image_tower: Any = None) -> str:
    """The page as one HTML string: pictures, captions and results inside, no request to anywhere."""
    image_tower = image_tower or tower_of(results.table["image"].iloc[0])
    worlds = {}
    for test in tests:
        gallery = results.galleries[test]
        worlds[test] = {
            "pictures": [data_uri(picture, SIDE) for picture in gallery.images[:]],
            "english": gallery.captions["en"],
            "captions": gallery.captions,
            "found": neighbours(results, test, text_tower, image_tower),
            "names": {code: display_name(code) for code in gallery.languages},
            "rtl": [code for code in gallery.languages if is_rtl(code)],
        }
    data = json.dumps(worlds, ensure_ascii=False).replace("</", "<\\/")
    return _TEMPLATE.replace("__DATA__", data).replace("__TRAINED__", html.escape(str(results.table["train"].iloc[0])))


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>mpm_lite: ask in any language</title>
<style>
:root { color-scheme: light dark; font-family: system-ui, "Noto Sans", sans-serif; line-height: 1.45; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
form { display: flex; flex-wrap: wrap; gap: .8rem; align-items: end; }
label { display: grid; gap: .2rem; } select, input { font: inherit; padding: .3rem; max-width: 26rem; }
#said { font-size: 1.5rem; margin: 1.2rem 0 .2rem; } #meant { margin: 0 0 1rem; opacity: .8; }
#found { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); gap: .6rem; padding: 0; list-style: none; }
#found li { border: 2px solid #8885; border-radius: .5rem; padding: .4rem; text-align: center; font-size: .8rem; }
#found li.right { border: 4px solid #009E73; } #found img { width: 88px; height: 88px; background: #fff; border-radius: .3rem; }
</style></head><body>
<h1>Ask in any language</h1>
<p>Two small heads between a frozen image tower and a frozen multilingual text tower were trained on <strong>English</strong>
captions only (__TRAINED__). Every picture here shows a thing that no training caption mentions. Pick a language and a
query; the eight nearest pictures follow, best first. The asked picture has a thick border and the word "asked".</p>
<form onsubmit="return false">
<label>Pictures <select id="world"></select></label>
<label>Language <select id="language"></select></label>
<label>Query <select id="query"></select></label>
<button type="button" id="dice">Another</button>
</form>
<p id="said" aria-live="polite"></p><p id="meant"></p><ol id="found"></ol>
<script type="application/json" id="data">__DATA__</script>
<script>
const worlds = JSON.parse(document.getElementById('data').textContent), $ = id => document.getElementById(id);
const fill = (select, pairs) => { select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value))); };
const clean = code => code.replace('_', '-');
function languages() {
  const w = worlds[$('world').value], codes = Object.keys(w.found).filter(c => w.found[c].length)
    .sort((a, b) => w.names[a].localeCompare(w.names[b]));
  const kept = $('language').value;
  fill($('language'), codes.map(c => [c, `${w.names[c]} (${c})`]));
  $('language').value = codes.includes(kept) ? kept : (codes.includes('th') ? 'th' : codes[0]);
  queries();
}
function queries() {
  const w = worlds[$('world').value], code = $('language').value;
  fill($('query'), w.found[code].map((row, i) => [i, w.captions[code][row[0]]]));
  show();
}
function show() {
  const w = worlds[$('world').value], code = $('language').value, row = w.found[code][+$('query').value], [asked, ...found] = row;
  $('said').textContent = w.captions[code][asked]; $('said').lang = clean(code); $('said').dir = w.rtl.includes(code) ? 'rtl' : 'ltr';
  const place = found.indexOf(asked);
  $('meant').textContent = `English: ${w.english[asked]} ` + (place < 0 ? 'The asked picture is not among the first eight.' : `The asked picture comes ${place + 1} of ${w.pictures.length}.`);
  $('found').replaceChildren(...found.map(i => {
    const li = document.createElement('li'), img = new Image(88, 88);
    img.src = w.pictures[i]; img.alt = w.english[i]; li.className = i === asked ? 'right' : '';
    li.append(img, document.createElement('br'), (i === asked ? 'asked: ' : '') + w.english[i]); return li;
  }));
}
fill($('world'), Object.keys(worlds).map(w => [w, w]));
$('world').onchange = languages; $('language').onchange = queries; $('query').onchange = show;
$('dice').onclick = () => { $('query').selectedIndex = Math.floor(Math.random() * $('query').length); show(); };
languages(); $('dice').onclick();
</script></body></html>
"""


# The tour.


def training_sets() -> str:
    """Everything that is on this machine: emoji always, stamps and clip art where they were fetched."""
    return "+".join(name for name in ("emoji", "stamps", "clipart") if data.available(name))


def base_experiment(seed: int = 0, seeds: int = 3, device: str | None = None) -> Experiment:
    """English only; tested on held-out stamps in every language and on held-out emoji in 14."""
    tests = [("stamps", "all")] if data.available("stamps") else []
    return Experiment(
        train=(training_sets(), ["en"]),
        val=None,
        test=[*tests, ("emoji", "all")],
        seed=seed,
        seeds=seeds,
        device=device,
    )


def run(
    seed: int = 0, seeds: int = 3, device: str | None = None, progress: bool = True
) -> tuple[Results, pd.DataFrame]:
    """All arms of the tour and the alignment table of its towers.

    Arms: use-m and e5-small on real pairs; the English-only floor; use-m on shuffled pairs and on one picture for all
    (the last two with one seed: `mpm-lite run controls` is where they are judged).
    """
    one = base_experiment(seed, seeds, device)
    arms = [replace(one, text=text) for text in (*TOWERS, FLOOR)]
    arms += [replace(one, text=TOWERS[0], condition=condition, seeds=1) for condition in ("shuffled", "blind")]
    results = Results.join([_kept(arm, progress) for arm in arms])
    captions = text_only.sample("stamps" if data.available("stamps") else "emoji")
    known = pd.concat([text_only.table(text_tower(text, device), captions, progress=progress) for text in TOWERS])
    return results, known.reset_index(drop=True)


def _kept(arm: Experiment, progress: bool) -> Results:
    """Run an arm with its checkpoints in the cache: a stopped tour continues, a repeated one trains nothing again."""
    told = {
        "version": __version__,
        "torch": torch.__version__,
        "experiment": json.dumps(arm.describe(), sort_keys=True),
    }
    folder = runs() / Key("checkpoints of the tour", told).digest[:16]
    try:
        return arm.run(out=folder, progress=progress)
    except OtherRun:
        shutil.rmtree(folder)  # the pictures or captions on this machine have changed since
        return arm.run(out=folder, progress=progress)


def runs() -> Path:
    """Where the tour keeps its checkpoints."""
    return runtime.home() / "runs" / "tour"


def warm(workers: int = 1) -> None:
    """Let every tower read everything once, so that notebooks and tests find the cache full; in so many processes.

    A job is one tower and one set, and the slowest tower comes first: then no process works on for long when the others
    have nothing left to do.
    """
    learned = [(training_sets(), split, ("en",)) for split in ("train+val", "val")]
    every = [[(name, "test", "all")] for name in ("stamps", "emoji") if data.available(name)] + [learned]
    jobs: dict[str, parallel.Job] = {}
    for sets in every:
        jobs[f"captions of {sets[0][0]}, e5-small"] = (_warm_captions, ("e5-small", sets))
    jobs["alignment, e5-small"] = (_warm_alignment, ("e5-small",))
    for sets in reversed(every):
        jobs[f"pictures of {sets[0][0]}"] = (_warm_pictures, (sets,))
    for text in (FLOOR, "use-m"):
        for sets in every:
            jobs[f"captions of {sets[0][0]}, {text}"] = (_warm_captions, (text, sets))
    jobs["alignment, use-m"] = (_warm_alignment, ("use-m",))
    parallel.run(jobs, workers)


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
    text_only.table(text_tower(text), text_only.sample("stamps" if data.available("stamps") else "emoji"))


def retention(results: Results, known: pd.DataFrame) -> pd.DataFrame:
    """Retention of the real arms beside alignment and cell; one row a tower, test and language."""
    rho = results.where(condition="real").retention(METRIC, floor=FLOOR)
    return rho.merge(
        known[["text", "language", "alignment", "unknown_rate", "cell", "family"]], on=["text", "language"], how="left"
    )


def readable(results: Results, rho: pd.DataFrame, test: str) -> str:
    """The table one reads: a line a language, both towers, the floor, chance; grouped by use-m's cell."""
    of = rho[rho["test"] == test]
    lines = [
        f"Text-to-image R@10 on {of['n'].max()} held-out {test}, heads trained on English captions only (percent; rho: share of English kept, 95 % interval)",
        f"{'language':24}{'n':>5}{'chance':>8} |{'use-m':>7}  {'rho':<20}|{'e5-small':>9}  {'rho':<20}|{'floor':>6}",
    ]
    by_language = {code: rows.set_index("text") for code, rows in of.groupby("language")}
    first = of[of["text"] == TOWERS[0]].copy()
    first["rank"] = first["cell"].map({c: i for i, c in enumerate(text_only.CELLS)}).fillna(len(text_only.CELLS))
    seen = None
    for row in first.sort_values(["rank", "score"], ascending=[True, False]).itertuples():
        if row.cell != seen:
            seen = row.cell
            lines.append(f"-- use-m: {seen if isinstance(seen, str) else 'too few training captions to place'} --")
        towers = by_language[row.language]
        cells = []
        for text, width in ((TOWERS[0], 7), (TOWERS[1], 9)):
            t = towers.loc[text]
            span = "English itself" if row.language == "en" else f"{t['rho']:5.2f} [{t['low']:5.2f}, {t['high']:5.2f}]"
            cells.append(f"{100 * t['score']:{width}.1f}  {span:<20}")
        few = "" if row.counts or row.language == "en" else "  *"
        name = f"{display_name(row.language)} ({row.language})"
        lines.append(
            f"{name:24.24}{row.n:5d}{100 * row.chance:8.1f} |{cells[0]}|{cells[1]}|{100 * towers.loc[FLOOR]['score']:6.1f}{few}"
        )
    lines.append("* under 100 queries or a regional variant: shown, in no mean.")
    return "\n".join(lines)


def summary(results: Results, rho: pd.DataFrame, test: str) -> list[str]:
    """What the tour says, in a few lines of measured figures."""
    of = rho[(rho["test"] == test) & rho["counts"] & (rho["language"] != "en")]
    lines = []
    for text in TOWERS:
        english = rho[(rho["test"] == test) & (rho["text"] == text) & (rho["language"] == "en")].iloc[0]
        lines.append(
            f"{text}: English R@10 {100 * english['score']:.1f} (chance {100 * english['chance']:.1f}, n {english['n']})"
        )
        arm = results.where(text=text, condition="real", test=test)
        for cell in text_only.CELLS:
            codes = of[(of["text"] == text) & (of["cell"] == cell)]["language"].tolist()
            if codes:
                mean = arm.mean_retention(codes, METRIC)
                lines.append(
                    f"  {cell:18} {len(codes):3d} languages, mean retention {mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"
                )
    for condition in ("shuffled", "blind"):
        said = results.where(text=TOWERS[0], condition=condition, test=test, metric=METRIC).table
        lines.append(
            f"control, {condition} pairs ({TOWERS[0]}): mean R@10 over all languages {100 * said['value'].mean():.1f}, chance {100 * said['chance'].mean():.1f}"
        )
    return lines


def to_json(results: Results) -> bytes:
    """{"rows": [...]} with the columns of the contract, and no times: the same seed gives the same bytes."""
    columns = [
        "recipe",
        "text",
        "image",
        "lm",
        "train",
        "test",
        "condition",
        "seed",
        "language",
        "metric",
        "value",
        "n",
        "chance",
    ]
    rows = results.table[columns].to_dict("records")
    clean = [
        {
            k: (round(v, 9) if isinstance(v, float) else int(v) if isinstance(v, np.integer) else v)
            for k, v in row.items()
        }
        for row in rows
    ]
    return json.dumps({"rows": clean}, ensure_ascii=False, indent=0).encode()


def write(results: Results, rho: pd.DataFrame, test: str, json_path: Path, out: Path) -> list[Path]:
    """tour.json, the two figures and the page; returns what was written."""
    import io

    paths = [json_path, out / "tour-retention.png", out / "tour-languages.png", out / "tour.html"]
    drawn = draw(rho, test)
    write_atomic(paths[0], to_json(results))
    for path, figure in zip(paths[1:3], drawn, strict=True):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_atomic(path, buffer.getvalue())
    tests = list(dict.fromkeys(results.table["test"]))
    write_atomic(paths[3], build(results, [t for t in tests if t in results.galleries], text_tower(TOWERS[0])).encode())
    return paths


def draw(rho: pd.DataFrame, test: str) -> list[Any]:
    """The retention-against-alignment scatter and the bars by language."""
    of = rho[(rho["test"] == test) & rho["text"].isin(TOWERS)]
    scatter = figures.retention_against_alignment(of[of["counts"] & (of["language"] != "en") & of["alignment"].notna()])
    bars = rho[(rho["test"] == test) & (rho["counts"] | (rho["language"] == "en"))].rename(columns={"score": "value"})
    order = bars[bars["text"] == TOWERS[0]].sort_values("value", ascending=False)["language"].tolist()
    return [
        scatter,
        figures.language_bars(bars, order=order, title=f"R@10 on held-out {test}, trained on English only"),
    ]
