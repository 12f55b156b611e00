"""Which prompts count as edits of others: those that share their own words, not those that share a template."""

from __future__ import annotations

import pytest

from pagoda.analysis.likeness import Likeness
from pagoda.analysis.prompt import Prompt, Section, SectionKind

RULES = "You are the keeper of a lighthouse. Answer in one sentence, and never of the war."
OTHER = "Translate medical documents from French, with care for the terms that doctors use."
TOOLS = [{"type": "function", "function": {"name": "tides", "description": "When the water of a harbour is high."}}]
CALENDAR = [{"type": "function", "function": {"name": "calendar", "description": "Finds free hours of two people."}}]
HOW_TO_CALL = " For each call of a function return a JSON object with its name and arguments. " * 4


def chat(system: str, user: str, tools: list[dict] | None = None) -> Prompt:
    """As a template writes it."""
    text, sections = "<|im_start|>system\n", []
    for kind, message, words in (
        (SectionKind.SYSTEM, 0, system),
        (SectionKind.TOOLS, None, f"{tools}{HOW_TO_CALL}" if tools else ""),
        (SectionKind.MESSAGE, 1, user),
    ):
        sections.append(Section(kind, len(text), len(text) + len(words), message))
        text += f"{words}<|im_end|>\n<|im_start|>user\n"
    return Prompt([ord(letter) for letter in text], text, sections, tools=tools or ())


def completion(text: str) -> Prompt:
    return Prompt([ord(letter) for letter in text], text)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (chat(RULES * 5, "Where is gold?"), chat(OTHER * 5, "Bonjour")),
        (chat("", "Where is gold?"), chat("", "Bonjour, mes amis!")),
        (chat("", "When is high tide?", TOOLS), chat("", "Who is free?", CALENDAR)),
        (completion(f"The {RULES}"), completion(f"The {OTHER}")),
        (completion("hi"), completion("History is the study of what was before.")),
        (Prompt(list(range(90))), Prompt([0, 1, *range(200, 290)])),
    ],
)
def test_a_template_in_common_makes_no_edit(earlier: Prompt, later: Prompt) -> None:
    assert not Likeness(earlier, later).is_edit
    assert not Likeness(later, earlier).is_edit


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (chat(f"10:05:01 {RULES}", "Where?"), chat(f"11:17:09 {RULES}", "Where?")),
        (chat("Hello", RULES), chat("Good day to you all", RULES)),
        (completion(f"{RULES}\n{OTHER}"), completion(f"{RULES.upper()}\r\n{OTHER}")),
        (completion(f'{{"rules":"{RULES}"}}'), completion(f'{{\n  "rules" : "{RULES}"\n}}')),
        (completion("Where is the harbour?"), completion("When is the harbour?")),
        (completion("!?"), completion("!?")),
        (Prompt(list(range(90))), Prompt([200, *range(1, 90)])),
    ],
)
def test_the_same_words_make_an_edit_wherever_they_part(earlier: Prompt, later: Prompt) -> None:
    assert Likeness(earlier, later).agrees
    assert Likeness(later, earlier).agrees


def test_one_beginning_in_common_is_enough_to_compare_and_not_to_count_what_follows() -> None:
    counted = [" ".join(f"{number}, {number**3}." for number in range(start, start + 90)) for start in (100, 500)]
    likeness = Likeness(*(chat(RULES * 2, text) for text in counted))
    assert (likeness.is_edit, likeness.begins_alike, likeness.agrees) == (True, True, False)
