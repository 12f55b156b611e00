"""A format or a rule that the backend cannot serve is served by the reference, group by group, or refused at load."""

from __future__ import annotations

import logging

import pytest

from engine.tiny import windowed_model
from pagoda import LLM, SamplingParams
from pagoda.config import Environment
from pagoda.errors import ConfigError
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.reference import ReferenceKernels
from pagoda.registry import registered
from toys import ToyKernels

PARAMS = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
PROMPT = [*range(3, 40)]


@pytest.fixture(autouse=True)
def _toys():
    with registered("kernels", "toy", "toys:ToyKernels"), registered("format", "toy", "toys:TOY_FORMAT"):
        yield


@pytest.fixture(scope="module")
def gemma():
    return windowed_model("float32")


def answer(llm):
    return llm.generate([PROMPT], PARAMS, use_tqdm=False)[0].outputs[0].token_ids


def llm_of(model, **options):
    return LLM(model, skip_tokenizer_init=True, kv_cache_memory_bytes=8 << 20, **options)


def test_a_format_without_native_code_is_answered_by_the_reference(model, caplog):
    with llm_of(model) as llm:
        assert llm.engine.kernel_choice.notices == []
        expected = answer(llm)
    with caplog.at_level(logging.WARNING), llm_of(model, kv_cache_dtype="toy") as llm:
        (group,) = llm.engine.kernel_choice.groups
        assert isinstance(group.kernels, ReferenceKernels)
        assert answer(llm) == expected
        llm.check_integrity()
    assert "full attention run on the slow reference kernels: they do not read toy pages." in caplog.text


def test_other_groups_keep_the_native_kernels(gemma):
    with llm_of(gemma, kv_cache_dtype="full=toy") as llm:
        kinds = {each.group.name: type(each.kernels) for each in llm.engine.kernel_choice.groups}
        assert kinds == {"sliding 8": NativeKernels, "full": ReferenceKernels}
        mixed = answer(llm)
    with llm_of(gemma) as llm:
        assert answer(llm) == mixed


def test_deterministic_is_refused_where_the_reference_would_stand_in(model):
    with pytest.raises(ConfigError, match="they do not read toy pages"):
        llm_of(model, kv_cache_dtype="toy", deterministic=True)


def test_a_third_backend_serves_what_it_can(gemma):
    environment = Environment(kernels="toy")
    with llm_of(gemma, environment=environment) as llm:
        toy, window = llm.engine.kernels, "windows are beyond a toy"
        assert isinstance(toy, ToyKernels)
        choice = {each.group.name: (each.kernels.name, each.obstacle) for each in llm.engine.kernel_choice.groups}
        assert choice == {"sliding 8": ("reference (plain torch)", window), "full": ("toy", None)}
        assert answer(llm)
        assert toy.num_calls == 2 * PARAMS.max_tokens  # two of its layers, once in every step
