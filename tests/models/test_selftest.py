"""The self-test at load sees every kind of mistake it is there for, and passes what is right."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from transformers import AutoConfig

from pagoda.errors import UnsupportedModelError
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.spec import Reach
from pagoda.models import model, selftest
from pagoda.models.quiet import quiet
from pagoda.models.selftest import paged_error, self_test, tiny_network


def config_of(family, **settings):
    with quiet():
        return AutoConfig.for_model(family, **settings)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "llama4_text", "gemma3n_text"])
def test_error_is_at_the_level_of_rounding(family):
    error, tolerance = paged_error(tiny_network(config_of(family)))
    assert 0 < error < tolerance / 10


class WithoutWindow(ReferenceKernels):
    def attend(self, query, layer, view, rule, sinks=None, biases=None):
        return super().attend(query, layer, view, replace(rule, reach=Reach.FULL), sinks, biases)


class WithoutSinks(ReferenceKernels):
    def attend(self, query, layer, view, rule, sinks=None, biases=None):
        return super().attend(query, layer, view, rule, None, biases)


class WithoutSoftCap(ReferenceKernels):
    def attend(self, query, layer, view, rule, sinks=None, biases=None):
        return super().attend(query, layer, view, replace(rule, soft_cap=None), sinks, biases)


class WithoutBiases(ReferenceKernels):
    def attend(self, query, layer, view, rule, sinks=None, biases=None):
        return super().attend(query, layer, view, rule, sinks)


class WithShortInputs(ReferenceKernels):
    def attend(self, query, layer, view, rule, sinks=None, biases=None):
        if rule.reach is Reach.ENCODER:
            view = replace(view, context_lengths=view.context_lengths - 1)
        return super().attend(query, layer, view, rule, sinks, biases)


class WithoutStoring(ReferenceKernels):
    def store(self, key, value, layer, view, finite=None):
        super().store(key, value * (view.context_lengths[0] != 20), layer, view, finite)


@pytest.mark.parametrize(
    ("family", "kernels"),
    [
        ("mistral", WithoutWindow),
        ("llama4_text", WithoutWindow),
        ("gpt_oss", WithoutSinks),
        ("llama", WithoutStoring),
        ("t5", WithoutBiases),
        ("bart", WithShortInputs),
    ],
)
def test_wrong_kernels_are_seen(monkeypatch, family, kernels):
    monkeypatch.setattr(selftest, "ReferenceKernels", kernels)
    with pytest.raises(UnsupportedModelError, match="gives other logits through pages"):
        self_test(config_of(family))


def test_a_missing_soft_cap_is_seen(monkeypatch):
    monkeypatch.setattr(selftest, "ReferenceKernels", WithoutSoftCap)
    with pytest.raises(UnsupportedModelError):
        self_test(config_of("gemma2", attn_logit_softcapping=2.0))


def test_positions_that_restart_are_seen(monkeypatch):
    monkeypatch.setattr(model, "position_offset", lambda network: 1)
    with pytest.raises(UnsupportedModelError):
        self_test(config_of("gpt2"))


def test_llama4_without_its_adapter_is_seen(monkeypatch):
    monkeypatch.setattr(model, "ADAPTERS", {})
    with pytest.raises(UnsupportedModelError):
        self_test(config_of("llama4_text"))


def test_it_takes_less_than_a_second():
    config = config_of("llama")
    self_test(config)
    start = time.process_time()
    self_test(config)
    assert time.process_time() - start < 1
