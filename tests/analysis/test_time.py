"""Where the time went, in words: each cause has its sentence, with numbers that can be read."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pagoda.analysis.time import RequestTime, verdict, verdict_of_all
from pagoda.cache.report import MissCause
from pagoda.planning.decoding import DecodeReads

MIB = 1 << 20
WEIGHTS_AND_CACHE = DecodeReads(264 * MIB, {"full": 936 * MIB}, 0, {"int8": 486 * MIB, "int4": 260 * MIB})
MOSTLY_WEIGHTS = DecodeReads(1000 * MIB, {"full": 10 * MIB}, 0, {"int8": 6 * MIB})


def wall(
    queue: float = 0.0, prefill: float = 0.0, decode: float = 0.0, waiting: float = 0.0, promotion: float = 0.0
) -> dict[str, float]:
    return {"queue": queue, "promotion": promotion, "prefill": prefill, "decode": decode, "waiting": waiting}


def work(prefill: float = 0.0, decode: float = 0.0, **others: float) -> dict[str, float]:
    names = ("queue", "match", "promotion", "prefill", "decode", "sampling", "detokenise", "structured")
    return dict.fromkeys(names, 0.0) | {"prefill": prefill, "decode": decode} | others


COMPUTED = RequestTime(6400, 388, 100, wall(0.01, 1.79, 2.0), work(1.79, 2.0), ttft_seconds=1.8)
NO_TOKEN = replace(COMPUTED, num_output_tokens=0, ttft_seconds=None)
FROM_CACHE = "came from the cache, and the last one is always computed"
TOOK = "The first token took 1.8 s"
MISSED = f"{TOOK} because 6,012 of 6,400 prompt tokens were computed: the prefix missed at token 388"

FIRST_SENTENCES = {
    "a prefix missed": (
        COMPUTED,
        f"{MISSED}.",
    ),
    "nothing cached": (
        replace(COMPUTED, num_cached_tokens=0),
        "The first token took 1.8 s because all 6,400 prompt tokens were computed: none was in the cache.",
    ),
    "a prefix was evicted": (
        replace(COMPUTED, cause=MissCause.EVICTED),
        f"{MISSED} (what was held of it was evicted to make room).",
    ),
    "all was reset": (
        replace(COMPUTED, num_cached_tokens=0, cause=MissCause.RESET),
        "The first token took 1.8 s because all 6,400 prompt tokens were computed: the cache was reset.",
    ),
    "a prompt that parts": (
        replace(COMPUTED, cause=MissCause.INPUT_CHANGED),
        f"{MISSED}.",
    ),
    "a conversation that goes on": (
        replace(COMPUTED, cause=MissCause.CONTINUED),
        f"{TOOK} because 6,012 of 6,400 prompt tokens were computed, which are new: the cache had the others.",
    ),
    "log-probabilities of the prompt": (
        replace(COMPUTED, num_cached_tokens=0, cause=MissCause.PROMPT_LOGPROBS),
        f"{TOOK} because all 6,400 prompt tokens were computed: log-probabilities of the prompt were asked for.",
    ),
    "an encoder": (
        replace(COMPUTED, num_prompt_tokens=1, num_cached_tokens=0, num_encoder_tokens=1500),
        "The first token took 1.8 s because 1,500 tokens of its encoder and 1 prompt token were computed.",
    ),
    "an encoder's output that is held": (
        replace(
            COMPUTED,
            num_prompt_tokens=4,
            num_cached_tokens=0,
            num_encoder_tokens=1500,
            num_cached_encoder_tokens=1500,
        ),
        "The first token took 1.8 s: what the 1,500 tokens of its encoder make came from the cache.",
    ),
    "all cached": (
        replace(
            COMPUTED, num_cached_tokens=6399, ttft_seconds=0.012, wall=wall(0.001, 0.011, 2.0), work=work(0.011, 2.0)
        ),
        f"The first token took 12 ms: 6,399 of 6,400 prompt tokens {FROM_CACHE}.",
    ),
    "one token": (
        replace(COMPUTED, num_prompt_tokens=1, num_cached_tokens=0),
        "The first token took 1.8 s: its prompt is one token.",
    ),
    "a queue": (
        replace(COMPUTED, wall=wall(1.2, 0.6, 2.0), num_ahead=7),
        "The first token took 1.8 s because it waited 1.2 s behind 7 requests.",
    ),
    "a queue behind one": (
        replace(COMPUTED, wall=wall(1.2, 0.6, 2.0), num_ahead=1),
        "The first token took 1.8 s because it waited 1.2 s behind 1 request.",
    ),
    "a queue behind nobody": (
        replace(COMPUTED, wall=wall(1.2, 0.6, 2.0)),
        "The first token took 1.8 s because it waited 1.2 s for its turn.",
    ),
    "preparing": (
        replace(COMPUTED, wall=wall(1.2, 0.6, 2.0), preparing_seconds=1.1, num_ahead=1),
        "The first token took 1.8 s because prompts were read and forms of outputs compiled for 1.1 s before it began.",
    ),
    "between steps": (
        replace(COMPUTED, wall=wall(0.1, 0.5, 2.0, 1.2)),
        "The first token took 1.8 s because it waited 1.2 s between the steps that computed its prompt.",
    ),
    "steps of others": (
        replace(COMPUTED, work=work(0.3, 2.0)),
        f"{MISSED}; 83 % of those steps went to others.",
    ),
    "no token asked for": (
        replace(NO_TOKEN, ending="length", wall=wall(0.1, 0.9)),
        "No token was asked for: the prompt was read in 1 s, 388 of 6,400 tokens from the cache.",
    ),
    "cancelled in the queue": (
        replace(NO_TOKEN, ending="abort", wall=wall(2.0), num_ahead=3),
        "It was cancelled after 2 s, all of it in the queue, behind 3 requests.",
    ),
    "cancelled at its prompt": (
        replace(NO_TOKEN, ending="abort", wall=wall(0.5, 1.0)),
        "It was cancelled after 1.5 s, before its first token.",
    ),
    "failed": (replace(NO_TOKEN, ending="error", wall=wall(0, 0.5)), "It failed after 500 ms, before its first token."),
    "goes on": (replace(NO_TOKEN, ending=None, wall=wall(0, 0.5)), "No token came in 500 ms, and it goes on."),
}


@pytest.mark.parametrize("name", FIRST_SENTENCES)
def test_each_cause_of_a_late_first_token_has_its_sentence(name: str) -> None:
    time, expected = FIRST_SENTENCES[name]
    assert verdict(time)[0] == expected


def test_the_whole_is_told_by_its_largest_parts() -> None:
    time = replace(COMPUTED, wall=wall(0.01, 1.79, 2.0, 0.5))
    assert "All of it took 4.3 s: 47 % decode, 42 % prefill and 12 % waiting between its steps." in verdict(time)


def test_decode_is_told_by_the_bytes_it_reads() -> None:
    said = verdict(replace(COMPUTED, reads=WEIGHTS_AND_CACHE))
    expected = "Decode reads 1.17 GiB a token, 78 % of it KV; int8 pages would give about 1.6x, an estimate from bytes."
    assert said[-1] == expected
    said = verdict(replace(COMPUTED, reads=MOSTLY_WEIGHTS))
    assert said[-1].endswith("under 1 % of it KV and the rest weights, which more requests at once would share.")
    states = DecodeReads(100 * MIB, {}, 100 * MIB, {})
    assert verdict(replace(COMPUTED, reads=states))[-1].endswith("50 % of it recurrent states.")


def test_a_single_token_says_nothing_of_decode() -> None:
    said = verdict(replace(COMPUTED, num_output_tokens=1, wall=wall(0.01, 1.79), reads=WEIGHTS_AND_CACHE))
    assert not [each for each in said if "Decode" in each]


def test_preemptions_are_told_with_what_they_cost() -> None:
    twice = replace(COMPUTED, num_preemptions=2, num_recomputed_tokens=1204)
    assert "It was preempted twice: 1,204 tokens were computed again." in verdict(twice)
    once = replace(COMPUTED, num_preemptions=1, num_recomputed_tokens=1)
    assert "It was preempted once: 1 token was computed again." in verdict(once)
    free = replace(COMPUTED, num_preemptions=3)
    assert any(each.startswith("It was preempted 3 times; its pages were still there") for each in verdict(free))


def test_what_gave_way_to_others_is_told() -> None:
    said = "It was compressed once while it ran, since pages were short (memory_full)."
    assert said in verdict(replace(COMPUTED, num_shrunk=1))
    assert said not in verdict(COMPUTED)


def test_steps_that_computed_prompts_of_others_are_told() -> None:
    mixed = replace(COMPUTED, mixed_seconds=1.5)
    assert "Of decode, 1.5 s were steps that computed prompts of others as well." in verdict(mixed)
    assert not [each for each in verdict(replace(COMPUTED, mixed_seconds=0.1)) if "others" in each]


def test_what_is_done_beside_the_model_is_told_if_it_is_much() -> None:
    much = replace(COMPUTED, work=work(1.79, 2.0, sampling=0.3, detokenise=0.2, structured=1.0))
    expected = "Beside the model, the structured output 26 %, sampling 8 % and making text 5 % of its time."
    assert verdict(much)[-1] == expected
    little = replace(COMPUTED, work=work(1.79, 2.0, sampling=0.1, detokenise=0.1))
    assert not [each for each in verdict(little) if "Beside" in each]


def test_cut_answers_say_how_they_ended() -> None:
    cut = replace(COMPUTED, ending="abort", num_output_tokens=40)
    assert "It was cancelled after 3.8 s and 40 tokens." in verdict(cut)
    failed = replace(COMPUTED, ending="error", num_output_tokens=1)
    assert "It failed after 3.8 s and 1 token." in verdict(failed)


def test_what_others_do_can_be_left_out() -> None:
    busy = replace(COMPUTED, work=work(0.3, 0.5), reads=WEIGHTS_AND_CACHE, mixed_seconds=1.5)
    said = verdict(busy.without_others())
    assert said == (f"{MISSED}.", "All of it took 3.8 s: 53 % decode and 47 % prefill.")
    assert len(verdict(busy)) > len(said)


def test_nothing_is_said_of_no_time() -> None:
    nothing = RequestTime(0, 0, 0, wall(), work(), ending="error")
    assert verdict(nothing) == ()
    assert verdict_of_all([]) == verdict_of_all([nothing]) == ()


@pytest.mark.parametrize("prompt", [0, 1, 2, 6400])
@pytest.mark.parametrize("output", [0, 1, 2])
@pytest.mark.parametrize("ending", ["stop", "length", "abort", "error", None])
def test_no_sentence_has_nonsense(prompt: int, output: int, ending: str | None) -> None:
    for cached in {0, max(prompt - 1, 0)}:
        for times in (wall(queue=0.5), wall(1e-6, 1e-6, 1e-6), wall(0.1, 1e-9, 0, 5), wall(0, 0, 900.0)):
            ttft = times["queue"] + times["prefill"] if output else None
            for reads in (None, WEIGHTS_AND_CACHE, DecodeReads(0, {}, 0, {})):
                time = RequestTime(prompt, cached, output, times, work(), ttft, ending, reads=reads)
                for sentence in verdict(time):
                    assert re.fullmatch(r"[A-Z][^\n]*\.", sentence)
                    assert not re.search(r"nan|inf\b|None|-\d|  |\(\)|e-\d", sentence), sentence
                assert all(each.endswith(".") for each in verdict_of_all([time, COMPUTED]))


def test_all_together_say_which_half_to_look_at() -> None:
    said = verdict_of_all([COMPUTED] * 3)
    assert said[0] == "3 requests took 11.4 s of work: 53 % decode and 47 % prefill."
    assert said[1] == "Mostly decode, which is the time between tokens."
    prefill = replace(COMPUTED, work=work(3, 1), wall=wall(queue=3, prefill=3, decode=1))
    said = verdict_of_all([replace(prefill, work=prefill.work | {"queue": 3.0})])
    assert said[0] == "1 request took 4 s of work: 75 % prefill and 25 % decode."
    assert said[1].startswith("Mostly prefill: 6,012 of 6,400 prompt tokens were computed")
    assert said[2] == "They spent 43 % of their time in the queue: more came than was done."
    assert "weights for over 99 %" in verdict_of_all([replace(COMPUTED, reads=MOSTLY_WEIGHTS)])[1]
    assert "smaller formats" in verdict_of_all([replace(COMPUTED, reads=WEIGHTS_AND_CACHE)])[1]
