"""Finds the cause for which two prompts part: a table of questions, the more specific ones first.

Each is a small pure function of a `Difference` that names a cause or passes. Whatever lies before the place where the
texts part did no harm, however different the requests are there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pagoda.analysis.difference import TEMPLATE_KINDS, Difference, Edit, num_common
from pagoda.analysis.edits import edit_kind
from pagoda.analysis.prompt import Message, Prompt, SectionKind

THOUGHT = re.compile(
    r"<think|<\|begin_of_thought|\[THINK\]|<\|channel\|>analysis|<\|START_THINKING|<seed:think", re.IGNORECASE
)
WRITTEN_THOUGHT = re.compile(r"<(think|thinking)>.*?</\1>", re.DOTALL | re.IGNORECASE)
THOUGHT_CHARACTERS = 48
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
EFFORTS = ("reasoning_effort", "thinking")
TEMPLATE_SETTINGS = ("chat_template_kwargs", "add_generation_prompt", "continue_final_message")
TOOL_CAUSES = ("tools_reordered", "tool_added", "tool_removed", "tool_changed")


def cause_of(difference: Difference) -> str:
    """The name of the cause (`causes.py`) for which the later prompt could not go on from the earlier one."""
    return next(cause for question in QUESTIONS if (cause := question(difference)) is not None)


def _model(difference: Difference) -> str | None:
    """What has no model, as a list of messages, is for any."""
    models = [prompt.settings.get("model") for prompt in (difference.earlier, difference.later)]
    return "model_changed" if all(models) and models[0] != models[1] else None


def _salt(difference: Difference) -> str | None:
    return "salt_changed" if _is_set_otherwise(difference, "cache_salt") else None


def _media(difference: Difference) -> str | None:
    """Models of text read the same all the same, so only if nothing else differs."""
    earlier, later = difference.earlier.media, difference.later.media
    size = min(len(earlier), len(later))
    return "media_changed" if difference.is_continued and list(earlier[:size]) != list(later[:size]) else None


def _nothing(difference: Difference) -> str | None:
    if not difference.is_continued:
        return None
    if _is_set_otherwise(difference, "prompt_cache_key"):
        return "cache_key_changed"
    is_more = len(difference.later.token_ids) > len(difference.earlier.token_ids)
    return "continued" if is_more else "none"


def _tokens(difference: Difference) -> str | None:
    """The same text as far as there is any, and other tokens."""
    if not difference.is_in_tokens_alone or not difference.later.text:
        return None
    earlier = difference.earlier.text
    is_blank = earlier[-1:].isspace() and len(earlier) == difference.place
    return "trailing_whitespace" if is_blank and not difference.earlier.messages else "tokenization_changed"


def _tools(difference: Difference) -> str | None:
    earlier, later = difference.earlier.tools, difference.later.tools
    if _shown(earlier) == _shown(later) or difference.section.kind not in (SectionKind.TOOLS, *TEMPLATE_KINDS):
        return None
    if difference.section.kind is not SectionKind.TOOLS and bool(earlier) == bool(later) and _parts(difference):
        return None
    return _tools_cause(earlier, later) or edit_kind(difference.edit) or _tool_edit(earlier, later)


def _tools_cause(earlier: Sequence[Mapping[str, Any]], later: Sequence[Mapping[str, Any]]) -> str | None:
    before, after = [_canonical(tool) for tool in earlier], [_canonical(tool) for tool in later]
    if before != after and sorted(before) == sorted(after):
        return "tools_reordered"
    if before == after:
        return "json_key_order"
    names, others = [_name(tool) for tool in earlier], [_name(tool) for tool in later]
    if set(names) < set(others):
        return "tool_added"
    if set(others) < set(names):
        return "tool_removed"
    if set(names) != set(others):
        return "tool_changed"
    return None


def _tool_edit(earlier: Sequence[Mapping[str, Any]], later: Sequence[Mapping[str, Any]]) -> str:
    """Of tools with the same names, the first that is not the same."""
    pairs = ((_shown(one), _shown(other)) for one, other in zip(earlier, later, strict=False))
    kinds = (edit_kind(_edit(*pair)) for pair in pairs if pair[0] != pair[1])
    return next((kind for kind in kinds if kind is not None), "tool_changed")


def _messages(difference: Difference) -> str | None:
    """The first message at the place that differs by itself."""
    earlier, later = difference.earlier.messages, difference.later.messages
    index = next((index for index in _candidates(difference) if _at(earlier, index) != _at(later, index)), None)
    if index is None or index >= len(earlier) or index >= len(later):
        return None
    return _order(earlier, later, index) or _changed(difference, earlier[index], later[index])


def _order(earlier: Sequence[Message], later: Sequence[Message], index: int) -> str | None:
    """Whether the same messages stand at other places from `index` on."""
    before, after = [_plain(each) for each in earlier[index:]], [_plain(each) for each in later[index:]]
    if before[0] == after[0]:
        return None
    gone, new = before[0] not in after, after[0] not in before
    is_front = all(each.role == "system" for each in earlier[:index])
    is_system = earlier[index].role == "system" or later[index].role == "system"
    if is_front and is_system and (gone or new):
        return "system_changed" if earlier[index].role != later[index].role else None
    if not gone and not new:
        return "messages_reordered"
    if not gone:
        return "message_inserted"
    if not new:
        removed = earlier[index : index + before.index(after[0])]
        return "message_removed" if not is_front and _is_one_exchange(removed) else "context_compacted"
    return "context_compacted" if _is_summed_up(before, after) else None


def _is_one_exchange(messages: Sequence[Message]) -> bool:
    """A question and all that came of it, or as little."""
    return len(messages) <= 2 or sum(message.role == "user" for message in messages) == 1


def _is_summed_up(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether the first messages were replaced by fewer: later ones are the same, and nearer to the front."""
    kept = ((place, message) for place, message in enumerate(after) if place and message in before)
    return any(before.index(message) > place for place, message in kept)


def _changed(difference: Difference, earlier: Message, later: Message) -> str:
    """What was done to one message."""
    if earlier.content == later.content and earlier.role != later.role:
        return "role_changed"
    if earlier.content == later.content and _thought(earlier) != _thought(later):
        return "thinking_stripped"
    texts = (earlier.content, later.content)
    if earlier.content == later.content:
        texts = (_shown(earlier.more), _shown(later.more))
    elif _has_thought(earlier) != _has_thought(later) and _without_thought(earlier) == _without_thought(later):
        return "thinking_stripped"
    kind = edit_kind(_edit(*texts)) or edit_kind(difference.edit)
    if kind is not None:
        return kind
    return "system_changed" if later.role == "system" else "message_edited"


def _words_of_template(difference: Difference) -> str | None:
    """A date that the template writes by itself, or was told."""
    kind = edit_kind(difference.edit) if difference.section.kind in TEMPLATE_KINDS else None
    return kind if kind in ("timestamp", "random_id") else None


def _settings(difference: Difference) -> str | None:
    """What the template was told beside the messages, if both have any."""
    if not (difference.earlier.messages and difference.later.messages):
        return None
    if any(_is_set_otherwise(difference, name) for name in EFFORTS):
        return "reasoning_effort_changed"
    if any(_is_set_otherwise(difference, name) for name in TEMPLATE_SETTINGS):
        return "template_arguments_changed"
    return None


def _template(difference: Difference) -> str | None:
    """The messages are the same there, so it is what the template makes of them."""
    earlier, later = difference.earlier, difference.later
    if not (_has_words_of(earlier, later) and _has_words_of(later, earlier)):
        return None
    if difference.sections[0].kind is SectionKind.GENERATION:
        return "generation_prompt"
    around = slice(max(difference.place - THOUGHT_CHARACTERS, 0), difference.place + THOUGHT_CHARACTERS)
    had, has = (bool(THOUGHT.search(prompt.text[around])) for prompt in (earlier, later))
    return "thinking_stripped" if had != has else "template_changed"


def _text(difference: Difference) -> str:
    return edit_kind(difference.edit) or "input_changed"


QUESTIONS: tuple[Callable[[Difference], str | None], ...] = (
    _model,
    _salt,
    _media,
    _nothing,
    _tokens,
    _tools,
    _messages,
    _words_of_template,
    _settings,
    _template,
    _text,
)


def _candidates(difference: Difference) -> range:
    """The messages that the place may be in: of a gap those that no section was found of, and the next one."""
    section, sections = difference.section, difference.later.sections
    if not difference.later.messages:
        return range(0)
    if section.message is not None:
        return range(section.message, section.message + 1)
    known = [each for each in sections if each.message is not None]
    before = max((each.message or 0 for each in known if each.end <= difference.place), default=-1)
    after = min((each.message or 0 for each in known if each.start >= difference.place), default=None)
    last = len(difference.later.messages) - 1 if after is None else after
    return range(before + 1, last + 1)


def _has_words_of(prompt: Prompt, other: Prompt) -> bool:
    """Whether `prompt` is a conversation, or the text of one that ends as `other` does."""
    return bool(prompt.messages) or (bool(other.messages) and other.messages[-1].content in prompt.text)


def _parts(difference: Difference) -> bool:
    """Whether a message at the place differs by itself."""
    earlier, later = difference.earlier.messages, difference.later.messages
    return any(_at(earlier, index) != _at(later, index) for index in _candidates(difference))


def _at(messages: Sequence[Message], index: int) -> str | None:
    """All of a message, the order of keys as well, which templates show."""
    if index >= len(messages):
        return None
    message = messages[index]
    return _shown([message.role, message.content, message.more])


def _is_set_otherwise(difference: Difference, name: str) -> bool:
    return difference.earlier.settings.get(name) != difference.later.settings.get(name)


def _edit(earlier: str, later: str) -> Edit:
    return Edit(earlier, later, num_common(earlier, later))


def _thought(message: Message) -> Any:
    return next((message.more[name] for name in THOUGHTS if message.more.get(name)), None)


def _has_thought(message: Message) -> bool:
    return WRITTEN_THOUGHT.search(message.content) is not None


def _without_thought(message: Message) -> str:
    return WRITTEN_THOUGHT.sub("", message.content).strip()


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)


def _plain(message: Message) -> str:
    return json.dumps([message.role, message.content, dict(message.more)], sort_keys=True, default=repr)


def _canonical(tool: Mapping[str, Any]) -> str:
    return json.dumps(tool, sort_keys=True, default=repr)


def _name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function")
    return str(function.get("name") if isinstance(function, Mapping) else tool.get("name"))
