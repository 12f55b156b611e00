"""What `pagoda bench` measures: each scenario runs requests on an LLM and returns named measurements.

Prompts are random token ids, other ones in every repeat, so nothing is in the cache unless the scenario put it there.
All requests are greedy and go on for a fixed number of tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

from pagoda.errors import ConfigError
from pagoda.llm import LLM
from pagoda.outputs import RequestOutput
from pagoda.sampling_params import SamplingParams
from pagoda.units import format_rate, format_seconds

SUFFIX_TOKENS = 16  # what each request adds to a shared prefix


@dataclass(frozen=True)
class Workload:
    """Sizes of one run."""

    prompt_tokens: int
    output_tokens: int
    batch: int
    repeats: int

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", SUFFIX_TOKENS + 1), ("output_tokens", 2), ("batch", 1), ("repeats", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}.")

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(temperature=0, max_tokens=self.output_tokens, ignore_eos=True)


@dataclass
class Measurement:
    """One quantity, once per repeat. `unit` is s, tokens/s or tokens."""

    scenario: str
    name: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def summary(self) -> tuple[str, str, str, str]:
        """Its name, median, lowest and highest value."""
        values = (median(self.values), min(self.values), max(self.values))
        middle, lowest, highest = map(self.shown, values)
        return self.name, middle, lowest, highest

    def shown(self, value: float) -> str:
        if self.unit == "s":
            return format_seconds(value)
        return format_rate(value, "tokens") if self.unit == "tokens/s" else f"{value:,.0f} {self.unit}"


class Recorder:
    """Collects the measurements of one scenario by name."""

    def __init__(self, scenario: str, suffix: str) -> None:
        self._scenario = scenario
        self._suffix = suffix
        self.measurements: dict[str, Measurement] = {}

    def add(self, name: str, unit: str, value: float) -> None:
        full_name = name + self._suffix
        measurement = self.measurements.setdefault(name, Measurement(self._scenario, full_name, unit))
        measurement.values.append(value)


# Measures one repeat: the prompts come from `random`, the numbers go to `record`.
Repeat = Callable[[LLM, Workload, random.Random, Recorder], None]


@dataclass(frozen=True)
class Scenario:
    """`prefix_caching` lists the settings under which it is measured."""

    repeat: Repeat
    prefix_caching: tuple[bool, ...] = (True,)

    def once(self, llm: LLM, workload: Workload) -> None:
        """One repeat that is not measured, with prompts of its own."""
        self.repeat(llm, workload, random.Random("once"), Recorder("", ""))

    def measure(self, llm: LLM, workload: Workload, name: str, suffix: str = "") -> list[Measurement]:
        generator = random.Random(0)
        # The first forward passes of a process set up threads and buffers.
        llm.generate([_tokens(llm, generator, SUFFIX_TOKENS)], workload.params)
        recorder = Recorder(name, suffix)
        for _ in range(workload.repeats):
            llm.reset_prefix_cache()
            self.repeat(llm, workload, generator, recorder)
        return list(recorder.measurements.values())


def single(llm: LLM, workload: Workload, generator: random.Random, record: Recorder) -> None:
    """One request alone, then the same one again."""
    prompt = _tokens(llm, generator, workload.prompt_tokens)
    cold = llm.generate([prompt], workload.params)[0]
    warm = llm.generate([prompt], workload.params)[0]
    record.add("time to first token, cold", "s", _ttft(cold))
    record.add("time to first token, warm", "s", _ttft(warm))
    gaps = cold.metrics.inter_token_seconds + warm.metrics.inter_token_seconds
    record.add("decode", "tokens/s", len(gaps) / sum(gaps))


def batch(llm: LLM, workload: Workload, generator: random.Random, record: Recorder) -> None:
    """Requests that have nothing in common, all at once."""
    prompts = [_tokens(llm, generator, workload.prompt_tokens) for _ in range(workload.batch)]
    seconds, outputs = _timed(llm, prompts, workload)
    record.add("whole batch", "s", seconds)
    record.add("output", "tokens/s", workload.batch * workload.output_tokens / seconds)
    record.add("time to first token, mean", "s", _mean_ttft(outputs))


def shared_prefix(llm: LLM, workload: Workload, generator: random.Random, record: Recorder) -> None:
    """Requests that differ in their last tokens only, all at once."""
    prefix = _tokens(llm, generator, workload.prompt_tokens - SUFFIX_TOKENS)
    prompts = [prefix + _tokens(llm, generator, SUFFIX_TOKENS) for _ in range(workload.batch)]
    seconds, outputs = _timed(llm, prompts, workload)
    record.add("whole batch", "s", seconds)
    record.add("time to first token, mean", "s", _mean_ttft(outputs))
    record.add("prompt tokens", "tokens", sum(map(len, prompts)))
    record.add("  of them computed", "tokens", sum(map(len, prompts)) - sum(o.num_cached_tokens for o in outputs))


def turns(llm: LLM, workload: Workload, generator: random.Random, record: Recorder) -> None:
    """A conversation: each prompt is the last one, its answer and a few new tokens."""
    prompt = _tokens(llm, generator, workload.prompt_tokens)
    first = llm.generate([prompt], workload.params)[0]
    second_prompt = prompt + first.outputs[0].token_ids + _tokens(llm, generator, SUFFIX_TOKENS)
    second = llm.generate([second_prompt], workload.params)[0]
    record.add("first token of turn 1", "s", _ttft(first))
    record.add("first token of turn 2", "s", _ttft(second))


SCENARIOS: dict[str, Scenario] = {
    "single": Scenario(single),
    "batch": Scenario(batch),
    "shared-prefix": Scenario(shared_prefix),
    "cache": Scenario(turns, prefix_caching=(True, False)),
}


def _tokens(llm: LLM, generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(llm.engine.model.vocab_size) for _ in range(count)]


def _timed(llm: LLM, prompts: list[list[int]], workload: Workload) -> tuple[float, list[RequestOutput]]:
    start = perf_counter()
    outputs = llm.generate(prompts, workload.params, use_tqdm=False)
    return perf_counter() - start, outputs


def _ttft(output: RequestOutput) -> float:
    assert output.metrics.ttft_seconds is not None
    return output.metrics.ttft_seconds


def _mean_ttft(outputs: list[RequestOutput]) -> float:
    return sum(map(_ttft, outputs)) / len(outputs)
