"""From logits to tokens: penalties, truncation, the draw, log-probabilities.

The order is vLLM's: edits, temperature, min-p, top-k, top-p. A draw takes one number from the sequence's own
generator, so the same seed gives the same draws whatever else is running.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from time import monotonic
from types import MappingProxyType

import numpy as np
import torch

from pagoda.engine.constraint import Matcher
from pagoda.engine.exchange import sent
from pagoda.engine.race import first_to_arrive
from pagoda.engine.request import Request, Sequence, TokenLogprobs
from pagoda.engine.rules import apply_rules
from pagoda.engine.together import draw_together
from pagoda.errors import InvalidSamplingError, RequestError, StructuredOutputError
from pagoda.models.generation import NO_RULES, GenerationTokens
from pagoda.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

NONE_KNOWN: Mapping[Sequence, int] = MappingProxyType({})


def are_edited(sequence: Sequence) -> bool:
    """Whether something decides what may come next besides the logits."""
    request = sequence.request
    return request.params.edits_logits or sequence.matcher is not None or request.rules is not NO_RULES


def sample(logits: torch.Tensor, sequence: Sequence, eos_token_ids: frozenset[int]) -> int:
    """The next token of a sequence from its fp32 `logits` [vocabulary], which are left as they are."""
    params = sequence.request.params
    logits = logits.cpu()
    if are_edited(sequence):
        logits = edit_logits(logits.clone(), sequence, eos_token_ids)
    # For a single row numpy is several times faster than torch, which wakes threads for it.
    values = logits.numpy()
    if params.temperature == 0:
        return int(values.argmax())
    # Subtracting the maximum first keeps the best token finite at any temperature.
    scaled = values - values.max()
    if params.temperature != 1:
        with np.errstate(over="ignore"):
            scaled /= max(params.temperature, np.finfo(scaled.dtype).tiny)
    if not params.truncates:
        return first_to_arrive(np.exp(scaled, out=scaled), None, sequence.take_draw_key())
    candidates, probabilities = truncate(torch.from_numpy(scaled), params)
    return int(candidates[first_to_arrive(probabilities.numpy(), candidates.numpy(), sequence.take_draw_key())])


def draw(
    logits: torch.Tensor,
    rows: list[tuple[Sequence, int]],
    eos_token_ids: frozenset[int],
    known: Mapping[Sequence, int] = NONE_KNOWN,
) -> tuple[list[tuple[Sequence, int, int]], list[tuple[Sequence, RequestError]]]:
    """The next token of each sequence beside its row of `logits`, and those that can have none: the others go on.

    Some tokens are `known` already, as a device drew them.
    """
    drawn, failed = [], []
    before = monotonic()
    if not logits.is_cpu:
        known = {**known, **_drawn_together(logits, [each for each in rows if each[0] not in known])}
    for sequence, row in rows:
        try:
            token = known.get(sequence)
            if token is None:
                token = sample(logits[row], sequence, eos_token_ids)
            elif sequence.request.params.temperature > 0:
                sequence.take_draw_key()
            drawn.append((sequence, row, token))
        except RequestError as error:
            failed.append((sequence, error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a grammar in Rust that panics raises what is no Exception
            logger.exception("Sampling for request %s failed", sequence.request.request_id)
            failed.append((sequence, RequestError(f"Sampling failed: {error!r}")))
        now = monotonic()
        sequence.request.metrics.phases.sampling += now - before
        before = now
    return drawn, failed


def _drawn_together(logits: torch.Tensor, rows: list[tuple[Sequence, int]]) -> dict[Sequence, int]:
    """The tokens of those whose logits are not edited."""
    rows = [each for each in rows if not are_edited(each[0])]
    if not rows:
        return {}
    return dict(zip((sequence for sequence, _ in rows), draw_together(logits, rows).tolist(), strict=True))


@torch.inference_mode()
def ban(logits: torch.Tensor, first: list[int], generation: GenerationTokens) -> None:
    """Rule out what the checkpoint says is never generated, in `logits` [rows, vocabulary].

    After the rows of `first` a text begins.
    """
    if generation.banned:
        logits.index_fill_(1, sent(torch.tensor(sorted(generation.banned)), logits.device), -math.inf)
    if generation.banned_first and first:
        rows, tokens = torch.tensor(first), torch.tensor(sorted(generation.banned_first))
        logits[sent(rows, logits.device)[:, None], sent(tokens, logits.device)] = -math.inf


def edit_logits(logits: torch.Tensor, sequence: Sequence, eos_token_ids: frozenset[int]) -> torch.Tensor:
    """Apply penalties, bias, what may not come next and the form of the output to `logits` [vocabulary], in place.

    Raises RequestError if no token is left.
    """
    params = sequence.request.params
    if params.has_penalties or params.logit_bias:
        _penalise(logits, sequence)
    ends = stop_token_ids(params, eos_token_ids)
    if sequence.num_output_tokens < params.min_tokens:
        logits[list(ends)] = -math.inf
    if sequence.request.rules is not NO_RULES:
        apply_rules(logits, sequence, ends)
    if sequence.matcher is not None:
        _constrain(logits, sequence.matcher, eos_token_ids if params.ignore_eos else frozenset())
    elif logits.max() == -math.inf:
        raise InvalidSamplingError("stop_token_ids, min_tokens or rules of the model rule out every token; allow more.")
    return logits


def _penalise(logits: torch.Tensor, sequence: Sequence) -> None:
    params = sequence.request.params
    is_ruled_out = logits == -math.inf
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sequence.tokens, dtype=torch.long).unique()
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        generated, counts = torch.tensor(sequence.output_tokens, dtype=torch.long).unique(return_counts=True)
        logits[generated] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        tokens, biases = _biases(sequence.request)
        logits[tokens] += biases
    largest = torch.finfo(logits.dtype).max
    logits.clamp_(-largest, largest)  # extreme penalties and biases overflow
    logits.masked_fill_(is_ruled_out, -math.inf)


def _biases(request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and what is added to their logits (fp32)."""
    if request.biases is None:
        biases = request.params.logit_bias
        request.biases = torch.tensor(list(biases)), torch.tensor(list(biases.values()), dtype=torch.float32)
    return request.biases


def _constrain(logits: torch.Tensor, matcher: Matcher, ignored: frozenset[int]) -> None:
    """Leave what fits the form of the output; tokens that end others and not this one are no part of it."""
    matcher.mask(logits)
    logits[list(ignored)] = -math.inf
    if logits.max() == -math.inf:
        raise StructuredOutputError(
            "Every token that fits structured_outputs is ruled out by the model, by ignore_eos, or by stop_token_ids "
            "below min_tokens; allow more."
        )


def stop_token_ids(params: SamplingParams, eos_token_ids: frozenset[int]) -> frozenset[int]:
    """The ids that end a sequence."""
    return frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_token_ids)


def truncate(logits: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids that may be drawn, and their probabilities (not normalised), most likely first if any was cut."""
    ids = None
    if params.min_p > 0:
        ids = torch.nonzero(logits >= logits.max() + math.log(params.min_p)).squeeze(-1)
        logits = logits[ids]
    if 0 < params.top_k < len(logits):
        logits, order = logits.topk(params.top_k)
        ids = order if ids is None else ids[order]
    probabilities = logits.softmax(dim=0)
    ids = torch.arange(len(logits)) if ids is None else ids
    if params.top_p < 1.0:
        probabilities, order = _nucleus(probabilities, params.top_p)
        ids = ids[order]
    return ids, probabilities


def _nucleus(probabilities: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The fewest most likely entries whose sum reaches `top_p`: values and indices, in descending order."""
    # Those less likely than a share of what it leaves out are no part of it. Half of that, as sums are rounded.
    likely = torch.nonzero(probabilities >= (1 - top_p) / len(probabilities) / 2).squeeze(-1)
    values, order = probabilities[likely].sort(descending=True, stable=True)
    before = values.cumsum(dim=0) - values
    count = max(int((before < top_p).sum()), 1)
    return values[:count], likely[order[:count]]


def token_logprobs(logits: torch.Tensor, token: int, num_top: int) -> TokenLogprobs:
    """Log-probabilities of `token` and of the `num_top` most likely ones from `logits` [vocabulary]."""
    return logprobs_of_rows(logits[None], [token], num_top)[0]


def logprobs_of_rows(logits: torch.Tensor, tokens: list[int], num_top: int) -> list[TokenLogprobs]:
    """`token_logprobs` of a token for each row of `logits` [rows, vocabulary]."""
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(1, sent(torch.tensor(tokens), logits.device)[:, None])
    ranks = (logprobs > chosen).sum(dim=-1, dtype=torch.int32) + 1
    values, ids = logprobs.topk(num_top)
    tops = (dict(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True))
    rows = zip(tokens, chosen.squeeze(1).tolist(), ranks.tolist(), tops, strict=True)
    return [TokenLogprobs(*row) for row in rows]
