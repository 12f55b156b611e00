"""Routed rows and coded experts in Triton, interpreted: as in plain torch, and without a number that the host needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from triton.runtime.interpreter import InterpretedFunction

from kernels.interpreted import TritonLayers
from kernels.test_coded import ROUNDING_UNIT, coded, grouped, numbers, with_zeros
from kernels.test_coded_experts import sent
from kernels.test_triton_coded import GROUPS
from models.test_on_device import Looking, check_forward
from oracle.families import build_tiny
from pagoda.checkpoint.gguf_header import CODED_TYPES
from pagoda.errors import ConfigError
from pagoda.kernels.coded_stack import CodedStack
from pagoda.kernels.coded_weight import CodedWeight
from pagoda.kernels.reference_layers import CODED_INPUT, MOST_INPUT_CODE, ReferenceLayers, coded_input
from pagoda.kernels.triton import coded as launching
from pagoda.kernels.triton import routing
from pagoda.models import model as model_module
from pagoda.models import rounding
from pagoda.models.coded import coded_weights
from pagoda.models.coded_experts import CodedExperts
from pagoda.models.joint import JointLinear
from pagoda.models.model import Model
from pagoda.models.rounding import quantize

COUNT, COLUMNS, DEPTH = 5, 40, 512
META = torch.device("meta")


def stack_of(name: str = "Q4_K", depth: int = DEPTH) -> CodedStack:
    whole = coded(name, COUNT * 48, depth)
    rows = CodedStack.of_rows(whole, 48)
    return CodedStack(rows.kind, rows.coding, COLUMNS, depth, rows.data)


def product(
    input: torch.Tensor, stack: CodedStack, experts: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return TritonLayers().coded_experts(input, stack, experts, bias)


def assert_is_product(
    out: torch.Tensor, input: torch.Tensor, stack: CodedStack, experts: torch.Tensor, bias: torch.Tensor | None = None
) -> None:
    """Over weights in the type of the input, with sums in fp32, rounded once."""
    matrices = stack.decode(input.dtype).double()[experts]
    rows = input.double()[:, None, :, None]
    expected, magnitude = (matrices @ rows)[..., 0], (matrices.abs() @ rows.abs())[..., 0]
    if bias is not None:
        expected, magnitude = expected + bias.double()[experts], magnitude + bias.double()[experts].abs()
    tolerance = (stack.depth + 1) * 2.0**-24 * magnitude + expected.abs() * ROUNDING_UNIT[input.dtype]
    assert out.dtype is input.dtype
    assert out.shape == (*experts.shape, stack.rows)
    assert ((out.double() - expected).abs() <= tolerance).all()


class TestRouting:
    @pytest.mark.parametrize("chunk", [16, routing.CHUNK])
    @pytest.mark.parametrize(
        "experts",
        [
            sent(1),
            sent(40, 2, 6),
            torch.full((70, 1), 3),
            torch.tensor([[0], [5], [0], [5]]),
            torch.tensor([[-1, 2], [6, 2], [1 << 40, 0]]),
            sent(33, 3, 6).int(),
        ],
        ids=["few", "spread", "one", "ends", "others", "int32"],
    )
    def test_each_pair_is_in_a_block_of_its_expert(
        self, experts: torch.Tensor, chunk: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(routing, "CHUNK", chunk)
        found = routing.Routing.of(experts, 6, 16)
        count, flat = experts.numel(), [each if 0 <= each < 6 else 6 for each in experts.flatten().tolist()]
        assert found.owners.shape == (min(count, count // 16 + 7),)
        seen: dict[int, list[int]] = {}
        for owner, block in zip(found.owners.tolist(), found.pairs.tolist(), strict=True):
            own = [pair for pair in block if pair < count]
            assert block == own + [count] * (16 - len(own))
            assert len(own) == 16 or len(seen.get(owner, [])) + len(own) == flat.count(owner)
            seen.setdefault(owner, []).extend(own)
        for owner, pairs in seen.items():
            assert pairs == [pair for pair, expert in enumerate(flat) if expert == owner]

    def test_blocks_are_enough_wherever_rows_are_sent(self) -> None:
        for count in (1, 16, 17, 40):
            for split in range(0, count + 1, 3):
                experts = torch.tensor([0] * split + [1] * (count - split))[:, None]
                assert (routing.Routing.of(experts, 2, 16).pairs < count).sum() == count


@pytest.mark.parametrize("name", sorted(CODED_TYPES))
def test_products_of_gguf_types(name: str) -> None:
    stack = stack_of(name)
    for rows, per_row in ((1, 1), (3, 2)):
        input, experts = numbers(rows, DEPTH, seed=rows), sent(rows, per_row, COUNT)
        assert_is_product(product(input, stack, experts), input, stack, experts)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("depth", "group"), GROUPS)
def test_products_of_groups(depth: int, group: int, bits: int) -> None:
    for groups in (grouped(64, depth, group, bits, bits % 2 == 0), with_zeros(64, depth, group, bits, 3)):
        stack = CodedStack.of_rows(CodedWeight.from_groups(groups), 16)
        input, experts = numbers(3, depth), torch.tensor([[3, 0], [1, 3], [3, 2]])
        assert_is_product(product(input, stack, experts), input, stack, experts)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", ROUNDING_UNIT, ids=str)
@pytest.mark.parametrize(
    ("rows", "tile_rows", "is_split"),
    [(3, launching.LEAST_ROWS, True), (35, launching.LEAST_ROWS, False), (70, launching.MANY_ROWS, False)],
)
def test_few_and_many_rows(
    rows: int,
    tile_rows: int,
    is_split: bool,
    dtype: torch.dtype,
    deterministic: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiles, original = [], launching._routed_tile
    monkeypatch.setattr(launching, "_routed_tile", lambda *args: (tiles.append(original(*args)), tiles[-1])[1])
    if not is_split or deterministic:
        monkeypatch.setattr(launching, "add_splits", None)  # results are written as they are
    stack, bias = stack_of(), numbers(COUNT, COLUMNS, seed=4, dtype=dtype)
    input, experts = numbers(rows, DEPTH, dtype=dtype), sent(rows, 2, COUNT - 1)  # none are sent to the last
    out = TritonLayers(deterministic).coded_experts(input, stack, experts, bias)
    assert_is_product(out, input, stack, experts, bias)
    assert [tile.rows for tile in tiles] == [launching.MORE_ROWS if deterministic else tile_rows]


def test_many_rows_that_all_meet_one_expert() -> None:
    stack, input = stack_of("Q8_0"), numbers(90, DEPTH)
    experts = torch.full((90, 1), 3)
    assert_is_product(product(input, stack, experts), input, stack, experts)


def test_those_of_the_reference_where_input_is_as_its_codes() -> None:
    """Whole numbers, of which each 32 have one that is the largest code."""
    input = (numbers(9, DEPTH) * 30).round().clamp(-MOST_INPUT_CODE, MOST_INPUT_CODE)
    input[:, ::CODED_INPUT] = MOST_INPUT_CODE
    assert torch.equal(coded_input(input), input)
    stack, experts, bias = stack_of("Q6_K"), sent(9, 2, COUNT), numbers(COUNT, COLUMNS)
    expected = ReferenceLayers().coded_experts(input, stack, experts, bias)
    magnitude = (stack.decode().abs()[experts] @ input.abs()[:, None, :, None])[..., 0] + bias[experts].abs()
    found = product(input, stack, experts, bias)
    assert ((found - expected).abs() <= 2 * (DEPTH + 1) * 2.0**-24 * magnitude).all()


def test_input_experts_and_bias_may_lie_apart() -> None:
    stack, wide = stack_of(), numbers(6, 2 * DEPTH)
    input, experts, bias = wide[:, :DEPTH], sent(6, 4, COUNT), numbers(COUNT, 2 * COLUMNS)
    expected = product(input.contiguous(), stack, experts[:, ::2].contiguous(), bias[:, :COLUMNS].contiguous())
    assert torch.equal(product(input, stack, experts[:, ::2], bias[:, :COLUMNS]), expected)
    assert torch.equal(product(input.mT.contiguous().mT, stack, experts[:, ::2], bias[:, :COLUMNS]), expected)
    assert product(input[:0], stack, experts[:0], None).shape == (0, 4, COLUMNS)


def test_only_matrices_that_rows_name_are_read() -> None:
    stack, input, experts = stack_of(), numbers(20, DEPTH), torch.tensor([[1, 3]]).expand(20, 2)
    expected = product(input, stack, experts)
    stack.data.data = stack.data.clone()
    stack.data[[0, 2, 4]] = 0xFF  # scales that are not numbers
    assert torch.equal(product(input, stack, experts), expected)
    assert product(input, stack, experts - 1).isnan().all()


def test_experts_that_are_not_there_give_zeros() -> None:
    """Nobody waits for their numbers on a GPU, and no memory beyond the weight is read."""
    stack, input, bias = stack_of(), numbers(4, DEPTH), numbers(COUNT, COLUMNS)
    experts = torch.tensor([[-1, 2], [COUNT, 1 << 40], [2, 2], [4, -(1 << 33)]])
    out = product(input, stack, experts, bias)
    is_there = (experts >= 0) & (experts < COUNT)
    assert not out[~is_there].any()
    assert torch.equal(out[is_there], product(input, stack, experts.where(is_there, 0), bias)[is_there])


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_row_has_the_same_bits_beside_others(deterministic: bool) -> None:
    """However many there are if `deterministic`, or else among few."""
    stack, layers = stack_of(depth=1024), TritonLayers(deterministic)
    rows = 60 if deterministic else 20
    input, experts = numbers(rows, 1024), sent(rows, 2, COUNT)
    together = layers.coded_experts(input, stack, experts, None)
    for first, last in [(0, 1), (3, 19)]:
        assert torch.equal(
            layers.coded_experts(input[first:last], stack, experts[first:last], None), together[first:last]
        )


def test_what_does_not_fit_is_refused() -> None:
    stack, input = stack_of(), numbers(2, DEPTH)
    for wrong in (input[:, :32], input.double()):
        with pytest.raises(ConfigError, match="cannot multiply"):
            product(wrong, stack, torch.tensor([[0], [1]]))
    for experts in (torch.tensor([[0]]), torch.tensor([0, 1]), torch.tensor([[0.0], [1.0]])):
        with pytest.raises(ConfigError, match="names no experts"):
            product(input, stack, experts)


class Launches:
    """What would be launched, on torch's device that has no numbers: whatever needs one raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.grids: list[tuple[str, Any]] = []
        monkeypatch.setattr(InterpretedFunction, "run", lambda own, *_, grid, **__: self.note(own, grid))

    def note(self, kernel: Any, grid: Any) -> None:
        self.grids.append((kernel.fn.__name__, grid))


@pytest.mark.parametrize("deterministic", [False, True])
def test_nothing_that_is_launched_depends_on_numbers(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    launches, stack = Launches(monkeypatch), stack_of()
    stack.data = nn.Parameter(stack.data.to(META), requires_grad=False)
    for rows in (1, 4, 500):
        input, experts = numbers(rows, DEPTH).to(META), sent(rows, 2, COUNT).to(META)
        out = TritonLayers(deterministic).coded_experts(input, stack, experts, numbers(COUNT, COLUMNS).to(META))
        assert out.shape == (rows, 2, COLUMNS)
        assert out.device == META
    heads, weight = numbers(3, 2, 16).to(META), coded("Q4_0", rows=96)
    weight.data = nn.Parameter(weight.data.to(META), requires_grad=False)
    assert TritonLayers(deterministic).coded_heads(heads, weight, 16).device == META
    names = [name for name, _ in launches.grids]
    assert names.count("route_pairs") == names.count("multiply_routed") == 3
    assert {"decode_tile"} < set(names)
    with pytest.raises(NotImplementedError):
        ReferenceLayers().coded_experts(input, stack, experts, None)


class LookingBetween(Looking):
    """Sees attention, and lets all between be launched."""

    @property
    def layers(self) -> Any:
        return TritonLayers()


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3", "minicpm3"])
def test_whole_steps_of_mixtures_and_latents_need_no_number(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MIN_ROWS", 1)
    network = build_tiny(family)
    quantize(network, "int4")
    network.to(META)
    for each in coded_weights(network).values():  # a card's parameters stay the same objects, and those here do not
        each.data = nn.Parameter(each.data.to(META), requires_grad=False)
    monkeypatch.setattr(model_module, "fuse", lambda _: None)  # looks at numbers, as does this
    monkeypatch.setattr(JointLinear, "_prove", lambda *_: True)
    model = Model.from_transformers(network)
    has_experts = any(isinstance(module, CodedExperts) for module in model.network.modules())
    assert has_experts == (family != "minicpm3")
    launches = Launches(monkeypatch)
    check_forward(model, LookingBetween())
    assert {"multiply_few", "multiply_routed"} <= {name for name, _ in launches.grids}
