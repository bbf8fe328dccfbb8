"""The course in three editions, made of the solved notebooks; its lessons and plans; its site; and a fork's addresses.

`solved` is as committed; `instructor` adds what a slide show needs; `student` leaves out solutions, cells tagged instructor or
scaffold, outputs and predictions, and runs as it is.
"""

from __future__ import annotations

import copy
import math
import re
import shutil
import tomllib
from collections import namedtuple
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import mpm_lite.core as core
from mpm_lite.core.runtime import UserError, asset, unknown
from mpm_lite.report import fill

EDITIONS = ("student", "instructor", "solved")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
LEFT_OUT = {"instructor", "scaffold"}
PLACEHOLDER = "# Write your code here."
SLIDE_LINES, CODE_LINES, PICTURE_LINES = 24, 10, 14  # of a slide; of code that is shown there; the height of a picture
# Reading and doing are in minutes; `stated` is False where reading is estimated; an exercise is (title, importance, minutes).
Lesson = namedtuple("Lesson", "number file title reading doing stated runs prerequisites after exercises")
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
COLAB = "https://colab.research.google.com/github/"
AT_TOP = r"\A\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)"  # a badge with which a cell begins


def build_editions(
    out: Path, edition: str = "all", folder: Path = Path("notebooks"), repository: str | None = None, ref: str = "main"
) -> list[Path]:  # fmt: skip
    """Write OUT/EDITION/*.ipynb of every notebook in `folder`, with the files that their text links to by `../`; the paths written.
    With a repository, OWNER/NAME, to which OUT is to be pushed, every edition's Colab badge opens that edition there.
    Raises UserError where the edition is unknown, there are no notebooks, or a solution region is not closed."""
    if repository is not None:
        check_address(repository, ref)
    if edition not in (*EDITIONS, "all"):
        raise unknown("edition", edition, [*EDITIONS, "all"])
    written = []
    for path, book in _read(folder):
        for name in EDITIONS if edition == "all" else (edition,):
            try:
                made = {"student": make_student, "instructor": make_instructor}.get(name, copy.deepcopy)(book)
            except UserError as error:
                raise UserError(f"{path.name}: {error}") from error
            if repository is not None:
                lead_to(made, f"{COLAB}{repository}/blob/{ref}/{name}/{path.name}")
            written.append(_write(made, out / name / path.name))
        text = "\n".join(cell["source"] for cell in book["cells"])
        for link in set(re.findall(r"""(?:\]\(|src=")\.\./([^)"#\s]+)""", text)):
            if (folder.parent / link).is_file():
                _copy(folder.parent / link, out / link)
    return written


def lead_to(book: Any, address: str) -> None:
    """Put a Colab badge that opens `address` at the top of a notebook, in the place of the one there, if any."""
    first = book["cells"][0]
    first["source"] = f"{write_badge(address)}\n\n{cut_badge(first['source'])}"


def write_badge(address: str) -> str:
    """A Colab badge that opens `address`."""
    return f"[![Open in Colab]({BADGE})]({address})"


def cut_badge(source: str) -> str:
    """A cell's text without the Colab badge that it begins with, if any."""
    return re.sub(rf"{AT_TOP}\n*", "", source)


def make_student(book: Any) -> Any:
    """A notebook without what answers its questions: a copy. The badge goes too, for it opens the solved notebook."""
    made = copy.deepcopy(book)
    made["cells"] = [cell for cell in made["cells"] if not LEFT_OUT & set(cell["metadata"].get("tags", []))]
    for cell in made["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            cell["source"] = clear_predictions(cut_solutions(cell["source"]))
        elif cell["cell_type"] == "markdown":
            told = re.sub(r"<details>\s*<summary>Solution.*?</details>\n?", "", cell["source"], flags=re.S)
            cell["source"] = cut_badge(told)
    return made


def make_instructor(book: Any) -> Any:
    """A notebook with everything, and with a slide type for each cell that has none yet, so that `jupyter nbconvert --to slides`
    makes a slide show of it: a copy. Text is divided at headings; what does not fit a slide goes to the next one below it."""
    made, used = copy.deepcopy(book), 0
    made["cells"] = [part for cell in made["cells"] for part in split_headings(cell)]
    for cell in made["cells"]:
        kind, lines = choose_slide(cell)
        kind = "subslide" if kind == "-" and used + lines > SLIDE_LINES else kind
        used = used if kind in ("skip", "notes") else lines + used * (kind == "-")
        cell["metadata"].setdefault("slideshow", {"slide_type": kind})
        if cell["cell_type"] == "code" and kind != "skip" and cell["source"].count("\n") >= CODE_LINES:
            cell["metadata"]["transient"] = {"remove_source": True}  # nbconvert then shows the picture without the code
    return made


def split_headings(cell: Any) -> list[Any]:
    """A cell of text as one cell for each numbered heading and what follows it; any other cell as it is."""
    texts = re.split(r"\n\n(?=#{2,3} \d)", cell["source"]) if cell["cell_type"] == "markdown" else [cell["source"]]
    names = [f"{cell['id']}-{number}" if number else cell["id"] for number in range(len(texts))]
    return [type(cell)(copy.deepcopy(cell), source=t, id=name) for t, name in zip(texts, names, strict=True)]


def choose_slide(cell: Any) -> tuple[str, int]:
    """The slide type of a cell by itself ("slide", "subslide", "-" for the same slide, "notes", "skip") and its height in lines.
    Skipped are scaffolding, predictions, exercises' code, and code that is long or shows nothing, unless it draws a picture."""
    tags = set(cell["metadata"].get("tags", []))
    if "instructor" in tags:
        return "notes", 0
    if cell["cell_type"] != "code":
        text = re.sub(r"<details>.*?</details>", "\n", cell["source"], flags=re.S)
        heading = re.match(r"(?:\[!\[[^\n]*\n+)?(#{1,6}) ", text)
        kind = "-" if heading is None else "slide" if len(heading[1]) < 3 else "subslide"
        return kind, sum(math.ceil(len(line) / 90) for line in text.splitlines())
    shown = [out.get("data", {"text/plain": out.get("text", "")}) for out in cell["outputs"]]
    page, plain = ("".join(data.get(f"text/{kind}", "") for data in shown) for kind in ("html", "plain"))
    kinds = " ".join(kind for data in shown for kind in data)
    picture = "image/" in kinds or re.search(r"<(img|svg|figure)\b", page) is not None
    rows = page.count("<tr") + page.count("\n") * ("<pre" in page) or (len(plain.splitlines()) if not picture else 0)
    code = len(cell["source"].splitlines())
    bare = not rows or "widget-view" in kinds or "compare_guess(" in cell["source"]
    fits = not bare and code <= CODE_LINES and code + rows <= SLIDE_LINES
    if tags & {"scaffold", "exercise", "prediction"} or not (picture or fits):
        return "skip", 0
    return "-", code * (code <= CODE_LINES) + rows + PICTURE_LINES * picture


def cut_solutions(source: str) -> str:
    """Code with a comment in the place of each solution region, indented as the region. Raises UserError where one is not closed."""
    marks = [line.strip() for line in source.split("\n") if line.strip() in (BEGIN, END)]
    if marks != [BEGIN, END] * (len(marks) // 2):
        raise UserError(f"{BEGIN!r} or {END!r} has no other end.")
    return re.sub(rf"^([ \t]*){BEGIN}[ \t]*$.*?^[ \t]*{END}[ \t]*$", rf"\1{PLACEHOLDER}", source, flags=re.M | re.S)


def clear_predictions(source: str) -> str:
    """Code in which every form field of a prediction is None."""
    return re.sub(r"^(my_guess\w*\s*=\s*)[^#\n]*?(\s*#\s*@param)", r"\1None\2", source, flags=re.M)


@lru_cache(maxsize=1)
def read_lessons(folder: Path = Path("notebooks")) -> dict[str, Lesson]:
    """The lessons of a folder of notebooks by number, from headers and exercises. Raises UserError where a header lacks a part."""
    lessons = {}
    for path, book in _read(folder):
        prose = "\n\n".join(cell["source"] for cell in book["cells"] if cell["cell_type"] == "markdown")
        code = sum(len(cell["source"].splitlines()) for cell in book["cells"] if cell["cell_type"] == "code")
        title = re.search(r"^# ([^:\n]+)", prose, re.M)
        runs = r"((?:(?:under|less than|about) )?[\w ]*?(?:minute|second)s?)(?: to run)? on two CPU cores"
        time = re.search(rf"\*\*Time\*\*(.*?{runs}.*?)\*\*Prerequisites\*\* ([^\n]*)", prose, re.S)
        if title is None or time is None:
            raise UserError(f"{path.name}: the header lacks a title, **Time** (on two CPU cores) or **Prerequisites**.")
        stated, doing = (re.search(rf"(\d+)(?: minutes)? to {verb}", time[1]) for verb in ("read", "do"))
        estimate = 5 * math.ceil((len(prose.split()) / 180 + code / 20) / 5)  # words and lines a minute
        stars = re.findall(r"^### (.+)\n+Difficulty \d of 5 · importance (\d) of 5 · (\d+) minutes", prose, re.M)
        exercises = [(name, int(importance), int(minutes)) for name, importance, minutes in stars]
        doing = int(doing[1]) if doing else sum(minutes for *_, minutes in exercises)
        needs = re.sub(r"\s*Terms are explained.*|\[([^]]+)\]\([^)]+\)", r"\1", time[3]).rstrip(". ")
        about = (title[1], int(stated[1]) if stated else estimate, doing, bool(stated), time[2].strip())
        key, after = path.name[:2], re.findall(r"\b\d\d\b", needs)
        lessons[key] = Lesson(key, path.name, *about, needs, after, exercises)
    return lessons


def choose_exercises(lesson: Lesson, budget: int) -> list[tuple[str, int, int]]:
    """The most important exercises of a lesson that fit into so many minutes, in the notebook's order."""
    chosen: list[tuple[str, int, int]] = []
    for one in sorted(lesson.exercises, key=lambda one: -one[1]):
        if sum(minutes for *_, minutes in [*chosen, one]) <= budget:
            chosen.append(one)
    return [one for one in lesson.exercises if one in chosen]


def read_plans(folder: Path = Path("notebooks")) -> list[dict[str, Any]]:
    """The plans of assets/course.toml: name, limit, board, parts as pairs of a lesson and its chosen exercises, and their minutes."""
    plans, lessons = tomllib.loads(asset("course.toml").read_text())["plan"], read_lessons(folder)
    for plan in plans:
        plan["parts"] = [(lessons[n], choose_exercises(lessons[n], budget)) for n, budget in plan["parts"].items()]
        plan["minutes"] = sum(one.reading + sum(minutes for *_, minutes in some) for one, some in plan["parts"])
    return plans


def write_site(out: Path, root: Path = Path(".")) -> list[Path]:
    """Write the source of a site for jupyter-book 1 to OUT, of notebooks with outputs and of pages; the paths written. Solutions and
    scaffolding are folded, notes for instructors left out. Raises UserError where ROOT is not the project's own folder."""
    books = dict(_read(root / "notebooks"))
    pages = [page for folder in ("", "assets", "assets/results") for page in sorted((root / folder).glob("*.md"))]
    names = [path.relative_to(root).as_posix() for path in (*books, *pages)]
    for name, page in zip(names, (*books, *pages), strict=True):
        if page not in books:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(point_within(page.read_text(encoding="utf-8"), name, names, root, out), "utf-8")
            continue
        made = books[page]
        made["cells"] = [cell for cell in made["cells"] if "instructor" not in cell["metadata"].get("tags", [])]
        for cell in made["cells"]:
            tags = cell["metadata"].get("tags", [])
            if cell["cell_type"] == "markdown":
                cell["source"] = point_within(cell["source"], name, names, root, out)
            elif "scaffold" in tags or BEGIN in cell["source"]:
                cell["metadata"]["tags"] = [*tags, "hide-cell" if "scaffold" in tags else "hide-input"]
        _write(made, out / name)
    for name in ("_toc.yml", "_config.yml"):
        (out / name).write_text(fill(name, names=names, repository=core.REPOSITORY, ref=core.REF), "utf-8")
    return [out / name for name in (*names, "_toc.yml", "_config.yml")]


def point_within(text: str, page: str, pages: Collection[str], root: Path, out: Path) -> str:
    """A page's markdown for the site. Links to headings are spelled as the site spells them, pictures are copied to OUT, and links
    to files that are not among its pages lead to the repository."""

    def lead(found: re.Match[str]) -> str:
        target, anchor = found[1], re.sub(r"[^\w#-]", "", (found[2] or "").lower())
        path = ((root / page).parent / target).resolve()
        if target and not path.is_relative_to(root.resolve()) or not path.exists():
            return found[0]
        name = path.relative_to(root.resolve()).as_posix()
        if path.suffix in (".png", ".svg"):
            _copy(path, out / name)
        elif target and name not in pages:
            address = f"https://github.com/{core.REPOSITORY}/{'tree' if path.is_dir() else 'blob'}/{core.REF}/{name}"
            return f"]({address}{found[2] or ''})"
        return f"]({target}{anchor})"

    return re.sub(r"\]\((?!\w+:)([^()\s#]*)(#(?:[^()\s]|\([^()]*\))*)?\)", lead, text)


def rewrite_badges(repository: str, ref: str = "main", root: Path = Path(".")) -> list[Path]:
    """Point every badge and install cell under ROOT/notebooks at OWNER/NAME and a tag or branch, and write both down in
    mpm_lite/core/__init__.py; the files that changed. Raises UserError where the name is none or ROOT is not the project."""
    check_address(repository, ref)
    face = root / "mpm_lite" / "core" / "__init__.py"
    if not face.is_file():
        raise UserError(f"{root.resolve()} is not the project's own folder: run this where its pyproject.toml lies.")
    changed = []
    for path, book in _read(root / "notebooks"):
        before = copy.deepcopy(book)
        for cell in book["cells"]:
            cell["source"] = point_at(cell["source"], path.name, repository, ref)
        if book != before:
            changed.append(_write(book, path))
    for page in (root / "README.md", root / "assets" / "templates" / "README.md", face):
        old = page.read_text(encoding="utf-8") if page.is_file() else ""
        new = re.sub(r"(google\.com/github/)[^/]+/[^/]+/blob/.+?(?=/notebooks/)", rf"\g<1>{repository}/blob/{ref}", old)
        new = re.sub(r"(mybinder\.org/v2/gh/)[^/]+/[^/]+/[^?]+", rf"\g<1>{repository}/{ref}", new)
        new = re.sub(r"^REPOSITORY, REF = .*$", f'REPOSITORY, REF = "{repository}", "{ref}"', new, flags=re.M)
        if new != old:
            page.write_text(new, encoding="utf-8")
            changed.append(page)
    return changed


def check_address(repository: str, ref: str) -> None:
    """UserError for what is no OWNER/NAME, or no tag or branch."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or not re.fullmatch(r"[\w./-]+", ref):
        raise UserError(f"--repo takes OWNER/NAME and --ref a tag or branch; got {repository!r} and {ref!r}.")


def point_at(source: str, name: str, repository: str = core.REPOSITORY, ref: str = core.REF) -> str:
    """A cell whose badge and install line lead to that repository at that tag or branch."""
    address = f"{COLAB}{repository}/blob/{ref}/notebooks/{name}"
    source = re.sub(AT_TOP, write_badge(address), source)
    install = re.search(r'^if "google\.colab" in sys\.modules:\n(?:(?: .*)?\n)*', source, re.M)
    if install is None or "%pip" not in install[0]:
        return source
    fetched = re.search(r"!mpm-lite data get .*", install[0])
    steps = fill("install.py.txt", repository=repository, ref=ref, get=fetched and fetched[0])
    return source[: install.start()] + steps + "\n" + source[install.end() :].lstrip("\n")


def _read(folder: Path) -> Sequence[tuple[Path, Any]]:
    try:
        import nbformat
    except ImportError as error:
        raise UserError("Editions need nbformat, which comes with Jupyter: pip install nbformat.") from error
    paths = sorted(folder.glob("*.ipynb"))
    if not paths:
        raise UserError(f"There are no notebooks in {folder.resolve()}: run this in the project's own folder.")
    return [(path, nbformat.read(path, as_version=4)) for path in paths]


def _write(book: Any, path: Path) -> Path:
    import nbformat

    nbformat.validate(book)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
