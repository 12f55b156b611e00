"""Log-probabilities of prompts: which rows of a step to score, and what comes of them.

Logits at a position tell how likely the next token was. A prompt is scored from its first token to its last, a chunk at
a time; rows that are computed again after a preemption are not scored again. Knows neither the model nor the cache.
"""

from __future__ import annotations

import torch

from pagoda.engine.request import Phase, Sequence
from pagoda.engine.sampling import logprobs_of_rows

# As many tokens of prompts are scored in a step as have logits of at most this size, in fp32.
MAX_SCORED_NBYTES = 64 << 20


def max_scored_tokens(vocab_size: int) -> int:
    """How many tokens of prompts to be scored a step may have."""
    return max(MAX_SCORED_NBYTES // (vocab_size * torch.float32.itemsize), 1)


def positions_to_score(sequence: Sequence, start: int, num_tokens: int) -> range:
    """Of the `num_tokens` positions from `start` on, those whose logits are to be scored."""
    if not sequence.num_unscored:
        return range(0)
    known = len(sequence.request.prompt_logprobs)
    assert start <= known, "a hit goes no further than what is scored"
    return range(known, max(min(start + num_tokens, known + sequence.num_unscored), known))


@torch.inference_mode()
def score_prompt(sequence: Sequence, logits: torch.Tensor) -> None:
    """Take the log-probabilities of the next tokens of a prompt from `logits` [rows, vocabulary]."""
    request = sequence.request
    if sequence.phase is Phase.RUNNING and request.params.prompt_logprobs is not None:
        first = len(request.prompt_logprobs) + 1
        tokens = request.prompt[first : first + len(logits)]
        request.prompt_logprobs += logprobs_of_rows(logits, tokens, request.params.prompt_logprobs)
