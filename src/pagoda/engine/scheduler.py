"""Which sequences advance in the next step, and by how many tokens.

Continuous batching (Orca, OSDI 2022) with chunked prefill (Sarathi-Serve, arXiv 2403.02310): decodes first, then
running prefills, then waiting requests in order of arrival, all within one token budget. When pages run short somebody
is compressed, if that was asked for (`shrinking.py`), or else the youngest sequence whose pages can help gives way: it
is sent back to wait, and as its pages stay hittable little is computed again, or it ends if it would rather.

Whose prompts come first is said by `turns.py`, after what tenants have been served (`waiting.py`); while several are
present steps are short (`division.py`). Who may start beside the others, and who gives way, is said by `fairness.py`.

What raises for one sequence is noted and the others are planned. Integers only, no tensors.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from itertools import islice
from time import monotonic

from pagoda.cache.cache import Cache
from pagoda.cache.compression.choice import MemoryFull
from pagoda.cache.groups.table import ResumePoints
from pagoda.cache.prefix.keys import TOKEN_TYPE, common_tokens, token_key
from pagoda.cache.sequence import CachedSequence, Hit
from pagoda.engine.batch import Batch, next_chunk
from pagoda.engine.fairness import Fairness
from pagoda.engine.lookups import Lookups
from pagoda.engine.promotion import Promotions
from pagoda.engine.request import Phase, Sequence, begin_compression
from pagoda.engine.round import Limits, Round
from pagoda.engine.shrinking import Shrinking
from pagoda.engine.turns import Turns
from pagoda.engine.waiting import Waiting
from pagoda.errors import MemoryFullError, OutOfPagesError

logger = logging.getLogger(__name__)

# How many waiting sequences are looked at for tokens that they share with the next one.
MAX_COMPARED = 32
REJECTED = (
    "Pages ran short while this request ran, and it asked to end then (memory_full=reject); send it again later, or "
    "raise kv_cache_memory_bytes."
)
NO_ROOM_TO_REPEAT = (
    "There are not enough pages to repeat the prompt before it is compressed, though nobody else runs; give a smaller "
    "chunk, or raise kv_cache_memory_bytes."
)


class Scheduler:
    """Waiting and running sequences over one cache. What comes from tiers is brought through `promotions`.

    After `schedule`, `failed` has what raised for which sequences, and those that end rather than wait for pages; they
    are to be removed.
    """

    def __init__(
        self,
        cache: Cache,
        limits: Limits,
        lookups: Lookups | None = None,
        promotions: Promotions | None = None,
        shrinking: Shrinking | None = None,
    ) -> None:
        self._cache = cache
        self._shrinking = shrinking or Shrinking(cache, (), begin_compression)
        self._lookups = lookups or Lookups(cache, None)
        self.promotions = promotions or Promotions(None)
        step_tokens = self._max_num_batched_tokens = limits.max_num_batched_tokens
        self._max_scored_tokens = limits.max_scored_tokens or step_tokens
        self.waiting = Waiting(limits.weights, step_tokens)
        self._turns = Turns(self.waiting, step_tokens)
        self.running: list[Sequence] = []
        self._fairness = Fairness(cache, self.waiting, self.running, limits.max_num_seqs, step_tokens)
        self.failed: dict[Sequence, Exception] = {}
        self._num_planned = 0
        self._unreleased: list[tuple[CachedSequence, array[int]]] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_computing(self) -> int:
        """How many run and have their pages."""
        return len(self._computing())

    def num_ahead(self, tenant: str) -> int:
        """What of a tenant runs and waits; what there is of others is none of its business."""
        running = {each.request for each in self.running if each.request.tenant == tenant}
        return len(running) + self.waiting.number_of(tenant)

    def add(self, sequence: Sequence) -> None:
        self.waiting.enter(sequence.request.tenant, self._fairness.active_tenants)
        self.waiting.append(sequence)

    def fork(self, sequence: Sequence, twins: list[Sequence]) -> None:
        """Let `twins` run on from where `sequence` stands, sharing its pages; those without a seat wait for one."""
        assert sequence.cached is not None
        room = max(self._fairness.seats_for(sequence).num_free, 0)
        for twin in twins[:room]:
            twin.cached = self._cache.fork(sequence.cached)
            twin.compression = sequence.compression and sequence.compression.copy()
            twin.phase = Phase.RUNNING
            self.running.append(twin)
        for twin in reversed(twins[room:]):
            self.waiting.appendleft(twin)

    def start_again(self, sequence: Sequence) -> bool:
        """Let a running sequence that lacks pages wait for them; False if nobody is left who could give any back."""
        if self.running == [sequence] and not self._fairness.revoke_lease(sequence):
            return False
        self._preempt(sequence)
        return True

    def remove(self, sequence: Sequence, keep_pages: bool = True) -> None:
        """Take a sequence out, wherever it is; with `keep_pages` off its pages are forgotten."""
        self._lookups.end(sequence)
        self._release(sequence, keep_pages)
        if sequence.phase is Phase.RUNNING:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.phase = Phase.FINISHED

    def schedule(self) -> Batch:
        """What to compute next, with room for it reserved. Empty only if nothing can advance."""
        self.failed = {}
        self._lookups.serve_nobody()
        self._release_again()
        self._cache.expire()
        self._settle_loads()
        wanted = self._turns.wanted(self._computing())
        step = Round({}, self._max_num_batched_tokens, self._turns.divide(wanted))
        # Decodes first: a long prefill must not stall those who are already reading.
        decodes = [each for each in self._computing() if each.num_uncomputed <= 1 and not each.is_held]
        for sequence in step.division.choose(decodes, self.waiting.weight):
            self._contain(step, sequence, lambda each: self._go_on(each, step, step.left))
        if self.waiting:
            for sequence in list(self.running):
                self._contain(step, sequence, lambda each: self._note_writing(each, step))
        for tenant in wanted.with_prompts:
            self._schedule_prompts(tenant, step)
        self._turns.charge(step.plan, self._computing(), wanted)
        return self._batch(step)

    def _computing(self) -> list[Sequence]:
        """Those that run and have their pages."""
        if not self.promotions.is_loading_any:
            return self.running
        return [each for each in self.running if not each.is_loading]

    def _settle_loads(self) -> None:
        """Let those go on whose pages have come from tiers, and start those anew that lack some."""
        for sequence, has_come in self.promotions.begin_step():
            if has_come:
                self._note_found(sequence)
            else:
                self.running.remove(sequence)
                sequence.phase = Phase.WAITING
                self.waiting.appendleft(sequence)

    def _note_found(self, sequence: Sequence) -> None:
        """Tell what a sequence has that was brought from tiers."""
        assert sequence.cached is not None
        assert sequence.promotion is not None
        hit = self._cache.match(sequence.request.namespace, sequence.tokens, limit=sequence.num_resumable)
        found = hit._replace(num_tokens=sequence.cached.num_tokens)
        self._cache.count_hit(found.num_tokens, len(sequence.tokens))
        self._lookups.start(sequence, found, sequence.promotion.loaded_tokens)
        self._note_cached(sequence, found)

    def _batch(self, step: Round) -> Batch:
        chunks = []
        for sequence, num_tokens in step.plan.items():
            try:
                chunks.append(next_chunk(sequence, num_tokens))
            except Exception as error:
                self.failed[sequence] = error
        return Batch(tuple(chunks))

    def _schedule_prompts(self, tenant: str, step: Round) -> None:
        """Plan the prompts of one tenant: those that run, then those that wait."""
        before = step.left
        prefills = [each for each in self._computing() if each.num_uncomputed > 1]
        for sequence in [each for each in prefills if each.request.tenant == tenant]:
            self._contain(step, sequence, lambda each: self._go_on(each, step, step.budget(tenant)))
        for sequence in self.waiting.of(tenant):
            if step.is_full or step.budget(tenant) <= 0:
                break
            if not self._contain(step, sequence, lambda each: self._admit(each, step, step.budget(tenant))):
                break
        self._turns.took(tenant, before - step.left, step.division)

    def _contain(self, step: Round, sequence: Sequence, action: Callable[[Sequence], bool]) -> bool:
        """What `action` says of `sequence`; if it raises, now or before in this step, the others go on."""
        try:
            return sequence in self.failed or action(sequence)
        except Exception as error:
            self.failed[sequence] = error
            step.take_out(sequence)
            return True

    def _go_on(self, sequence: Sequence, step: Round, budget: int) -> bool:
        """Plan a running sequence, unless it is held, or was sent back meanwhile."""
        if sequence.is_held or sequence.is_loading:
            return True
        budget = self._room_for(sequence, budget, step)
        if sequence.phase is Phase.RUNNING and budget > 0:
            self._advance(sequence, budget, step)
        return True

    def _advance(self, sequence: Sequence, budget: int, step: Round) -> None:
        """Plan what it can of a running sequence, once others have given way until its pages can be had."""
        self._spare_repeating(sequence)
        num_tokens, growing = min(sequence.num_computable, budget), self._growing(sequence)
        self._lookups.serve(sequence)
        while not self._cache.reserve(growing, num_tokens):
            shrinkable = self._shrinking.first_for(sequence, num_tokens, reversed(self.running))
            if shrinkable is not None:
                self._shrink(shrinkable, step)
            else:
                victim = self._fairness.victim_of(sequence, num_tokens)
                if victim is not sequence or not self._fairness.revoke_lease(sequence):
                    self._check_waiting_helps(victim)
                    self._give_way(victim, step)
            if sequence.cached is None:  # it was its turn to give way
                return
        self._plan(sequence, num_tokens, step)

    def _spare_repeating(self, sequence: Sequence) -> None:
        """Let one that is about to repeat some of its tokens have what another was compressed to that did so."""
        repeat, key = sequence.repeat, sequence.request.compacted_key
        if repeat is None or key is None or sequence.repeating is not None:
            return
        sequence.taken = self._cache.attach_compacted(key, sequence.tokens)
        if sequence.taken is not None:
            assert sequence.compression is not None
            sequence.compression.repeat = None

    def _growing(self, sequence: Sequence) -> CachedSequence:
        """What a running sequence goes on with: where it begins to repeat something, pages that go with that."""
        assert sequence.cached is not None
        repeat = sequence.repeat
        if repeat is not None and sequence.repeating is None:
            sequence.repeating = self._cache.branch(sequence.cached)
            repeat.begin(sequence.tokens)
        return sequence.repeating or sequence.cached

    def _check_waiting_helps(self, victim: Sequence) -> None:
        """Raise OutOfPagesError if one would wait for nobody, to repeat the same and be short of pages again."""
        if victim.repeat is not None and self.running == [victim]:
            raise OutOfPagesError(NO_ROOM_TO_REPEAT)

    def _plan(self, sequence: Sequence, num_tokens: int, step: Round) -> None:
        step.add(sequence, num_tokens)
        self._num_planned += 1
        sequence.last_planned = self._num_planned

    def _shrink(self, sequence: Sequence, step: Round) -> None:
        """Let a running sequence go on with less, from the next step on if it was planned; or else wait."""
        step.take_out(sequence)
        try:
            self._shrinking.shrink(sequence)
        except OutOfPagesError:
            self._preempt(sequence)
        except Exception as error:
            self.failed[sequence] = error
            self._wait_again(sequence)
        else:
            sequence.request.metrics.gave_way[MemoryFull.COMPRESS] += 1

    def _give_way(self, victim: Sequence, step: Round) -> None:
        """Send a running sequence back, or end its request if that was asked for."""
        request = victim.request
        if request.memory_full is not MemoryFull.REJECT:
            self._send_back(victim, step)
            return
        request.metrics.gave_way[MemoryFull.REJECT] += 1
        for each in [each for each in self.running if each.request is request]:
            step.take_out(each)
            self.failed[each] = MemoryFullError(REJECTED)
            self._wait_again(each)

    def _send_back(self, victim: Sequence, step: Round) -> None:
        step.take_out(victim)
        self._preempt(victim)

    def _preempt(self, sequence: Sequence) -> None:
        """Let a running sequence wait again, and tiers know of it."""
        self._wait_again(sequence)
        sequence.request.metrics.num_preemptions += 1
        self.promotions.sent_back(sequence)

    def _wait_again(self, sequence: Sequence) -> None:
        """Let a running sequence wait before the others of its tenant."""
        self.running.remove(sequence)
        self._release(sequence, keep_pages=True)
        begin_compression(sequence)
        sequence.phase = Phase.WAITING
        self.waiting.appendleft(sequence)

    def _admit(self, sequence: Sequence, step: Round, budget: int) -> bool:
        """Start a waiting sequence if tokens, pages and seats last; False if those behind it have to wait as well.

        One whose next page a running prefill is about to write is passed over: it can share that page a step later.
        So is one that begins with what a running one will be compressed to, and one whose prompt is to be scored, if
        others take up all that can be scored in this step. What encoders have to read counts as tokens of the step.
        """
        if sequence.is_held:
            return True
        if self._fairness.waits_behind(sequence, step.held_up):
            return False
        room = self._room_for(sequence, budget, step)
        before = monotonic()
        hit = self._cache.match(sequence.request.namespace, sequence.tokens, limit=sequence.num_resumable)
        key = sequence.beginning_key
        compacted = None if key is None else self._cache.match_compacted(key, sequence.tokens)
        sequence.request.metrics.phases.match += monotonic() - before
        if room <= 0 or (compacted is None and self._is_on_its_way(sequence, hit, step)):
            return True
        if not self._cache.resumes_anywhere:
            hit = self._parting_from_others(sequence, hit)
        # An encoder reads its input in one step, however long it is; a second one must fit beside.
        to_encode = sequence.request.namespace.num_encoder_tokens - hit.num_encoder_tokens
        if step.encoded and to_encode >= budget:
            return False
        ways = [*filter(None, [compacted]), hit, self._cache.whole_pages(hit)]
        fitting = self._fairness.fitting(sequence, ways, only_share=bool(step.held_up))
        if fitting is not None and self._fairness.seats_for(sequence).has_room(sequence):
            self._start(sequence, fitting, room, step)
            step.encode(sequence, to_encode)
            return True
        made_room = self._free_pages(sequence, step) if fitting is None else self._free_seats(sequence, step)
        return made_room and self._admit(sequence, step, budget)

    def _is_on_its_way(self, sequence: Sequence, hit: Hit, step: Round) -> bool:
        """Whether more than `hit` will be there if a waiting sequence waits: others write it, or tiers are asked."""
        wants_more = not sequence.num_unscored and hit.num_tokens < sequence.num_resumable
        if wants_more and self._cache.missing_key(hit, sequence.tokens) in step.being_written:
            return True
        return sequence.beginning_key in step.being_written or self.promotions.must_wait(sequence, hit)

    def _free_pages(self, sequence: Sequence, step: Round) -> bool:
        """Whether a lease, or others that have more than their share, gave way to a waiting sequence.

        If not, it holds up the others.
        """
        if not step.held_up:
            if self._fairness.revoke_lease(sequence):
                return True
            if victims := self._fairness.victims_for_pages(sequence):
                self._make_room(victims, step)
                return True
        step.held_up.append(sequence)
        step.is_full = not self._cache.tenants.have_shares
        return False

    def _make_room(self, victims: list[Sequence], step: Round) -> None:
        """Let the first of these go on with less that leaves any pages so, or else the first of all give way."""
        shrinkable = next(filter(self._shrinking.helps, victims), None)
        if shrinkable is not None:
            self._shrink(shrinkable, step)
        else:
            self._give_way(victims[0], step)

    def _free_seats(self, sequence: Sequence, step: Round) -> bool:
        """Whether sequences of tenants that have more than their share were sent back for one that waits."""
        while not (seats := self._fairness.seats_for(sequence)).has_room(sequence):
            victim = seats.victim(sequence)
            if victim is None:
                return False
            self._send_back(victim, step)
        return True

    def _start(self, sequence: Sequence, fitting: Hit, budget: int, step: Round) -> None:
        """Run a waiting sequence from what the cache holds of it, for which there is room."""
        breakpoints = tuple(each.num_tokens for each in sequence.request.breakpoints)
        if (key := sequence.beginning_key) is not None:  # others go on from there
            breakpoints += (key.num_tokens,)
        self._lookups.serve(sequence)
        points = ResumePoints(fitting.branch_tokens, len(sequence.tokens), breakpoints)
        if fitting.compacted:
            assert sequence.compression is not None
            sequence.compression.skip()
        elif self.promotions.begin(sequence, fitting, points):
            self._run(sequence)
            return
        self._lookups.start(sequence, fitting)
        before = monotonic()
        sequence.cached = self._cache.attach(fitting, len(sequence.tokens), breakpoints)
        sequence.request.metrics.phases.match += monotonic() - before
        self._run(sequence)
        self._note_cached(sequence, fitting)
        self._advance(sequence, budget, step)
        if sequence.cached is not None:  # these pages were promised, but for what windows and states take to repeat it
            self._note_writing(sequence, step)

    def _run(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        sequence.phase = Phase.RUNNING
        self.running.append(sequence)

    def _note_cached(self, sequence: Sequence, hit: Hit) -> None:
        """Tell what the cache had of a request when it first started."""
        request = sequence.request
        if request.num_cached_tokens is None:
            request.num_cached_tokens = hit.num_tokens
            request.num_cached_encoder_tokens = hit.num_encoder_tokens

    def _note_writing(self, sequence: Sequence, step: Round) -> bool:
        """Others may wait for the page that `sequence` writes, unless it repeats something first.

        Those that would do the same may wait for what it is compressed to.
        """
        assert sequence.cached is not None
        key = sequence.request.compacted_key
        if key is not None and sequence.cached.num_tokens < key.num_tokens:
            step.being_written.add(key)
        if sequence.repeat is not None:
            return True
        step.being_written |= {self._cache.written_key(sequence.cached, sequence.tokens)} - {None}
        return True

    def _room_for(self, sequence: Sequence, budget: int, step: Round) -> int:
        """What a sequence may have of `budget`: less if its prompt is to be scored, as logits are large."""
        if not sequence.num_unscored:
            return budget
        scored = sum(num_tokens for each, num_tokens in step.plan.items() if each.num_unscored)
        return min(budget, self._max_scored_tokens - scored)

    def _parting_from_others(self, sequence: Sequence, hit: Hit) -> Hit:
        """`hit` with the deepest token that another waiting sequence shares as a place where prompts part."""
        key = token_key(sequence.tokens)
        others = (each for each in self.waiting.of(sequence.request.tenant) if each is not sequence)
        same = (each for each in islice(others, MAX_COMPARED) if each.request.namespace == sequence.request.namespace)
        shared = max((common_tokens(key, token_key(each.tokens)) for each in same), default=0)
        return hit._replace(branch_tokens=max(hit.branch_tokens, shared))

    def _release(self, sequence: Sequence, keep_pages: bool) -> None:
        if sequence.is_loading:
            self.promotions.call_off(sequence)
            keep_pages = True  # nobody has written to them
        if sequence.repeating is not None:
            repeating, sequence.repeating = sequence.repeating, None
            self._give_up(repeating, array(TOKEN_TYPE), keep_pages=True)
        if sequence.taken is not None:
            taken, sequence.taken = sequence.taken, None
            self._give_up(taken, array(TOKEN_TYPE), keep_pages=True)
        if sequence.cached is not None:
            cached, sequence.cached = sequence.cached, None
            self._give_up(cached, sequence.tokens, keep_pages)

    def _give_up(self, cached: CachedSequence, tokens: array[int], keep_pages: bool) -> None:
        """Release pages whatever happens: at once without keeping them, or else before the next step."""
        for keep in (keep_pages, False):
            try:
                self._cache.release(cached, tokens, keep)
            except Exception:
                logger.exception("The pages of a sequence could not be released; trying again")
            else:
                return
        self._unreleased.append((cached, tokens))

    def _release_again(self) -> None:
        pending, self._unreleased = self._unreleased, []
        for cached, tokens in pending:
            self._give_up(cached, tokens, keep_pages=False)
