"""Tells usage, log-probabilities and finish reasons in OpenAI's words."""

from __future__ import annotations

from codecs import getincrementaldecoder as new_decoder
from collections.abc import Sequence
from time import time
from typing import Any

from pagoda import __version__
from pagoda.engine.request import FinishReason, TokenLogprobs
from pagoda.errors import HttpError
from pagoda.server.answered import sse
from pagoda.server.answered.record import Record
from pagoda.server.answered.token_text import TokenTexts
from pagoda.server.ground.errors import error_body
from pagoda.server.openai.marks import Options, num_written

FINGERPRINT = f"pagoda-{__version__}"

# First bytes of characters that go on with one, two and three more.
LEADS = (b"\xc3", b"\xe2", b"\xf1")


def identity_of(call_id: str, kind: str, model: str) -> dict[str, Any]:
    """The fields by which an answer is known."""
    return {
        "id": call_id,
        "object": kind,
        "created": int(time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


def usage(record: Record, options: Options = None, num_thought_tokens: int = 0) -> dict[str, Any]:
    """Cached tokens are counted in the prompt's; hits and misses in DeepSeek's words beside them."""
    return {
        "prompt_tokens": record.num_prompt_tokens,
        "completion_tokens": record.num_output_tokens,
        "total_tokens": record.num_prompt_tokens + record.num_output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": record.num_read,
            "cache_write_tokens": num_written(record, options),
        },
        "prompt_cache_hit_tokens": record.num_read,
        "prompt_cache_miss_tokens": record.num_computed,
        "completion_tokens_details": {"reasoning_tokens": num_thought_tokens},
        "kv": record.kv(),
    }


def finish_reason(reason: FinishReason | None) -> str | None:
    """What clients know; an answer that was cut short is an error, not a reason."""
    return None if reason is None else str(reason)


def late_error(error: HttpError) -> bytes:
    """An error after the first chunk."""
    return sse.data(error_body("", error, ""))


def chat_logprobs(logprobs: Sequence[TokenLogprobs], texts: TokenTexts, num_top: int) -> dict[str, Any]:
    return {
        "content": [
            _chat_token(each.token_id, each.logprob, texts)
            | {"top_logprobs": [_chat_token(token, value, texts) for token, value in list(each.top.items())[:num_top]]}
            for each in logprobs
        ],
        "refusal": None,
    }


def completion_logprobs(
    logprobs: Sequence[TokenLogprobs | None], token_ids: Sequence[int], texts: TokenTexts, offset: int
) -> dict[str, Any]:
    """Of tokens whose text begins at the character `offset`. The first of a prompt has none."""
    return {
        "tokens": [texts.text(token) for token in token_ids],
        "token_logprobs": [None if each is None else each.logprob for each in logprobs],
        "top_logprobs": [
            None if each is None else {texts.text(token): value for token, value in each.top.items()}
            for each in logprobs
        ],
        "text_offset": _offsets([texts.bytes(token) for token in token_ids], offset),
    }


def _offsets(written: Sequence[bytes], offset: int) -> list[int]:
    """Where the text of each token begins. A character counts where it is complete, even if others began it."""
    offsets, decoder = [], new_decoder("utf-8")("replace")
    start = b"".join(written)[: len(LEADS)]
    num_continuing = next((index for index, byte in enumerate(start) if byte & 0xC0 != 0x80), len(start))
    if num_continuing:
        decoder.decode(LEADS[num_continuing - 1])
    for each in written:
        offsets.append(offset)
        offset += len(decoder.decode(each))
    return offsets


def _chat_token(token: int, logprob: float, texts: TokenTexts) -> dict[str, Any]:
    return {"token": texts.text(token), "logprob": max(logprob, -9999.0), "bytes": list(texts.bytes(token))}
