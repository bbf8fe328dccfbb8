"""Notebook hygiene (what nbval does not see), and the helpers that notebooks use."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from mpm_lite import core
from mpm_lite.claims import VERDICTS, ledger
from mpm_lite.core.runtime import UserError
from mpm_lite.data import CaptionSet, load_captions
from mpm_lite.data.captionset import Part
from mpm_lite.teaching import check, widgets

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = f"https://colab.research.google.com/github/{core.REPOSITORY}/blob/{core.REF}/"
IMAGE = re.compile(r"<img\b[^>]*>", re.S)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def book(request):
    """One notebook as JSON, sources joined."""
    found = json.loads(request.param.read_text(encoding="utf-8"))
    for cell in found["cells"]:
        cell["source"] = "".join(cell["source"])
    found["path"] = request.param
    return found


def code(book):
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def prose(book):
    return "\n\n".join(cell["source"] for cell in book["cells"] if cell["cell_type"] == "markdown")


def html_of(cell):
    return "".join("".join(out.get("data", {}).get("text/html", "")) for out in cell["outputs"])


def text_of(cell):
    """What a cell printed or showed as plain text or HTML, pictures left out."""
    shown = []
    for out in cell["outputs"]:
        shown.append("".join(out.get("text", "")))
        shown += ["".join(v) for k, v in out.get("data", {}).items() if k.startswith("text/")]
    return re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=\s]+", "", "\n".join(shown))


def test_the_three_notebooks_are_there():
    assert {"00_start_here", "02_language_gap", "03_why_it_pivots"} <= {path.stem for path in NOTEBOOKS}


def test_ran_from_top_to_bottom_without_errors(book):
    assert [cell["execution_count"] for cell in code(book)] == list(range(1, len(code(book)) + 1))
    for cell in code(book):
        for out in cell["outputs"]:
            assert out["output_type"] != "error" and out.get("name") != "stderr", cell["source"]
            assert "execution_count" not in out or out["execution_count"] == cell["execution_count"]


def test_nbval_compares_something(book):
    marked = [cell for cell in code(book) if "nbval-check-output" in cell["metadata"].get("tags", [])]
    assert len(marked) >= 2 and all(cell["outputs"] for cell in marked)


def test_every_figure_has_asserts_and_a_description(book):
    """Pixels are compared by nobody: the data behind each figure is asserted in its cell, since the last figure, or right after."""
    since, cells = [], code(book)
    for cell, after in zip(cells, [*cells[1:], {"source": ""}], strict=True):
        since.append(cell["source"])
        bare = [out for out in cell["outputs"] if "image/png" in out.get("data", {})]
        assert not bare, "use widgets.show_figure: it has alt text"
        if "widgets.show_figure(" in cell["source"]:
            assert any(re.search(r"^\s*assert ", source, re.M) for source in [*since, after["source"]]), cell["source"]
            assert "<figcaption>" in html_of(cell)
            since = []


def test_headings_and_badge(book):
    first = book["cells"][0]["source"]
    badge = re.match(r"\[!\[Open in Colab\]\(\S+\)\]\((\S+)\)", first)
    assert badge and badge[1] == f"{COLAB}notebooks/{book['path'].name}"
    assert (ROOT / badge[1].removeprefix(COLAB)).exists()
    text = re.sub(r"```.*?```", "", prose(book), flags=re.S)
    levels = [len(marks) for marks in re.findall(r"^(#{1,6}) ", text, re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels[:-1], levels[1:], strict=True))
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        assert re.search(rf"^#+ {re.escape(target.replace('-', ' '))}$", text.replace("-", " "), re.M), target
    for target in re.findall(r"\]\(([\w./-]+\.ipynb)\)", text):
        assert (ROOT / "notebooks" / target).exists(), target


def test_skeleton(book):
    text = prose(book)
    for part in (
        "**After this notebook you can**",
        "**Time**",
        "**Prerequisites**",
        "**Contents**",
        "redict",
        "What surprised you",
        "Exercises",
        "Summary and where next",
    ):
        assert part in text, part
    exercises = re.findall(r"^### .*?(?=^### |^## |\Z)", text, re.M | re.S)
    assert len(exercises) >= 3
    regions = [cell for cell in code(book) if "### BEGIN SOLUTION" in cell["source"]]
    assert not regions or len(regions) >= len(exercises)
    for cell in regions:
        assert cell["source"].count("### BEGIN SOLUTION") == cell["source"].count("### END SOLUTION") == 1
    for exercise in exercises:
        assert re.search(r"Difficulty \d of 5 · importance \d of 5 · \d+ minutes", exercise)
        # A solution stands in a region of the code cell where answers are checked by name, else folded in the text.
        assert "<details><summary>Hint" in exercise and ("<summary>Solution" in exercise) == (not regions)
    # A cell holds one idea. What a learner writes is longer, and is not counted.
    shown = [cell["source"] for cell in code(book) if "exercise" not in cell["metadata"].get("tags", [])]
    lengths = sorted(len([line for line in source.splitlines() if line.strip()]) for source in shown)
    assert lengths[len(lengths) // 2] <= 7


def test_images_are_described_and_small(book):
    for cell in code(book):
        for tag in IMAGE.findall(html_of(cell)):
            assert re.search(r'\balt="[^"]+"', tag), tag[:80]
    assert book["path"].stat().st_size < 2_000_000
    thumbs = [tag for cell in code(book) if "gallery(" in cell["source"] for tag in IMAGE.findall(html_of(cell))]
    assert all(int(re.search(r'width="(\d+)"', tag)[1]) <= 88 for tag in thumbs)


def test_no_stamp_is_shown(book):
    """Stamps are GPL-2: read at run time, never in a committed output."""
    for cell in code(book):
        html = html_of(cell)
        assert not (IMAGE.search(html) and "stamps/" in html)
        shows = "widgets.show_gallery(" in cell["source"] or ".images[" in cell["source"]
        assert not (shows and "stamps" in cell["source"]), cell["source"]


def test_metadata_is_canonical(book):
    assert "widgets" not in book["metadata"] and "version" not in book["metadata"].get("language_info", {})
    assert all("execution" not in cell["metadata"] for cell in book["cells"])
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])


def test_outputs_hold_no_addresses_bars_or_paths(book):
    for cell in code(book):
        if "nbval-ignore-output" not in cell["metadata"].get("tags", []):
            found = re.search(r"0x[0-9a-f]{6,}|\d+it/s|/home/|/r[o]ot/|/w[o]rk/|/tmp/|Warning:", text_of(cell))
            assert not found, (found, cell["source"])


def test_ledger_tables_come_from_the_ledger(book):
    """A cell that speaks of the ledger shows what was read through mpm.asset, and no prose quotes its figures."""
    sources = [cell["source"] for cell in code(book)]
    read = {name for source in sources for name in re.findall(r'mpm\.asset\("((?:results|bench)/?[\w./-]*)"\)', source)}
    assert all((ROOT / "assets" / name).exists() for name in read), read
    # 00 and 01 measure what they show; the systems track reads benchmark rows.
    wanted = {"00": "", "01": ""} | dict.fromkeys(("13", "14", "15"), "bench")
    folder = wanted.get(book["path"].stem[:2], "results/")
    verdicts = any("views.show_verdicts(" in source for source in sources)
    assert not folder or verdicts or any(name.startswith(folder) for name in read), (folder, read)
    assert not any("results/" in source and "mpm.asset(" not in source for source in sources)
    text = re.sub(r"```.*?```|\$\$.*?\$\$", "", prose(book), flags=re.S)
    assert not re.search(r"\b0\.\d\d\s*\[|\brho (of|=|is) 0\.\d", text)


def test_verdicts_shown_are_those_of_the_ledger(book):
    """A table of claims that was shown before the ledger went on is told apart from one of today."""
    known = ledger.ledger_table().set_index("claim")["verdict"]
    for cell in code(book):
        for name, rest in re.findall(r"<th[^>]*>(C\d+)</th>(.*?)</tr>", html_of(cell), re.S):
            cells = re.findall(r"<td[^>]*>(.*?)</td>", rest, re.S)
            shown = set(cells) & set(VERDICTS)
            assert shown <= {known[name]}, (name, shown, known[name])


# --- the helpers ---


@pytest.mark.parametrize(
    ("yours", "ours", "equal"),
    [
        (1, 1.0, True),
        (1.0 + 1e-9, 1.0, True),
        (1.1, 1.0, False),
        ("a", "a", True),
        ("a", 1.0, False),
        (1.0, "a", False),
        ([1, 2], [1, 2, 3], False),
        (float("nan"), float("nan"), True),
        ({"x"}, {"x"}, True),
        ([[1], [2, 3]], 1.0, False),
    ],
)
def test_same(yours, ours, equal):
    assert check.are_same(yours, ours) is equal


def test_figure_needs_a_description():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axis = plt.subplots()
    axis.plot([1, 2])
    with pytest.raises(UserError, match="describes"):
        widgets.show_figure(drawn)
    page = widgets.show_figure(drawn, 'a "line" & more')
    assert 'alt="a &quot;line&quot; &amp; more"' in page.data and repr(page) == 'a "line" & more'
    assert not plt.fignum_exists(drawn.number)


def test_tables_say_their_languages_and_escape():
    page = widgets.show_table([["<b>", widgets.Text("سلام <", "fa"), 3]], ["a", "b", "c"], "Cap & tion")
    assert '<span lang="fa" dir="auto">سلام &lt;</span>' in page.data and "&lt;b&gt;" in page.data
    assert 'scope="row"' in page.data and "Cap &amp; tion" in page.data and repr(page) == "Cap & tion (1 rows)"


def tiny(open_licence):
    pictures = np.random.default_rng(0).integers(0, 255, (3, 256, 256, 3), dtype=np.uint8)
    names = {"en": ["dog", "tram <x>", "hat"], "zh": ["狗", "电车", "帽子"]}
    concepts = ["dog", "tram", "hat"]
    part = Part("toy/test", ["a", "b", "c"], names, concepts, lambda i: pictures[i], open_licence=open_licence)
    return CaptionSet([(part, np.arange(3))], ["en", "zh"])


def test_gallery_is_pure_described_and_marks_without_colour_alone():
    from PIL import Image

    found = [widgets.Hits("zh", "狗", [0, 2]), widgets.Hits("", "any <", [1, 0])]
    page = widgets.show_gallery(tiny(True), found, asked={"Dog"}, side=40)
    assert page.data == widgets.show_gallery(tiny(True), found, asked={"Dog"}, side=40).data
    tags = IMAGE.findall(page.data)
    assert len(tags) == 4 and all('alt="' in tag and 'width="40"' in tag for tag in tags)
    assert page.data.count("✓ dog") == 2 and "the one asked for" in tags[0] and "✓ hat" not in page.data
    assert '<span lang="zh" dir="auto">狗</span>' in page.data and 'lang="und"' in page.data
    assert "tram &lt;x&gt;" in page.data
    assert "zh: dog" in repr(page)
    data = re.search(r"base64,([^\"]+)", tags[0])[1]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (40, 40)


def test_search_refuses_stamps_like_pictures():
    with pytest.raises(UserError, match="may not be shown"):
        widgets.Search(None, None, None, tiny(False))


def test_search_box_redraws():
    asked = []

    def draw(query):
        asked.append(query)
        return widgets.Page(f"<p>{query}</p>", query)

    box = widgets.build_search_box(draw, "one")
    box.children[0].value = "two"
    box.children[0].value = "  "
    assert asked == ["one", "two"] and box.children[1].value == "<p>two</p>"


def test_emoji_may_be_shown():
    assert all(part.open_licence for part, _ in load_captions("emoji", "test").parts)
