"""Axes: round numbers, and lines that stay until there is another value."""

from __future__ import annotations

import pytest

from pagoda.analysis.drawing import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axes, byte_ticks, tag, ticks

MIB = 1 << 20


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (0, [0]),
        (1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.07, [0, 0.02, 0.04, 0.06]),
        (5400, [0, 1000, 2000, 3000, 4000, 5000]),
    ],
)
def test_ticks_are_round(most: float, expected: list[float]) -> None:
    assert ticks(most) == pytest.approx(expected)


@pytest.mark.parametrize("most", [3, 1000, 24.6 * MIB, 1023 * MIB, 5e12])
def test_ticks_of_bytes_are_round_in_their_unit(most: float) -> None:
    found = byte_ticks(most)
    assert 2 <= len(found) <= 6
    assert found[-1] <= most
    unit = max(1024**power for power in range(6) if 1024**power <= most)
    assert all(each / unit == pytest.approx(float(f"{each / unit:.3g}")) for each in found)


def test_values_lie_between_the_edges() -> None:
    axes = Axes(10, 4, 200)
    assert (axes.x(0), axes.x(10), axes.y(0), axes.y(4)) == (LEFT, WIDTH - RIGHT, 200 - BOTTOM, TOP)
    line = axes.line([(0, 1), (5, 3)], "hit")
    middle = axes.x(5)
    assert f"{middle:g} {axes.y(1):g}L{middle:g} {axes.y(3):g}" in line
    assert 'd=""' in axes.line([], "hit")
    assert Axes(0, 0, 100).x(0) == LEFT


def test_attributes_and_names_are_written_as_markup_wants_them() -> None:
    assert tag("a", "b", text_anchor='"<', class_="c", x=1.0, y=0.333) == (
        '<a text-anchor="&quot;&lt;" class="c" x="1" y="0.33">b</a>'
    )
