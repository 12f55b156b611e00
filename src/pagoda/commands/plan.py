"""`pagoda plan`: how many users fit, how long their contexts may be, and how fast a step can be.

Asks `pagoda.analysis.plan`; tables are made in `plan_tables.py`, the picture in `plan_plot.py`.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pagoda.analysis.catalog import shapes
from pagoda.analysis.formulas import Formula, formulas
from pagoda.analysis.options import PlanOptions
from pagoda.analysis.plan import make_plan
from pagoda.commands.plan_tables import compact_count, tables
from pagoda.errors import ConfigError


def run(arguments: Namespace) -> int:
    if arguments.list:
        return _list()
    if arguments.model is None:
        raise ConfigError(
            "Say which model: a folder, a GGUF file, a config.json, or a name that `pagoda plan --list` shows."
        )
    if arguments.plot is not None:
        _check_target(arguments.plot, arguments.force)
    given = {each.name: getattr(arguments, each.name) for each in fields(PlanOptions)}
    options = PlanOptions(**{name: value for name, value in given.items() if value is not None})
    plan = make_plan(arguments.model, options)
    if arguments.json:
        told = plan.as_json()
        if arguments.explain:
            told["formulas"] = [vars(each) for each in formulas(plan)]
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        console = Console(highlight=False)
        for table in tables(plan):
            console.print(table)
        if arguments.explain:
            console.print(*explained(formulas(plan)), sep="\n", markup=False, soft_wrap=False)
    if arguments.plot is not None:
        from pagoda.commands.plan_plot import draw

        draw(plan, arguments.model, arguments.plot)
    return 0


def explained(found: Sequence[Formula]) -> list[str]:
    """A line for what is computed, and one below it for how."""
    lines = ["", "How these figures come about"]
    for each in found:
        value = f"{each.value:,.0f}" if float(each.value).is_integer() else f"{each.value:,.6g}"
        lines += [f"{each.name}: {value} {each.unit}", f"    = {each.expression}"]
    return lines


def _list() -> int:
    table = Table(title="configurations that come with Pagoda", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, justify in (("name", "left"), ("weights", "right"), ("published at", "left")):
        table.add_column(name, justify=justify, no_wrap=name != "published at")  # type: ignore[arg-type]
    for shape in shapes():
        table.add_row(shape.name, compact_count(shape.parameters), shape.source)
    Console(highlight=False).print(table)
    return 0


def _check_target(file: Path, force: bool) -> None:
    """Before anything is computed."""
    if file.exists() and not force:
        raise ConfigError(f"{file} exists; choose another name, or write over it with --force.")
    if not file.parent.is_dir():
        raise ConfigError(f"There is no folder {file.parent} for {file.name}; make it first.")
