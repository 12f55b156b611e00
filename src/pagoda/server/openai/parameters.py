"""Turns the sampling fields of a body into `SamplingParams`."""

from __future__ import annotations

from typing import Any

from pagoda.errors import HttpError
from pagoda.sampling_params import SamplingParams
from pagoda.server.asked.sampling import checked
from pagoda.server.openai.schema import MAX_STOP, Sampling

# Fields of the same name and meaning; null is the default.
SAME = (
    "n",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "kv_compression",
    "sparse_attention",
    "context_full",
    "memory_full",
)


def sampling_params(body: Sampling, defaults: SamplingParams, **more: Any) -> SamplingParams:
    """What the body leaves out is as in `defaults`. Raises HttpError that names the field."""
    given = {name: value for name in SAME if (value := getattr(body, name)) is not None}
    stop = given.get("stop", ())
    if len(stop) > MAX_STOP and not isinstance(stop, str):
        raise HttpError(400, f"stop has {len(stop)} strings; give at most {MAX_STOP}.", param="stop")
    return checked(defaults, **given, logit_bias=_logit_bias(body.logit_bias or {}), **more)


def _logit_bias(given: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError as error:
        raise HttpError(400, "logit_bias must map token ids to numbers.", param="logit_bias") from error
