"""Where the time of a request went, in words: numbers in, sentences out.

The numbers are measured elsewhere. Each sentence names one cause and the numbers that show it; what made no difference
is not said. What another format would save is an estimate from bytes, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pagoda.cache.report import MissCause
from pagoda.planning.decoding import DecodeReads
from pagoda.units import format_nbytes, format_seconds

# Less of a whole than this is not worth a sentence.
NOTABLE_SHARE = 0.1
# A step is mostly others' if less of it than this is its own.
SHARED_SHARE = 0.5
# A format that saves less is not worth its error.
NOTABLE_SPEED_UP = 1.2
# More requests at once help where weights are more of what is read than this.
MOSTLY_WEIGHTS = 0.8

# Whoever waits for less, behind nobody, waits for the engine to take it up.
TAKING_UP_SECONDS = 0.01

TIMES = ("once", "twice")
WALL_NAMES = {
    "queue": "the queue",
    "promotion": "loading pages from tiers",
    "prefill": "prefill",
    "decode": "decode",
    "waiting": "waiting between its steps",
}
OVERHEADS = {
    "sampling": "sampling",
    "detokenise": "making text",
    "structured": "the structured output",
    "match": "the lookup in the cache",
}
# Causes that say more than that the prompt is new from there on.
LOST = {
    MissCause.EVICTED: "what was held of it was evicted to make room",
    MissCause.TTL_EXPIRED: "what was held of it had outlived its time",
    MissCause.RESET: "the cache was reset",
    MissCause.FAILED: "what was held of it was in doubt",
    MissCause.CHECKPOINT_MISSING: "pages were held, but no window or state to go on from",
    MissCause.PARTIAL_BLOCK: "no page was free to copy the rest to",
    MissCause.PROMPT_LOGPROBS: "log-probabilities of the prompt were asked for",
    MissCause.DISABLED: "prefixes are not shared here",
    MissCause.NOT_IN_TIERS: "what was held of it went, and no tier has it",
    MissCause.TIER_OFF: "a tier that may have it was off or late",
    MissCause.LOAD_REFUSED: "a tier has more of it, which would have taken longer to load",
    MissCause.LOAD_FAILED: "what a tier had of it could not be used",
}


@dataclass(frozen=True)
class RequestTime:
    """One request: `wall` is what it waited for, `work` what it cost, both by phase.

    `ending` is its finish reason, None while it goes on. `reads` is what decoding read for a token, if that is known.
    `num_ahead` requests were there when it came to the engine, which of the queue was after `preparing_seconds`. Of
    decode, steps of `mixed_seconds` computed prompts of others as well. `cause`: why no more of the prompt was found.
    Of what was found `read_tokens` says how many tokens came from which tier; the memory of pages is "device". It was
    compressed `num_shrunk` times since pages were short.
    """

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    wall: Mapping[str, float]
    work: Mapping[str, float]
    ttft_seconds: float | None = None
    ending: str | None = "stop"
    preparing_seconds: float = 0.0
    mixed_seconds: float = 0.0
    num_ahead: int = 0
    num_preemptions: int = 0
    num_recomputed_tokens: int = 0
    num_shrunk: int = 0
    reads: DecodeReads | None = None
    cause: MissCause = MissCause.UNKNOWN
    read_tokens: Mapping[str, int] = field(default_factory=dict)
    num_encoder_tokens: int = 0
    num_cached_encoder_tokens: int = 0

    @property
    def seconds(self) -> float:
        return sum(self.wall.values())

    @property
    def num_computed_tokens(self) -> int:
        """Of the prompt."""
        return self.num_prompt_tokens - self.num_cached_tokens

    def without_others(self) -> RequestTime:
        """Without what tells how much else the engine does: what it cost of shared steps, and what they read."""
        return replace(self, work={}, reads=None, mixed_seconds=0.0)


def verdict(time: RequestTime) -> tuple[str, ...]:
    """What took the time of a request."""
    return tuple(_sentences(time))


def verdict_of_all(times: Sequence[RequestTime]) -> tuple[str, ...]:
    """What the work of all requests went to, and which half of it to look at."""
    work = _added(time.work for time in times)
    queue = work.pop("queue", 0.0)
    total = sum(work.values())
    if not times or not total:
        return ()
    shares = [f"{_percent(seconds / total)} {name}" for name, seconds in _notable(work, total)]
    sentences = [
        f"{_count(len(times), 'request')} took {format_seconds(total)} of work: {_listed(shares)}.",
        _advice(times, work["prefill"], work["decode"]),
    ]
    waited = sum(time.seconds for time in times)
    if waited and queue / waited >= NOTABLE_SHARE:
        sentences.append(f"They spent {_percent(queue / waited)} of their time in the queue: more came than was done.")
    return tuple(sentences)


def _advice(times: Sequence[RequestTime], prefill: float, decode: float) -> str:
    prompt_tokens = sum(time.num_prompt_tokens for time in times)
    computed = sum(time.num_computed_tokens for time in times)
    if prefill > decode:
        return (
            f"Mostly prefill: {computed:,} of {prompt_tokens:,} prompt tokens were computed; prompts that begin alike "
            "save the most."
        )
    reads = [time.reads for time in times if time.reads is not None and time.reads.total]
    if not reads:
        return "Mostly decode, which is the time between tokens."
    weights = sum(each.weights for each in reads) / sum(each.total for each in reads)
    if weights > 0.5:
        return f"Mostly decode, which reads weights for {_percent(weights)}: more requests at once share them."
    return "Mostly decode, which reads the cache: shorter contexts and smaller formats of pages save the most."


def _sentences(time: RequestTime) -> Iterator[str]:
    if not time.seconds:
        return
    first = _first_token(time) if time.ttft_seconds is not None else _no_token(time)
    yield first
    if time.ttft_seconds is None:
        return
    if _tiers(time) and _loaded(time) not in first:
        yield f"{_loaded(time)}."
    if time.ending in ("abort", "error"):
        verb = "was cancelled" if time.ending == "abort" else "failed"
        yield f"It {verb} after {format_seconds(time.seconds)} and {_count(time.num_output_tokens, 'token')}."
    shares = [f"{_percent(part / time.seconds)} {WALL_NAMES[name]}" for name, part in _notable(time.wall, time.seconds)]
    yield f"All of it took {format_seconds(time.seconds)}: {_listed(shares)}."
    if time.num_preemptions:
        yield _preempted(time)
    if time.num_shrunk:
        yield f"It was compressed {_times(time.num_shrunk)} while it ran, since pages were short (memory_full)."
    if time.mixed_seconds / time.seconds >= NOTABLE_SHARE:
        yield f"Of decode, {format_seconds(time.mixed_seconds)} were steps that computed prompts of others as well."
    yield from _decode(time)
    yield from _overheads(time)


def _first_token(time: RequestTime) -> str:
    """What most of the time to first token went to."""
    assert time.ttft_seconds is not None
    took = f"The first token took {format_seconds(time.ttft_seconds)}"
    queue = time.wall["queue"]
    loading = min(time.wall["promotion"], max(time.ttft_seconds - queue, 0.0))
    prefill = min(time.wall["prefill"], max(time.ttft_seconds - queue - loading, 0.0))
    between = time.ttft_seconds - queue - loading - prefill
    if loading > max(queue, prefill, between) and _tiers(time):
        return f"{took} because {_loaded(time)}."
    if queue > max(prefill, between) and (time.num_ahead or queue > TAKING_UP_SECONDS):
        if time.preparing_seconds > queue / 2:
            made = format_seconds(time.preparing_seconds)
            return f"{took} because prompts were read and forms of outputs compiled for {made} before it began."
        return f"{took} because it waited {format_seconds(queue)} {_behind(time)}."
    if between > prefill:
        return f"{took} because it waited {format_seconds(between)} between the steps that computed its prompt."
    return f"{took}{_computed(time)}{_shared(time)}."


def _tiers(time: RequestTime) -> dict[str, int]:
    """Tokens that came from other places than the memory of pages."""
    return {name: number for name, number in time.read_tokens.items() if number and name != "device"}


def _loaded(time: RequestTime) -> str:
    parts = [f"{number:,} from {name}" for name, number in _tiers(time).items()]
    total = sum(_tiers(time).values())
    words = f"{_count(total, 'prompt token')} came from {next(iter(_tiers(time)))}"
    if len(parts) > 1:
        words = f"{_count(total, 'prompt token')} came from tiers ({_listed(parts)})"
    return f"{words} in {format_seconds(time.wall['promotion'])}"


def _computed(time: RequestTime) -> str:
    """How much of the prompt was computed, and why."""
    total, cached, computed = time.num_prompt_tokens, time.num_cached_tokens, time.num_computed_tokens
    if time.num_encoder_tokens:
        read = f"{time.num_encoder_tokens:,} tokens of its encoder"
        if time.num_cached_encoder_tokens:
            return f": what the {read} make came from the cache"
        return f" because {read} and {_count(computed, 'prompt token')} were computed"
    if total <= 1:
        return ": its prompt is one token"
    if cached > 0 and computed <= 1:
        return f": {cached:,} of {total:,} prompt tokens came from the cache, and the last one is always computed"
    return f" because {_missed(time)}"


def _missed(time: RequestTime) -> str:
    total, cached, computed = time.num_prompt_tokens, time.num_cached_tokens, time.num_computed_tokens
    if cached == 0:
        why = LOST.get(time.cause, "none was in the cache")
        return f"all {total:,} prompt tokens were computed: {why}"
    if time.cause is MissCause.CONTINUED:
        return f"{computed:,} of {total:,} prompt tokens were computed, which are new: the cache had the others"
    if time.cause is MissCause.COMPRESSED:
        return f"{computed:,} of {total:,} prompt tokens were computed, behind what the others were compressed to"
    because = f" ({LOST[time.cause]})" if time.cause in LOST else ""
    return f"{computed:,} of {total:,} prompt tokens were computed: the prefix missed at token {cached:,}{because}"


def _shared(time: RequestTime) -> str:
    """That a step was mostly somebody else's."""
    prefill = time.wall["prefill"]
    others = 1 - time.work.get("prefill", prefill) / prefill if prefill else 0.0
    return f"; {_percent(others)} of those steps went to others" if others > 1 - SHARED_SHARE else ""


def _behind(time: RequestTime) -> str:
    return f"behind {_count(time.num_ahead, 'request')}" if time.num_ahead else "for its turn"


def _no_token(time: RequestTime) -> str:
    seconds = format_seconds(time.seconds)
    if time.ending in ("stop", "length"):
        return (
            f"No token was asked for: the prompt was read in {seconds}, {time.num_cached_tokens:,} of "
            f"{time.num_prompt_tokens:,} tokens from the cache."
        )
    done = {"abort": "It was cancelled after", "error": "It failed after"}.get(time.ending or "", "No token came in")
    if time.wall["queue"] >= time.seconds:
        return f"{done} {seconds}, all of it in the queue, {_behind(time)}."
    return f"{done} {seconds}{', before its first token' if time.ending else ', and it goes on'}."


def _times(number: int) -> str:
    return TIMES[number - 1] if number <= len(TIMES) else f"{number:,} times"


def _preempted(time: RequestTime) -> str:
    times, again = _times(time.num_preemptions), time.num_recomputed_tokens
    if not again:
        return f"It was preempted {times}; its pages were still there, so nothing was computed again."
    return f"It was preempted {times}: {_count(again, 'token')} {'was' if again == 1 else 'were'} computed again."


def _decode(time: RequestTime) -> Iterator[str]:
    reads = time.reads
    if reads is None or not reads.total or not time.wall["decode"]:
        return
    what = "KV" if any(reads.groups.values()) else "recurrent states"
    said = f"Decode reads {format_nbytes(reads.total)} a token, {_percent(reads.cache / reads.total)} of it {what}"
    better = [(name, reads.speed_up(name)) for name in reads.others if reads.speed_up(name) >= NOTABLE_SPEED_UP]
    if better:
        name, factor = better[0]
        yield f"{said}; {name} pages would give about {factor:.1f}x, an estimate from bytes."
    elif reads.weights / reads.total >= MOSTLY_WEIGHTS:
        yield f"{said} and the rest weights, which more requests at once would share."
    else:
        yield f"{said}."


def _overheads(time: RequestTime) -> Iterator[str]:
    """What was neither the model nor waiting for others, if it was much."""
    found = {said: time.work.get(name, 0.0) for name, said in OVERHEADS.items()}
    if sum(found.values()) / time.seconds < NOTABLE_SHARE:
        return
    parts = [f"{said} {_percent(seconds / time.seconds)}" for said, seconds in _notable(found, time.seconds)]
    yield f"Beside the model, {_listed(parts)} of its time."


def _notable(parts: Mapping[str, float], total: float) -> list[tuple[str, float]]:
    """The parts that are worth naming, the largest first."""
    found = [(name, seconds) for name, seconds in parts.items() if seconds / total >= NOTABLE_SHARE / 5]
    return sorted(found, key=lambda part: -part[1])


def _added(parts: Iterator[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for each in parts:
        for name, seconds in each.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"
