"""Exercises by name, and the editions of the course."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

import mpm_lite as mpm
from mpm_lite import core
from mpm_lite.core.runtime import UserError
from mpm_lite.report import classroom
from mpm_lite.teaching import check, exercises

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
USES = re.compile(r'\bcheck\(\s*"(\d\d\.\d+)"')


def read(path):
    return nbformat.read(path, as_version=4)


def checked():
    """Every code cell of the course that checks an exercise by name."""
    for path in NOTEBOOKS:
        for cell in read(path)["cells"]:
            if cell["cell_type"] == "code" and USES.search(cell["source"]):
                yield path.stem, cell


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setattr(check, "_session", {})


# --- checks ---


@pytest.mark.parametrize("name", sorted(exercises.EXERCISES))
def test_reference_passes_and_each_mistake_gets_its_reason(name):
    known = exercises.EXERCISES[name]
    assert known.mistakes, "name at least one typical mistake"
    given = known.example() if known.example else {}
    right = known.reference if known.cases else known.reference(**given)
    assert check.find_reason(known, right, given) == ""
    for reason, wrong in known.mistakes.items():
        assert check.find_reason(known, wrong if known.cases else wrong(**given), given) == reason


@pytest.mark.parametrize("yours", [0.3, "0.3", " 0.30 ", np.array([0.3]), torch.tensor(0.3), 0.305])
def test_a_number_may_come_in_many_forms(yours):
    assert check.are_same(yours, 0.3, 0.005)


@pytest.mark.parametrize(
    ("yours", "reason"),
    [
        (None, None),
        (..., None),
        (-0.3, "sign"),
        (30, "percentage"),
        (0.003, "100 times too small"),
        (1 / 0.3, "ratio is the wrong way round"),
        ([0.3, 0.3], r"shape is \(2,\)"),
        ("x", "a number is asked for"),
        (0.9, "too large"),
        (0.1, "too small"),
        (float("nan"), "nan"),
        (0.6, "chance was not taken off"),
    ],
)
def test_reasons_of_values(yours, reason):
    known = exercises.Exercise("99.1", "t", lambda s: s, mistakes={"chance was not taken off": lambda s: 2 * s})
    found = check.find_reason(known, yours, {"s": 0.3})
    assert found is None if reason is None else re.search(reason, found)


@pytest.mark.parametrize(
    ("yours", "reason"),
    [
        (lambda a, b: ((a - b.detach()) ** 2).mean(), "^$"),
        (lambda a, b: ((a - b) ** 2).mean(), "argument 2, and none should: a stop-gradient .detach. is missing"),
        (lambda a, b: ((a.detach() - b) ** 2).mean(), "no gradient reaches argument 1"),
        (lambda a, b: float(((a - b) ** 2).mean().detach()), "no gradient can flow"),
        (lambda a, b: (a - b.detach()) ** 2, r"shape is \(3, 2\)"),
        (lambda a, b: (a - b).mean(), "not squared"),
        (lambda a, b: a / "x", "raised TypeError"),
        (0.5, "a function is asked for"),
    ],
)
def test_reasons_of_functions_and_gradients(yours, reason):
    known = exercises.Exercise(
        "99.2", "t", lambda a, b: ((a - b.detach()) ** 2).mean(), tolerance=1e-5, gradient=True,
        mistakes={"not squared": lambda a, b: (a - b.detach()).mean()},
        cases=lambda: [(torch.arange(6.0).view(3, 2), torch.ones(3, 2))],
    )  # fmt: skip
    assert re.search(reason, check.find_reason(known, yours, {}))
    assert check.find_reason(known, lambda a, b: None, {}) is None


def test_texts_and_tuples():
    assert check.are_same(" EL ", "el") and not check.are_same("de", "el")
    assert check.are_same((0.3, "El"), (0.3, "el")) and not check.are_same((0.3,), (0.3, "el"))
    assert "value 2 of 2" in check.explain_difference((0.3, -0.5), (0.3, 0.5), 0.005)


def test_lines_guesses_and_summary(session, capsys):
    mpm.check.summary()
    check.check("14.1", None)
    check.check("14.2", 0)
    check.check("14.2", 28)
    check.compare_guess("share", None, 1.0)
    check.compare_guess("share", 0.5, torch.tensor(0.55))
    mpm.check.summary()
    out = capsys.readouterr().out
    assert "No exercise has been checked" in out and "[not tried yet] 14.1" in out and "[PASS] 14.2" in out
    assert "zeros beat -0.2" in out and "no prediction yet" in out and "it came out as 0.55, close" in out
    assert "1 of 4 passed" in out and re.search(r"14\.4 .* not tried yet", out)
    with pytest.raises(UserError, match="99.9"):
        check.check("99.9", 1)
    with pytest.raises(UserError, match="other objects"):
        check.check("01.2", 1.0)


def test_every_committed_solution_passes():
    """nbval runs the cells and compares this output; a solution that fails would change it."""
    names = [USES.search(cell["source"])[1] for _, cell in checked()]
    assert names and len(names) == len(set(names)) and set(names) <= set(exercises.EXERCISES)
    for stem, cell in checked():
        name = USES.search(cell["source"])[1]
        assert name[:2] == stem[:2] and classroom.BEGIN in cell["source"]
        assert {"exercise", "nbval-check-output"} <= set(cell["metadata"]["tags"]), name
        lines = "".join(out.get("text", "") for out in cell["outputs"]).splitlines()
        assert lines and all(line.startswith("[PASS]") for line in lines), (name, lines)


# --- editions ---


@pytest.fixture(scope="module")
def editions(tmp_path_factory):
    out = tmp_path_factory.mktemp("course")
    classroom.build_editions(out, "all", ROOT / "notebooks")
    return out


def test_solved_is_as_committed_and_instructor_keeps_everything(editions):
    for path in NOTEBOOKS:
        book, instructor = read(path), read(editions / "instructor" / path.name)
        assert read(editions / "solved" / path.name) == book
        assert [c["source"] for c in instructor["cells"]] == [c["source"] for c in book["cells"]]
        assert any(c["metadata"].get("slideshow") for c in instructor["cells"])
        assert any(c.get("outputs") for c in instructor["cells"])


def test_student_edition_has_no_solution_and_no_output(editions):
    for path in NOTEBOOKS:
        book = read(editions / "student" / path.name)
        text = "\n".join(cell["source"] for cell in book["cells"])
        assert "SOLUTION" not in text and "<summary>Solution" not in text and "blob/" not in book["cells"][0]["source"]
        assert not re.search(r"^my_guess\w* = (?!None)[^#\n]*# @param", text, re.M)
        for cell in book["cells"]:
            assert not classroom.LEFT_OUT & set(cell["metadata"].get("tags", []))
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [] and cell["execution_count"] is None
        code = "\n".join(cell["source"] for cell in book["cells"] if cell["cell_type"] == "code")
        regions = re.findall(
            r"### BEGIN SOLUTION\n(.*?)\s*### END SOLUTION", "\n".join(c["source"] for c in read(path)["cells"]), re.S
        )
        assert not [one for one in regions if one.strip() in code]
        assert code.count(classroom.PLACEHOLDER) == len(regions)


def test_student_edition_runs_unsolved(editions, tmp_path):
    book = tmp_path / "first_kernel.ipynb"
    shutil.copyfile(editions / "student" / "14_first_kernel.ipynb", book)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", str(book)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    text = book.read_text(encoding="utf-8")
    assert "[not tried yet] 14.1" in text and "[PASS]" not in text and "no prediction yet" in text


def test_regions_that_are_not_closed_are_refused():
    for source in ("### BEGIN SOLUTION\nx = 1", "x = 1\n### END SOLUTION"):
        with pytest.raises(UserError, match="no other end"):
            classroom.cut_solutions(source)
    with pytest.raises(UserError, match="edition"):
        classroom.build_editions(Path("x"), "teacher", ROOT / "notebooks")


def test_badges_and_install_cells_agree_with_the_one_place(tmp_path):
    for path in NOTEBOOKS:
        for cell in read(path)["cells"]:
            for found in re.findall(r"github(?:\.com)?/([\w.-]+/[\w.-]+)/blob/([\w.-]+)/", cell["source"]):
                assert found == (core.REPOSITORY, core.REF), path
            for found in re.findall(r"git\+https://github\.com/([^\"@]+)", cell["source"]):
                assert found == core.REPOSITORY, path
    shutil.copytree(
        ROOT / "notebooks", tmp_path / "notebooks", ignore=lambda _, names: [n for n in names if n[:2] > "01"]
    )
    (tmp_path / "mpm_lite/core").mkdir(parents=True)
    shutil.copyfile(ROOT / "mpm_lite/core/__init__.py", tmp_path / "mpm_lite/core/__init__.py")
    shutil.copyfile(ROOT / "README.md", tmp_path / "README.md")
    assert len(classroom.rewrite_badges("someone/fork", "v1.2", tmp_path)) == 4
    assert classroom.rewrite_badges("someone/fork", "v1.2", tmp_path) == []
    text = (tmp_path / "notebooks/00_start_here.ipynb").read_text(encoding="utf-8")
    assert "github/someone/fork/blob/v1.2/notebooks/00_" in text and "github.com/someone/fork@v1.2" in text
    sources = "".join(cell["source"] for cell in read(tmp_path / "notebooks/00_start_here.ipynb")["cells"])
    assert core.REPOSITORY not in sources and "torch==" in text and "emoji-names" in text
    assert 'REPOSITORY, REF = "someone/fork", "v1.2"' in (tmp_path / "mpm_lite/core/__init__.py").read_text()
    assert json.loads(text)["nbformat"] == 4
    with pytest.raises(UserError, match="OWNER/NAME"):
        classroom.rewrite_badges("fork", "v1", tmp_path)


def test_show_has_colours_a_link_and_its_docstring_first():
    shown = mpm.show(classroom.cut_solutions)
    page = shown._repr_html_()
    assert page.index("Code with a comment in the place") < page.index("<pre") and "overflow-x:auto" in page
    assert f"github.com/{core.REPOSITORY}/blob/{core.REF}/mpm_lite/report/classroom.py#L" in page
    assert "background" not in page and 'style="color:#' in page
    assert re.sub(r"<[^>]+>", "", page.split("<code style")[1].split(">", 1)[1]).startswith("def cut_solutions(")
    assert repr(shown).startswith("# mpm_lite.report.classroom\ndef cut_solutions")
    for colour in set(re.findall(r"color:(#\w{6})", page)):
        light = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        lum = sum(w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
                  for w, c in zip((0.2126, 0.7152, 0.0722), light, strict=True))  # fmt: skip
        assert 1.05 / (lum + 0.05) > 4 and (lum + 0.05) / (0.0056 + 0.05) > 3.9, colour
