"""Drawings as SVG in text: axes, bars, lines and cells. Colours are classes, so that the page around them chooses.

Everything that is written is escaped. Knows numbers and labels, and nothing of what they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import pairwise
from math import ceil, floor, log10

WIDTH = 960
LEFT, RIGHT, TOP, BOTTOM = 92, 16, 8, 40


def tag(name: str, content: str = "", **attributes: object) -> str:
    """An element; a trailing underscore of a name is left out, and others are dashes."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>"


def text(content: str, x: float, y: float, **attributes: object) -> str:
    return tag("text", escape(content), x=x, y=y, **attributes)


def bar(x: float, y: float, width: float, height: float, kind: str, told: str) -> str:
    """A rectangle that says what it is when it is pointed at. What is not nothing is seen."""
    return tag("rect", tag("title", escape(told)), x=x, y=y, width=max(width, 0.75), height=height, class_=kind)


def drawing(label: str, height: float, parts: Iterable[str]) -> str:
    """A whole drawing, which says what it shows to those who do not see it."""
    return tag(
        "svg",
        "".join(parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {_number(height)}",
        role="img",
        aria_label=label,
    )


def ticks(most: float, number: int = 6) -> list[float]:
    """Round numbers from 0 to `most` or a little less, about so many."""
    if most <= 0:
        return [0.0]
    raw = most / number
    unit = 10.0 ** floor(log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    return [step * index for index in range(floor(most / step + 1e-9) + 1)]


def byte_ticks(most: float, number: int = 4) -> list[float]:
    """`ticks` that are round in the unit that bytes are told in."""
    unit = 1.0
    while most / unit >= 1024:
        unit *= 1024
    return [unit * each for each in ticks(most / unit, number)]


class Axes:
    """Room for values up to `most_x` and `most_y`, with numbers at its sides."""

    def __init__(self, most_x: float, most_y: float, height: float) -> None:
        self.most_x, self.most_y = most_x or 1.0, most_y or 1.0
        self.height = height
        self.bottom = height - BOTTOM

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.most_x

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - TOP) * value / self.most_y

    def across(self, write: Callable[[float], str], title: str) -> str:
        """The numbers below."""
        parts = []
        for value in ticks(self.most_x):
            at = self.x(value)
            parts.append(tag("line", x1=at, x2=at, y1=TOP, y2=self.bottom, class_="grid"))
            parts.append(text(write(value), at, self.bottom + 15, text_anchor="middle"))
        parts.append(text(title, (LEFT + WIDTH - RIGHT) / 2, self.bottom + 33, text_anchor="middle", class_="axis"))
        return "".join(parts)

    def up(self, write: Callable[[float], str], values: Sequence[float] | None = None) -> str:
        """The numbers at the left."""
        parts = []
        for value in ticks(self.most_y, 4) if values is None else values:
            at = self.y(value)
            parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
            parts.append(text(write(value), LEFT - 8, at + 4, text_anchor="end"))
        return "".join(parts)

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> str:
        """Values that stay until there is another one."""
        return tag("path", d=_path(self._steps(points)), class_=f"line {kind}")

    def area(self, lower: Sequence[tuple[float, float]], upper: Sequence[tuple[float, float]], kind: str) -> str:
        """What lies between two such lines."""
        return tag("path", d=_path([*self._steps(upper), *reversed(self._steps(lower))]) + "Z", class_=kind)

    def _steps(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        placed = [(self.x(x), self.y(y)) for x, y in points]
        found = placed[:1]
        for (_, before), (at, value) in pairwise(placed):
            found += [(at, before), (at, value)]
        return found


def cells(states: Sequence[str], told: str) -> str:
    """A square for each of `states`, which are classes, row by row."""
    size = max(min(floor((WIDTH * 150 / max(len(states), 1)) ** 0.5), 18), 4)
    across = WIDTH // size
    squares = (
        tag("rect", x=index % across * size, y=index // across * size, width=size - 1, height=size - 1, class_=state)
        for index, state in enumerate(states)
    )
    return drawing(told, ceil(len(states) / across) * size, squares)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points) if points else ""


def _number(value: object) -> str:
    """Coordinates to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if type(value) is float else str(value)
