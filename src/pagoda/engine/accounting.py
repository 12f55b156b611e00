"""Divides the time of a step among the requests that were in it.

The forward pass is divided by rows, whatever they cost: a row of a long context reads more, and the encoder of a model
is read for some. Rows after which a token is drawn that is not the first one decode; all others prefill, also those of
a sequence that was sent back and is computed again.
"""

from __future__ import annotations

from typing import NamedTuple

from pagoda.engine.batch import Batch


class StepTimes(NamedTuple):
    """When a step began, when its batch was launched and had been computed, and when it was settled."""

    begun: float
    launched: float
    computed: float
    settled: float


def charge_step(batch: Batch, times: StepTimes) -> None:
    """Add a step to the phases of each request in it.

    On the wall a request has a step once, however many of its samples are in it: for what the first of them does.
    """
    begun, launched, computed, settled = times
    num_rows = sum([len(chunk.tokens) for chunk in batch.chunks])
    seconds = (computed - launched) / num_rows  # of a row
    share = 1 / num_rows
    is_mixed = num_rows > len(batch.chunks)
    for sequence, start, tokens, _, drawn, repeats in batch.chunks:
        metrics = sequence.request.metrics
        stop = start + len(tokens)
        if not repeats:
            metrics.num_recomputed_tokens += max(min(stop, sequence.num_once_computed) - start, 0)
            sequence.num_once_computed = max(sequence.num_once_computed, stop)
        num_decoding = len(drawn) if stop > len(sequence.request.prompt) else 0
        is_decode = num_decoding == len(tokens)
        ended = settled if metrics.ended is None else min(metrics.ended, settled)
        whole = max(ended - max(begun, metrics.known_until), 0.0)
        metrics.known_until = max(ended, metrics.known_until)
        if is_decode:
            metrics.phases.decode += seconds * num_decoding
            metrics.decode_step_seconds += whole
            metrics.num_decode_rows += num_decoding
            metrics.weight_shares += share * num_decoding
            if is_mixed:
                metrics.mixed_step_seconds += whole
        else:
            metrics.phases.decode += seconds * num_decoding
            metrics.phases.prefill += seconds * (len(tokens) - num_decoding)
            metrics.prefill_step_seconds += whole
