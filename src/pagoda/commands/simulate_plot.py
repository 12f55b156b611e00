"""Draws a simulation: what is found over how large the cache is, and how long requests take, a line for each policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pagoda.analysis.simulation.report import Row
from pagoda.analysis.simulation.settings import OPTIMUM
from pagoda.commands.drawing import pyplot, save

GIB = 1 << 30
PANEL_INCHES = 5.2
MOST_IN_A_ROW = 9
MOST_RATIO = 20  # of values that are told apart on one scale
MARKERS = "osD^vPX*"


def draw(rows: Sequence[Row], title: str, file: Path) -> None:
    """Draw the rows of all runs into `file`. Raises ConfigError if it cannot be written."""
    panels = _panels(rows)
    size = (PANEL_INCHES * len(panels) + 0.6, 5.6)
    figure, all_axes = pyplot().subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axes, (label, value, is_bounded) in zip(all_axes[0], panels, strict=True):
        _draw_panel(axes, rows, value)
        axes.set_xlabel(f"capacity of a replica ({'GiB' if _in_bytes(rows) else 'tokens'})")
        axes.set_ylabel(label)
        axes.grid(visible=True, alpha=0.3)
        _scale(axes, [value(row) for row in rows if _has(row, value)], is_bounded)
    handles, labels = all_axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=MOST_IN_A_ROW, frameon=False)
    figure.suptitle(title, fontsize="medium")
    save(figure, file)


# What the axis says, a value of a row, and whether it is a share of a hundred.
Panel = tuple[str, Callable[[Row], float], bool]


def _panels(rows: Sequence[Row]) -> list[Panel]:
    panels: list[Panel] = [
        ("prompt tokens found in the cache (%)", lambda row: 100 * row["token_hit_rate"], True),
        ("of a prompt found, mean over requests (%)", lambda row: 100 * row["mean_request_hit_rate"], True),
    ]
    if any("ttft_p50_seconds" in row for row in rows):
        panels[1:] = [
            ("time to first token, median (s)", lambda row: row.get("ttft_p50_seconds") or 0.0, False),
            ("output (tokens/s)", lambda row: row.get("output_tokens_per_second") or 0.0, False),
        ]
    return panels


def _draw_panel(axes: Any, rows: Sequence[Row], value: Callable[[Row], float]) -> None:
    unlimited: dict[float, list[str]] = {}
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    for number, policy in enumerate(policies):
        mine = [row for row in rows if row["policy"] == policy and _has(row, value)]
        points = sorted((_size(row, rows), value(row)) for row in mine if row["capacity_pages"] is not None)
        if points:
            axes.plot(*zip(*points, strict=True), label=policy, **_style(number, policy, len(policies)))
        for row in mine:
            if row["capacity_pages"] is None:
                unlimited.setdefault(round(value(row), 6), []).append(policy)
    for height, found in unlimited.items():
        axes.axhline(height, linewidth=1, linestyle=":", color="grey")
        text = "unlimited" if len(found) * 2 > len(policies) else f"unlimited, {', '.join(found)}"
        axes.annotate(text, (1, height), (-4, 2), ("axes fraction", "data"), "offset points", ha="right", va="bottom")
    if any(row["capacity_pages"] is not None for row in rows):
        from matplotlib.ticker import LogLocator

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(_short)
        axes.xaxis.set_minor_formatter("")


def _scale(axes: Any, values: Sequence[float], is_share: bool) -> None:
    """From 0 on, with room for words above; powers of ten where a few values would hide the others."""
    highest, lowest = max(values, default=0.0), min(values, default=0.0)
    if is_share:
        axes.set_ylim(0, min(max(highest * 1.1, 1), 100))
    elif lowest > 0 and highest > MOST_RATIO * lowest:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_short)
    else:
        axes.set_ylim(0, highest * 1.1 or 1)


def _style(number: int, policy: str, num_policies: int) -> dict[str, Any]:
    """Lines that lie on one another are all seen: the first ones are wider."""
    if policy == OPTIMUM:
        return {"color": "black", "linestyle": "--", "linewidth": 1.2, "marker": "."}
    width = 1.2 + 3.0 * (num_policies - 1 - number) / max(num_policies, 1)
    marker = MARKERS[number % len(MARKERS)]
    return {"color": f"C{number}", "linewidth": width, "alpha": 0.8, "marker": marker, "markersize": width + 3}


def _short(number: float, _: int) -> str:
    """1000000 -> '1 M'."""
    for power, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= power:
            return f"{number / power:g}{letter}"
    return f"{number:g}"


def _has(row: Row, value: Callable[[Row], float]) -> bool:
    """The bound has no times."""
    return row["policy"] != OPTIMUM or value(row) > 0


def _in_bytes(rows: Sequence[Row]) -> bool:
    return any(row["capacity_bytes"] is not None for row in rows)


def _size(row: Row, rows: Sequence[Row]) -> float:
    return float(row["capacity_bytes"] / GIB if _in_bytes(rows) else row["capacity_tokens"])
