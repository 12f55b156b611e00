"""What causes of a miss are called, here and by vendors, and what they mean in words that quote no prompt.

Names alone; how a cause is recognised is for `recognition.py` to say, and of the cache's own ones for the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pagoda.analysis.prompt import Section, SectionKind

STATIC_FIRST = "Put what never changes first and what changes last: behind the last message that stays as it is."

APPEND = "Add messages at the end; leave those before them as they were."


class Meaning(NamedTuple):
    """What has happened, and what to change about it."""

    words: str
    advice: str


class VendorNames(NamedTuple):
    """What the diagnostics of others call it; None where they have no word, or nothing was missed."""

    openai: str | None
    anthropic: str | None


MEANINGS: Mapping[str, Meaning] = {
    # Nothing is wrong.
    "none": Meaning(
        "Nothing differs: one prompt has all tokens of the other.",
        "Nothing: only the last token of a prompt is computed again, and what is new.",
    ),
    "continued": Meaning("The later prompt goes on where the earlier one ended.", "Nothing: only new tokens are new."),
    # Beside the messages.
    "model_changed": Meaning("The two ask for different models.", "Ask for one model; pages are of one model alone."),
    "salt_changed": Meaning(
        "cache_salt differs, and prompts of different salts share nothing.",
        "Send the same cache_salt where prompts may be shared.",
    ),
    "cache_key_changed": Meaning(
        "prompt_cache_key differs: it says which replica should answer, and keeps nothing apart.",
        "Send the same prompt_cache_key with all requests of one prefix.",
    ),
    "media_changed": Meaning(
        "An image, a sound or a file differs; a model of text reads none of them, and shares its pages all the same.",
        "Send the same bytes again, behind the text that stays as it is.",
    ),
    "reasoning_effort_changed": Meaning(
        "Thinking or its effort is set in another way, which the chat template writes into the prompt.",
        "Keep the effort of a conversation as it was.",
    ),
    "template_arguments_changed": Meaning(
        "The chat template was given other arguments.", "Give the chat template the same arguments with every request."
    ),
    # Tools.
    "tools_reordered": Meaning(
        "The same tools come in another order.", "Send tools in one order, for example sorted by their names."
    ),
    "tool_added": Meaning("A tool was added.", "Send one list of tools; add new ones at its end, and seldom."),
    "tool_removed": Meaning(
        "A tool was left out.", "Send all tools every time; say with tool_choice which of them may be called."
    ),
    "tool_changed": Meaning("The definition of a tool differs.", "Keep definitions of tools as they were."),
    # What is written.
    "timestamp": Meaning(
        "A date or time in it is not the same.",
        "Take the time out of there, round it to the day, or write it into the last message.",
    ),
    "random_id": Meaning(
        "An id in it is new with every request.",
        "Take the id out of the prompt, or write it into the last message.",
    ),
    "counter": Meaning("A number in it counts requests.", "Take the number out, or write it into the last message."),
    "json_whitespace": Meaning(
        "The same JSON is written with other whitespace.", "Write JSON with one serialiser and fixed separators."
    ),
    "json_key_order": Meaning(
        "The same JSON has its keys in another order.", "Write JSON with sorted keys (sort_keys=True)."
    ),
    "json_encoding": Meaning(
        "The same JSON is written in another way: escapes or numbers.",
        "Write JSON with one serialiser and one setting.",
    ),
    "line_endings": Meaning("Lines end in another way (CRLF, LF).", "Write LF everywhere."),
    "trailing_whitespace": Meaning(
        "There is a space or a line more or less at the end.", "Strip texts before they are sent."
    ),
    "unicode_form": Meaning(
        "The same characters are written in another form of Unicode.", "Normalise texts to NFC before they are sent."
    ),
    "invisible_characters": Meaning(
        "Spaces that do not break, or characters of no width, stand in one of them.",
        "Replace such characters by plain spaces, or by nothing.",
    ),
    "typographic_characters": Meaning(
        "Quotes or dashes are typographic in one and plain in the other.", "Write them in one way."
    ),
    "whitespace": Meaning("There are other spaces or lines between the same words.", "Build texts in one way."),
    "order_changed": Meaning(
        "The same words, lines or entries come in another order, as sets and searches give them.",
        "Sort them before they are written into a prompt.",
    ),
    "case_changed": Meaning("The same words are written in other case.", "Write them in one way."),
    "tokenization_changed": Meaning(
        "The same text is cut into other tokens: the earlier prompt ends inside of a word, or was given as tokens.",
        "End prompts at a word's end, and send text, or send tokens, every time.",
    ),
    # Messages.
    "system_changed": Meaning("The system prompt was edited, added or left out.", STATIC_FIRST),
    "message_edited": Meaning("A message was edited.", APPEND),
    "message_inserted": Meaning("A message was put in before others.", APPEND),
    "message_removed": Meaning(
        "A message was left out.", "Leave earlier messages in, or take out many at once and seldom."
    ),
    "messages_reordered": Meaning("The same messages come in another order.", "Keep messages in one order."),
    "role_changed": Meaning("The same message has another role.", "Send a message with one role."),
    "context_compacted": Meaning(
        "Earlier messages were cut off or summed up.",
        "Cut many messages at once and seldom: all that follows a cut is computed again.",
    ),
    "thinking_stripped": Meaning(
        "What was thought in an earlier turn is not in the prompt any more.",
        "Send thoughts back where the template shows them; templates that drop them cost their turn again.",
    ),
    "generation_prompt": Meaning(
        "Another turn marker of the chat template: it opens an answer in other words than it writes past answers.",
        "Use one setting of thinking, and a template that writes an answer as it opens it.",
    ),
    "template_changed": Meaning(
        "Another turn marker of the chat template: it writes the same messages in another way.",
        "Use one template, and none that writes past messages anew as others follow.",
    ),
    "input_changed": Meaning("The text differs.", STATIC_FIRST),
    # The cache.
    "never_seen": Meaning(
        "No prompt that begins so is remembered: none was computed since the start, or it went long ago.",
        "Nothing, or pin the prefix beforehand (/v1/kv/pin).",
    ),
    "evicted": Meaning(
        "It was held and had to go to make room.",
        "Keep pages that go in other memory or on disk (--kv-host-bytes, --kv-disk), give the cache more memory or a "
        "format of fewer bits, or lease the prefix (cache_control, /v1/kv/pin).",
    ),
    "ttl_expired": Meaning(
        "It was held until its time to live was over.", "Ask for a longer ttl, or send the prefix more often."
    ),
    "not_in_tiers": Meaning(
        "It was held and had to go, and no tier has it: it was given up there for want of room, or not written.",
        "Give tiers more room (--kv-host-bytes, --kv-disk-bytes), or write pages as soon as they are full (--kv-write "
        "seal); /v1/kv/status says what each tier dropped, refused and skipped.",
    ),
    "tier_off": Meaning(
        "It is not in memory, and a tier that may have it was off or did not answer in time.",
        "See in /v1/kv/status or the server's log why the tier is off; it is used again once it is well.",
    ),
    "load_refused": Meaning(
        "A tier has it, and loading it was expected to take longer than computing it.",
        "Nothing, or a faster disk or store; cache_report.load has the times that were expected.",
    ),
    "load_failed": Meaning(
        "A tier had it, and what came was damaged, or gone or late when it was to be read.",
        "See in the server's log what failed; what is damaged is deleted and written anew.",
    ),
    "reset": Meaning("The cache was told to forget it.", "Reset the cache only when weights or prompts change."),
    "failed": Meaning(
        "What was held of it was in doubt after a failure, and is computed again.", "Look into the server's log."
    ),
    "swa_checkpoint_missing": Meaning(
        "Its pages are held, and no window or recurrent state to go on from there.",
        "Raise snapshot_memory_share, or mark the prefix with a breakpoint so that a state is kept at its end.",
    ),
    "concurrent_write_pending": Meaning(
        "A request that begins so was still being computed, and its last page is not shared before it is full.",
        "Nothing, or send the second request once the first has ended.",
    ),
    "partial_block": Meaning(
        "There was no page free to copy the last tokens to; whole pages were read.", "Give the cache more memory."
    ),
    "compressed": Meaning(
        "It goes on from a prefix that was compressed, and what is written behind that is nobody else's.",
        "Nothing, or compress it behind more of what many prompts have in common (after=).",
    ),
    "prompt_logprobs": Meaning(
        "Log-probabilities of the prompt were asked for, so all of it was computed.", "Ask for them only where needed."
    ),
    "disabled": Meaning("Prefixes are not shared here.", "Start without --no-enable-prefix-caching."),
    "other_namespace": Meaning(
        "The two went to servers whose pages are of different things, or to one before and after a restart.",
        "Start servers that should find the same prompts with the same weights, adapter and options of pages (such as "
        "--kv-cache-dtype and --block-size); after a change of them every prompt misses once.",
    ),
    "other_tenant": Meaning("Another tenant has it, and tenants share nothing.", "Nothing: this is on purpose."),
    "unknown": Meaning(
        "What was held before is not remembered.", "Give --miss-memory-bytes more, or ask sooner after the request."
    ),
}

# What vendors call it, wherever it is; of all others the section decides.
NAMED: Mapping[str, VendorNames] = {
    "none": VendorNames(None, None),
    "continued": VendorNames(None, None),
    "model_changed": VendorNames("model_changed", "model_changed"),
    "salt_changed": VendorNames("prompt_cache_key_changed", "unavailable"),
    "cache_key_changed": VendorNames("prompt_cache_key_changed", "unavailable"),
    "reasoning_effort_changed": VendorNames("reasoning_effort_changed", "unavailable"),
    "context_compacted": VendorNames("context_compacted", "messages_changed"),
    **dict.fromkeys(
        ("tools_reordered", "tool_added", "tool_removed", "tool_changed"), VendorNames(*["tools_changed"] * 2)
    ),
    **dict.fromkeys(
        (
            *(
                "concurrent_write_pending",
                "never_seen",
                "evicted",
                "ttl_expired",
                "reset",
                "failed",
                "swa_checkpoint_missing",
                "partial_block",
            ),
            *("not_in_tiers", "tier_off", "load_refused", "load_failed"),
            *("compressed", "prompt_logprobs", "disabled", "other_namespace", "other_tenant", "unknown"),
        ),
        VendorNames("unavailable", "unavailable"),
    ),
}
OF_SECTION: Mapping[SectionKind, VendorNames] = {
    SectionKind.TOOLS: VendorNames("tools_changed", "tools_changed"),
    SectionKind.SYSTEM: VendorNames("input_changed", "system_changed"),
}
OF_MESSAGES = VendorNames("input_changed", "messages_changed")


def vendor_names(cause: str, section: Section | None) -> VendorNames:
    """What others call `cause`, found in `section`."""
    if cause in NAMED:
        return NAMED[cause]
    return OF_MESSAGES if section is None else OF_SECTION.get(section.kind, OF_MESSAGES)
