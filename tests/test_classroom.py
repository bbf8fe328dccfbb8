"""Exercises by name, and the editions of the course."""

import ast
import builtins
import json
import re
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

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


def code_of(book):
    return [cell["source"] for cell in book["cells"] if cell["cell_type"] == "code"]


def words_of(book):
    return [word for cell in book["cells"] if cell["cell_type"] == "markdown" for word in cell["source"].split()]


def tags_of(cell):
    return set(cell["metadata"].get("tags", []))


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
        assert code_of(instructor) == code_of(book)
        assert "".join(words_of(instructor)) == "".join(words_of(book))
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


def test_notes_for_instructors_are_in_their_edition_alone(editions):
    notes = [
        (path.name, cell["source"])
        for path in NOTEBOOKS
        for cell in read(path)["cells"]
        if "instructor" in tags_of(cell)
    ]
    assert notes
    for name, note in notes:
        assert note in [cell["source"] for cell in read(editions / "instructor" / name)["cells"]]
        student = "\n".join(cell["source"] for cell in read(editions / "student" / name)["cells"])
        assert note not in student and not [line for line in note.splitlines() if len(line) > 60 and line in student]


def test_a_student_edition_runs_unsolved(editions):
    """A short notebook from end to end, asked about fewer pictures: its later cells use the functions that are to be written."""
    text = (editions / "student" / "08_mla.ipynb").read_text(encoding="utf-8")
    assert text.count('\\"count\\": 100}') == 1
    book = nbformat.reads(text.replace('\\"count\\": 100}', '\\"count\\": 8}'), as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(editions)}}).execute()
    text = json.dumps([cell.get("outputs") for cell in book["cells"]])
    assert text.count("[not tried yet] 08.") == 4 and "[PASS]" not in text and "[not yet]" not in text
    assert "no prediction yet" in text and "Write the loss first." in text


class Anything(dict):
    """Names of earlier cells, whatever they are."""

    def __missing__(self, name):
        if hasattr(builtins, name):
            raise KeyError(name)
        return MagicMock()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_of_a_student_edition_needs_a_solution(editions, path, session, capsys):
    """Every cell is valid Python, reads no name that only a solution gives, and may meet a prediction that is None; an
    exercise that nobody has tried says so."""
    solved, student = (
        [ast.parse(re.sub(r"^\s*[%!].*", "", source, flags=re.M)) for source in code_of(read(editions / name / path.name))
         if not source.startswith("%%")] for name in ("solved", "student")
    )  # fmt: skip
    every, kept = ({name for tree in trees for name in bound(tree)} for trees in (solved, student))
    read_there = {n.id for tree in student for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not read_there & (every - kept)
    for cell in read(editions / "student" / path.name)["cells"]:
        if cell["cell_type"] == "code" and "prediction" not in tags_of(cell):
            for line in re.findall(r".*my_guess.*", cell["source"]):
                assert re.search(r", my_guess\w*,|my_guess\w* (?:is|or) |\{my_guess\w*\}", line), line
        if "exercise" in tags_of(cell) and cell["cell_type"] == "code":
            tree = ast.parse(cell["source"])  # without what computes with earlier cells' values alone
            tree.body = [one for one in tree.body if not isinstance(one, ast.Expr) or "check(" in ast.unparse(one)]
            exec(compile(tree, path.name, "exec"), {"torch": torch}, Anything(check=check.check, torch=torch))
            assert capsys.readouterr().out.startswith(f"[not tried yet] {USES.search(cell['source'])[1]}")


def bound(tree):
    """The names that code gives a value to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.asname or node.name


def test_regions_that_are_not_closed_are_refused():
    for source in ("### BEGIN SOLUTION\nx = 1", "x = 1\n### END SOLUTION"):
        with pytest.raises(UserError, match="no other end"):
            classroom.cut_solutions(source)
    with pytest.raises(UserError, match="edition"):
        classroom.build_editions(Path("x"), "teacher", ROOT / "notebooks")


# --- slides ---


def test_every_cell_of_the_instructors_edition_has_its_place_in_the_slide_show(editions):
    kept = 0
    for path in NOTEBOOKS:
        cells = read(editions / "instructor" / path.name)["cells"]
        kinds = [cell["metadata"]["slideshow"]["slide_type"] for cell in cells]
        assert kinds[0] == "slide" and len({cell["id"] for cell in cells}) == len(cells)
        for cell, kind in zip(cells, kinds, strict=True):
            heading = re.match(r"(#+) ", cell["source"])
            if "instructor" in tags_of(cell):
                assert kind == "notes"
            elif cell["cell_type"] == "markdown":
                assert kind == ("-" if not heading else "slide" if len(heading[1]) < 3 else "subslide") or not heading
                assert not re.search(r"\n#+ ", re.sub(r"```.*?```", "", cell["source"], flags=re.S)) or cell is cells[0]
            elif tags_of(cell) & {"scaffold", "exercise", "prediction"} or not cell["outputs"]:
                assert kind == "skip"
            elif "<figcaption>" in json.dumps(cell["outputs"]):
                assert kind in ("-", "subslide")
                kept += 1
            if cell["cell_type"] == "code" and kind != "skip" and not cell["metadata"].get("transient"):
                assert len(cell["source"].splitlines()) <= classroom.CODE_LINES
    assert kept > len(NOTEBOOKS)


def test_slides_show_headings_and_pictures_and_no_long_code():
    from nbconvert import SlidesExporter

    new = nbformat.v4
    picture = new.new_output("display_data", {"text/html": "<figure><svg id='drawn-42'></svg></figure>"})
    printed = new.new_output("stream", text="forty-two\n")
    long = "\n".join(f"long_{i} = {i}" for i in range(classroom.CODE_LINES + 1))
    tagged = {"tags": ["scaffold"]}
    cells = [
        new.new_markdown_cell("# A title\n\nwords"),
        new.new_code_cell("short = 1", outputs=[printed], execution_count=1),
        new.new_code_cell(long, outputs=[picture], execution_count=2),
        new.new_code_cell(long.replace("long", "lost"), outputs=[printed], execution_count=3),
        new.new_code_cell("assert hidden", metadata=tagged, outputs=[printed], execution_count=4),
        new.new_markdown_cell("before\n\n## 1 A section\n\n```python\n## no heading\n```"),
        new.new_markdown_cell("speak softly", metadata={"tags": ["instructor"]}),
        new.new_markdown_cell("chosen", metadata={"slideshow": {"slide_type": "fragment"}}),
    ]
    made = classroom.make_instructor(new.new_notebook(cells=cells))
    kinds = [cell["metadata"]["slideshow"]["slide_type"] for cell in made["cells"]]
    assert kinds == ["slide", "-", "-", "skip", "skip", "-", "slide", "notes", "fragment"]
    page, _ = SlidesExporter().from_notebook_node(made)
    assert "forty-two" in page and "drawn-42" in page and "A section" in page and "short" in page
    assert "long_3" not in page and "lost_3" not in page and "hidden</span>" not in page
    assert "speak softly" in re.search(r'<aside class="notes">(.*?)</aside>', page, re.S)[1]


# --- lessons and plans ---


def test_lessons_are_what_headers_and_exercises_say(editions):
    lessons = classroom.read_lessons(ROOT / "notebooks")
    assert [lesson.file for lesson in lessons.values()] == [path.name for path in NOTEBOOKS]
    guide, front = ((ROOT / page).read_text(encoding="utf-8") for page in ("assets/instructor_guide.md", "README.md"))
    for path, lesson in zip(NOTEBOOKS, lessons.values(), strict=True):
        text = "\n\n".join(cell["source"] for cell in read(path)["cells"] if cell["cell_type"] == "markdown")
        assert len(lesson.exercises) == len(re.findall(r"importance \d of 5", text)) >= 3
        assert lesson.title in text.splitlines()[2] and lesson.runs in text and lesson.prerequisites
        stated = re.search(r"\*\*Time\*\* (\d+) minutes to read, (\d+) to do", text)
        assert (stated is not None) == lesson.stated
        if stated:
            assert (lesson.reading, lesson.doing) == (int(stated[1]), int(stated[2]))
        assert 5 <= lesson.reading <= 60 and 5 <= lesson.doing <= 120
        star = "" if lesson.stated else "*"
        row = f"[{lesson.title}](../notebooks/{path.name}) | {lesson.reading}{star} | {lesson.doing} | {lesson.runs} |"
        assert row in guide, "run `python -m mpm_lite.report.readme`"
        link = f"[{lesson.number} {lesson.title}](notebooks/{path.name}) ({lesson.reading} + {lesson.doing})"
        assert link in front, "run `python -m mpm_lite.report.readme`"


def test_a_header_without_its_times_is_refused(tmp_path):
    book = read(NOTEBOOKS[0])
    book["cells"][0]["source"] = book["cells"][0]["source"].replace("**Time**", "**Hours**")
    nbformat.write(book, tmp_path / "00_start_here.ipynb")
    with pytest.raises(UserError, match="00_start_here.ipynb: the header lacks"):
        classroom.read_lessons(tmp_path)


def test_plans_fit_their_time_and_keep_to_prerequisites():
    lessons, weeks = classroom.read_lessons(ROOT / "notebooks"), []
    plans = classroom.read_plans(ROOT / "notebooks")
    assert {"90 minutes", "Two hours", "One day"} <= {plan["name"] for plan in plans}
    for plan in plans:
        assert 0.3 * plan["limit"] <= plan["minutes"] <= 0.92 * plan["limit"], (plan["name"], plan["minutes"])
        seen = list(weeks) if plan["name"].startswith("Week") else []
        for lesson, chosen in plan["parts"]:
            assert set(lesson.after) <= {*seen, *plan.get("board", ())}, (plan["name"], lesson.number)
            assert set(chosen) <= set(lesson.exercises)
            seen.append(lesson.number)
        assert any(chosen for _, chosen in plan["parts"])
        assert plan["minutes"] == sum(one.reading + sum(minutes for *_, minutes in some) for one, some in plan["parts"])
        weeks = seen if plan["name"].startswith("Week") else weeks
    assert weeks == [number for number in lessons if number < "13"]


def test_the_most_important_exercises_that_fit_are_chosen():
    exercises = [("easy", 3, 5), ("long", 5, 40), ("short", 5, 10), ("good", 4, 10)]
    lesson = classroom.Lesson("99", "99.ipynb", "t", 10, 65, True, "a minute", "", [], exercises)
    names = lambda budget: [one[0] for one in classroom.choose_exercises(lesson, budget)]  # noqa: E731
    assert names(4) == [] and names(10) == ["short"] and names(25) == ["easy", "short", "good"]
    assert names(1000) == [one[0] for one in exercises]


# --- the site ---


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    classroom.write_site(out, ROOT)
    return out


def test_the_sites_contents_are_the_notebooks_and_pages_on_disk(site):
    found = re.findall(r"^  - file: (\S+)$", (site / "_toc.yml").read_text(), re.M)
    on_disk = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("assets/*.md"), *ROOT.glob("assets/results/*.md")]
    names = [path.relative_to(ROOT).with_suffix("").as_posix() for path in on_disk]
    assert sorted(found) == sorted(names) and len(found) == len(set(found))
    assert {"assets/scope", "assets/instructor_guide", "assets/glossary"} <= set(found)
    assert "root: README" in (site / "_toc.yml").read_text() and (site / "README.md").is_file()
    assert all((site / name).with_suffix(path.suffix).is_file() for name, path in zip(names, on_disk, strict=True))
    config = (site / "_config.yml").read_text()
    assert 'execute_notebooks: "off"' in config and f"https://github.com/{core.REPOSITORY}\n" in config


def test_the_site_shows_outputs_folds_solutions_and_has_no_dead_links(site):
    for path in NOTEBOOKS:
        book, made = read(path), read(site / "notebooks" / path.name)
        assert [c["outputs"] for c in made["cells"] if c["cell_type"] == "code"] == [
            c["outputs"] for c in book["cells"] if c["cell_type"] == "code"
        ]
        for cell in made["cells"]:
            assert "instructor" not in tags_of(cell)
            assert "scaffold" not in tags_of(cell) or "hide-cell" in tags_of(cell)
            assert classroom.BEGIN not in cell["source"] or tags_of(cell) & {"hide-input", "hide-cell"}
    texts = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.md")}
    for path in NOTEBOOKS:
        cells = read(site / "notebooks" / path.name)["cells"]
        texts[site / "notebooks" / path.name] = "\n\n".join(c["source"] for c in cells if c["cell_type"] == "markdown")
    for page, text in texts.items():
        plain = re.sub(r"```.*?```", "", text, flags=re.S)
        titles = re.findall(r"^#+ (.+)$", plain, re.M)
        anchors = {re.sub(r"[^\w-]", "", title.strip().lower().replace(" ", "-")) for title in titles}
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", plain):
            assert not target or (page.parent / target).is_file(), (page, target)
            assert target or anchor in anchors, (page, anchor)


def test_the_site_needs_the_projects_folder_and_a_place(tmp_path, capsys):
    from mpm_lite.cli import main

    with pytest.raises(UserError, match="no notebooks"):
        classroom.write_site(tmp_path / "out", tmp_path)
    assert main(["classroom", "site"]) == 2 and "site --out FOLDER" in capsys.readouterr().err


# --- a fork ---


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


def test_an_edition_that_is_pushed_opens_itself_in_colab(tmp_path, capsys, monkeypatch):
    from mpm_lite.cli import main

    (tmp_path / "notebooks").mkdir()
    shutil.copyfile(ROOT / "notebooks/08_mla.ipynb", tmp_path / "notebooks/08_mla.ipynb")
    monkeypatch.chdir(tmp_path)
    build = ["classroom", "build", "--out", "handout", "--repo", "someone/course"]
    assert main([*build, "--ref", "spring"]) == 0
    for edition in classroom.EDITIONS:
        text = read(tmp_path / f"handout/{edition}/08_mla.ipynb")["cells"][0]["source"]
        badges = re.findall(r"\[!\[Open in Colab\]\(\S+\)\]\((\S+)\)", text)
        assert badges == [f"https://colab.research.google.com/github/someone/course/blob/spring/{edition}/08_mla.ipynb"]
        assert re.search(r"^# ", text, re.M)
    assert main([*build[:-1], "course"]) == 2 and "OWNER/NAME" in capsys.readouterr().err


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
