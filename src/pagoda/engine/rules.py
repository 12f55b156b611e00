"""What the rules of a checkpoint forbid to come next, as `generate()` of transformers does."""

from __future__ import annotations

import math

import torch

from pagoda.engine.request import Sequence


def apply_rules(logits: torch.Tensor, sequence: Sequence, end_token_ids: frozenset[int]) -> None:
    """Rule tokens out in `logits` [vocabulary], in place; `end_token_ids` end the sequence."""
    rules, tokens, num_new = sequence.request.rules, sequence.tokens, sequence.num_output_tokens
    if rules.no_repeat_ngram_size:
        logits[_repeating(torch.tensor(tokens, dtype=torch.long), rules.no_repeat_ngram_size)] = -math.inf
    for *before, last in rules.bad_words.get(tokens[-1], ()):
        if tokens[-len(before) :].tolist() == before:
            logits[last] = -math.inf
    if len(tokens) < rules.min_length or num_new < rules.min_new_tokens:
        logits[list(end_token_ids)] = -math.inf
    if rules.forced_second is not None and len(tokens) == 1:
        _force(logits, rules.forced_second)
    if rules.forced_end in end_token_ids and num_new + 1 == sequence.request.params.max_tokens:
        _force(logits, rules.forced_end)


def _force(logits: torch.Tensor, token: int) -> None:
    logits.fill_(-math.inf)
    logits[token] = 0


def _repeating(tokens: torch.Tensor, size: int) -> torch.Tensor:
    """The tokens that would complete a run of `size` that `tokens` (int64 [n]) have already."""
    if len(tokens) < size:
        return tokens[:0]
    runs = tokens.unfold(0, size, 1)
    return runs[(runs[:, :-1] == tokens[len(tokens) + 1 - size :]).all(dim=-1), -1]
