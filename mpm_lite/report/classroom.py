"""The course in three editions, made of the solved notebooks, and the addresses that a fork has to change.

`solved` is as committed; `instructor` adds where slides begin; `student` leaves out solutions, cells tagged instructor or
scaffold, outputs and predictions, and runs as it is.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Sequence
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
            source = folder.parent / link
            if source.is_file():
                (out / link).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, out / link)
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
    """A notebook with everything, and a slide at every heading that does not say otherwise: a copy."""
    made = copy.deepcopy(book)
    for cell in made["cells"]:
        if cell["cell_type"] == "markdown" and re.match(r"(\[!\[[^\n]*\n+)?#{1,2} ", cell["source"]):
            cell["metadata"].setdefault("slideshow", {"slide_type": "slide"})
    return made


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
