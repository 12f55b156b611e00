"""What a format costs a model is found out at load, and said where users look."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from engine.tiny import tiny_model
from pagoda import LLM
from pagoda.config import Environment
from pagoda.engine.format_fit import MOST_LOSS, FormatFit, Trial, divergences
from pagoda.formats.int4 import INT4_PLAIN
from pagoda.formats.page import page_geometries
from pagoda.formats.plain import own_format
from pagoda.formats.scaled import INT8
from pagoda.kernels.dispatch import choose_kernels

pytestmark = pytest.mark.usefixtures("two_threads")

TOKENS = [token * 7919 % 97 for token in range(200)]


def warnings(caplog) -> list[str]:
    own = (record for record in caplog.records if record.name == "pagoda.engine.format_fit")
    return [record.getMessage() for record in own if record.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def trial() -> Trial:
    trial = Trial.of(tiny_model(), choose_kernels(Environment()), TOKENS)
    assert trial is not None
    return trial


def test_exact_pages_cost_nothing_and_coarse_ones_more(trial):
    model = trial.model
    exact, fine, coarse = (
        trial.loss(page_geometries(model.spec, format, 16)) for format in (own_format(model.dtype), INT8, INT4_PLAIN)
    )
    assert exact == 0
    assert 0 < fine < coarse / 10


def test_divergence_is_that_of_kullback_and_leibler():
    exact, other = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.kl_div(
        other.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="none"
    )
    torch.testing.assert_close(divergences(exact, other), expected.sum(-1))
    exact[:, 3] = other[:, 3] = -math.inf  # a token that is never drawn
    assert divergences(exact, other).isfinite().all()
    assert not divergences(exact, exact).any()


@pytest.mark.parametrize("tokens", [[], TOKENS[:79]])
def test_a_text_that_is_too_short_says_nothing(tokens):
    assert Trial.of(tiny_model(), choose_kernels(Environment()), tokens) is None


def test_it_is_said_where_users_look(caplog):
    with caplog.at_level(logging.INFO), LLM(kv_cache_dtype="int8", kv_cache_memory_bytes=8 << 20) as llm:
        loss = llm.cache_stats().format_loss
        assert 0 < loss < MOST_LOSS
        assert llm.engine.fit.digest
    assert (
        f"Pages in int8 should cost this model {100 * loss:.1f} % of perplexity on the calibration text." in caplog.text
    )
    assert not warnings(caplog)


def test_a_format_that_costs_much_is_warned_of_and_another_named(caplog):
    with LLM(kv_cache_dtype="int4", kv_cache_memory_bytes=8 << 20, kv_cache_calibration="auto") as llm:
        assert llm.cache_stats().format_loss > MOST_LOSS
    (warning,) = warnings(caplog)
    assert "choose kv_cache_dtype=int8 (" in warning


@pytest.mark.parametrize("options", [{}, {"kv_cache_dtype": "int8", "kv_cache_calibration": "none"}])
def test_nothing_is_measured_for_exact_pages_or_on_demand(options):
    with LLM(kv_cache_memory_bytes=8 << 20, **options) as llm:
        assert llm.engine.fit == FormatFit()
        assert llm.cache_stats().format_loss is None


def test_a_model_that_gives_nan_has_no_figure():
    model = tiny_model()
    model.network.lm_head.weight.data[3] = float("nan")
    trial = Trial.of(model, choose_kernels(Environment()), TOKENS)
    assert trial.loss_in("int8") is None


def test_two_loads_find_the_same():
    digests = set()
    for _ in range(2):
        with LLM(kv_cache_dtype="int4", kv_cache_memory_bytes=8 << 20) as llm:
            digests.add(llm.engine.fit.digest)
    assert len(digests) == 1


def test_without_a_tokenizer_keys_are_measured_and_no_loss_is_told(caplog):
    options = {"kv_cache_dtype": "int4", "kv_cache_memory_bytes": 8 << 20}
    with LLM(skip_tokenizer_init=True, **options) as llm:
        assert llm.engine.fit.constants
        assert llm.engine.fit.loss is None
    assert not warnings(caplog)
