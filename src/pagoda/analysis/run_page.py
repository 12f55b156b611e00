"""Writes what was recorded of a run as one page of HTML: plots, tables, and verdicts in words.

The page is whole by itself: it asks nobody for anything and has no scripts, and its policy says so. Names are escaped;
there is no text of prompts in what is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from pagoda.analysis import run_plots
from pagoda.analysis.run_record import PageMap, RequestRecord, Rows, RunRecord, ScenarioRecord
from pagoda.analysis.time import OVERHEADS, verdict, verdict_of_all
from pagoda.cache.holdings.allocator import ShownState
from pagoda.units import format_nbytes, format_seconds

STYLE = Path(__file__).parent / "run_page.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
PHASES = ("queue", "prefill", "decode")
NUM_SLOWEST = 3
REQUEST_HEADS = (
    *("request", "prompt", "cached", "computed", "output", "first token"),
    *("queue", "from tiers", "prefill", "decode", "waiting", "in all", "cost: prefill", "cost: decode", "cost: beside"),
)


def run_page(run: RunRecord) -> str:
    """The page."""
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(run.title)}</title>'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
    )
    body = [f"<header><h1>{escape(run.title)}</h1>{_note(run.when)}</header>", _overall(run)]
    body += [_scenario(scenario, run.weight_nbytes) for scenario in run.scenarios]
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _overall(run: RunRecord) -> str:
    times = [request.time for scenario in run.scenarios for request in scenario.requests]
    return _section(
        "All scenarios together",
        _verdict(verdict_of_all(times)),
        _work(run.scenarios),
        '<div class="pair">',
        f"<div><h3>Machine</h3>{_facts(run.machine)}</div>",
        f"<div><h3>Configuration</h3>{_facts(run.configuration)}</div>",
        "</div>",
    )


def _work(scenarios: Iterable[ScenarioRecord]) -> str:
    """What was worked on, by phase: what lies beside the model as one part."""
    times = [request.time for scenario in scenarios for request in scenario.requests]
    model = [(phase, sum(time.work[phase] for time in times)) for phase in ("prefill", "decode")]
    beside = sum(time.work[name] for time in times for name in OVERHEADS)
    told = f"beside the model ({', '.join(OVERHEADS.values())})"
    parts = [*((phase, phase, seconds) for phase, seconds in model), ("beside", told, beside)]
    legend = [(kind, f"{name} {format_seconds(seconds)}") for kind, name, seconds in parts]
    drawn = run_plots.shares("Seconds of work by phase", parts, format_seconds)
    return f"<h3>Work by phase</h3>{_legend(legend)}{_plot(drawn)}"


def _scenario(scenario: ScenarioRecord, weight_nbytes: int) -> str:
    most_x = run_plots.last_second(scenario)
    slowest = sorted(scenario.requests, key=lambda each: -(each.time.ttft_seconds or 0.0))[:NUM_SLOWEST]
    left_out = len(scenario.requests) - run_plots.MOST_ROWS
    note = (
        "One more run than is measured. What a request waited for between its steps is part of prefill and decode here."
    )
    if left_out > 0:
        note += f" The first {run_plots.MOST_ROWS} requests; {left_out} more are in the table."
    return _section(
        f"Scenario: {scenario.name}",
        _verdict(verdict_of_all([request.time for request in scenario.requests])),
        "<h3>Measured</h3>",
        _table(("", "median", "lowest", "highest"), scenario.figures),
        "<h3>Requests over time</h3>",
        _note(note),
        _legend([(phase, phase) for phase in PHASES]),
        _plot(run_plots.timeline(scenario.requests)),
        "<h3>Hit rate</h3>",
        _note(_found(scenario)),
        _plot(run_plots.hit_rate(scenario.samples, most_x)),
        _bytes(scenario, weight_nbytes, most_x),
        *(_map(pages) for pages in scenario.maps),
        "<h3>Slowest first tokens</h3>",
        *(f"{_note(each.name)}{_verdict(verdict(each.time))}" for each in slowest),
        "<h3>Requests</h3>",
        _note(
            "Tokens of the prompt, of them cached and computed, and of the output. From the queue to waiting the times "
            "are by the clock and add up; what it cost is its part of the steps that it shared."
        ),
        _requests(scenario.requests),
        f"<details><summary>Verdicts of all {len(scenario.requests)} requests</summary>",
        *(f"{_note(each.name)}{_verdict(verdict(each.time))}" for each in scenario.requests),
        "</details>",
    )


def _found(scenario: ScenarioRecord) -> str:
    if not scenario.samples:
        return "Nothing was looked up."
    last = scenario.samples[-1]
    return f"{last.hit_tokens:,} of {last.queried_tokens:,} prompt tokens were found in the cache, {last.hit_rate:.1%}."


def _bytes(scenario: ScenarioRecord, weight_nbytes: int, most_x: float) -> str:
    peak = scenario.peak
    if peak is None:
        return ""
    used = [(run_plots.kind_class(index), name) for index, name in enumerate(scenario.kinds)]
    filled = [nbytes - unfilled for nbytes, unfilled in zip(peak.in_use, peak.unfilled, strict=True)]
    parts = [("weights", "weights", weight_nbytes)]
    parts += [(kind, f"{name}, in use", nbytes) for (kind, name), nbytes in zip(used, filled, strict=True)]
    parts += [("unfilled", "waste: room in pages in use that no token fills", sum(peak.unfilled))]
    parts += [("idle", "idle, kept for later hits", sum(peak.idle))]
    rows = [(name, format_nbytes(nbytes)) for _, name, nbytes in parts]
    over_time = [(kind, f"{name}, in use") for kind, name in used] + [("idle", "idle")]
    return "".join(
        (
            "<h3>Bytes by kind</h3>",
            _note(f"When most was in use, after {format_seconds(peak.seconds)}."),
            _legend([(kind, name) for kind, name, _ in parts]),
            _plot(run_plots.shares("Bytes by kind when most was in use", parts, format_nbytes)),
            _table(("kind", "bytes"), rows),
            "<h3>Bytes of pages over time</h3>",
            _legend(over_time),
            _plot(run_plots.bytes_over_time(scenario, most_x)),
        )
    )


def _map(pages: PageMap) -> str:
    counts = [(state, pages.states.count(state)) for state in ShownState]
    legend = [(run_plots.state_class(state), f"{state.name.lower().replace('_', ' ')} {n:,}") for state, n in counts]
    every = "Every page" if pages.stride == 1 else f"One page in {pages.stride:,}"
    note = (
        f"{every}, of {pages.page_tokens:,} tokens and {format_nbytes(pages.page_nbytes)}, when most were in use; "
        f"{pages.num_free_after:,} more behind them are free."
    )
    title = f"<h3>Page map: {escape(pages.kind)}</h3>"
    return f"{title}{_note(note)}{_legend(legend)}{_plot(run_plots.page_map(pages))}"


def _requests(requests: Sequence[RequestRecord]) -> str:
    return _table(REQUEST_HEADS, [_request_row(request) for request in requests])


def _request_row(request: RequestRecord) -> tuple[str, ...]:
    time = request.time
    counts = (time.num_prompt_tokens, time.num_cached_tokens, time.num_computed_tokens, time.num_output_tokens)
    wall = (time.ttft_seconds, *time.wall.values(), time.seconds)
    cost = (time.work["prefill"], time.work["decode"], sum(time.work[name] for name in OVERHEADS))
    return (request.name, *(f"{each:,}" for each in counts), *(format_seconds(each) for each in (*wall, *cost)))


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>'


def _verdict(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="verdict">{items}</ul>' if items else ""


def _legend(items: Sequence[tuple[str, str]]) -> str:
    entries = (f'<li><span class="swatch {kind}"></span>{escape(name)}</li>' for kind, name in items)
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _plot(drawn: str) -> str:
    return f'<div class="scroll">{drawn}</div>'


def _facts(rows: Rows) -> str:
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="facts">{cells}</table>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
