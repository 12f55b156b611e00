"""Every cause has its meaning, its names at vendors, and its line in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.analysis.causes import MEANINGS, NAMED, vendor_names
from pagoda.analysis.edits import EDITS
from pagoda.analysis.prompt import Section, SectionKind
from pagoda.cache.report import MissCause

DOCUMENT = Path(__file__).parents[2] / "docs" / "misses.md"
OPENAI = {
    *("model_changed", "prompt_cache_key_changed", "tools_changed", "text_format_changed", "reasoning_effort_changed"),
    *("verbosity_changed", "context_compacted", "input_changed", "service_tier_changed", "unavailable"),
}
ANTHROPIC = {"model_changed", "system_changed", "tools_changed", "messages_changed", "unavailable"}


@pytest.mark.parametrize("cause", MEANINGS)
@pytest.mark.parametrize("kind", SectionKind)
def test_names_are_those_that_vendors_have(cause: str, kind: SectionKind) -> None:
    names = vendor_names(cause, Section(kind, 0, 0))
    assert names.openai in OPENAI or names == (None, None)
    assert names.anthropic in ANTHROPIC or names == (None, None)


def test_whatever_is_recognised_has_a_meaning() -> None:
    assert {*MissCause, *NAMED, *(name for name, _ in EDITS)} <= {*MEANINGS}


def test_every_cause_is_documented() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    for cause, meaning in MEANINGS.items():
        assert f"| `{cause}` | {meaning.words} | {meaning.advice} |" in lines
