"""Strict tools where the model may write what it likes: a call, once it is begun, has to fit its schema.

As a grammar of llguidance: text until the mark that begins a call, then JSON until the mark that ends it. Calls without
such marks on both sides could be text as well, so they are left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pagoda.sampling_params import StructuredOutputs
from pagoda.server.forms import ANY_OBJECT, call_schema
from pagoda.server.tools import ToolFormat
from pagoda.structured.schema import enforceable
from pagoda.structured.source import WHITESPACE


def strict_form(
    tools: Sequence[Mapping[str, Any]], strict: Collection[str], format: ToolFormat | None, tokenizer: Any
) -> StructuredOutputs | None:
    """Text in which every call is one of `tools`, in the words of chat templates; arguments of those whose names are in
    `strict` fit their schemas. None if calls of this format cannot be held to that."""
    if not strict or format is None or not format.end:
        return None
    functions = [tool["function"] for tool in tools]
    known = [each if each["name"] in strict else {**each, "parameters": ANY_OBJECT} for each in functions]
    schema = {**call_schema(known), "x-guidance": {"whitespace_pattern": WHITESPACE}}
    return StructuredOutputs(grammar=_grammar(format, json.dumps(enforceable(schema)), tokenizer.added_tokens_decoder))


def _grammar(format: ToolFormat, schema: str, added_tokens: Mapping[int, Any]) -> str:
    """A mark may be just text, or a token of its own, which is none in llguidance's eyes. Text must not spell such a
    token, since it would be read as the mark all the same.

    Other tokens that were added to the vocabulary and show in the text, such as `<think>`, may stand anywhere.
    """
    ids = {token.content: token_id for token_id, token in added_tokens.items()}
    is_token = format.start in ids
    begins = f"TEXT <[{ids[format.start]}]>" if is_token else "opened"
    ends = f"<[{ids[format.end]}]>" if format.end in ids else json.dumps(format.end)
    shown = [
        str(token_id)
        for token_id, token in added_tokens.items()
        if not token.special and token.content not in (format.start, format.end)
    ]
    others = f" | TEXT <[{','.join(shown)}]>" if shown else ""
    mark = re.escape(format.start).replace("/", r"\/")
    lines = [
        "%llguidance {}",
        f"start: (call{others})* TEXT",
        f"call: {begins} GAP body GAP {ends}",
        f"body: %json {schema}",
        r"TEXT: /(.|\n)*/" + (rf" & ~/(.|\n)*{mark}(.|\n)*/" if is_token else ""),
        r"GAP: /[ \n]?/",
    ]
    if not is_token:
        lines.append(f"opened[lazy]: TEXT {json.dumps(format.start)}")
    return "\n".join(lines)
