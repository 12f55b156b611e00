"""`pagoda doctor`: what runs on this machine, how fast it can be, and why.

Each check looks at one thing and returns findings; none of them raises for what it finds. Broken things make the exit
status 1; things that work but slowly, or with loss, are warnings.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pagoda import __version__, machine
from pagoda.checkpoint.directory import weights_nbytes
from pagoda.config import Environment
from pagoda.devices import check_gpu, device_name, find_device, room_on
from pagoda.errors import ConfigError, DeviceUnavailableError, KernelUnavailableError, PagodaError
from pagoda.kernels.dispatch import AUTO, BEST, PLAIN, find_backend
from pagoda.units import format_nbytes

if TYPE_CHECKING:
    from pagoda.llm import LLM

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy")
# What they are for, the modules that tell, and what pip is asked for.
EXTRAS = (
    ("server", ("fastapi", "uvicorn"), "server"),
    ("structured outputs", ("llguidance",), "structured"),
    ("pages in a shared store", ("redis", "hiredis", "obstore"), "remote"),
    ("encrypted pages", ("cryptography",), "encryption"),
    ("KV events", ("zmq", "msgspec"), "events"),
    ("plots", ("matplotlib",), "plot"),
    ("GPU kernels", ("triton",), "gpu"),
)
CHECK_TOKENS = 8
CHECKED_FORMATS = ("int8", "fp8_e4m3", "k8v4", "int4")
CHECK_CACHE_NBYTES = 32 << 20


class Status(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    SLOW = "slow"  # works, but better is possible
    LOSSY = "lossy"  # works, but answers would be worse
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    section: str
    name: str
    value: str
    status: Status = Status.OK


def run(arguments: Namespace) -> int:
    findings = list(diagnose(Environment.read(), arguments.model, arguments.measure))
    if arguments.json:
        sys.stdout.write(json.dumps(as_json(findings), indent=2) + "\n")
    else:
        _print(findings)
    return int(any(finding.status is Status.BROKEN for finding in findings))


def diagnose(environment: Environment, model: Path | None = None, measures: bool = False) -> Iterator[Finding]:
    """Every finding, the quick ones first, with the embedded model or another; some take a while to measure."""
    yield from _versions()
    yield from _machine()
    yield from _gpu()
    yield from _kernels(environment)
    yield from _extras()
    yield from _measured(environment) if measures else _bandwidth()
    yield from _model(environment, model, measures)


def as_json(findings: list[Finding]) -> dict[str, object]:
    return {
        "ok": all(finding.status is not Status.BROKEN for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "pagoda", __version__)
    yield Finding("versions", "python", platform.python_version())
    for package in PACKAGES:
        try:
            yield Finding("versions", package, version(package))
        except PackageNotFoundError:
            yield Finding("versions", package, "not installed", Status.BROKEN)


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "processor", machine.cpu_name() or platform.machine())
    yield Finding("machine", "instruction sets", " ".join(machine.cpu_features()) or "unknown")
    yield Finding("machine", "cores", str(machine.num_cores()))
    total, available = machine.memory_nbytes(), machine.available_memory_nbytes()
    if total is not None and available is not None:
        yield Finding("machine", "memory", f"{format_nbytes(total)}, {format_nbytes(available)} available")
    setting = machine.huge_pages()
    if setting == "never":
        yield Finding("machine", "huge pages", "never: page pools use small pages; set madvise or always", Status.SLOW)
    else:
        yield Finding("machine", "huge pages", setting or "unknown")


def _gpu() -> Iterator[Finding]:
    """The GPU that models run on where it is asked for, or why there is none."""
    try:
        check_gpu()
    except DeviceUnavailableError as error:
        yield Finding("machine", "GPU", f"none that can be used: {error}")
        return
    device = find_device("cuda")
    yield Finding(
        "machine",
        "GPU",
        f"{device_name(device)}, {format_nbytes(max(room_on(device, 1.0), 0))} free; choose it with --device cuda",
    )


def _extras() -> Iterator[Finding]:
    """What needs packages that are installed when they are asked for."""
    for use, modules, extra in EXTRAS:
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            found = "not installed" if len(missing) == len(modules) else f"{' and '.join(missing)} not installed"
            yield Finding("extras", use, f"{found}; get it with: pip install 'pagoda-kv[{extra}]'")
        else:
            yield Finding("extras", use, "installed")


def _kernels(environment: Environment) -> Iterator[Finding]:
    """Which kernels run and why; with none that can run, why not."""
    try:
        backend = find_backend(environment)
    except ConfigError as error:
        yield Finding("kernels", "in use", str(error).rstrip("."), Status.BROKEN)
        return
    except KernelUnavailableError as error:
        yield from _unavailable("none", Status.BROKEN, error)
        yield from _compiler(environment)
        return
    if backend.missing is not None:
        yield from _unavailable(backend.kernels.name, Status.SLOW, backend.missing)
        yield from _compiler(environment)
        return
    yield Finding("kernels", "in use", backend.kernels.name, Status.SLOW if environment.kernels == PLAIN else Status.OK)
    yield Finding("kernels", "why", _reason(environment))
    if environment.kernels in (AUTO, BEST):
        yield Finding("kernels", "available", " ".join(_instruction_sets()))


def _unavailable(name: str, status: Status, error: KernelUnavailableError) -> Iterator[Finding]:
    yield Finding("kernels", "in use", name, status)
    yield Finding("kernels", "why", str(error))


def _compiler(environment: Environment) -> Iterator[Finding]:
    """What the native kernels would be built with."""
    if environment.kernels in (AUTO, BEST):
        yield Finding("kernels", "compiler", shutil.which("g++") or shutil.which("c++") or "none found; install g++")


def _reason(environment: Environment) -> str:
    if environment.kernels not in (AUTO, BEST):
        return f"forced by PAGODA_KERNELS={environment.kernels}"
    if environment.kernel_isa is not None:
        return f"forced by PAGODA_KERNEL_ISA={environment.kernel_isa}"
    return "the best instruction set that this processor and system offer"


def _instruction_sets() -> tuple[str, ...]:
    from pagoda.kernels.native_calls import instruction_sets

    return instruction_sets()


def _bandwidth() -> Iterator[Finding]:
    """The machine's limit for decoding: every token reads all weights and all keys and values once."""
    from pagoda.kernels.native_calls import read_bandwidth

    try:
        yield Finding("machine", "memory read", f"{read_bandwidth():.1f} GB/s with {_num_threads()} threads")
    except KernelUnavailableError:
        yield Finding("machine", "memory read", "not measured without native kernels")


def _measured(environment: Environment) -> Iterator[Finding]:
    """The limits of the machine, and what kernels reach of them."""
    from pagoda.commands.measuring import machine_rates
    from pagoda.kernels.native import NativeKernels

    if environment.kernels not in (AUTO, BEST):
        yield from _bandwidth()
        return
    try:
        kernels = NativeKernels(environment.kernel_isa)
    except KernelUnavailableError:
        yield Finding("measured", "kernels", "not measured without native kernels", Status.SLOW)
        return
    for rate in machine_rates(kernels):
        yield Finding("measured", rate.name, str(rate))


def _num_threads() -> int:
    import torch

    return torch.get_num_threads()


def _model(environment: Environment, path: Path | None, measures: bool) -> Iterator[Finding]:
    """Load a model and let it write a little: the whole path of a request in one check."""
    from pagoda.llm import EMBEDDED_MODEL, LLM
    from pagoda.sampling_params import SamplingParams

    name, folder = ("embedded", EMBEDDED_MODEL) if path is None else ("checkpoint", path)
    if path is None and not (folder / "config.json").is_file():
        yield Finding("model", "embedded", "missing from this installation; reinstall pagoda-kv", Status.BROKEN)
        return
    try:
        nbytes = weights_nbytes(folder)
    except PagodaError as error:
        yield Finding("model", name, str(error), Status.BROKEN)
        return
    yield Finding("model", name, f"{format_nbytes(nbytes)} of weights")
    try:
        with LLM(folder, environment=environment, kv_cache_memory_bytes=CHECK_CACHE_NBYTES) as llm:
            if llm.engine.model.encoder is None:
                params = SamplingParams(temperature=0, max_tokens=CHECK_TOKENS, ignore_eos=True)
                num_tokens = len(llm.generate([[1, 2, 3]], params)[0].outputs[0].token_ids)
                llm.check_integrity()
                yield Finding("model", "check", f"wrote {num_tokens} tokens; the cache is consistent")
                if measures:
                    from pagoda.commands.measuring import model_rate

                    rate = model_rate(llm)
                    if rate is not None:
                        yield Finding("model", rate.name, str(rate))
            yield from _formats(llm, environment)
    except PagodaError as error:
        yield Finding("model", "check", str(error), Status.BROKEN)


def _formats(llm: LLM, environment: Environment) -> Iterator[Finding]:
    """What formats of pages should cost this model."""
    from pagoda.engine.fit_store import FitStore
    from pagoda.engine.format_fit import MOST_LOSS, Trial, calibration_text

    engine = llm.engine
    for geometry in engine.memory.geometries[:1]:
        yield Finding("model", "format of pages", geometry.format_name)
    for notice in engine.kernel_choice.notices:
        yield Finding("kernels", "attention", notice, Status.SLOW)
    text = calibration_text("auto", llm.tokenizer, engine.model.vocab_size)
    store = FitStore(environment.cache_folder)
    trial = Trial.of(engine.model, engine.kernels, text.token_ids, store) if text.is_read else None
    losses = {} if trial is None else {name: trial.loss_in(name) for name in CHECKED_FORMATS}
    for name, loss in losses.items():
        if loss is not None:
            status = Status.OK if loss <= MOST_LOSS else Status.LOSSY
            yield Finding("model", f"pages in {name}", f"should cost {loss:.1%} of perplexity", status)


def _print(findings: list[Finding]) -> None:
    colours = {Status.OK: "green", Status.SLOW: "yellow", Status.LOSSY: "yellow", Status.BROKEN: "red"}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    section = ""
    for finding in sorted(findings, key=lambda finding: [f.section for f in findings].index(finding.section)):
        heading = finding.section if finding.section != section else ""
        section = finding.section
        status = f"[{colours[finding.status]}]{finding.status}[/]"
        table.add_row(f"[bold]{heading}[/]", finding.name, escape(finding.value), status)
    Console().print(table)
