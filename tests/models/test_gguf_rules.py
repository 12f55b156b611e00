"""Where the rows of a matrix go is found without knowing why."""

from __future__ import annotations

import numpy as np
import pytest

from pagoda.models.gguf_rules import order_of_rows

NAME, COUNT = "blk.0.attn_q.weight", 12


class Changing:
    """Does one thing to every tensor."""

    names = {NAME: NAME}  # noqa: RUF012

    def __init__(self, change):
        self._change = change

    def knows(self, name):
        return True

    def process(self, name, numbers, found):
        return self._change(numbers)


def test_rows_that_stay():
    assert order_of_rows(Changing(lambda rows: rows), NAME, COUNT) == slice(None)


def test_rows_that_move():
    order = np.random.default_rng(0).permutation(COUNT)
    found = order_of_rows(Changing(lambda rows: rows[order]), NAME, COUNT)
    assert found.tolist() == order.tolist()


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows - 1,
        lambda rows: np.log(-rows),
        lambda rows: rows.T,
        lambda rows: rows[:, ::-1],
        lambda rows: rows[:, None],
        lambda rows: rows.repeat(2, axis=0)[:COUNT],
        lambda rows: rows.reshape(3, 4, 7),
        lambda rows: None,
    ],
)
def test_whatever_else_is_not_taken_for_an_order(change):
    assert order_of_rows(Changing(change), NAME, COUNT) is None
