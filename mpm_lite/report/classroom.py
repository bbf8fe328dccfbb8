"""The course in three editions, made of the solved notebooks; its lessons and plans; its site; and a fork's addresses.

`solved` is as committed; `instructor` adds what a slide show needs; `student` leaves out solutions, cells tagged instructor or
scaffold, outputs and predictions, and runs as it is.
"""

from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpm_lite.core as core
from mpm_lite.core.runtime import UserError, unknown

EDITIONS = ("student", "instructor", "solved")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
LEFT_OUT = {"instructor", "scaffold"}
PLACEHOLDER = "# Write your code here."
INSTALL = """if "google.colab" in sys.modules:
    from importlib.metadata import version
    from pathlib import Path

    # With its own version as a constraint, pip leaves the torch that is installed as it is.
    Path("keep.txt").write_text(f"torch=={{version('torch')}}\\n")
    print("1 of {steps}: installing the library, about 2 minutes")
    %pip install -q -c keep.txt "mpm_lite @ git+https://github.com/{repository}@{ref}"
"""
SLIDE_LINES, CODE_LINES = 24, 10  # what one slide holds; longer code is left out of the slide show
PICTURE_LINES = 14  # the height of a picture on a slide, in lines of text
WORDS_A_MINUTE, CODE_A_MINUTE = 180, 20  # to estimate reading where a header does not state it
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def build_editions(out: Path, edition: str = "all", folder: Path = Path("notebooks")) -> list[Path]:
    """Write OUT/EDITION/*.ipynb of every notebook in `folder`, with the files that their text links to by `../`; the paths written.
    Raises UserError where the edition is unknown, there are no notebooks, or a solution region is not closed."""
    if edition not in (*EDITIONS, "all"):
        raise unknown("edition", edition, [*EDITIONS, "all"])
    written = []
    for path, book in _read(folder):
        for name in EDITIONS if edition == "all" else (edition,):
            target = out / name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write({"student": make_student, "instructor": make_instructor}.get(name, copy.deepcopy)(book), target)
            except UserError as error:
                raise UserError(f"{path.name}: {error}") from error
            written.append(target)
        for link in set(
            re.findall(r"""(?:\]\(|src=")\.\./([^)"#\s]+)""", "\n".join(c["source"] for c in book["cells"]))
        ):
            if (folder.parent / link).is_file():
                _copy(folder.parent / link, out / link)
    return written


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
            cell["source"] = re.sub(r"\A\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)\n*", "", told)
    return made


def make_instructor(book: Any) -> Any:
    """A notebook with everything, and with a slide type for each cell that has none yet, so that `jupyter nbconvert --to slides`
    makes a slide show of it: a copy. Text is divided into a cell for each heading. What does not fit a slide any more goes to the
    next one below it."""
    made, used = copy.deepcopy(book), 0
    made["cells"] = [part for cell in made["cells"] for part in split_headings(cell)]
    for cell in made["cells"]:
        kind, lines = choose_slide(cell)
        if kind == "-" and used + lines > SLIDE_LINES:
            kind = "subslide"
        used = used if kind in ("skip", "notes") else lines + (used if kind == "-" else 0)
        cell["metadata"].setdefault("slideshow", {"slide_type": kind})
        if cell["cell_type"] == "code" and kind != "skip" and len(cell["source"].splitlines()) > CODE_LINES:
            cell["metadata"]["transient"] = {"remove_source": True}  # nbconvert then shows the picture without the code
    return made


def split_headings(cell: Any) -> list[Any]:
    """A cell of text as one cell for each heading and what follows it; any other cell as it is."""
    plain = re.sub(r"^```.*?^```", lambda found: re.sub("#", "-", found[0]), cell["source"], flags=re.M | re.S)
    starts = [found.start() for found in re.finditer(r"^#{1,6} ", plain, re.M) if plain[: found.start()].strip()]
    if cell["cell_type"] != "markdown" or not starts or cell["source"].startswith("[!["):
        return [cell]
    parts = []
    for number, (first, last) in enumerate(zip([0, *starts], [*starts, None], strict=True)):
        part = copy.deepcopy(cell)
        part["source"] = cell["source"][first:last].strip()
        part["id"] = f"{cell['id']}-{number}" if number else cell["id"]
        parts.append(part)
    return parts


def choose_slide(cell: Any) -> tuple[str, int]:
    """The slide type of a cell by itself ("slide", "subslide", "-" for the same slide, "notes", "skip") and its height in lines.
    A heading begins a slide. Notes for instructors are speaker's notes. Skipped are scaffolding, predictions, exercises' code, code
    that shows nothing, and long code or long output without a picture."""
    source, tags = cell["source"], set(cell["metadata"].get("tags", []))
    if "instructor" in tags:
        return "notes", 0
    if cell["cell_type"] != "code":
        text = re.sub(r"<details>.*?</details>", "\n", source, flags=re.S)
        heading = re.match(r"(?:\[!\[[^\n]*\n+)?(#{1,6}) ", text)
        kind = "-" if heading is None else "slide" if len(heading[1]) < 3 else "subslide"
        return kind, sum(math.ceil(len(line) / 90) for line in text.splitlines() if line.strip())
    pages = ["".join(out.get("data", {}).get("text/html", "")) for out in cell["outputs"]]
    drawn = any(kind.startswith("image/") for out in cell["outputs"] for kind in out.get("data", {}))
    picture = drawn or any(re.search(r"<(img|svg|figure)\b", page) for page in pages)
    plain = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell["outputs"]]
    rows = [page.count("<tr") + page.count("\n") * ("<pre" in page) for page in pages]
    shown = sum(rows) or sum(len("".join(text).splitlines()) for text in plain)
    code = len(source.splitlines())
    widget = any("application/vnd.jupyter.widget-view+json" in out.get("data", {}) for out in cell["outputs"])
    seen = picture or (shown and not widget and code <= CODE_LINES and code + shown <= SLIDE_LINES)
    if tags & {"scaffold", "exercise", "prediction"} or not seen:
        return "skip", 0
    return "-", code * (code <= CODE_LINES) + sum(rows) * picture + (PICTURE_LINES if picture else shown)


def cut_solutions(source: str) -> str:
    """Code with a comment in the place of each solution region, indented as the region. Raises UserError where one is not closed."""
    lines, inside = [], False
    for line in source.split("\n"):
        mark = line.strip()
        if mark in (BEGIN, END):
            if inside == (mark == BEGIN):
                raise UserError(f"{mark!r} has no other end.")
            inside = mark == BEGIN
            if inside:
                lines.append(line.replace(BEGIN, PLACEHOLDER))
        elif not inside:
            lines.append(line)
    if inside:
        raise UserError(f"{BEGIN!r} has no other end.")
    return "\n".join(lines)


def clear_predictions(source: str) -> str:
    """Code in which every form field of a prediction is None."""
    return re.sub(r"^(my_guess\w*\s*=\s*)[^#\n]*?(\s*#\s*@param)", r"\1None\2", source, flags=re.M)


# Lessons and plans.


@dataclass(frozen=True)
class Lesson:
    """What a notebook says of itself. Minutes are a person's; `runs` is the machine's time, in words. `stated` is False where the
    header says no reading time, which is estimated then. An exercise is its title, importance (1 to 5) and minutes."""

    number: str
    file: str
    title: str
    reading: int
    doing: int
    stated: bool
    runs: str
    prerequisites: str
    exercises: tuple[tuple[str, int, int], ...]

    @property
    def after(self) -> list[str]:
        """The numbers of the notebooks that its prerequisites name."""
        return re.findall(r"\b(\d\d)\b", self.prerequisites)

    def choose_exercises(self, budget: int) -> list[tuple[str, int, int]]:
        """The most important exercises that fit into so many minutes, in the notebook's order."""
        chosen, left = [], budget
        for one in sorted(self.exercises, key=lambda one: -one[1]):
            if one[2] <= left:
                chosen.append(one)
                left -= one[2]
        return [one for one in self.exercises if one in chosen]


def read_lessons(folder: Path = Path("notebooks")) -> dict[str, Lesson]:
    """The lessons of a folder of notebooks by their numbers, read from headers and exercises. Raises UserError where a header
    lacks its title, its time or its prerequisites."""
    lessons = {}
    for path, book in _read(folder):
        prose = "\n\n".join(cell["source"] for cell in book["cells"] if cell["cell_type"] == "markdown")
        code = [cell["source"].splitlines() for cell in book["cells"] if cell["cell_type"] == "code"]
        title = re.search(r"^# ([^:\n]+)", prose, re.M)
        time = re.search(r"\*\*Time\*\*(.*?)\*\*Prerequisites\*\* ([^\n]*)", prose, re.S)
        if title is None or time is None:
            raise UserError(f"{path.name}: the header needs a title, **Time** and **Prerequisites**.")
        runs = re.search(r"((?:(?:under|less than|about) )?[\w ]*?minutes?)(?: to run)? on two CPU cores", time[1])
        reading, doing = (re.search(rf"(\d+)(?: minutes)? to {verb}", time[1]) for verb in ("read", "do"))
        estimate = len(prose.split()) / WORDS_A_MINUTE + sum(map(len, code)) / CODE_A_MINUTE
        exercises = re.findall(
            r"^### ([^\n]+)\n+Difficulty \d of 5 · importance (\d) of 5 · (\d+) minutes", prose, re.M
        )
        exercises = [(name, int(importance), int(minutes)) for name, importance, minutes in exercises]
        lessons[path.name[:2]] = Lesson(
            number=path.name[:2], file=path.name, title=title[1].strip(),
            reading=int(reading[1]) if reading else 5 * math.ceil(estimate / 5),
            doing=int(doing[1]) if doing else sum(minutes for *_, minutes in exercises),
            stated=reading is not None, runs=runs[1].strip() if runs else "not stated",
            prerequisites=re.sub(r"\s*Terms are explained.*|\[([^]]+)\]\([^)]+\)", r"\1", time[2]).rstrip(". "),
            exercises=tuple(exercises),
        )  # fmt: skip
    return lessons


@dataclass(frozen=True)
class Plan:
    """A plan of teaching: minutes that there are, and by notebook how many of them go to exercises. `board` names notebooks whose
    idea is explained at the board instead."""

    name: str
    limit: int
    parts: dict[str, int]
    board: tuple[str, ...] = ()

    def count_minutes(self, lessons: dict[str, Lesson]) -> int:
        """Minutes of reading and of the chosen exercises; what is left of the limit is for talking."""
        return sum(
            lessons[number].reading + sum(minutes for *_, minutes in lessons[number].choose_exercises(budget))
            for number, budget in self.parts.items()
        )


ALL = 1000  # minutes enough for every exercise of a notebook
PLANS = (
    Plan("90 minutes", 90, {"00": 5, "04": 15}, board=("02",)),
    Plan("Two hours", 120, {"00": 5, "02": 5, "04": 15}),
    Plan("One day", 360, {"00": 10, "02": 10, "03": 10, "04": 30, "05": 25, "06": 25}),
    Plan("Week 1: the idea, and how to measure it", 270, {"00": ALL, "01": ALL, "02": ALL}),
    Plan("Week 2: MPM", 360, {"03": 20, "04": ALL, "05": ALL, "06": 30}),
    Plan("Week 3: three other systems", 300, {"07": 30, "08": ALL, "09": ALL}),
    Plan("Week 4: comparison, and a hypothesis of one's own", 300, {"10": ALL, "11": 10, "12": ALL}),
)


# The site.

PAGES_FIRST = ("scope", "glossary", "instructor_guide", "handbook", "toyworld")
SITE = """title: mpm_lite
author: The mpm_lite founders
copyright: ""
only_build_toc_files: true
execute:
  execute_notebooks: "off"
parse:
  myst_enable_extensions: [amsmath, dollarmath, html_image]
repository:
  url: https://github.com/{repository}
  branch: {ref}
html:
  use_repository_button: true
sphinx:
  config:
    myst_heading_anchors: 3
    nb_merge_streams: true
    suppress_warnings: [mystnb.unknown_mime_type, myst.header]
"""


def write_site(out: Path, root: Path = Path(".")) -> list[Path]:
    """Write the source of a site for jupyter-book 1 to OUT: README, the solved notebooks with their outputs, the pages of assets,
    `_config.yml` and `_toc.yml`; the paths written. Solutions and scaffolding are folded, notes for instructors are left out.
    Raises UserError where ROOT is not the project's own folder."""
    books = _read(root / "notebooks")
    pages = sorted((root / "assets").glob("*.md"), key=lambda page: (_place(page.stem), page.name))
    results = sorted((root / "assets" / "results").glob("*.md"))
    parts = {
        "The course": [path for path, _ in books if path.name < "13"],
        "The GPU-bound core": [path for path, _ in books if path.name >= "13"],
        "Pages": pages,
        "Results": results,
    }
    names = {path.relative_to(root).as_posix() for part in parts.values() for path in part} | {"README.md"}
    written = []
    for name in sorted(names):
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".md":
            text = (root / name).read_text(encoding="utf-8")
            target.write_text(point_within(text, name, names, root, out), encoding="utf-8")
        written.append(target)
    for path, book in books:
        made = copy.deepcopy(book)
        made["cells"] = [cell for cell in made["cells"] if "instructor" not in cell["metadata"].get("tags", [])]
        for cell in made["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = point_within(cell["source"], f"notebooks/{path.name}", names, root, out)
            tags = cell["metadata"].get("tags", [])
            if "scaffold" in tags:
                cell["metadata"]["tags"] = [*tags, "hide-cell"]
            elif BEGIN in cell["source"] or cell["metadata"].get("jupyter", {}).get("source_hidden"):
                cell["metadata"]["tags"] = [*tags, "hide-input"]
        _write(made, out / "notebooks" / path.name)
    lines = ["format: jb-book", "root: README", "parts:"]
    for caption, part in parts.items():
        lines += [f"- caption: {caption}", "  chapters:"]
        lines += [f"  - file: {path.relative_to(root).with_suffix('').as_posix()}" for path in part]
    config = SITE.format(repository=core.REPOSITORY, ref=core.REF)
    for name, text in (("_toc.yml", "\n".join(lines) + "\n"), ("_config.yml", config)):
        (out / name).write_text(text, encoding="utf-8")
        written.append(out / name)
    return written


def point_within(text: str, page: str, pages: Iterable[str], root: Path, out: Path) -> str:
    """A page's markdown for the site. Links to headings are spelled as the site spells them, pictures are copied, and links to
    files that are not on the site lead to the repository."""

    def lead(found: re.Match[str]) -> str:
        before, target, heading = found[1], found[2], (found[3] or "").removeprefix("#")
        anchor = "#" + re.sub(r"[^\w-]", "", heading.lower()) if heading else ""
        if not target:
            return f"{before}({anchor})"
        path = (root / page).parent / target
        if not path.exists():
            return found[0]
        name = path.resolve().relative_to(root.resolve()).as_posix()
        if name in pages:
            return f"{before}({target}{anchor})"
        if path.suffix in (".png", ".svg"):
            _copy(path, out / name)
            return found[0]
        kind = "tree" if path.is_dir() else "blob"
        return (
            f"{before}(https://github.com/{core.REPOSITORY}/{kind}/{core.REF}/{name}{'#' + heading if heading else ''})"
        )

    return re.sub(r"(\])\((?!\w+:)([^()\s#]*)(#(?:[^()\s]|\([^()]*\))*)?\)", lead, text)


def _place(stem: str) -> int:
    return PAGES_FIRST.index(stem) if stem in PAGES_FIRST else len(PAGES_FIRST)


# The addresses of a fork.


def rewrite_badges(repository: str, ref: str = "main", root: Path = Path(".")) -> list[Path]:
    """Point every badge and install cell under ROOT/notebooks at OWNER/NAME and a tag or branch, and write both down in
    mpm_lite/core/__init__.py; the files that changed. Raises UserError where the name is none or ROOT is not the project."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or not re.fullmatch(r"[\w./-]+", ref):
        raise UserError(f"--repo takes OWNER/NAME and --ref a tag or branch; got {repository!r} and {ref!r}.")
    face = root / "mpm_lite" / "core" / "__init__.py"
    if not face.is_file():
        raise UserError(f"{root.resolve()} is not the project's own folder: run this where its pyproject.toml lies.")
    changed = []
    for path, book in _read(root / "notebooks"):
        before = copy.deepcopy(book)
        for cell in book["cells"]:
            cell["source"] = point_at(cell["source"], path.name, repository, ref)
        if book != before:
            _write(book, path)
            changed.append(path)
    for page in (root / "README.md", root / "assets" / "templates" / "README.md"):
        old = page.read_text(encoding="utf-8") if page.is_file() else ""
        new = re.sub(r"(google\.com/github/)[^/]+/[^/]+/blob/.+?(?=/notebooks/)", rf"\g<1>{repository}/blob/{ref}", old)
        new = re.sub(r"(mybinder\.org/v2/gh/)[^/]+/[^/]+/[^?]+", rf"\g<1>{repository}/{ref}", new)
        if new != old:
            page.write_text(new, encoding="utf-8")
            changed.append(page)
    old = face.read_text(encoding="utf-8")
    new = re.sub(r"^REPOSITORY, REF = .*$", f'REPOSITORY, REF = "{repository}", "{ref}"', old, flags=re.M)
    if new != old:
        face.write_text(new, encoding="utf-8")
        changed.append(face)
    return changed


def point_at(source: str, name: str, repository: str = core.REPOSITORY, ref: str = core.REF) -> str:
    """A cell whose badge and install line lead to that repository at that tag or branch."""
    address = f"https://colab.research.google.com/github/{repository}/blob/{ref}/notebooks/{name}"
    source = re.sub(r"\A\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)", f"[![Open in Colab]({BADGE})]({address})", source)
    install = re.search(r'^if "google\.colab" in sys\.modules:\n(?:(?: .*)?\n)*', source, re.M)
    if install is None or "%pip" not in install[0]:
        return source
    fetched = re.search(r"!mpm-lite data get .*", install[0])
    steps = INSTALL.format(repository=repository, ref=ref, steps=2 if fetched else 1)
    if fetched:
        steps += f'    print("2 of 2: fetching pictures, about 1 minute")\n    {fetched[0]}\n'
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


def _write(book: Any, path: Path) -> None:
    import nbformat

    nbformat.validate(book)
    nbformat.write(book, path)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
