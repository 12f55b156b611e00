"""`pagoda bench --report FILE`: what was measured and recorded, on which machine and with what, as one page.

Names the model by its folder, not by where that lies.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from pagoda import __version__, machine
from pagoda.analysis.run_page import run_page
from pagoda.analysis.run_record import RunRecord, ScenarioRecord
from pagoda.commands.scenarios import Measurement
from pagoda.errors import ConfigError
from pagoda.llm import LLM
from pagoda.units import NOT_MEASURED, format_nbytes


@dataclass(frozen=True)
class EngineFacts:
    """What an engine has, beside the model."""

    kernels: str
    weight_nbytes: int
    budget_nbytes: int
    pages: tuple[tuple[str, str], ...]
    max_model_len: int


@dataclass
class Found:
    """What a run has found so far; scenarios are recorded for a report only."""

    measurements: list[Measurement] = field(default_factory=list)
    scenarios: list[ScenarioRecord] = field(default_factory=list)
    engine: EngineFacts | None = None


def check_target(file: Path, force: bool) -> None:
    """Raise ConfigError, before anything is measured, if the report could not be written there."""
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; name a file in it for the report.")
    if file.exists() and not force:
        raise ConfigError(f"{file} exists; give --force to write over it, or name another file.")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"There is no folder {file.parent}; make it, or name a file elsewhere.")
    try:
        with TemporaryFile(dir=file.absolute().parent):
            pass
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error}); name a file elsewhere.") from error


def engine_facts(llm: LLM) -> EngineFacts:
    engine = llm.engine
    memory = engine.memory
    pages = [
        (f"pages, {each.group.name}", f"{number:,} of {each.page_tokens} tokens, {each.format_name}")
        for each, number in memory.pools
    ]
    if memory.states is not None:
        size = format_nbytes(memory.states.geometry.page_nbytes)
        pages.append(("recurrent states", f"{memory.states.num_slots:,} of {size}"))
    return EngineFacts(
        engine.kernels.name, engine.model.weight_nbytes, memory.nbytes, tuple(pages), engine.max_model_len
    )


def write_report(file: Path, setting: Mapping[str, Any], found: Found) -> None:
    """Raises ConfigError if it cannot be written."""
    try:
        file.write_text(run_page(_run(setting, found)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error}") from error


def _run(setting: Mapping[str, Any], found: Found) -> RunRecord:
    engine = found.engine
    assert engine is not None, "a scenario was recorded"
    workload = setting["workload"]
    model = Path(setting["model"]).name
    memory = machine.memory_nbytes()
    return RunRecord(
        title=f"Pagoda bench: {model}",
        when=time.strftime("%Y-%m-%d %H:%M %Z"),
        machine=[
            ("processor", str(setting["processor"] or NOT_MEASURED)),
            ("cores", f"{setting['cores']:,}"),
            ("memory", NOT_MEASURED if memory is None else format_nbytes(memory)),
            ("kernels", engine.kernels),
            ("Pagoda", __version__),
        ],
        configuration=[
            ("model", model),
            ("parameters", f"{setting['parameters']:,} ({setting['dtype']}, {format_nbytes(engine.weight_nbytes)})"),
            ("memory of the cache", format_nbytes(engine.budget_nbytes)),
            *engine.pages,
            ("longest sequence", f"{engine.max_model_len:,} tokens"),
            *((name.replace("_", " "), f"{value:,}") for name, value in workload.items()),
        ],
        weight_nbytes=engine.weight_nbytes,
        scenarios=found.scenarios,
    )
