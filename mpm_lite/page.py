"""A self-contained page: pick a query in any language and see the pictures that the English-trained heads find for it."""

from __future__ import annotations

import html
import json
from typing import Any

import torch

from mpm_lite.data.languages import display_name, is_rtl
from mpm_lite.data.picture import data_uri
from mpm_lite.experiment import image_tower as tower_of
from mpm_lite.results import Results
from mpm_lite.towers.features import image_features, text_features

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
