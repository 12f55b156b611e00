"""What a step needs beside weights and pages, at most: its activations in one layer, and its logits.

An upper estimate. Layers run one after the other, so what one of them needs is needed once.
"""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.analysis.source import Described
from pagoda.planning.spec import query_heads
from pagoda.planning.weights.decoder import feed_width, hidden_width

# The residual stream, the layer's input after its norm, what attention gives and what the feed-forward part gives.
STREAMS = 4
# What goes in and out of an activation function, and their product.
FEED_STREAMS = 3
LOGIT_NBYTES = 4  # sampling works in fp32


@dataclass(frozen=True)
class Activations:
    """Of `num_tokens` tokens in a step, `num_rows` of which get logits."""

    num_tokens: int
    token_numbers: int  # in the widest layer
    number_nbytes: int
    num_rows: int
    vocab_size: int

    @property
    def nbytes(self) -> int:
        return self.num_tokens * self.token_numbers * self.number_nbytes + self.logit_nbytes

    @property
    def logit_nbytes(self) -> int:
        """As the head makes them, and as they are sampled from."""
        return self.num_rows * self.vocab_size * (self.number_nbytes + LOGIT_NBYTES)


def activations(model: Described, num_tokens: int, num_rows: int) -> Activations:
    """What a step of so many tokens needs, `num_rows` of which get logits."""
    facts, sizes = model.facts, model.text
    width = hidden_width(sizes)
    groups = facts.spec.groups
    heads = query_heads(sizes) if groups else 0
    layouts = [layout for group in groups for layout in group.layouts]
    attended = max((2 * heads * each.planes[0].width + each.elements_per_token for each in layouts), default=0)
    # What is convolved, scanned and gated has the channels of the state, in and out.
    scanned = max((2 * sum(tensor.shape[0] for tensor in each.tensors) for each in facts.spec.states), default=0)
    inner = sizes.get("moe_intermediate_size")
    routed = int(inner or feed_width(sizes)) * int(sizes.get("num_experts_per_tok") or 1)
    numbers = STREAMS * width + max(attended, FEED_STREAMS * max(feed_width(sizes), routed), scanned)
    return Activations(num_tokens, numbers, facts.number_nbytes, num_rows, facts.vocab_size)
