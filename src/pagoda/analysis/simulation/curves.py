"""Draws a simulation: what is found over how large the cache is, and how long requests take, a line for each policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pagoda.analysis.simulation.report import Row
from pagoda.errors import ConfigError

GIB = 1 << 30
PANEL_INCHES = 5.2


def pyplot() -> Any:
    """Raises ConfigError where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'pagoda-kv[plot]'.") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def draw(rows: Sequence[Row], title: str, file: Path) -> None:
    """Draw the rows of all runs into `file`. Raises ConfigError if it cannot be written."""
    plt = pyplot()
    panels = _panels(rows)
    size = (PANEL_INCHES * len(panels) + 1.2, 5.0)
    figure, all_axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axes, (label, value, is_bounded) in zip(all_axes[0], panels, strict=True):
        _draw_panel(axes, rows, value)
        axes.set_xlabel(_capacity_label(rows))
        axes.set_ylabel(label)
        axes.grid(visible=True, alpha=0.3)
        axes.set_ylim(bottom=0)
        if is_bounded:
            axes.set_ylim(0, min(100, axes.get_ylim()[1] * 1.05))
    handles, labels = all_axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.suptitle(title)
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be written: {error}; name a .png, .svg or .pdf.") from error
    finally:
        plt.close(figure)


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
    policies = dict.fromkeys(row["policy"] for row in rows)
    for number, policy in enumerate(policies):
        mine = [row for row in rows if row["policy"] == policy and _has(row, value)]
        points = sorted((_size(row, rows), value(row)) for row in mine if row["capacity_pages"] is not None)
        style = {"linestyle": "--", "color": "black"} if policy == "belady" else {"color": f"C{number}"}
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=policy, **style)
        for row in mine:
            if row["capacity_pages"] is None:
                label = {} if points else {"label": policy}
                axes.axhline(value(row), linewidth=1, linestyle=":", color=style["color"], **label)
                axes.annotate("unlimited", (1, value(row)), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    if any(row["capacity_pages"] is not None for row in rows):
        axes.set_xscale("log")


def _has(row: Row, value: Callable[[Row], float]) -> bool:
    """The bound has no times."""
    return row["policy"] != "belady" or value(row) > 0


def _in_bytes(rows: Sequence[Row]) -> bool:
    return any(row["capacity_bytes"] is not None for row in rows)


def _size(row: Row, rows: Sequence[Row]) -> float:
    return float(row["capacity_bytes"] / GIB if _in_bytes(rows) else row["capacity_tokens"])


def _capacity_label(rows: Sequence[Row]) -> str:
    return f"capacity of a replica ({'GiB' if _in_bytes(rows) else 'tokens'})"
