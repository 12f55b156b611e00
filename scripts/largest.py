"""Prints the largest files and functions of the package: size is watched here, not forbidden.

Lines are counted as they stand, with comments and docstrings. Run by `make check`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "pagoda"
SHOWN = 8


def functions(file: Path) -> Iterator[tuple[int, str]]:
    """Every function of a file as (lines, name)."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.end_lineno - node.lineno + 1, f"{file.relative_to(SOURCE)}:{node.lineno} {node.name}"


def show(title: str, sizes: list[tuple[int, str]]) -> None:
    print(f"{title} (lines)")
    for lines, name in sorted(sizes, reverse=True)[:SHOWN]:
        print(f"  {lines:4}  {name}")


def main() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    sizes = [(len(file.read_text(encoding="utf-8").splitlines()), str(file.relative_to(SOURCE))) for file in files]
    print(f"{sum(lines for lines, _ in sizes):,} lines of Python in {len(files)} files")
    show("largest files", sizes)
    show("largest functions", [function for file in files for function in functions(file)])


if __name__ == "__main__":
    main()
