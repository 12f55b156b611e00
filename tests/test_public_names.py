"""The public names: listed here, so that none comes or goes unnoticed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pagoda

PUBLIC_NAMES = [
    "CacheStats",
    "CompletionOutput",
    "EngineConfig",
    "FinishReason",
    "LLM",
    "RequestOutput",
    "SamplingParams",
    "StreamChunk",
    "StructuredOutputs",
    "plan",
]


def test_the_public_names_are_these() -> None:
    assert sorted(pagoda.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    assert getattr(pagoda, name).__doc__


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'llm_engine'"):
        pagoda.llm_engine  # noqa: B018


def test_importing_pagoda_needs_no_torch() -> None:
    code = "import sys, pagoda; dir(pagoda); pagoda.EngineConfig; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
