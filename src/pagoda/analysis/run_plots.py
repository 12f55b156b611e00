"""Draws what was recorded of a scenario: requests over time, what was found in the cache, bytes by kind, pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pagoda.analysis.drawing import BOTTOM, LEFT, TOP, WIDTH, Axes, bar, byte_ticks, cells, drawing, text
from pagoda.analysis.run_record import CacheSample, PageMap, RequestRecord, ScenarioRecord
from pagoda.cache.holdings.allocator import ShownState
from pagoda.units import format_nbytes, format_seconds

ROW = 20
MOST_ROWS = 64
MOST_POINTS = 400
# Classes of kinds, which are told apart up to so many.
NUM_KINDS = 4


def timeline(requests: Sequence[RequestRecord]) -> str:
    """A bar for each request, by phase."""
    shown = requests[:MOST_ROWS]
    axes = Axes(_last(shown), 1, TOP + ROW * len(shown) + BOTTOM)
    parts = [axes.across(_seconds_of(axes.most_x), f"time since the scenario began, {_unit_of(axes.most_x)}")]
    for index, request in enumerate(shown):
        top = TOP + index * ROW + 3
        parts.append(text(request.name, LEFT - 8, top + 11, text_anchor="end"))
        for phase, start, stop in request.spans:
            if stop > start:
                told = f"{request.name}, {phase}: {format_seconds(stop - start)}"
                parts.append(bar(axes.x(start), top, axes.x(stop) - axes.x(start), ROW - 6, phase, told))
    return drawing("Requests over time, by phase", axes.height, parts)


def hit_rate(samples: Sequence[CacheSample], most_x: float) -> str:
    """The share of prompt tokens found so far."""
    axes = Axes(most_x, 1, 180)
    points = [(sample.seconds, sample.hit_rate) for sample in _thinned(samples) if sample.queried_tokens]
    parts = [
        axes.across(_seconds_of(most_x), f"time since the scenario began, {_unit_of(most_x)}"),
        axes.up(lambda share: f"{100 * share:.0f} %", (0, 0.25, 0.5, 0.75, 1)),
        axes.line(_to_the_end(points, most_x), "hit"),
    ]
    return drawing("Share of prompt tokens found in the cache so far", axes.height, parts)


def bytes_over_time(scenario: ScenarioRecord, most_x: float) -> str:
    """Pages in use of each kind, one over the other, and idle ones over them."""
    samples = _thinned(scenario.samples)
    layers = [[sample.in_use[index] for sample in samples] for index in range(len(scenario.kinds))]
    layers.append([sum(sample.idle) for sample in samples])
    axes = Axes(most_x, max((sum(column) for column in zip(*layers, strict=True)), default=0), 220)
    times = [sample.seconds for sample in samples]
    parts = [
        axes.across(_seconds_of(most_x), f"time since the scenario began, {_unit_of(most_x)}"),
        axes.up(format_nbytes, byte_ticks(axes.most_y)),
    ]
    below = [0.0] * len(samples)
    for index, layer in enumerate(layers):
        above = [low + value for low, value in zip(below, layer, strict=True)]
        if any(layer):
            lower, upper = (_to_the_end(list(zip(times, each, strict=True)), most_x) for each in (below, above))
            parts.append(axes.area(lower, upper, "idle" if index == len(scenario.kinds) else kind_class(index)))
        below = above
    return drawing("Bytes of pages in use and idle over time", axes.height, parts)


def bytes_by_kind(parts: Sequence[tuple[str, str, int]]) -> str:
    """One bar of (class, name, bytes)."""
    total = sum(nbytes for _, _, nbytes in parts) or 1
    drawn, at = [], 0.0
    for kind, name, nbytes in parts:
        width = (WIDTH - 1) * nbytes / total
        if nbytes:
            drawn.append(bar(at, 0, width, 28, kind, f"{name}: {format_nbytes(nbytes)}, {nbytes / total:.1%}"))
        at += width
    return drawing("Bytes by kind at the moment when most was in use", 28, drawn)


def phase_shares(parts: Sequence[tuple[str, float]]) -> str:
    """One bar of (phase, seconds)."""
    total = sum(seconds for _, seconds in parts) or 1
    drawn, at = [], 0.0
    for phase, seconds in parts:
        width = (WIDTH - 1) * seconds / total
        if seconds:
            drawn.append(bar(at, 0, width, 28, phase, f"{phase}: {format_seconds(seconds)}, {seconds / total:.1%}"))
        at += width
    return drawing("Seconds by phase", 28, drawn)


def page_map(pages: PageMap) -> str:
    """A square for each page."""
    classes = [state_class(ShownState(state)) for state in pages.states]
    return cells(classes, f"Pages of {pages.kind} when most were in use")


def kind_class(index: int) -> str:
    return f"kind-{index % NUM_KINDS}"


def state_class(state: ShownState) -> str:
    return state.name.lower().replace("_", "-")


def last_second(scenario: ScenarioRecord) -> float:
    """When everything drawn of it is over."""
    return max(_last(scenario.requests), *(sample.seconds for sample in scenario.samples), 0.0)


def _last(requests: Sequence[RequestRecord]) -> float:
    return max((request.ended for request in requests), default=0.0)


def _to_the_end(points: list[tuple[float, float]], most_x: float) -> list[tuple[float, float]]:
    return [*points, (most_x, points[-1][1])] if points else []


def _thinned(samples: Sequence[CacheSample]) -> Sequence[CacheSample]:
    """As many as can be told apart."""
    return samples[:: len(samples) // MOST_POINTS + 1]


def _unit_of(most: float) -> str:
    return "s" if most >= 1 else "ms"


def _seconds_of(most: float) -> Callable[[float], str]:
    """How times up to so many seconds are written."""
    factor = 1 if most >= 1 else 1000
    return lambda seconds: f"{factor * seconds:,.4g}"
