"""Writes the index at the end of docs/architecture.md: each file of the package, by the first line of its docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "pagoda"
TARGET = ROOT / "docs" / "architecture.md"
HEADING = "## Index\n"


def index() -> str:
    """The section, from its heading on: one list for each folder."""
    lines = [HEADING, "Written by `make docs`."]
    for folder in sorted({file.parent for file in PACKAGE.rglob("*.py")}):
        files = [file for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]
        if files:
            lines += ["", *_folder(folder, files)]
    return "\n".join(lines) + "\n"


def document() -> str:
    """The whole document, as it should be."""
    story = TARGET.read_text(encoding="utf-8").partition(HEADING)[0]
    return story + index()


def _folder(folder: Path, files: list[Path]) -> Iterator[str]:
    name = folder.relative_to(PACKAGE).as_posix()
    title = "The package itself" if name == "." else f"`{name}/`"
    about = _first_line(folder / "__init__.py") if name != "." else ""
    yield f"**{title}**{': ' + about if about else ''}"
    yield ""
    for file in files:
        yield f"- `{file.relative_to(PACKAGE).as_posix()}`: {_first_line(file)}"


def _first_line(file: Path) -> str:
    """Of a module's docstring, without what ends a sentence."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file.exists() else None
    return (docstring or "").partition("\n")[0].rstrip(".")


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
