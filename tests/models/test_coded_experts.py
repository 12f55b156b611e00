"""Experts on codes: what their families make of the numbers that codes stand for, of routed experts alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from oracle import families
from pagoda import LLM, SamplingParams
from pagoda.formats.page import page_geometries
from pagoda.formats.plain import own_format
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.recording import StepRecorder
from pagoda.models import rounding
from pagoda.models.coded import codable_experts, coded_weights, decode
from pagoda.models.coded_experts import CodedExperts
from pagoda.models.determinism import check_determinism
from pagoda.models.digest import weights_digest
from pagoda.models.model import Model
from pagoda.models.passage import Passage
from pagoda.models.rounding import quantize

# Plain; with biases, transposed, interleaved, and a gate of its own; transposed; without gates; with another gate.
KINDS = ("mixtral", "gpt_oss", "aria_text", "nemotron_h", "minimax_m3_vl_text")


@pytest.fixture(autouse=True)
def small_matrices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MIN_ROWS", 2)


def quantized(family: str, quantization: str = "int8", dtype: torch.dtype = torch.float32) -> Any:
    network = families.build_tiny(family).to(dtype)
    quantize(network, quantization)
    return network


def experts_of(network: Any) -> dict[str, CodedExperts]:
    return {name: module for name, module in network.named_modules() if isinstance(module, CodedExperts)}


def routed(module: Any, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, their experts, and the weights of these."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, module.config.get_text_config().hidden_size, generator=generator)
    weights, experts = torch.rand(rows, 4, generator=generator).topk(2)
    return hidden, experts, weights


@pytest.mark.parametrize("family", KINDS)
def test_outside_a_step_they_are_those_of_the_family_on_decoded_weights(family: str) -> None:
    network = quantized(family, "int4")
    twin = copy.deepcopy(network)
    decode(twin)
    for name, module in experts_of(network).items():
        arguments, plain = routed(module, 9), twin.get_submodule(name)
        for implementation in ("eager", "grouped_mm"):
            plain.config._experts_implementation = implementation
            assert torch.allclose(module(*arguments), plain(*arguments), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", KINDS)
def test_decoded_experts_are_the_family_s_own_again(family: str) -> None:
    original = families.build_tiny(family)
    network = copy.deepcopy(original)
    quantize(network, "int8")
    modules, coded = experts_of(network), coded_weights(network)
    decode(network)
    assert modules
    for name, module in codable_experts(network).items():
        own = original.get_submodule(name)
        assert type(module) is type(own) and vars(module).keys() == vars(own).keys()
        for matrix, weight in own.named_parameters():
            decoded = module.get_parameter(matrix)
            assert decoded.shape == weight.shape and decoded.is_contiguous()
            stack = coded.get(f"{name}.{matrix}")
            if stack is not None:
                assert torch.equal(decoded.mT if module.is_transposed else decoded, stack.decode())


@pytest.mark.parametrize(("quantization", "nbytes"), [("int8", 32 + 2), ("int4", 16 + 4)])
def test_no_more_is_held_than_their_codes(quantization: str, nbytes: int) -> None:
    """32 weights are so many bytes."""
    original = families.build_tiny("qwen3_moe")
    network = copy.deepcopy(original)
    quantize(network, quantization)
    for name, module in experts_of(network).items():
        count = sum(each.numel() for each in original.get_submodule(name).parameters())
        assert sum(each.nbytes for each in module.parameters()) == count * nbytes // 32
    assert Model.from_transformers(network).num_parameters == sum(each.numel() for each in original.parameters())


def test_experts_of_few_rows_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MIN_ROWS", 100)
    network = quantized("mixtral")
    for module in experts_of(network).values():
        assert module.coded.keys() == {"gate_up_proj"} and module.down_proj.dim() == 3


def passage_of(network: Any) -> Passage:
    model = Model.from_transformers(network)
    return Passage(model, NativeKernels(), page_geometries(model.spec, own_format(model.dtype), 32), 64)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_that_no_token_is_routed_to_are_not_read(family: str) -> None:
    network = quantized(family)
    seen: dict[str, set[int]] = {}

    def note(name: str, experts: torch.Tensor) -> None:
        seen.setdefault(name, set()).update(experts.flatten().tolist())

    passage, tokens = passage_of(network), torch.tensor([7])
    model = passage._model.network
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[1]))
        for name, module in experts_of(model).items()
    ]
    expected = passage.logits(tokens, torch.tensor([0]))
    for hook in hooks:
        hook.remove()
    for name, module in experts_of(model).items():
        others = [expert for expert in range(4) if expert not in seen[name]]
        assert len(others) == 2
        for (stack,) in module.coded.values():
            stack.data.data[others] = 0xFF  # scales that are not numbers
    assert torch.equal(passage.logits(tokens, torch.tensor([0])), expected)
    for module in experts_of(model).values():
        for (stack,) in module.coded.values():
            stack.data.data[:] = 0xFF
    assert passage.logits(tokens, torch.tensor([0])).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss"])
@pytest.mark.usefixtures("two_threads")
def test_a_row_is_bitwise_the_same_in_every_chunk(family: str, dtype: torch.dtype) -> None:
    check_determinism(Model.from_transformers(quantized(family, "int4", dtype)), NativeKernels(deterministic=True))


@pytest.mark.usefixtures("two_threads")
def test_batches_chunks_and_hits_give_the_same_tokens() -> None:
    network = quantized("qwen3_moe", dtype=torch.bfloat16)
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=2, ignore_eos=True)
    prompts = [list(range(10 + start, 60 + start // 2)) for start in (0, 0, 4, 30)]

    def numbers(together: list[list[int]], **options: Any) -> list[Any]:
        model = Model.from_transformers(network)
        with LLM(model, deterministic=True, kv_cache_memory_bytes=8 << 20, max_model_len=96, **options) as llm:
            return [output.outputs[0].logprobs for _ in range(2) for output in llm.generate(together, params)]

    alone = [numbers([prompt], enable_prefix_caching=False)[0] for prompt in prompts]
    assert numbers(prompts) == alone * 2
    assert numbers(prompts, max_num_batched_tokens=17, max_num_seqs=2) == alone * 2


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_decode_steps_are_replayed_wherever_their_tokens_are_routed(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = quantized(family)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)

    def run() -> tuple[list[int], list[torch.Tensor]]:
        """Tokens, and the experts of each step whose layers ran in Python."""
        model, calls = Model.from_transformers(network), list[torch.Tensor]()
        module = next(iter(experts_of(model.network).values()))
        module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[1].clone()))
        with LLM(model, kv_cache_memory_bytes=8 << 20, max_model_len=96) as llm:
            return llm.generate([[5, 9, 12]], params)[0].outputs[0].token_ids, calls

    replayed, few = run()
    monkeypatch.setattr(StepRecorder, "runs_before", 1000)
    tokens, all_calls = run()
    assert replayed == tokens
    assert len(few) < 15
    assert len(all_calls) == 40
    assert len({tuple(each.flatten().tolist()) for each in all_calls[-25:]}) > 1  # the experts of tokens differ


def test_other_codes_and_what_they_stand_for_are_other_models() -> None:
    """Pages of one are not those of another."""
    digests = []
    for quantization in ("int8", "int4"):
        network = quantized("mixtral", quantization)
        digests.append(weights_digest(network))
        decode(network)
        digests.append(weights_digest(network))
    for module in experts_of(network := quantized("mixtral")).values():
        module.coded["down_proj"][0].data.data[3, 0, 0] ^= 1
    assert len({*digests, weights_digest(network)}) == 5
