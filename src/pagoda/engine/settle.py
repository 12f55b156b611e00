"""What becomes of a step: how many tokens of each chunk count, and which tokens are drawn after them.

Commits before it draws, so that pages are shareable at once, and tells callers last. Whoever's matcher does not know
yet what may follow is held until it does.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import torch

from pagoda.cache.cache import Cache
from pagoda.cache.compression.choice import MemoryFull
from pagoda.cache.compression.progress import MOST_POSITIONS
from pagoda.engine.batch import Batch, Chunk
from pagoda.engine.breakpoints import lease_computed
from pagoda.engine.compression import Compressor
from pagoda.engine.ends import Ends
from pagoda.engine.forward import Computed
from pagoda.engine.request import FinishReason, Phase, Sequence, new_sample
from pagoda.engine.sampling import draw, token_logprobs
from pagoda.engine.scheduler import REJECTED, Scheduler
from pagoda.engine.scoring import score_prompt
from pagoda.errors import MemoryFullError, NonFiniteCacheError, NonFiniteLogitsError, OutOfPagesError
from pagoda.models.model import Model


class Settler:
    """Settles steps of `model` over `cache`. Sequences of a tenant end after `max_len` tokens."""

    def __init__(
        self,
        model: Model,
        cache: Cache,
        scheduler: Scheduler,
        ends: Ends,
        compressor: Compressor,
        max_len: Callable[[str], int],
    ) -> None:
        self._model = model
        self._cache = cache
        self._scheduler = scheduler
        self._ends = ends
        self._compressor = compressor
        self._max_len = max_len
        self._held: list[Sequence] = []

    @property
    def holds_any(self) -> bool:
        """Whether matchers are waited for."""
        return bool(self._held)

    def release_held(self) -> None:
        """Let those go on, or end them, whose matchers know by now."""
        held, self._held = self._held, []
        for sequence in held:
            if sequence.phase is not Phase.FINISHED:
                self._ends.contain(sequence, self._release)

    def settle(self, batch: Batch, computed: Computed) -> None:
        """Decide how many tokens of each chunk count, commit them, and draw the next ones."""
        self._fail_broken(computed)
        for chunk in batch.unfinished().chunks:
            commit = self._commit_repeated if chunk.repeats else self._commit
            self._ends.contain(chunk.sequence, commit, self._accepted_tokens(chunk))
        for sequence, logits in computed.prompt_logits.items():
            self._ends.contain(sequence, score_prompt, logits)
        for sequence, _ in _running(computed.complete):
            if sequence.request.params.max_tokens == 0:
                self._ends.contain(sequence, self._end_prompt)
        self._sample(computed, _running(computed.complete))

    def ends_soon(self, sequence: Sequence) -> bool:
        """Whether the step that draws its next token ends a running sequence, whatever token that is."""
        return sequence.request.params.max_tokens == 0 or self._is_full(sequence, num_more=1)

    def _accepted_tokens(self, chunk: Chunk) -> int:
        """How many tokens of its sequence are computed for good once a chunk is: all that it had."""
        return chunk.stop

    def _commit(self, sequence: Sequence, num_tokens: int) -> None:
        assert sequence.cached is not None
        exact = sequence.num_exact_tokens
        if exact is not None and num_tokens > exact:
            self._cache.detach(sequence.cached)
        self._cache.commit(sequence.cached, sequence.tokens, num_tokens)
        lease_computed(self._cache, sequence)
        if sequence.compression is not None and sequence.compression.due == num_tokens:
            self._compress(sequence)

    def _commit_repeated(self, sequence: Sequence, num_tokens: int) -> None:
        """So much of what it repeats is computed: once a chunk is, its pages go."""
        repeat, compression, repeating = sequence.repeat, sequence.compression, sequence.repeating
        assert repeat is not None
        assert compression is not None
        assert repeating is not None
        self._cache.commit(repeating, repeat.tokens, num_tokens)
        repeat.num_computed = num_tokens
        if not repeat.num_left_of_chunk:
            self._cache.release(repeating)
            sequence.repeating = None
            compression.repeated()

    def _compress(self, sequence: Sequence) -> None:
        """Without room for it a sequence waits until there is, and is computed again.

        Raises OutOfPagesError if there will be none, or MemoryFullError if it asked not to wait.
        """
        try:
            self._compressor.compress(sequence)
        except OutOfPagesError as error:
            if sequence.request.memory_full is MemoryFull.REJECT:
                sequence.request.metrics.gave_way[MemoryFull.REJECT] += 1
                raise MemoryFullError(REJECTED) from error
            if not self._scheduler.start_again(sequence):
                raise

    def _end_prompt(self, sequence: Sequence) -> None:
        """End one that was to be computed only; its pages stay."""
        for each in (sequence, *self._fork(sequence)):
            self._ends.finish(each, FinishReason.LENGTH)
            self._ends.tell(each, None)

    def _sample(self, computed: Computed, complete: list[tuple[Sequence, int]]) -> None:
        """Draw the next token of each completed sequence from its row, forking those that want several samples."""
        rows = []
        for sequence, row in complete:
            twins = self._ends.contain(sequence, self._fork) or ()
            rows += [(each, row) for each in (sequence, *twins) if each.phase is not Phase.FINISHED]
        drawn, failed = draw(computed.logits, rows, self._model.eos_token_ids, computed.drawn)
        for sequence, error in failed:
            self._ends.fail([sequence], error, keep_pages=True)
        now = monotonic()
        for sequence, row, token in drawn:
            if sequence.phase is not Phase.FINISHED:
                self._ends.contain(sequence, self._accept, token, computed.logits, row, now)

    def _accept(self, sequence: Sequence, token: int, logits: torch.Tensor, row: int, now: float) -> None:
        if sequence.request.params.logprobs is not None:
            self._note_logprobs(sequence, token, logits[row])
        self._append(sequence, token, now)
        self._ends.tell(sequence, token)

    def _fork(self, sequence: Sequence) -> list[Sequence]:
        """The other samples of a request whose prompt is computed now."""
        request = sequence.request
        twins = [new_sample(request, index) for index in range(len(request.sequences), request.params.n)]
        if twins:
            self._scheduler.fork(sequence, twins)
        return twins

    def _note_logprobs(self, sequence: Sequence, token: int, logits: torch.Tensor) -> None:
        request, num_top = sequence.request, sequence.request.params.logprobs
        assert num_top is not None
        before = monotonic()
        logprobs = token_logprobs(logits, token, num_top)
        request.metrics.phases.sampling += monotonic() - before
        sequence.logprobs.append(logprobs)
        sequence.cumulative_logprob += logprobs.logprob

    def _append(self, sequence: Sequence, token: int, now: float) -> None:
        request, params = sequence.request, sequence.request.params
        sequence.tokens.append(token)
        metrics = request.metrics
        metrics.first_token = metrics.first_token or now
        metrics.last_token = now
        if sequence.index == 0:
            metrics.token_times.append(now)
        stops = token in request.stop_token_ids
        # The text ends before the token that ends it, as it does before a stop string.
        is_shown = not stops or params.include_stop_str_in_output
        matched = request.watch(sequence, token) if request.watch and is_shown else None
        if sequence.matcher is not None:
            sequence.matcher.push(token)
        if stops:
            sequence.stop_reason = None if token in self._model.eos_token_ids else token
            self._ends.finish(sequence, FinishReason.STOP, now=now)
        elif matched is not None and sequence.num_output_tokens >= params.min_tokens:
            sequence.stop_reason = matched
            self._ends.finish(sequence, FinishReason.STOP, now=now)
        elif sequence.matcher is not None:
            sequence.is_held = True
            self._held.append(sequence)
        elif self._is_full(sequence):
            self._ends.finish(sequence, FinishReason.LENGTH, now=now)

    def _is_full(self, sequence: Sequence, num_more: int = 0) -> bool:
        """Whether it is as long as it may be, with so many tokens more."""
        request = sequence.request
        limit, most = self._max_len(request.tenant), request.params.max_tokens
        if request.is_endless:
            most, limit = limit if most is None else most, MOST_POSITIONS
        return len(sequence.tokens) + num_more >= limit or sequence.num_output_tokens + num_more == most

    def _release(self, sequence: Sequence) -> None:
        """Let a sequence go on, or end it, if its matcher knows by now."""
        assert sequence.matcher is not None
        if not sequence.matcher.is_ready:
            sequence.held_since = sequence.held_since or monotonic()
            self._held.append(sequence)
            return
        sequence.is_held = False
        if sequence.held_since is not None:
            sequence.request.metrics.phases.structured += monotonic() - sequence.held_since
            sequence.held_since = None
        if sequence.matcher.is_done or self._is_full(sequence):
            self._ends.finish(sequence, FinishReason.STOP if sequence.matcher.is_done else FinishReason.LENGTH)
            self._ends.tell(sequence, None)

    def _fail_broken(self, computed: Computed) -> None:
        """End what computed NaN or infinity, before its pages are shared."""
        self._ends.fail(
            computed.broken,
            NonFiniteCacheError("The model produced NaN or infinite keys or values for this request."),
        )
        broken = [sequence for sequence in computed.with_broken_logits if sequence.phase is Phase.RUNNING]
        self._ends.fail(broken, NonFiniteLogitsError("The model produced NaN or infinite logits for this request."))


def _running(complete: list[tuple[Sequence, int]]) -> list[tuple[Sequence, int]]:
    return [each for each in complete if each[0].phase is Phase.RUNNING]
