"""The circuit breaker: when nothing is asked, who tries again, and what it says."""

import pytest

from pagoda.cache.tiers.breaker import Breaker, Patience


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(clock, Patience(num_failures=3, first_pause_seconds=1, longest_pause_seconds=4))


def open_breaker(breaker):
    for _ in range(3):
        breaker.failed("the reason")


def test_failures_in_a_row_open_it(breaker):
    assert [breaker.failed("x"), breaker.failed("x")] == [False, False]
    assert breaker.may_ask()
    assert breaker.failed("x")
    assert not breaker.may_ask()


def test_an_answer_between_failures_starts_the_count_again(breaker):
    for _ in range(5):
        breaker.failed("x")
        breaker.failed("x")
        assert not breaker.succeeded()
    assert breaker.may_ask()


def test_a_final_failure_opens_it_alone(breaker):
    assert breaker.failed("x", is_final=True)
    assert not breaker.may_ask()


def test_after_the_pause_one_caller_asks(breaker, clock):
    open_breaker(breaker)
    clock.now += 0.99
    assert not breaker.may_ask()
    clock.now += 0.01
    assert breaker.may_ask()
    assert not breaker.may_ask()


def test_pauses_double_up_to_the_longest(breaker, clock):
    open_breaker(breaker)
    for pause in (1, 2, 4, 4):
        clock.now += pause - 0.01
        assert not breaker.may_ask()
        clock.now += 0.01
        assert breaker.may_ask()
        assert not breaker.failed("still")


def test_an_answer_to_the_one_that_asks_closes_it(breaker, clock):
    open_breaker(breaker)
    clock.now += 1
    assert breaker.may_ask()
    assert breaker.succeeded()
    assert breaker.fault is None
    assert breaker.may_ask()
    assert not breaker.failed("x")


def test_failures_of_calls_from_before_do_not_lengthen_the_pause(breaker, clock):
    open_breaker(breaker)
    for _ in range(10):
        breaker.failed("late")
    clock.now += 1
    assert breaker.may_ask()


def test_it_says_why_and_since_when(breaker, clock):
    assert breaker.fault is None
    open_breaker(breaker)
    clock.now += 14
    assert breaker.fault == "off for 14 s, after 3 failures: the reason"
