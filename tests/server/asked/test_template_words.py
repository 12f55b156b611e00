"""What templates insist on, in the words of conversations."""

from __future__ import annotations

import pytest

from pagoda.server.asked.template_words import call_id_length, complete_tool, with_ids

MISTRAL = "{{ '[TOOL_CALLS]' }}{{ raise_exception('Tool call IDs should be 9 long') if tools }}"


@pytest.mark.parametrize(
    ("template", "function"),
    [
        ("{{ tool.function.description }}{{ tool.function['parameters'] }}", ["description", "name", "parameters"]),
        ("{{ function.parameters.properties }}", ["name", "parameters"]),
        ("{{ tool | tojson }} The description of parameters", ["name"]),
    ],
)
def test_a_tool_has_what_its_template_reads(template: str, function: list[str]) -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    assert sorted(complete_tool(tool, template)["function"]) == function
    full = {"type": "function", "function": {"name": "w", "description": "d", "parameters": {"type": "object"}}}
    assert complete_tool(full, template) == full
    assert tool == {"type": "function", "function": {"name": "weather"}}


def test_ids_of_calls_are_as_long_as_they_have_to_be() -> None:
    length = call_id_length(MISTRAL)
    assert length == 9
    call = with_ids({"role": "assistant", "tool_calls": [{"id": "call_1"}, {"id": "abcdef123"}]}, length)
    first, second = (each["id"] for each in call["tool_calls"])
    assert len(first) == 9
    assert first.isalnum()
    assert second == "abcdef123"
    assert with_ids({"role": "tool", "tool_call_id": "call_1"}, length)["tool_call_id"] == first
    assert with_ids({"role": "tool", "tool_call_id": "call_2"}, length)["tool_call_id"] != first


def test_other_templates_get_ids_as_they_are() -> None:
    message = {"role": "tool", "tool_call_id": "call_1"}
    assert with_ids(message, call_id_length("{{ '<tool_call>' }}")) is message
