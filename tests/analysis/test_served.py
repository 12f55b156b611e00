"""Which cause is told of a served request: that of its report, or what a comparison with the closest one finds."""

from __future__ import annotations

import pytest

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
    assert cause_of(request, other, sees_all=True)[::2] == (cause, "1")
    assert cause_of(request, looked(1, [*ASKED[:9], 7], namespace=namespace), sees_all=True)[0] == "never_seen"
