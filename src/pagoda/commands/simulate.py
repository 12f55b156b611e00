"""`pagoda simulate`: what a cache would find in a trace, by policy and size, and how long its requests would take."""

from __future__ import annotations

import csv
import json
import logging
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import StringIO
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pagoda.analysis.simulation.capacity import USUAL, Capacities
from pagoda.analysis.simulation.pages import ModelPages
from pagoda.analysis.simulation.rates import Rates, measured_rates
from pagoda.analysis.simulation.report import Row, document
from pagoda.analysis.simulation.settings import Settings, policies
from pagoda.analysis.simulation.sweep import Run, Sweep, sweep
from pagoda.analysis.simulation.tiers import TierOptions
from pagoda.analysis.simulation.timed import Timing
from pagoda.analysis.source import describe
from pagoda.analysis.traces.reading import ReadOptions, read_trace
from pagoda.analysis.traces.trace import Kind, Trace
from pagoda.analysis.traces.workload import Workload, prepare
from pagoda.cache.residency.admission import WritePolicy
from pagoda.commands.drawing import check_kind
from pagoda.commands.simulate_plot import draw
from pagoda.commands.simulate_table import tables
from pagoda.config import EngineConfig
from pagoda.errors import ConfigError
from pagoda.server.ground.options import ServerOptions
from pagoda.server.ground.tenants import Tenants

USUAL_PAGE_TOKENS = EngineConfig.block_size
MOST_SHOWN = 5  # lines that were skipped
NARROW = 80  # characters, where nobody knows how wide the screen is
STANDARD_OUTPUT = Path("-")


def run(arguments: Namespace) -> int:
    console = Console(stderr=True)
    logging.getLogger("pagoda.planning").setLevel(logging.ERROR)  # how long a sequence may be is not asked here
    _check_files(arguments)
    timing, model = _timing(arguments), _model(arguments)
    trace = _read(arguments, console)
    _report_faults(trace)
    _report_times(arguments, trace, timing)
    workload = _prepare(arguments, trace, model)
    _check_times(arguments, trace)
    num_running = arguments.max_num_seqs if timing else None
    capacities = Capacities(workload, model, num_running, arguments.replicas)
    settings = _settings(arguments, capacities)
    wanted = [capacities.read(text) for text in _listed(arguments.capacity or USUAL)]
    runs = [Run(policy, capacity) for policy in _policies(arguments) for capacity in wanted]
    with _progress(console, len(runs) * len(workload.requests), "simulating") as tell:
        outcomes = sweep(Sweep(workload, settings, timing), runs, tell, arguments.processes)
    found = document(trace, workload, settings, capacities.num_filled, outcomes)
    _write(arguments, found)
    return 0


def _check_files(arguments: Namespace) -> None:
    """What would only fail after all the work, or destroy what is read."""
    if arguments.plot is not None:
        check_kind(arguments.plot)
    if arguments.csv == STANDARD_OUTPUT and arguments.json:
        raise ConfigError("--csv - and --json both go to standard output; name a file for one of them.")
    written = [file for file in (arguments.plot, arguments.csv) if file not in (None, STANDARD_OUTPUT)]
    for file in written:
        if not file.parent.is_dir():
            raise ConfigError(f"There is no directory {file.parent}; make it, or name another file.")
        if any(_is_same(file, read) for read in (arguments.trace, arguments.rates, arguments.tenants, arguments.model)):
            raise ConfigError(f"{file} is read by this command; name another file to write.")
        if file.exists() and not arguments.force:
            raise ConfigError(f"{file} exists; name another file, or say --force to write over it.")
    if len(written) > 1 and written[0].resolve() == written[1].resolve():
        raise ConfigError(f"--plot and --csv both write {written[0]}; name another file for one of them.")


def _is_same(file: Path, other: Path | str | None) -> bool:
    return other is not None and file.exists() and Path(other).exists() and file.samefile(other)


def _timing(arguments: Namespace) -> Timing | None:
    """The time model, if rates are given."""
    rates = _rates(arguments)
    if rates is None:
        for name in ("speed", "request_rate", "kv_host_rate", "kv_disk_rate"):
            if getattr(arguments, name) is not None:
                option = name.replace("_", "-")
                raise ConfigError(
                    f"--{option} is for the time model; give --prefill-rate and --decode-rate, or --rates."
                )
        return None
    speed = 1.0 if arguments.speed is None else arguments.speed
    for name, value in (("speed", speed), ("request-rate", arguments.request_rate)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name} is {value}; it must be positive.")
    return Timing(rates=rates, speed=speed, requests_per_second=arguments.request_rate)


def _rates(arguments: Namespace) -> Rates | None:
    prefill, decode = arguments.prefill_rate, arguments.decode_rate
    if arguments.rates is not None:
        if prefill is not None or decode is not None:
            raise ConfigError("--rates has all rates; leave out --prefill-rate and --decode-rate.")
        return measured_rates(arguments.rates)
    if (prefill is None) != (decode is None):
        raise ConfigError("The time model needs both --prefill-rate and --decode-rate.")
    return None if prefill is None else Rates(prefill, decode)


def _model(arguments: Namespace) -> ModelPages | None:
    """Whose pages they are, if that is asked."""
    if arguments.model is None:
        if arguments.kv_cache_dtype is not None:
            raise ConfigError("--kv-cache-dtype is of the pages of a model; give --model.")
        return None
    block_size = arguments.block_size or USUAL_PAGE_TOKENS
    config = EngineConfig(kv_cache_dtype=arguments.kv_cache_dtype or "auto", block_size=block_size)
    return ModelPages(describe(arguments.model).facts, config)


def _read(arguments: Namespace, console: Console) -> Trace:
    from pagoda.commands.trace_texts import TraceTokens

    with ExitStack() as stack, _progress(console, None, "reading lines") as tell:
        told = [0]

        def tell_lines(line: int) -> None:
            tell(line - told[0])
            told[0] = line

        def tokens() -> TraceTokens:
            made = TraceTokens(arguments.tokenizer)
            stack.callback(made.close)
            return made

        options = ReadOptions(
            tokens=tokens,
            block_tokens=arguments.trace_block,
            time_unit=arguments.time_unit,
            strict=arguments.strict,
            most_requests=arguments.requests,
            tell=tell_lines,
        )
        return read_trace(arguments.trace, options)


def _report_faults(trace: Trace) -> None:
    if not trace.faults:
        return
    number = len(trace.faults)
    sys.stderr.write(f"warning: {number} line{'s are' * (number > 1) or ' is'} no request and left out:\n")
    sys.stderr.writelines(f"  {fault}\n" for fault in trace.faults[:MOST_SHOWN])
    if number > MOST_SHOWN:
        sys.stderr.write(f"  and {number - MOST_SHOWN} more\n")


def _report_times(arguments: Namespace, trace: Trace, timing: Timing | None) -> None:
    number = trace.num_without_time
    if timing is None or arguments.request_rate is not None or not number:
        return
    if number == len(trace.requests):
        sys.stderr.write("warning: the trace does not say when requests came: all are there at once\n")
    else:
        sys.stderr.write(f"warning: {number} of {len(trace.requests)} requests do not say when they came: each comes ")
        sys.stderr.write("with the one before it\n")


def _prepare(arguments: Namespace, trace: Trace, model: ModelPages | None) -> Workload:
    """Pages as the trace has them, unless another size is asked for or a model has its own."""
    own = trace.unit_tokens if trace.kind in (Kind.BLOCKS, Kind.PAGES) and model is None else USUAL_PAGE_TOKENS
    # Of pages that move on with a window it matters which tokens they have.
    unit = None if model is None or model.is_plain else 1
    return prepare(trace, arguments.block_size or own, unit)


def _settings(arguments: Namespace, capacities: Capacities) -> Settings:
    tenants = {} if arguments.tenants is None else Tenants(ServerOptions(tenants=arguments.tenants)).shares
    return Settings(
        ttl_seconds=arguments.ttl,
        tenants=tenants,
        num_replicas=arguments.replicas,
        routing=arguments.routing,
        step_tokens=arguments.max_num_batched_tokens,
        max_num_seqs=arguments.max_num_seqs,
        tiers=_tiers(arguments, capacities),
    )


def _tiers(arguments: Namespace, capacities: Capacities) -> TierOptions:
    host, disk = arguments.kv_host_bytes, arguments.kv_disk_bytes
    host_rate, disk_rate = arguments.kv_host_rate, arguments.kv_disk_rate
    return TierOptions(
        host_size=None if host is None else capacities.size_of_tier(host),
        disk_size=None if disk is None else capacities.size_of_tier(disk),
        host_rate=None if host_rate is None else capacities.rate_of_tier(host_rate),
        disk_rate=None if disk_rate is None else capacities.rate_of_tier(disk_rate),
        write=WritePolicy(arguments.kv_write),
    )


def _policies(arguments: Namespace) -> Sequence[str]:
    wanted = _listed(arguments.policy or ["lru"])
    return list(dict.fromkeys(name for each in wanted for name in (policies() if each == "all" else (each,))))


def _listed(values: Sequence[str]) -> list[str]:
    """What was given in several words, or in one with commas."""
    return [part for value in values for part in value.split(",") if part]


def _check_times(arguments: Namespace, trace: Trace) -> None:
    if arguments.ttl is not None and not trace.has_times and arguments.request_rate is None:
        raise ConfigError("--ttl needs to know when requests came, and this trace does not say; leave it out.")


@contextmanager
def _progress(console: Console, total: int | None, what: str) -> Iterator[Tell]:
    """A bar on standard error, if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda num_more: progress.advance(task, num_more)


class Tell(Protocol):
    """Is told of progress."""

    def __call__(self, num_more: int, /) -> None: ...


def _write(arguments: Namespace, found: Row) -> None:
    rows = found["runs"]
    if arguments.plot is not None:
        draw(rows, _title(arguments, found), arguments.plot)
    if arguments.csv == STANDARD_OUTPUT:
        sys.stdout.write(_csv(rows))
        return
    if arguments.csv is not None:
        _write_text(arguments.csv, _csv(rows))
    if arguments.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    _show(arguments, found)


def _show(arguments: Namespace, found: Row) -> None:
    """Tables with what to know of them, for people."""
    width = Console().width if sys.stdout.isatty() else NARROW
    lines = filter(None, (_title(arguments, found), _served(found), found["note"]))
    sys.stdout.write("\n".join(lines) + "\n" + "\n\n".join(tables(found["runs"], width)) + "\n")


def _served(found: Row) -> str | None:
    """What stands beside the figures of a request log."""
    prompt_tokens, hit_tokens = found["trace"]["server_prompt_tokens"], found["trace"]["server_hit_tokens"]
    if prompt_tokens is None:
        return None
    share = hit_tokens / prompt_tokens
    return f"the server itself found {hit_tokens:,} of {prompt_tokens:,} prompt tokens ({share:.2%})"


def _title(arguments: Namespace, found: Row) -> str:
    trace = found["trace"]
    return (
        f"{arguments.trace.name}: {trace['requests']:,} requests, {trace['prompt_tokens']:,} prompt tokens, "
        f"{found['working_set_pages']:,} different pages of {found['page_tokens']} tokens"
    )


def _write_text(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror or error}.") from error


def _csv(rows: Sequence[Row]) -> str:
    text = StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row if name != "requests_by_replica"))
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
