"""Checks the sampling parameters of a body; what it leaves out is as the checkpoint has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pagoda.errors import HttpError, InvalidSamplingError
from pagoda.sampling_params import SamplingParams


def checked(defaults: SamplingParams, **fields: Any) -> SamplingParams:
    """SamplingParams, or an HttpError that names the field."""
    try:
        return replace(defaults, **fields)
    except InvalidSamplingError as error:
        first = str(error).split()[0]
        raise HttpError(400, str(error), param=first if first in fields else None) from error
