"""The cases of tests/kernels on a card: pages and results against the reference, computed on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from kernels.cases import Case, Shape, build, starts
from kernels.rounding import FORMATS, tolerance
from kernels.views import Plan, pack, random_tree, reading, with_trees
from pagoda.formats.constants import KeyConstants, PageTurns
from pagoda.kernels.base import AttentionRule, LayerPages, LayerSummaries
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.triton.attention import TritonAttention
from pagoda.layouts.spec import Reach
from pagoda.registry import lookup

MIXED = ((2100, 1), (0, 300), (1100, 9), (5, 0), (700, 40))
RULES = {
    "full": AttentionRule(0.125),
    "sliding": AttentionRule(0.125, Reach.SLIDING, 500),
    "chunked": AttentionRule(0.125, Reach.CHUNKED, 256),
    "capped": AttentionRule(0.3, soft_cap=20.0),
    "slopes": AttentionRule(0.125, slopes=tuple(2.0**-head for head in range(8))),
    "encoder": AttentionRule(0.125, Reach.ENCODER),
}
WITHOUT_CODES = ("fp32", "fp16", "bf16")
# New rows of sequences that are trees, of few rows and of many.
TREES = (9, 40)
# Of a sequence, so many that stay in reach; and what packed sequences have.
FIRST_TOKENS = 70
PLANS = (Plan(2000, 40, 50, 1), Plan(90, 0, 40, 7), Plan(700, 12, 50, 33))


def names() -> list[str]:
    """What there is to check, as `case:what/format/more`."""
    formats = [format.name for format in FORMATS]
    cases = [f"attend/{name}/full" for name in formats]
    cases += [f"constants/{name}/full" for name in formats if name not in WITHOUT_CODES]
    cases += [f"attend/bf16/{rule}" for rule in RULES if rule != "full"]
    cases += [f"attend/{name}/{rule}" for name in ("int8", "fp32") for rule in ("chunked", "encoder")]
    cases += [f"sinks/{name}/sliding" for name in ("bf16", "int4")]
    cases += [f"biases/{name}/full" for name in ("bf16",)]
    cases += [f"latents/{name}/full" for name in formats if name in ("bf16", "fp32", "int8", "fp8_e4m3", "int4")]
    cases += [f"latent_constants/{name}/full" for name in ("int4",)]
    cases += [f"widths/{name}/full" for name in ("bf16", "int8", "int4", "int4_rotated")]
    cases += [f"fp32_queries/{name}/full" for name in ("bf16", "int4")]
    cases += [f"trees/{name}/{rule}" for name in ("bf16", "int8") for rule in ("full", "sliding")]
    cases += [f"first/{name}/{rule}" for name in ("bf16", "int4") for rule in ("sliding", "chunked")]
    cases += [f"packed/{name}/full" for name in ("bf16", "int8", "int4")]
    cases += [f"chosen/{name}/full" for name in ("bf16", "int8", "fp8_e4m3", "int4")]
    cases += [f"chosen48/{name}/full" for name in ("bf16", "int8", "int4")]
    cases += [f"bits/{name}/{rule}" for name in ("bf16", "int8", "int4", "fp8_e4m3") for rule in ("full", "sliding")]
    return [f"case:{each}" for each in cases]


def run(name: str) -> dict[str, Any]:
    """The largest error as a share of what is allowed; fails if it is more, or bytes differ."""
    what, format_name, rule_name = name.split("/")
    case, rule = case_of(what, lookup("format", format_name)), rule_of(what, rule_name)
    if what == "bits":
        return same_bits(case, rule)
    sinks = torch.linspace(-1, 3, case.shape.heads) if what == "sinks" else None
    biases = torch.randn(case.shape.heads, 300) if what == "biases" else None
    expected = ReferenceKernels().attend(case.query, case.layer, case.view, rule, sinks, biases).float()
    kernels, layer = TritonAttention(), on_card(case.layer)
    actual = kernels.attend(case.query.cuda(), layer, case.view, rule, moved(sinks), moved(biases)).float().cpu()
    values = case.key if case.value is None else case.value
    limit = tolerance(case.shape, rule) * float(values.abs().max())
    share = float((actual - expected).abs().max()) / limit
    if what == "packed":  # by the reference: what is stored is not all of what is there
        case = build(case.shape)
    blank = on_card(case.blank())
    kernels.store(case.key.cuda(), moved(case.value), blank, case.whole)
    differing = int((blank.pages.cpu() != case.layer.pages).sum())
    if not share <= 1 or differing:
        raise AssertionError(f"{share:.2f} of the error allowed, {differing} bytes of {blank.pages.numel()} differ")
    return {"share_of_tolerance": round(share, 3)}


def case_of(what: str, format: Any) -> Case:
    shape = shape_of(what, format)
    if what == "packed":
        return pack(shape, PLANS).case
    if what.startswith("chosen"):
        case = reading(shape)
        case.view.readings[-1] = 0  # one reads all
        return case
    case = build(shape)
    if what == "trees":
        trees = [random_tree(new, 7) if new in TREES else None for _, new in shape.sequences]
        return replace(case, view=with_trees(case, trees))
    return case


def rule_of(what: str, name: str) -> AttentionRule:
    return replace(RULES[name], sink_tokens=FIRST_TOKENS) if what == "first" else RULES[name]


def shape_of(what: str, format: Any) -> Shape:
    dtype = torch.float32 if what == "fp32_queries" else format.model_dtype()
    plain = Shape(format=format, dtype=dtype, sequences=MIXED, key_width=128, value_width=128, page_tokens=16)
    if what in ("latents", "latent_constants"):
        sizes = {"kv_heads": 1, "group": 16, "key_width": 576, "value_width": 512, "has_latents": True}
        return replace(plain, **sizes, sequences=((2100, 1), (0, 60)), has_constants=what == "latent_constants")
    if what == "widths":
        return replace(plain, key_width=80, value_width=96, page_tokens=48, group=3)
    if what == "chosen48":
        return replace(plain, page_tokens=48)
    if what == "bits":
        return replace(plain, sequences=((0, 2300),), group=3)
    return replace(plain, has_constants=what == "constants")


def same_bits(case: Case, rule: AttentionRule) -> dict[str, Any]:
    """Rows computed in chunks of other sizes, and beside other sequences, in the regimes of many rows and of few."""
    kernels, layer, query = TritonAttention(), on_card(case.layer), case.query.cuda()

    def attend(pieces: list[tuple[int, int]]) -> torch.Tensor:
        pages = case.view.page_indices.repeat(len(pieces))
        view = replace(
            case.view,
            page_indices=pages,
            page_starts=starts([len(case.view.page_indices)] * len(pieces)),
            query_starts=starts([last - first for first, last in pieces]),
            context_lengths=torch.tensor([last for _, last in pieces], dtype=torch.int32),
        )
        return kernels.attend(torch.cat([query[first:last] for first, last in pieces]), layer, view, rule)

    whole = attend([(0, 2300)])
    pieces = [(0, 17), (17, 700), (700, 2283), (2283, 2300)]
    check_equal(attend(pieces), whole, "many rows have other bits in other chunks")
    rows = [5, 16, 511, 512, 1300, 2299]
    alone = torch.cat([attend([(row, row + 1)]) for row in rows])
    check_equal(attend([(row, row + 1) for row in rows]), alone, "few rows have other bits beside others")
    mixed = attend([(0, 2300), *((row, row + 1) for row in rows), (512, 520)])
    check_equal(mixed[:2306], torch.cat((whole, alone)), "mixed batches have other bits")
    check_equal(mixed[2306:2307], alone[3:4], "a draft's first row has other bits than the row alone")
    equal = (whole[rows] == alone).float().mean()
    return {"few_as_many": round(float(equal), 3)}


def check_equal(actual: torch.Tensor, expected: torch.Tensor, message: str) -> None:
    """Rows bit by bit; what fails says which differ, and by how much."""
    largest = float((actual.float() - expected.float()).abs().max())
    rows = (actual != expected).flatten(1).any(1).nonzero().flatten().tolist()
    if rows:
        raise AssertionError(
            f"{message}: {len(rows)} of {len(actual)} rows, {rows[:8]} to {rows[-1]}, by {largest:.3g}, "
            f"in {int((actual != expected).sum())} numbers up to {float(expected.abs().max()):.3g}"
        )


def on_card(layer: LayerPages) -> LayerPages:
    constants = layer.constants
    if constants is not None:
        turns = PageTurns(constants.turns.table.cuda())
        constants = KeyConstants(constants.scales.cuda(), constants.pairs.cuda(), constants.bases.cuda(), turns)
    summaries = layer.summaries
    if summaries is not None:
        summaries = LayerSummaries(summaries.numbers.cuda(), summaries.is_made.cuda())
    return replace(layer, pages=layer.pages.cuda(), constants=constants, summaries=summaries)


def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.cuda()
