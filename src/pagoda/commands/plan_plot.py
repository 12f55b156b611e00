"""A plan as a picture: memory over the context of the users, and users over their context, a line for each format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pagoda.analysis.answer import Plan
from pagoda.analysis.curves import Curve, curves
from pagoda.commands.drawing import pyplot, save

GIB = 1 << 30
# Formats that take the same bytes lie on one another; dashes let those below be seen.
DASHES = ("-", "--", "-.", ":")


def draw(plan: Plan, source: str, file: Path) -> None:
    """Write the picture to `file`, in the format that its ending says."""
    found = curves(plan, source)
    has_memory = plan.budget is not None
    figure, places = pyplot().subplots(1, 1 + has_memory, figsize=(6.4 * (1 + has_memory), 4.8), squeeze=False)
    _draw_memory(places[0][0], plan, found)
    if has_memory:
        _draw_users(places[0][1], plan, found)
    gpus = f"{plan.options.gpus} x " if plan.options.gpus > 1 else ""
    machine = f" on {gpus}{plan.machine.name}" if has_memory else ""
    figure.suptitle(f"{plan.model.name} in {plan.model.dtype}{machine}")
    figure.tight_layout()
    save(figure, file)


def _draw_memory(axes: Any, plan: Plan, found: Sequence[Curve]) -> None:
    users = f"{plan.users:,} user{'s' * (plan.users > 1)}"
    for index, curve in enumerate(found):
        sizes = [nbytes / GIB for nbytes in curve.users_nbytes]
        axes.plot(curve.contexts, sizes, DASHES[index % len(DASHES)], label=f"cache in {curve.name}")
    if plan.model.weight_nbytes is not None:
        weights = plan.model.weight_nbytes / GIB
        axes.axhline(weights, color="black", linewidth=0.9, label=f"weights, {weights:,.3g} GiB")
    if plan.budget is not None:
        room = plan.budget.cache_nbytes * plan.options.gpus / GIB
        axes.axhline(room, color="grey", linestyle=":", label=f"room for the cache, {room:,.3g} GiB")
    axes.set_title(f"what the cache of {users} takes")
    axes.set_ylabel("GiB")
    _finish(axes)


def _draw_users(axes: Any, plan: Plan, found: Sequence[Curve]) -> None:
    for index, curve in enumerate(found):
        points = [(at, count) for at, count in zip(curve.contexts, curve.users, strict=True) if count]
        axes.plot(
            [at for at, _ in points], [count for _, count in points], DASHES[index % len(DASHES)], label=curve.name
        )
    seats = plan.options.max_num_seqs
    axes.axhline(seats, color="grey", linestyle=":", label=f"seats of the engine, {seats:,} (max_num_seqs)")
    axes.set_title("users that fit at once")
    axes.set_ylabel("users")
    _finish(axes)


def _finish(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(_tokens))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_xlabel("context of a user, tokens")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8)


def _tokens(value: float, _: int) -> str:
    return f"{value / 1024:,.10g} Ki" if value >= 1024 else f"{value:,.10g}"
