"""A request and its sequences: what was asked, what has come of it, and when. Data only."""

from __future__ import annotations

import random
from array import array
from collections import Counter, deque
from collections.abc import Callable
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, TypedDict, Unpack

from pagoda.cache.compression.choice import MemoryFull
from pagoda.cache.compression.progress import Compression, Plan
from pagoda.cache.compression.repeat import Repeat
from pagoda.cache.groups.compacted import CompactedKey
from pagoda.cache.leases import Breakpoint, LeaseResult
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.reading import Reading
from pagoda.cache.report import CacheReport
from pagoda.cache.sequence import CachedSequence
from pagoda.engine.phases import PhaseSeconds, WallSeconds
from pagoda.models.generation import NO_RULES, Rules
from pagoda.planning.decoding import DecodeCosts
from pagoda.sampling_params import SamplingParams

if TYPE_CHECKING:
    import torch

    from pagoda.engine.constraint import Constraint, Matcher
    from pagoda.engine.promotion import Promotion
    from pagoda.models.encoder import EncoderInput


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # an end-of-sequence token, a stop token or a stop string
    LENGTH = "length"  # max_tokens or the context limit
    ABORT = "abort"  # cancelled
    ERROR = "error"


class Phase(Enum):
    """Where a sequence stands in the scheduler."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position, of the chosen token and the most likely ones, before any penalty."""

    token_id: int
    logprob: float
    rank: int  # 1 is the most likely token
    top: dict[int, float]


@dataclass
class RequestMetrics:
    """Times in seconds on the monotonic clock; None until they happen.

    `phases` has what it cost. `num_ahead` requests of its tenant were there before it. The time of its steps is known
    until `known_until`; of those that decoded, `mixed_step_seconds` computed prompts as well. Of the weights that its
    `num_decode_rows` read it has `weight_shares`: a row has one, divided by the rows of its step.
    """

    arrival: float
    added: float | None = None  # to the engine, read and checked
    first_scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None  # with the last token, unless something else ended it
    num_computed_tokens: int = 0  # token positions run through the model, recomputed ones counted again
    num_preemptions: int = 0
    gave_way: Counter[MemoryFull] = field(default_factory=Counter)  # beside preemptions as such
    token_times: list[float] = field(default_factory=list)  # of the first sample
    num_recomputed_tokens: int = 0
    num_ahead: int = 0
    phases: PhaseSeconds = field(default_factory=PhaseSeconds)
    known_until: float = 0.0
    prefill_step_seconds: float = 0.0
    decode_step_seconds: float = 0.0
    mixed_step_seconds: float = 0.0
    num_decode_rows: int = 0
    weight_shares: float = 0.0

    @property
    def queue_seconds(self) -> float | None:
        return None if self.first_scheduled is None else self.first_scheduled - self.arrival

    @property
    def ttft_seconds(self) -> float | None:
        """Time to first token, queueing included."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def e2e_seconds(self) -> float | None:
        """From arrival to the last token so far."""
        return None if self.last_token is None else self.last_token - self.arrival

    def wall(self, now: float | None = None) -> WallSeconds:
        """What it waited for until it ended; until `now` if it goes on."""
        until = self.ended if self.ended is not None else monotonic() if now is None else now
        promotion, prefill, decode = self.phases.promotion, self.prefill_step_seconds, self.decode_step_seconds
        total = until - self.arrival
        queue = total - promotion if self.first_scheduled is None else self.phases.queue
        return WallSeconds(queue, promotion, prefill, decode, max(total - queue - promotion - prefill - decode, 0.0))

    @property
    def mean_batch_rows(self) -> float:
        """How many rows shared the weights that one of its decode steps read, itself included; 1 before any did."""
        return self.num_decode_rows / self.weight_shares if self.weight_shares else 1.0

    @property
    def inter_token_seconds(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.token_times, self.token_times[1:], strict=False)]


@dataclass(eq=False)
class Sequence:
    """One sample of a request: `tokens` is the prompt and what has been generated so far.

    An array, as the cache finds pages by its bytes.
    """

    request: Request
    index: int
    tokens: array[int]
    random: random.Random
    draw_keys: deque[int] = field(default_factory=deque)  # of draws to come, as far as anybody asked for them
    phase: Phase = Phase.WAITING
    cached: CachedSequence | None = None
    matcher: Matcher | None = None  # of the request's constraint
    promotion: Promotion | None = None  # where it stands with the tiers
    compression: Compression | None = None
    repeating: CachedSequence | None = None  # the pages of what it repeats
    taken: CachedSequence | None = None  # what others were compressed to that repeated the same
    is_loading: bool = False  # its pages are on their way
    is_held: bool = False  # since the matcher does not know yet what may follow
    held_since: float | None = None  # when it was found that the matcher keeps it waiting
    last_planned: int = 0  # a number that grows with whatever the scheduler plans
    num_once_computed: int = 0  # tokens, before it was sent back
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def draw_key(self, num_ahead: int = 0) -> int:
        """64 bits that its next draw hangs on, or the draw that comes `num_ahead` later."""
        while len(self.draw_keys) <= num_ahead:
            self.draw_keys.append(self.random.getrandbits(64))
        return self.draw_keys[num_ahead]

    def take_draw_key(self) -> int:
        """Those of its next draw, which is made for good."""
        key = self.draw_key()
        self.draw_keys.popleft()
        return key

    @property
    def output_tokens(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :].tolist()

    @property
    def num_output_tokens(self) -> int:
        return max(len(self.tokens) - len(self.request.prompt), 0)  # one that was refused has no tokens

    @property
    def num_unscored(self) -> int:
        """Rows of the prompt whose log-probabilities are asked for and not known yet."""
        request = self.request
        return len(request.prompt) - 1 - len(request.prompt_logprobs) if request.scores_prompt else 0

    @property
    def num_exact_tokens(self) -> int | None:
        """How many tokens attend to all before them, where others are to read in part; None if none are."""
        reading = self.request.reading
        return None if reading is None else reading.num_exact_tokens(len(self.request.prompt))

    @property
    def num_resumable(self) -> int:
        """How many tokens need not be computed again: the last one must be, and so must rows to be scored.

        So must those whose queries say what is kept when it is compressed, and those that read in part.
        """
        if self.num_unscored:
            return len(self.request.prompt_logprobs)
        if (exact := self.num_exact_tokens) is not None:
            return min(len(self.tokens) - 1, exact)
        due = None if self.compression is None else self.compression.watched_until(len(self.tokens))
        if self.compression is None or due is None:
            return len(self.tokens) - 1
        return max(min(len(self.tokens) - 1, self.compression.first_watched(due), due - 1), 0)

    @property
    def repeat(self) -> Repeat | None:
        """What it repeats now, before it goes on."""
        repeat = None if self.compression is None else self.compression.repeat
        if repeat is None or self.cached is None or self.cached.num_tokens != repeat.start:
            return None
        return repeat

    @property
    def first_own_token(self) -> int | None:
        """From where on what it writes is nobody else's, since it is compressed there; None if that is not known."""
        return None if self.compression is None else self.compression.first_due

    @property
    def beginning_key(self) -> CompactedKey | None:
        """By which it finds what its beginning was compressed to: it begins with that if it has tokens behind."""
        key = self.request.compacted_key
        return key if key is not None and key.num_tokens < len(self.tokens) else None

    @property
    def growing(self) -> CachedSequence | None:
        """The page tables that it goes on with: its own, or those of what it repeats."""
        return self.cached if self.repeating is None else self.repeating

    @property
    def num_uncomputed(self) -> int:
        """Tokens whose keys and values are not in the pages yet, and those that it has to repeat."""
        repeat = None if self.compression is None else self.compression.repeat
        own = len(self.tokens) - (self.cached.num_tokens if self.cached else 0)
        return own if repeat is None else own + repeat.num_left

    @property
    def shareable_tokens(self) -> Sequenced[int]:
        """Those computed, up to where it was compressed, or began to read in part."""
        exact = self.num_exact_tokens if self.compression is None else self.compression.num_exact_tokens
        computed = self.cached.num_tokens if self.cached else 0
        return self.tokens[: computed if exact is None else min(computed, exact)]

    @property
    def num_computable(self) -> int:
        """How many of these one step may compute.

        None beyond where the sequence is compressed, repeats some, or begins to read in part.
        """
        exact, computed = self.num_exact_tokens, self.cached.num_tokens if self.cached else 0
        if exact is not None and computed < exact:
            return min(self.num_uncomputed, exact - computed)
        if self.compression is None or self.compression.next_stop is None:
            return self.num_uncomputed
        if (repeat := self.repeat) is not None:
            return repeat.num_left_of_chunk
        return min(self.num_uncomputed, self.compression.next_stop - computed)

    @property
    def most_slots(self) -> int:
        """How many of its tokens are held at once, at most, until all of these are computed."""
        compression = self.compression
        if compression is None or compression.due is None:
            return len(self.tokens)
        repeated = 0 if compression.repeat is None else compression.repeat.most_slots
        if compression.due >= len(self.tokens):
            return max(len(self.tokens), repeated)
        rest = len(self.tokens) - compression.due
        growth = min(rest, compression.plan.every or rest)
        return max(compression.due, compression.budget + growth, repeated)

    @property
    def num_owed_slots(self) -> int:
        """Room that a running sequence is still to take, to repeat what it has."""
        repeat = None if self.compression is None else self.compression.repeat
        return 0 if repeat is None or self.growing is None else max(repeat.most_slots - self.growing.num_tokens, 0)


@dataclass(eq=False)
class Request:
    """What was asked. `watch` sees each token of a sequence and returns the stop string it completed, if any.

    Leases are wanted of the prompt up to each of `breakpoints`, which are in order; `lease_results` has what came of
    those that the prompt has been computed up to.
    """

    request_id: str
    prompt: list[int]
    params: SamplingParams
    metrics: RequestMetrics
    text: str | None = None  # the prompt as it was given
    cache_salt: str = ""
    encoder_input: EncoderInput | None = None
    seed: int = 0
    validated: tuple[object, ...] = ()  # an engine, and what it found good
    stop_token_ids: frozenset[int] = frozenset()  # its own and the model's
    rules: Rules = NO_RULES  # of the model
    watch: Callable[[Sequence, int], str | None] | None = None
    constraint: Constraint | None = None  # the form of its output
    biases: tuple[torch.Tensor, torch.Tensor] | None = None  # logit_bias as token ids and values, once it is needed
    sequences: list[Sequence] = field(default_factory=list)
    num_cached_tokens: int | None = None  # of the prompt, when first scheduled
    num_cached_encoder_tokens: int = 0  # the same of what the encoder reads
    cache_report: CacheReport | None = None  # the same, and why it was no more
    error: Exception | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of all but the first token, as far as known
    tenant: str = ""
    breakpoints: tuple[Breakpoint, ...] = ()
    lease_results: list[LeaseResult] = field(default_factory=list)
    decode_costs: DecodeCosts | None = None  # of the engine
    compression: Plan | None = None
    compacted_key: CompactedKey | None = None  # by which others find what the prompt was compressed to, if they may
    reading: Reading | None = None
    memory_full: MemoryFull = MemoryFull.PREEMPT

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are asked for."""
        return self.params.prompt_logprobs is not None

    @cached_property
    def namespace(self) -> Namespace:
        """What its pages depend on beside its tokens."""
        if self.encoder_input is None:
            return Namespace(self.cache_salt, tenant=self.tenant)
        return Namespace(self.cache_salt, self.encoder_input.digest, self.encoder_input.num_tokens, self.tenant)

    @property
    def is_endless(self) -> bool:
        """Whether its sequences may be longer than the model's context."""
        return self.compression is not None and self.compression.is_endless

    @property
    def is_finished(self) -> bool:
        return all(sequence.phase is Phase.FINISHED for sequence in self.sequences)


class RequestOptions(TypedDict, total=False):
    """What a request may say of the cache."""

    tenant: str
    breakpoints: tuple[Breakpoint, ...]


def new_request(
    request_id: str,
    prompt: list[int],
    params: SamplingParams,
    text: str | None = None,
    cache_salt: str = "",
    encoder_input: EncoderInput | None = None,
    **options: Unpack[RequestOptions],
) -> Request:
    """A request that arrives now; `text` is the prompt as it was given."""
    metrics = RequestMetrics(arrival=monotonic())
    return Request(request_id, prompt, params, metrics, text, cache_salt, encoder_input, **options)


def new_sample(request: Request, index: int) -> Sequence:
    """Begin sample `index` of a request."""
    # Its text must depend on the seed and the index alone, so each has a generator of its own.
    generator = random.Random(f"{request.seed}/{index}")
    sequence = Sequence(request, index, array(TOKEN_TYPE, request.prompt), generator)
    sequence.matcher = None if request.constraint is None else request.constraint.new()
    begin_compression(sequence)
    request.sequences.append(sequence)
    return sequence


def begin_compression(sequence: Sequence) -> None:
    """It has no pages yet, or no longer. What was compressed since pages were short will be at the same place again."""
    request, before = sequence.request, sequence.compression
    if request.compression is not None:
        first_due = None if before is None else before.first_due
        sequence.compression = request.compression.begin(len(request.prompt), first_due)
