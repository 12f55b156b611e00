"""Which order of eviction finds most: every policy on four workloads, as the tables of docs/simulation.md.

    python benchmarks/policies.py --shared ../shared/data --plots docs/images

The conversations of a real service (Mooncake), an agent of one system prompt whose users take turns (tau-bench),
lengths without anything in common (Azure) as a control, and popular prompts between documents that are read once.
"""

from __future__ import annotations

import json
import random
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from pagoda.analysis.simulation.capacity import Capacities
from pagoda.analysis.simulation.report import row
from pagoda.analysis.simulation.settings import Settings, policies
from pagoda.analysis.simulation.sweep import Outcome, Run, Sweep, sweep
from pagoda.analysis.traces.reading import ReadOptions, read_trace
from pagoda.analysis.traces.workload import Workload, prepare
from pagoda.commands.simulate_plot import draw
from pagoda.commands.trace_texts import TraceTokens

CAPACITIES = ("1%", "2%", "5%", "10%", "20%", "35%", "50%", "inf")
BLOCK = 512
SESSIONS_AT_ONCE = 12
TURN = re.compile(r"^(user|assistant|tool): ", re.MULTILINE)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="the folder with traces/ and eval/")
    parser.add_argument("--plots", type=Path, help="a folder for curves")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        for name, file, page_tokens in workloads(arguments.shared, Path(folder)):
            workload = read(file, page_tokens)
            outcomes = run(workload)
            print(f"\n### {name}\n\n{table(outcomes, workload)}")
            if arguments.plots is not None:
                rows = [row(outcome, workload) for outcome in outcomes]
                draw(rows, name, arguments.plots / f"policies-{name.split()[0].lower()}.png")


def workloads(shared: Path, folder: Path) -> Iterator[tuple[str, Path, int]]:
    """Names, traces and sizes of pages."""
    traces, evaluations = shared / "traces", shared / "eval"
    yield "Conversations of a service (Mooncake)", traces / "mooncake_conversation_trace.jsonl.gz", BLOCK
    yield "Agent of one system prompt (tau-bench)", written(folder, "agent", agent_rows(evaluations)), 32
    yield "Scans between popular prompts (synthetic)", written(folder, "scans", scan_rows()), BLOCK
    yield "Lengths with nothing in common (Azure)", traces / "AzureLLMInferenceTrace_2023_conv.csv.gz", BLOCK


def agent_rows(evaluations: Path) -> Iterator[dict]:
    """Conversations behind one set of rules, some at a time, whose users take as long as they take."""
    rules = (evaluations / "tau_bench_retail_wiki.md").read_text(encoding="utf-8")
    lines = (evaluations / "tau_bench_MockRetailDomainEnv-few_shot.jsonl").read_text(encoding="utf-8").splitlines()
    waiting = [turns(json.loads(line)["messages_display"]) for line in lines]
    draw, running = random.Random(0), []
    while waiting or running:
        while waiting and len(running) < SESSIONS_AT_ONCE:
            running.append(([{"role": "system", "content": rules}], waiting.pop(0)))
        said, left = draw.choice(running)
        while left and left[0]["role"] != "assistant":
            said.append(left.pop(0))
        if left:
            answer = left.pop(0)
            yield {"messages": [*said], "answer": answer["content"]}
            said.append(answer)
        if not left:
            running.remove((said, left))


def turns(text: str) -> list[dict]:
    """The messages of "user: ...", "assistant: ...", "tool: ..."; what a tool says is told by the user."""
    parts = TURN.split(text)[1:]
    roles = {"user": "user", "assistant": "assistant", "tool": "user"}
    messages: list[dict] = []
    for name, content in zip(parts[::2], parts[1::2], strict=True):
        if messages and messages[-1]["role"] == roles[name]:
            messages[-1]["content"] += content
        else:
            messages.append({"role": roles[name], "content": content})
    return messages


def scan_rows(num_requests: int = 8000) -> Iterator[dict]:
    """Questions behind popular prompts, the n-th of which is asked for 1/n as often, and long documents read once."""
    draw, fresh = random.Random(0), iter(range(10**9)).__next__
    popular = [[fresh() for _ in range(draw.randrange(4, 13))] for _ in range(300)]
    weights = [1 / (number + 1) for number in range(len(popular))]
    for _ in range(num_requests):
        is_scan = draw.random() < 0.3
        blocks = [fresh() for _ in range(40)] if is_scan else [*draw.choices(popular, weights)[0], fresh()]
        yield {"input_length": BLOCK * len(blocks), "output_length": 100, "hash_ids": blocks}


def written(folder: Path, name: str, rows: Iterator[dict]) -> Path:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(file: Path, page_tokens: int) -> Workload:
    with closing(TraceTokens(None)) as tokens:
        trace = read_trace(file, ReadOptions(tokens=lambda: tokens))
    assert not trace.faults, trace.faults[0]
    return prepare(trace, page_tokens)


def run(workload: Workload) -> list[Outcome]:
    read_capacity = Capacities(workload, None).read
    runs = [Run(policy, read_capacity(text)) for policy in policies() for text in CAPACITIES]
    return sweep(Sweep(workload, Settings()), runs, lambda _: None)


def table(outcomes: list[Outcome], workload: Workload) -> str:
    """Markdown: prompt tokens found, a row for each policy; the best of each capacity in bold, the bound aside."""
    rates = {(each.run.policy, each.run.capacity.text): each.counts.token_hit_rate for each in outcomes}
    best = {text: max(rates[name, text] for name in policies()[:-1]) for text in CAPACITIES}
    tokens = {each.run.capacity.text: each.run.capacity.num_pages * workload.page_tokens for each in outcomes}
    heads = [f"{text} ({tokens[text]:,})" if text != "inf" else "unlimited" for text in CAPACITIES]
    lines = [f"| tokens of capacity | {' | '.join(heads)} |", "|---" * (len(CAPACITIES) + 1) + "|"]
    for name in policies():
        cells = [_cell(rates[name, text], best[text]) for text in CAPACITIES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rate: float, best: float) -> str:
    text = f"{rate:.1%}"
    return f"**{text}**" if text == f"{best:.1%}" and best else text


if __name__ == "__main__":
    main()
