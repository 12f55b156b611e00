"""The time model: how long a step takes, from rates that were given or measured by `pagoda bench`.

A step reads the weights once and computes its tokens: prompts at the rate of prefill; if somebody decodes, a fixed time
for the step and a little for each sequence in it. Leaves out that attention takes longer the more tokens a sequence
has, what the machine does beside, and all that happens outside of steps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pagoda.checks import is_number, shown
from pagoda.errors import ConfigError


@dataclass(frozen=True)
class Rates:
    """Raises ConfigError for rates that are not positive.

    prefill_tokens_per_second: of prompts. decode_tokens_per_second: of one sequence alone. sequence_seconds: what
    each sequence adds to a step in which it decodes, the first one aside.
    """

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    sequence_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prefill_tokens_per_second", "decode_tokens_per_second"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive.")
        if self.sequence_seconds < 0:
            raise ConfigError(f"sequence_seconds is {self.sequence_seconds}; it must not be negative.")

    def step_seconds(self, num_prompt_tokens: int, num_decodes: int) -> float:
        """Of a step that computes so many tokens of prompts, and one for each sequence that decodes."""
        decoding = 1 / self.decode_tokens_per_second + (num_decodes - 1) * self.sequence_seconds if num_decodes else 0.0
        return num_prompt_tokens / self.prefill_tokens_per_second + decoding


def measured_rates(path: Path) -> Rates:
    """The rates in a file that `pagoda bench --json` wrote. Raises ConfigError if it lacks them.

    Those of one request come from the scenario "single"; what further sequences add, from "batch" if it was run.
    """
    found = _read(path)
    workload, single = found.get("workload"), _medians(found, "single")
    if not isinstance(workload, dict) or not {"time to first token, cold", "decode"} <= single.keys():
        raise ConfigError(f'{path} has no measurements of the scenario "single"; write it with pagoda bench --json.')
    numbers: list[Any] = [workload.get(name) for name in ("prompt_tokens", "output_tokens", "batch")]
    if not all(is_number(each) and each > 0 for each in numbers) or numbers[1] < 2:
        raise ConfigError(f"{path} does not say how many tokens were measured; write it with pagoda bench --json.")
    prompt_tokens, output_tokens, batch = map(float, numbers)
    rates = Rates(prompt_tokens / single["time to first token, cold"], single["decode"])
    seconds = _medians(found, "batch").get("whole batch")
    if seconds is None or batch < 2:
        return rates
    decoding = seconds - batch * prompt_tokens / rates.prefill_tokens_per_second
    beside = decoding / (output_tokens - 1) - 1 / rates.decode_tokens_per_second
    return Rates(rates.prefill_tokens_per_second, rates.decode_tokens_per_second, max(beside / (batch - 1), 0.0))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}; write it with pagoda bench --json.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is {shown(found)}; write it with pagoda bench --json.")
    return found


def _medians(found: dict[str, Any], scenario: str) -> dict[str, float]:
    medians = {}
    measurements = found.get("measurements")
    for each in measurements if isinstance(measurements, list) else []:
        values = each.get("values") if isinstance(each, dict) and each.get("scenario") == scenario else None
        if isinstance(values, list) and values and all(is_number(value) and value > 0 for value in values):
            medians[str(each.get("name"))] = float(median(values))
    return medians
