"""`pagoda bench`: how fast this machine runs a model, and what the cache saves.

Runs the scenarios of `scenarios.py` several times with fresh prompts and prints medians and ranges. Numbers depend on
what else the machine is doing; compare two of them only if they were taken one after the other.
"""

from __future__ import annotations

import gc
import json
from argparse import Namespace
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pagoda import machine
from pagoda.commands.bench_report import Found, check_target, engine_facts, write_report
from pagoda.commands.options import engine_options
from pagoda.commands.recording import RecordedLLM, record
from pagoda.commands.scenarios import SCENARIOS, Measurement, Workload
from pagoda.commands.shapes import shape_config
from pagoda.devices import find_device
from pagoda.errors import ConfigError
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.loader import load_model, model_from_config
from pagoda.models.model import Model


def run(arguments: Namespace) -> int:
    workload = Workload(arguments.prompt_tokens, arguments.output_tokens, arguments.batch, arguments.repeats)
    if arguments.report is not None:
        check_target(arguments.report, arguments.force)
    model = _load(arguments)
    console = Console()
    found = Found()
    try:
        for name in arguments.scenario or SCENARIOS:
            before = len(found.measurements)
            for is_caching in SCENARIOS[name].prefix_caching:
                _measure(model, arguments, name, workload, found, is_caching)
                gc.collect()  # the pages of this engine, before those of the next are made
            console.print(_table(name, found.measurements[before:]))
    finally:  # what was measured before something failed is told as well
        if found.measurements:
            _tell(arguments, _setting(arguments, model, workload), found, console)
    return 0


def _tell(arguments: Namespace, setting: dict[str, Any], found: Found, console: Console) -> None:
    if arguments.json is not None:
        _write(arguments.json, setting, found.measurements)
    if arguments.report is not None and found.scenarios:
        write_report(arguments.report, setting, found)
        console.print(f"The report is {arguments.report}.")


def _load(arguments: Namespace) -> Model:
    model = _model(arguments)
    if model.encoder is not None:
        raise ConfigError("The scenarios are for decoders; benchmarks/encoders.py measures models with an encoder.")
    return model


def _model(arguments: Namespace) -> Model:
    device = find_device(arguments.device)
    if arguments.random_weights is None:
        path, quantization = arguments.model or EMBEDDED_MODEL, arguments.quantization
        return load_model(path, dtype=arguments.dtype, quantization=quantization, device=device)
    if arguments.model is not None:
        raise ConfigError("--model and --random-weights name two models; give one of them.")
    dtype = "bfloat16" if arguments.dtype == "auto" else arguments.dtype
    config = shape_config(arguments.random_weights)
    return model_from_config(config, dtype=dtype, quantization=arguments.quantization, device=device)


def _measure(model: Model, arguments: Namespace, name: str, workload: Workload, found: Found, is_caching: bool) -> None:
    """Run one scenario with or without prefix caching; record it if that is to be told."""
    scenario = SCENARIOS[name]
    options = engine_options(arguments) | {"enable_prefix_caching": is_caching}
    with RecordedLLM(model, skip_tokenizer_init=True, **options) as llm:
        suffix = "" if len(scenario.prefix_caching) == 1 else f", prefix caching {'on' if is_caching else 'off'}"
        measurements = scenario.measure(llm, workload, name, suffix)
        found.measurements += measurements
        if arguments.report is not None:
            found.engine = engine_facts(llm)
            run = partial(scenario.once, llm, workload)
            found.scenarios.append(record(llm, name + suffix, run, measurements))


def _table(name: str, measurements: list[Measurement]) -> Table:
    table = Table(title=name, title_justify="left", box=None, padding=(0, 3, 0, 0))
    table.add_column("")
    for heading in ("median", "lowest", "highest"):
        table.add_column(heading, justify="right")
    for found in measurements:
        table.add_row(*found.summary)
    return table


def _setting(arguments: Namespace, model: Model, workload: Workload) -> dict[str, Any]:
    return {
        "model": str(arguments.random_weights or arguments.model or "embedded"),
        "parameters": model.num_parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "processor": machine.cpu_name(),
        "cores": machine.num_cores(),
        "workload": asdict(workload),
    }


def _write(file: Path, setting: dict[str, Any], measurements: list[Measurement]) -> None:
    text = json.dumps(setting | {"measurements": [asdict(found) for found in measurements]}, indent=2)
    try:
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error}") from error
