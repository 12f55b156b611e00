"""Networks on coded weights: their logits are those of transformers with what codes and coded inputs stand for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oracle import families
from pagoda import LLM, SamplingParams
from pagoda.errors import ConfigError
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.reference_layers import coded_input
from pagoda.kernels.weight_memory import WeightMemory
from pagoda.models import rounding
from pagoda.models.coded import EXPANSION, CodedEmbedding, CodedLinear, codable_experts, coded_weights, decode
from pagoda.models.coded_experts import CodedExperts, dense_matrices
from pagoda.models.digest import weights_digest
from pagoda.models.model import Model
from pagoda.models.quiet import quiet
from pagoda.models.rounding import Minima, quantize, rounded
from pagoda.models.selftest import SEQUENCE_TOKENS, PagedRun, paged_error

# Biases, ties, scaled embeddings, experts of all kinds, latents, states, positions that are learnt.
FAMILIES = (
    "llama",
    "qwen2",
    "gemma3_text",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "aria_text",
    "nemotron_h",
    "deepseek_v2",
    "deepseek_v3",
    "longcat_flash",
    "bamba",
    "gpt2",
    "opt",
    "phi3",
    "cohere",
    "llama4_text",
)


@pytest.fixture(autouse=True)
def small_matrices_too(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(rounding, "MIN_ROWS", 1)


class PlainLinear(nn.Linear):
    """What a coded layer should compute, in plain torch."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(coded_input(input), self.weight, self.bias)


class PlainExperts(nn.Module):
    """What coded experts should compute, in plain torch: mixed in before their class."""

    def forward(self, hidden: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        own: Any = self
        rows = [
            sum(weight * self.expert(row[None], expert)[0] for expert, weight in zip(chosen, told, strict=True))
            for row, chosen, told in zip(hidden, experts.tolist(), weights.reshape(experts.shape), strict=True)
        ]
        assert not own.has_post_expert_norm
        return torch.stack(rows)

    def expert(self, row: torch.Tensor, expert: int) -> torch.Tensor:
        own: Any = self
        first = "gate_up_proj" if own.has_gate else "up_proj"
        inner = self.product(row, first, expert)
        return self.product(own._apply_gate(inner) if own.has_gate else own.act_fn(inner), "down_proj", expert)

    def product(self, row: torch.Tensor, name: str, expert: int) -> torch.Tensor:
        own: Any = self
        weight, biases = self.get_parameter(name)[expert], getattr(self, f"{name}_bias", None)
        product = coded_input(row) @ (weight if own.is_transposed else weight.T)
        return product if biases is None else product + biases[expert]


def code_results(attention: Any) -> None:
    """Let latent attention expand what it makes of latents, coded, where transformers expands these before."""
    heads, expand = attention.num_heads, attention.expand_kv
    values = attention.kv_b_proj.weight.unflatten(0, (heads, -1))[:, attention.qk_nope_head_dim :]

    def without_values(latents: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, _ = expand(latents, rotary)
        return keys, latents.expand(-1, heads, -1, -1)

    def expanded(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        results = coded_input(inputs[0].unflatten(-1, (heads, -1)))
        return torch.einsum("brhl,hvl->brhv", results, values).flatten(-2)

    attention.expand_kv = without_values
    attention.o_proj.register_forward_pre_hook(expanded)


def decoded(original: Any, network: Any) -> Any:
    """A copy of the network that `network` was, with dense weights of what its codes stand for."""
    twin = copy.deepcopy(original)
    for name, module in network.named_modules():
        if isinstance(module, (CodedLinear, CodedEmbedding)):
            plain = twin.get_submodule(name)
            plain.weight.data.copy_(module.coded.decode())
            path, _, layer = name.rpartition(".")
            if layer == EXPANSION:
                code_results(twin.get_submodule(path))
            else:
                plain.__class__ = PlainLinear if isinstance(module, CodedLinear) else type(plain)
        elif isinstance(module, CodedExperts):
            plain = twin.get_submodule(name)
            for matrix in module.coded:
                plain.get_parameter(matrix).data.copy_(module.dense(matrix))
            plain.__class__ = type("Plain", (PlainExperts, type(plain)), {})
    return twin


def tokens_of(network: Any) -> list[torch.Tensor]:
    vocab_size = network.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocab_size // 2, vocab_size, (length,), generator=generator) for length in SEQUENCE_TOKENS]


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_what_codes_stand_for(family: str, quantization: str) -> None:
    network = families.build_tiny(family)
    original = copy.deepcopy(network)
    quantize(network, quantization)
    assert any(isinstance(module, CodedLinear) for module in network.modules())
    assert not codable_experts(network)
    tokens, oracle = tokens_of(network), decoded(original, network)
    with quiet(), torch.inference_mode():
        got = PagedRun(Model.from_transformers(network), []).logits(tokens)
        expected = [oracle(input_ids=each[None], use_cache=False).logits[0] for each in tokens]
        before = [original(input_ids=each[None], use_cache=False).logits[0] for each in tokens]
    for ours, theirs, other in zip(got, expected, before, strict=True):
        # Where rounding in fp32 takes an input over the edge between two codes, it changes by a 127th.
        spread = theirs.std()
        assert (ours - theirs).abs().mean() <= 0.02 * spread
        assert (theirs - other).abs().mean() > 2 * (ours - theirs).abs().mean()


def test_a_table_that_its_family_reads_itself_stays_as_it_is() -> None:
    network = families.build_tiny("gemma4")
    table = network.get_input_embeddings().weight
    quantize(network, "int8")
    assert network.get_input_embeddings().weight is table
    decode(network)
    error, tolerance = paged_error(network)
    assert error <= tolerance


def test_outside_a_step_weights_are_decoded_and_inputs_left_alone() -> None:
    network = families.build_tiny("llama")
    quantize(network, "int8")
    layer = network.model.layers[0].mlp.up_proj
    input = torch.randn(3, layer.in_features)
    assert torch.equal(layer(input), nn.functional.linear(input, layer.coded.decode(), layer.bias))
    ids = torch.tensor([[3, 1]])
    embedding = network.get_input_embeddings()
    assert torch.equal(embedding(ids), embedding.coded.decode()[ids])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_decoded_weights_are_those_that_codes_stand_for(family: str) -> None:
    network = families.build_tiny(family)
    before = {name: (type(module), module.state_dict().keys()) for name, module in network.named_modules()}
    quantize(network, "int4")
    expected = {name: coded.decode() for name, coded in coded_weights(network).items()}
    decode(network)
    assert {name: (type(module), module.state_dict().keys()) for name, module in network.named_modules()} == before
    assert expected
    for name, weight in expected.items():
        assert torch.equal(network.get_parameter(name), weight)
    error, tolerance = paged_error(network)
    assert error <= tolerance


def test_a_tied_head_has_the_codes_of_its_embedding() -> None:
    network = families.build_tiny("gemma3_text")
    quantize(network, "int4")
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    assert head.coded is embedding.coded
    names = [name for name, parameter in network.named_parameters() if parameter is embedding.coded.data]
    assert len(names) == 1


def test_codes_are_counted_as_weights() -> None:
    network = families.build_tiny("llama")
    before = Model.from_transformers(network).weight_nbytes
    quantize(network, "int8")
    assert Model.from_transformers(network).weight_nbytes < 0.5 * before


def test_other_codes_and_what_they_stand_for_are_other_models() -> None:
    """Pages of one are not those of another."""
    digests = [weights_digest(families.build_tiny("llama"))]
    for quantization in ("int8", "int4"):
        network = families.build_tiny("llama")
        quantize(network, quantization)
        digests.append(weights_digest(network))
        decode(network)
        digests.append(weights_digest(network))
    assert len(set(digests)) == 5


def test_what_is_coded_is_not_coded_again() -> None:
    network = families.build_tiny("gemma3_text")
    quantize(network, "int8")
    before = coded_weights(network)
    quantize(network, "int4")
    assert coded_weights(network) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eight_bits_are_within_half_a_step(dtype: torch.dtype) -> None:
    weight = torch.randn(20, 100, generator=torch.Generator().manual_seed(0)).to(dtype)
    groups = rounded(weight, is_fine=True)
    steps = groups.scales.repeat_interleave(32, dim=1)[:, :100]
    values = steps * (groups.codes.float() - 128)
    assert ((values - weight.float()).abs() <= 0.502 * steps).all()  # scales are rounded to fp16


def test_four_bits_err_less_than_those_of_the_whole_range() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    groups = rounded(weight, is_fine=False)
    scales, minima = (each.repeat_interleave(32, dim=1) for each in (groups.scales, groups.minima))
    error = (scales * groups.codes - minima - weight).square().mean()
    low, high = (each.repeat_interleave(32, dim=1) for each in weight.unflatten(1, (-1, 32)).aminmax(dim=-1))
    step = (high - low) / 15
    plain = (((weight - low) / step).round() * step + low - weight).square().mean()
    assert error < 0.9 * plain


def test_zeros_are_codes_and_err_less_than_those_of_the_whole_range() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    groups = rounded(weight, is_fine=False, kind=Minima.ZEROS)
    zeros = (groups.minima / groups.scales).round()
    assert torch.equal(zeros * groups.scales, groups.minima)
    assert zeros.min() >= 0
    assert zeros.max() <= 15
    low, high = (each.repeat_interleave(32, dim=1) for each in weight.unflatten(1, (-1, 32)).aminmax(dim=-1))
    step = (high - low) / 15
    plain_zeros = (-low / step).round()
    plain = (((weight / step).round() + plain_zeros).clamp(0, 15) - plain_zeros) * step - weight
    assert (groups.numbers() - weight).square().mean() < 0.95 * plain.square().mean()


class _Largest(TorchDispatchMode):
    """Of the tensors that are made meanwhile, in bytes; views of others are none."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(each.alias_info for each in func._schema.returns):
            made = [each.nbytes for each in tree_leaves(out) if isinstance(each, torch.Tensor)]
            self.nbytes = max(self.nbytes, *made, 0)
        return out


@pytest.mark.parametrize("is_fine", [True, False])
def test_weights_are_rounded_in_parts_to_the_codes_of_the_whole(is_fine: bool) -> None:
    """And nothing as large as a matrix lies beside it and its codes meanwhile."""
    for rows, depth in ((5003, 320), (16, 100), (1, 64), (40, 40_000)):
        weight = torch.randn(rows, depth, generator=torch.Generator().manual_seed(rows)).bfloat16()
        with _Largest() as largest:
            parts = rounding.coded(weight, is_fine, WeightMemory())
        whole = CodedWeight.from_groups(rounded(weight, is_fine))
        assert parts.form == whole.form
        assert torch.equal(parts.data, whole.data)
        assert largest.nbytes <= 4 * max(rounding.CHUNK, 16 * depth)


@pytest.mark.parametrize("is_transposed", [True, False])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_experts_are_rounded_to_the_codes_of_each(quantization: str, is_transposed: bool) -> None:
    network = families.build_tiny("gpt_oss" if is_transposed else "mixtral")
    with torch.no_grad():
        experts = {
            name: {matrix: dense.clone() for matrix, dense in dense_matrices(module).items()}
            for name, module in codable_experts(network).items()
        }
    quantize(network, quantization)
    for name, matrices in experts.items():
        coded: Any = network.get_submodule(name)
        for matrix, dense in matrices.items():
            (stack,) = coded.coded[matrix]
            for number, each in enumerate(dense):
                alone = CodedWeight.from_groups(rounded(each, quantization == "int8"))
                assert torch.equal(stack.matrix(number).data, alone.data)


def test_experts_of_zeros_are_coded_like_the_others() -> None:
    network = families.build_tiny("mixtral")
    module: Any = next(iter(codable_experts(network).values()))
    module.down_proj.data[1] = 0
    quantize(network, "int4")
    assert not module.dense("down_proj")[1].any()
    assert module.dense("down_proj")[0].any()


def test_keys_and_values_have_8_bits_beside_others_of_4() -> None:
    network = families.build_tiny("qwen2")
    quantize(network, "int4")
    bits = {name.rpartition(".")[0].rpartition(".")[2]: each.kind[0] for name, each in coded_weights(network).items()}
    assert bits["k_proj"] == bits["v_proj"] == "8"
    assert bits["q_proj"] == bits["o_proj"] == bits["down_proj"] == "4"


def test_codes_around_the_middle_err_less_than_those_of_the_whole_range() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    groups = rounded(weight, is_fine=False, kind=Minima.MIDDLE)
    assert groups.minima is None
    assert groups.zero == 8
    step = weight.unflatten(1, (-1, 32)).abs().amax(dim=-1).repeat_interleave(32, dim=1) / 7.5
    plain = (weight / step).round().clamp(-8, 7) * step - weight
    assert (groups.numbers() - weight).square().mean() < 0.9 * plain.square().mean()


@pytest.mark.parametrize("minima", Minima)
def test_equal_and_zero_numbers_are_kept(minima: Minima) -> None:
    weight = torch.cat((torch.zeros(1, 64), torch.full((1, 64), 0.5)))
    for is_fine in (True, False):
        assert torch.allclose(rounded(weight, is_fine, minima).numbers(), weight, rtol=2.0**-11)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_embedded_model_goes_on_as_in_full(quantization: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=16)
    texts = []
    for each in ("none", quantization):
        with LLM(quantization=each, max_model_len=256) as llm:
            texts.append(llm.generate("The capital of France", params)[0].outputs[0].token_ids)
    same = sum(a == b for a, b in zip(*texts, strict=True))
    assert same >= (14 if quantization == "int8" else 1)


def test_an_unknown_quantization_is_refused() -> None:
    with pytest.raises(ConfigError, match="quantization is 'int2'; choose one of: none, int8, int4"):
        LLM(quantization="int2")
