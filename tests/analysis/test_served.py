"""Which cause is told of a served request: that of its report, or what a comparison with the closest one finds."""

from __future__ import annotations

import pytest

from pagoda.analysis.explain import Reuse, explain
from pagoda.analysis.prompt import Prompt, Section, SectionKind
from pagoda.analysis.served import Served
from pagoda.cache.prefix.keys import key_tokens, token_key
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.recent import Looked
from pagoda.cache.report import CacheReport, MissCause

OWN, SALTED, THEIRS = Namespace(tenant="a"), Namespace("pepper", tenant="a"), Namespace(tenant="b")
ASKED = list(range(100))


class Letters:
    """Every token is a letter."""

    def prompt(self, looked: Looked, has_answer: bool) -> Prompt:
        token_ids = key_tokens(looked.key if has_answer else looked.prompt_key)
        return Prompt(token_ids, "".join(chr(0x4E00 + token) for token in token_ids))

    def section(self, looked: Looked, token: int) -> Section:
        return Section(SectionKind.PROMPT, 0, looked.num_prompt_tokens)


def looked(
    begin: int, tokens: list[int], read: int = 0, cause: MissCause = MissCause.NEVER_SEEN, **more: object
) -> Looked:
    namespace = more.pop("namespace", OWN)
    report = CacheReport(
        prompt_tokens=len(tokens),
        read_tokens={"device": read},
        uncached_tokens=len(tokens) - read,
        cause=cause,
        first_missed_token=read,
        missed_tokens=more.pop("missed", 0),
        known_tokens=more.pop("known", 0),
        gone_at=more.pop("gone_at", None),
    )
    end = more.pop("end", begin)
    return Looked(str(begin), namespace, token_key(tokens), len(tokens), report, begin, end)


def cause_of(request: Looked, *earlier: Looked, sees_all: bool = False) -> tuple[str, int, str | None]:
    finding, near = Served(request, [*earlier, request], Letters(), sees_all).find()
    return finding.cause, finding.missed_tokens, near and near.request_id


def test_a_comparison_says_more_than_that_it_was_never_seen():
    request = looked(9, ASKED, read=50, cause=MissCause.INPUT_CHANGED)
    assert cause_of(request, looked(1, [*ASKED[:50], *[7] * 50]), looked(2, [5] * 9)) == ("input_changed", 49, "1")
    assert cause_of(request) == ("input_changed", 0, None)


def test_what_comes_later_tells_nothing():
    assert cause_of(looked(3, ASKED), looked(4, ASKED)) == ("never_seen", 0, None)


def test_what_went_is_told_by_the_report_and_costs_what_was_shared():
    request = looked(9, ASKED, cause=MissCause.EVICTED, missed=32)
    assert cause_of(request, looked(1, [*ASKED[:80], 7])) == ("evicted", 80, "1")
    assert cause_of(request) == ("evicted", 32, None)


@pytest.mark.parametrize(("read", "cause"), [(60, "continued"), (40, "unknown")])
def test_what_goes_on_from_an_earlier_one_is_new_if_all_of_that_was_read(read, cause):
    request = looked(9, ASKED, read=read, cause=MissCause.INPUT_CHANGED)
    assert cause_of(request, looked(1, ASKED[:60])) == (cause, 60 - read, "1")


def test_what_was_still_being_computed_is_told_so():
    request = looked(9, ASKED, read=64, cause=MissCause.CONTINUED)
    assert cause_of(request, looked(1, ASKED, end=12)) == ("concurrent_write_pending", 35, "1")
    assert cause_of(request, looked(1, ASKED, end=5)) == ("unknown", 35, "1")


@pytest.mark.parametrize(("namespace", "cause"), [(THEIRS, "other_tenant"), (SALTED, "salt_changed")])
def test_other_namespaces_are_told_of_to_those_who_see_all(namespace, cause):
    request, other = looked(9, ASKED), looked(1, ASKED, namespace=namespace)
    assert cause_of(request, other) == ("never_seen", 0, None)
    assert cause_of(request, other, sees_all=True) == (cause, 99, "1")
    assert cause_of(request, looked(1, [*ASKED[:9], 7], namespace=namespace), sees_all=True)[0] == "never_seen"


def test_another_namespace_costs_what_it_shares_and_is_told_with_its_prompt():
    request, other = looked(9, ASKED, read=20), looked(1, [*ASKED[:80], 7], namespace=SALTED)
    own = looked(2, [*ASKED[:20], *range(500, 530)])
    finding, _ = Served(request, [own, other, request], Letters(), sees_all=True).find()
    assert (finding.cause, finding.missed_tokens, finding.earlier_tokens) == ("salt_changed", 60, 81)
    assert (finding.first_missed, finding.section) == (20, Section(SectionKind.PROMPT, 0, 100))


def test_another_prompt_of_a_few_first_tokens_in_common_is_none_that_was_edited():
    assert cause_of(looked(9, ASKED, read=3), looked(1, [*ASKED[:3], *range(500, 600)])) == ("never_seen", 0, None)
    request = looked(9, ASKED, cause=MissCause.EVICTED, missed=16)
    assert cause_of(request, looked(1, [*ASKED[:3], *range(500, 600)])) == ("evicted", 16, None)


@pytest.mark.parametrize("place", [0, 3])
def test_an_edit_at_the_front_is_found_by_what_follows_among_others_that_begin_so(place):
    request = looked(9, ASKED, read=place)
    edited, unrelated = [*ASKED[:place], 600, *ASKED[place + 1 :]], [*ASKED[:place], *range(500, 600)]
    assert cause_of(request, looked(1, edited), looked(2, unrelated)) == ("input_changed", 99 - place, "1")


def test_what_follows_a_common_beginning_is_missed_only_if_it_agrees():
    earlier, later = [*range(70), *range(1000, 1900)], [*range(70), *range(3000, 3900)]
    assert cause_of(looked(9, later, read=70, cause=MissCause.INPUT_CHANGED), looked(1, earlier)) == (
        "input_changed",
        0,
        "1",
    )
    evicted = looked(9, later, cause=MissCause.EVICTED, missed=64)
    assert cause_of(evicted, looked(1, earlier)) == ("evicted", 70, "1")


@pytest.mark.parametrize(("place", "cause", "missed"), [(20, "input_changed", 99), (80, "evicted", 80)])
def test_of_what_went_and_what_was_edited_that_is_told_which_costs_more(place, cause, missed):
    edited = looked(1, [*ASKED[:place], 600, *ASKED[place + 1 :]])
    request = looked(9, ASKED, cause=MissCause.EVICTED, missed=16)
    assert cause_of(request, edited) == (cause, missed, "1")
    told = looked(9, ASKED, cause=MissCause.INPUT_CHANGED, missed=16, gone_at=5.0)
    assert cause_of(told, edited)[:2] == ("input_changed", missed)
    for whole in (MissCause.DISABLED, MissCause.PROMPT_LOGPROBS):
        assert cause_of(looked(9, ASKED, cause=whole), edited)[0] == whole


@pytest.mark.parametrize(("missed", "is_whole"), [(99, True), (56, False)])
def test_the_whole_prompt_misses_for_what_went_only_if_all_of_it_was_held(missed, is_whole):
    request = looked(9, ASKED, cause=MissCause.EVICTED, missed=missed)
    finding, _ = Served(request, [request], Letters()).find()
    sentence = explain(finding, Reuse(100, 0, 16)).sentence
    assert sentence.startswith("The whole prompt misses.") is is_whole
    assert ("56 of the 100 tokens" in sentence) is not is_whole


def test_what_ran_beside_it_had_no_answer_yet():
    request = looked(9, [*ASKED, 7], read=96, cause=MissCause.CONTINUED)
    beside = looked(1, ASKED, end=12)
    beside.key = token_key([*ASKED, 8, 9])
    assert cause_of(request, beside) == ("concurrent_write_pending", 4, "1")
    beside.end = 5
    assert cause_of(request, beside)[0] == "unknown"


def test_pages_that_are_held_and_could_not_be_gone_on_from_are_told_so():
    request = looked(9, ASKED, read=40, cause=MissCause.INPUT_CHANGED, known=90, missed=50)
    assert cause_of(request, looked(1, [*ASKED[:90], 600])) == ("swa_checkpoint_missing", 50, "1")


def test_what_goes_on_from_a_short_prompt_with_another_answer_is_compared():
    short = looked(1, ASKED[:5])
    short.key = token_key([*ASKED[:5], 600, 601])
    assert cause_of(looked(9, ASKED, read=5), short) == ("input_changed", 2, "1")
    assert cause_of(looked(9, ASKED, read=2), looked(1, [*ASKED[:2], 600])) == ("never_seen", 0, None)
