"""What every policy keeps, against what its paper says written out, and how policies are named."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from pagoda.cache.compression.choice import policy_of
from pagoda.cache.compression.knorm import Knorm
from pagoda.cache.compression.morphkv import MorphKV
from pagoda.cache.compression.pyramidkv import PyramidKV
from pagoda.cache.compression.shares import Share
from pagoda.cache.compression.snapkv import SnapKV
from pagoda.cache.compression.tova import TOVA
from pagoda.errors import ConfigError
from pagoda.registry import names

NUM_HEADS, GROUP, WIDTH = 3, 2, 8
every_policy = pytest.mark.parametrize("name", names("compression"))


@dataclass
class Layer:
    """Of random keys, and queries of the last tokens."""

    logits: torch.Tensor
    keys: torch.Tensor
    output_norms: torch.Tensor
    unturned_queries: torch.Tensor
    number: int = 1
    observed: tuple[torch.Tensor, ...] = ()

    @property
    def num_heads(self):
        return len(self.keys)

    @property
    def num_slots(self):
        return self.keys.shape[1]

    @property
    def num_tokens(self):
        return self.num_slots

    @property
    def values(self):
        return self.keys.flip(-1)

    @property
    def weights(self):
        return self.logits.softmax(dim=-1)

    @property
    def mass(self):
        return self.weights.sum(dim=2)

    @property
    def group_logits(self):
        return self.logits.sum(dim=1)

    def group_mass(self, count):
        return self.group_logits[..., :count].softmax(dim=-1).sum(dim=1)

    def mean_turn(self, first, count):
        return torch.eye(WIDTH)

    def first(self, num_slots, num_queries):
        """The same layer when it had so many slots, and queries of its last tokens."""
        rows = slice(num_slots - num_queries, num_slots)
        return replace(
            self,
            keys=self.keys[:, :num_slots],
            logits=self.logits[:, :, rows, :num_slots],
            unturned_queries=self.unturned_queries[:, :, rows],
        )


def random_layer(num_slots, num_queries, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(NUM_HEADS, num_slots, WIDTH, generator=generator)
    logits = torch.randn(NUM_HEADS, GROUP, num_queries, num_slots, generator=generator) * 3
    unseen = torch.ones(num_queries, num_slots, dtype=torch.bool).triu(num_slots - num_queries + 1)
    norms = torch.rand(NUM_HEADS, GROUP, num_slots, generator=generator) + 0.1
    queries = torch.randn(NUM_HEADS, GROUP, num_queries, WIDTH, generator=generator) + 3
    return Layer(logits.masked_fill(unseen, float("-inf")), keys, norms, queries, **more)


def observed(policy, num_slots, block, seed=0):
    """A layer whose queries the policy has observed, `block` at a time."""
    layer, found = random_layer(num_slots, num_slots, seed), None
    for first in range(0, num_slots, block):
        stop = min(first + block, num_slots)
        found = policy.observe(layer.first(stop, stop - first), found)
    return replace(layer, observed=(found,))


def repeated(num_slots, seed=0):
    """A layer that two attention calls read, and how much each token was attended to while it was repeated."""
    peaks = torch.rand(2, NUM_HEADS, num_slots, generator=torch.Generator().manual_seed(seed))
    return random_layer(num_slots, 0, seed, observed=tuple(peaks))


def layer_for(policy, num_slots, seed=0):
    """With what a policy looks at."""
    if policy.observer is not None:
        return observed(policy, num_slots, num_slots, seed)
    if policy.repeated_tokens is not None:
        return repeated(num_slots, seed)
    return random_layer(num_slots, policy.num_queries, seed)


# What is kept of any layer


@every_policy
@pytest.mark.parametrize(("num_slots", "count", "window"), [(50, 20, 7), (50, 49, 7), (9, 8, 3), (300, 8, 1)])
def test_each_head_keeps_as_many_tokens_as_asked_and_always_the_window(name, num_slots, count, window):
    # Of the last tokens `streaming` keeps all that the first ones leave.
    rest = f"sinks={count - window}" if name == "streaming" else f"window={window}"
    policy = policy_of(f"{name}:tokens={count},{rest}")
    kept = policy.kept(layer_for(policy, num_slots), count)
    assert (kept.dtype, kept.shape) == (torch.int64, (NUM_HEADS, count))
    assert (kept.diff(dim=-1) > 0).all()
    assert kept.min() >= 0
    assert torch.equal(kept[:, -window:], torch.arange(num_slots - window, num_slots).expand(NUM_HEADS, -1))


def test_of_equal_scores_the_earlier_tokens_are_kept():
    layer = random_layer(40, 0)
    layer.keys[:] = 1
    assert policy_of("knorm:tokens=10,window=3").kept(layer, 10).tolist() == [[*range(7), 37, 38, 39]] * NUM_HEADS


def test_a_lot_is_drawn_again_for_another_seed_layer_or_length():
    def drawn(num_slots=60, number=1, seed=0):
        return policy_of(f"random:tokens=20,seed={seed}").kept(random_layer(num_slots, 0, number=number), 20).tolist()

    assert drawn() == drawn()
    assert len({str(each) for each in (drawn(), drawn(seed=1), drawn(number=2), drawn(num_slots=61))}) == 4
    assert len({tuple(head) for head in drawn()}) == NUM_HEADS


# What papers say: which tokens before the window each head keeps


def softmax(rows):
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def snapkv(layer, head, old):
    """Votes of the window's queries for each token before it, smoothed over neighbours; of its query heads the mean."""
    votes = softmax(layer.logits.double().numpy())[head, :, :, :old].mean(axis=1)
    return np.mean([np.convolve(row, np.ones(5) / 5, mode="same") for row in votes], axis=0)


def tova(layer, head, old):
    """Attention of the last query, over all heads of the layer."""
    return softmax(layer.logits.double().numpy())[:, :, -1].reshape(-1, layer.num_slots).mean(axis=0)


def morphkv(layer, head, old):
    """Each query of the window has a profile over the tokens before it, and the profiles are added."""
    return softmax(layer.logits.double().numpy()[head].sum(axis=0)[:, :old]).sum(axis=0)


def morphkv_max(layer, head, old):
    return softmax(layer.logits.double().numpy()[head].sum(axis=0)[:, :old]).max(axis=0)


def knorm(layer, head, old):
    """Low norms."""
    return -np.sqrt((layer.keys[head, :old].double().numpy() ** 2).sum(axis=-1))


def h2o(layer, head, old):
    """Attention of all queries, added up."""
    return softmax(layer.logits.double().numpy())[head].sum(axis=(0, 1))


def expected_attention(layer, head, old):
    """Without rotation: the mean of exp(k.q) over normal queries is exp(k.mean + k.covariance.k / 2)."""
    keys, weights = layer.keys[head, 4:].double().numpy(), []
    for rows in layer.unturned_queries[head, :, 4:].double().numpy():
        logits = keys @ rows.mean(axis=0) + ((keys @ np.cov(rows.T, bias=True)) * keys).sum(axis=-1) / 2
        weights.append(softmax(logits[None])[0])
    scores = np.mean(weights, axis=0) * np.sqrt((keys**2).sum(axis=-1))
    return np.concatenate((np.full(4, np.inf), scores))


def kvzip(layer, head, old):
    """The most that anything attended to a token; the first four are kept."""
    scores = np.max([peaks[head].double().numpy() for peaks in layer.observed], axis=0)
    return np.concatenate((np.full(4, np.inf), scores[4:]))


PAPERS = {
    "kvzip:tokens=24": (kvzip, 0),
    "kvzip:tokens=24,window=8": (kvzip, 8),
    "h2o:tokens=24": (h2o, 12),
    "h2o:tokens=24,recent=0.25": (h2o, 6),
    "expected_attention:tokens=24": (expected_attention, 0),
    "expected_attention:tokens=24,window=8": (expected_attention, 8),
    "snapkv:tokens=24,window=8": (snapkv, 8),
    "pyramidkv:tokens=24,window=8": (snapkv, 8),
    "tova:tokens=24": (tova, 0),
    "morphkv:tokens=24,window=8": (morphkv, 8),
    "morphkv:tokens=24,window=8,fuse=max": (morphkv_max, 8),
    "knorm:tokens=24,window=8": (knorm, 8),
}


@pytest.mark.parametrize("text", PAPERS)
@pytest.mark.parametrize("seed", range(5))
def test_it_keeps_what_its_paper_keeps(text, seed):
    scores, window = PAPERS[text]
    policy = policy_of(text)
    layer = layer_for(policy, 100, seed)
    old = layer.num_slots - window
    for head, kept in enumerate(policy.kept(layer, 24).tolist()):
        best = np.argsort(-scores(layer, head, old)[:old])[: 24 - window]
        assert kept == sorted(best.tolist()) + list(range(old, layer.num_slots))


@pytest.mark.parametrize(
    "text", ["h2o:tokens=24", "expected_attention:tokens=24", "expected_attention:tokens=90,sinks=70"]
)
def test_what_is_observed_in_blocks_is_what_is_observed_at_once(text):
    policy = policy_of(text)
    at_once, in_blocks = (observed(policy, 100, block) for block in (100, 33))
    torch.testing.assert_close(in_blocks.observed, at_once.observed)
    assert torch.equal(policy.kept(in_blocks, policy.tokens), policy.kept(at_once, policy.tokens))


def test_what_dropped_tokens_were_attended_to_is_forgotten():
    policy = policy_of("h2o:tokens=24")
    layer = observed(policy, 100, 100)
    kept = policy.kept(layer, 24)
    left = policy.left_of(layer.observed[0], kept)
    assert left.tolist() == [[float(layer.observed[0][head, slot]) for slot in kept[head]] for head in range(NUM_HEADS)]


def test_heads_with_better_scores_keep_more_pages():
    """Of the budget of a layer; each of them what it would keep of so many tokens by itself, and its window."""
    layer = random_layer(100, 0)
    layer.keys *= torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    policy = policy_of("knorm:tokens=32,window=3,head_floor=0.3")
    kept = policy.kept_of_heads(layer, Share(4, 8, layer.num_slots))
    assert [len(slots) for slots in kept] == [64, 16, 16]
    for head, slots in enumerate(kept):
        assert torch.equal(slots, policy.kept(layer, len(slots))[head])
    assert [len(slots) for slots in policy_of("knorm:tokens=32").kept_of_heads(layer, Share(4, 8, 100))] == [32] * 3


@pytest.mark.parametrize(("text", "paper"), [("snapkv:tokens=24,window=8", snapkv), ("tova:tokens=24,window=8", tova)])
@pytest.mark.parametrize("critical", [0.25, 0.5, 1])
def test_a_part_of_the_budget_goes_to_what_would_change_the_output(text, paper, critical):
    """The rest of the budget by the score of what is left times the size of its value, of its query heads the mean."""
    layer, policy = random_layer(100, 8), policy_of(f"{text},critical={critical}")
    layer.logits = layer.logits[:, :, 8 - policy.num_queries :]
    old, num_by_score = 92, int((1 - critical) * 16)
    for head, kept in enumerate(policy.kept(layer, 24).tolist()):
        scores = paper(layer, head, old)[:old]
        first = np.argsort(-scores)[:num_by_score].tolist()
        norms = layer.output_norms[head, :, :old].double().numpy().mean(axis=0)
        left = [token for token in np.argsort(-(scores + 1e-4) * norms) if token not in first]
        assert kept == [*sorted([*first, *left[: 16 - num_by_score]]), *range(old, 100)]


# How policies are named, and what they are allowed


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("none", None),
        ("snapkv:tokens=1024", SnapKV(tokens=1024, window=32, kernel=5)),
        ("snapkv:share=0.25, window=16, kernel=7", SnapKV(share=0.25, window=16, kernel=7)),
        ("tova:tokens=64,every=1", TOVA(tokens=64, every=1)),
        ("morphkv:tokens=64,fuse=max,every=0", MorphKV(tokens=64, fuse="max", every=0)),
        ("knorm:share=1", Knorm(share=1.0, window=1)),
        ("snapkv:tokens=64,critical=0.5", SnapKV(tokens=64, critical=0.5)),
        ("snapkv:tokens=64,head_floor=0.2", SnapKV(tokens=64, head_floor=0.2)),
        ("pyramidkv:tokens=64,beta=10", PyramidKV(tokens=64, beta=10)),
    ],
)
def test_a_policy_is_named_with_its_parameters(text, policy):
    assert policy_of(text) == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h3o:tokens=64", "'h3o:tokens=64': give none, or snapkv, .*as in snapkv:tokens=1024,window=32"),
        ("h2o:tokens=64,recent=1", "recent=1; give at least 0 and less than 1"),
        ("expected_attention:tokens=4", "give 5 to .*always keeps the first 4 tokens"),
        ("expected_attention:tokens=40,future=0", "a future of 1 to"),
        ("none:tokens=64", "give none, or snapkv"),
        ("kvzip:tokens=64,every=8", "every=8; leave it out: a text is repeated and compressed once"),
        ("kvzip:tokens=64,chunk=15", "chunk=15; give at least 16 tokens to repeat at once"),
        ("kvzip:tokens=4", r"give 5 to .*always keeps the first 4 tokens\.$"),
        ("tova", "tova needs a budget: give tokens=1024 or share=0.25, one of the two"),
        ("tova:tokens=64,share=0.5", "give tokens=1024 or share=0.25, one of the two"),
        ("tova:tokens=many", "'tova:tokens=many': tokens takes a whole number"),
        ("tova:tokens=1.5", "tokens takes a whole number"),
        ("tova:share=half", "share takes a number"),
        ("tova:tokens=64,tokens=65", "tova takes each of these once: tokens=..., share=..."),
        ("tova:tokens=64,kernel=5", "tova takes each of these once"),
        ("tova:64", "tova takes each of these once"),
        ("tova:tokens=0", "tokens=0; give 1 to"),
        ("tova:tokens=99999999999", "tokens=99999999999; give 1 to 2147483648"),
        ("tova:tokens=64,every=-1", "every=-1; give tokens, or 0 for once after the prompt"),
        ("tova:share=0", "share=0; give more than 0 and at most 1"),
        ("tova:share=1.01", "share=1.01; give more than 0 and at most 1"),
        ("tova:share=nan", "share=nan; give more than 0 and at most 1"),
        ("knorm:tokens=64,window=-1", "window=-1; give how many of the last tokens are kept"),
        ("snapkv:tokens=32", "tokens=32; give 33 to .*always keeps the last 32 tokens"),
        ("snapkv:tokens=64,window=0", "window of at least 1 token"),
        ("snapkv:tokens=64,kernel=4", "an odd kernel, such as 5"),
        ("snapkv:tokens=64,kernel=257", "of at most 255"),
        ("tova:tokens=64" + "," * 200, "214 characters; give at most 200"),
        ("snapkv:tokens=64,critical=1.1", "critical=1.1; give 0 to 1"),
        ("snapkv:tokens=64,critical=nan", "critical=nan; give 0 to 1"),
        ("knorm:tokens=64,critical=0.5", "knorm takes no critical"),
        ("knorm:tokens=64,head_floor=1.5", "head_floor=1.5; give 0 to 1"),
        ("tova:tokens=64,head_floor=0.2", "every 32 tokens, which can be done once only: give every=0"),
        ("pyramidkv:tokens=64,every=1", "every 1 tokens, which can be done once only: give every=0"),
        ("pyramidkv:tokens=64,beta=0", "beta=0; give at least 1"),
        ("pyramidkv:tokens=64,window=0", "pyramidkv needs a window of at least 1 token"),
        ("streaming:tokens=64,head_floor=0.2", "streaming takes each of these once"),
        ("morphkv:tokens=64,fuse=mean", "fuse=sum or fuse=max"),
    ],
)
def test_what_makes_no_sense_is_said_with_what_does(text, message):
    with pytest.raises(ConfigError, match=message):
        policy_of(text)


@pytest.mark.parametrize(
    ("text", "num_prompt_tokens", "budget"),
    [
        ("snapkv:tokens=100", 5000, 100),
        ("snapkv:tokens=100", 50, 100),
        ("snapkv:share=0.25", 5000, 1250),
        ("snapkv:share=0.25", 100, 33),
        ("tova:share=0.1", 5, 1),
        ("knorm:share=1", 5000, 5000),
    ],
)
def test_a_budget_is_a_number_or_a_share_of_the_prompt_and_more_than_the_window(text, num_prompt_tokens, budget):
    assert policy_of(text).budget(num_prompt_tokens) == budget
