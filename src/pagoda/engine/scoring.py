"""Log-probabilities of prompts: how many rows a step may score, and what comes of them.

Logits at a position tell how likely the next token was. Knows neither the model nor the cache.
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


@torch.inference_mode()
def score_prompt(sequence: Sequence, logits: torch.Tensor) -> None:
    """Take the log-probabilities of the next tokens of a prompt from `logits` [rows, vocabulary]."""
    request = sequence.request
    if sequence.phase is Phase.RUNNING and request.params.prompt_logprobs is not None:
        first = len(request.prompt_logprobs) + 1
        tokens = request.prompt[first : first + len(logits)]
        request.prompt_logprobs += logprobs_of_rows(logits, tokens, request.params.prompt_logprobs)
