"""What page formats cost a model in perplexity: any checkpoint, any texts, at any position.

    python benchmarks/perplexity.py ~/models/Qwen2.5-Coder-0.5B-Instruct --texts prose.txt code.py --windows 6
    python benchmarks/perplexity.py ~/models/SmolLM2-135M-Instruct --texts prose.txt --formats bf16 int4 int4:none

Each window is computed as one prompt through its pages, as if it began at `--position`, and its tokens after the first
256 count. A format with `:none` behind it is not fitted to the model. The first format is what the others are compared
with; +- is the standard error of the mean difference over windows. The texts must not be the one that is calibrated
with.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from pagoda.cache.pool import PagePool
from pagoda.config import Environment
from pagoda.engine.key_constants import SCALE_RULES, calibration_tokens
from pagoda.formats.constants import PageTurns
from pagoda.formats.page import page_geometries
from pagoda.kernels.base import GroupView, Kernels, LayerPages
from pagoda.kernels.dispatch import choose_kernels
from pagoda.layouts.spec import SiteSlot
from pagoda.models.attention import BoundSite, PagedStep
from pagoda.models.calibration import KeyStatistics, constants_of, measure
from pagoda.models.loader import load_model
from pagoda.models.model import Model
from pagoda.models.tokenizer import load_tokenizer
from pagoda.registry import lookup

PAGE_TOKENS = 32
FIRST = 256  # that counts, as those before have little to go by
ROWS = 256  # of logits at a time


def bound_sites(
    model: Model, format_name: str, found: dict[SiteSlot, KeyStatistics], options: argparse.Namespace
) -> Iterator[BoundSite]:
    """Every attention call over pages of its own, with what its keys have in common if the format takes it off."""
    name, _, calibration = format_name.partition(":")
    num_pages, first_page = -(-options.tokens // PAGE_TOKENS), options.position // PAGE_TOKENS
    geometries = page_geometries(model.spec, lookup("format", name), PAGE_TOKENS)
    pools = [PagePool(geometry, num_pages) for geometry in geometries]
    for attention_rule, site in zip(model.rules, model.spec.sites, strict=True):
        geometry = geometries[site.group]
        rule = SCALE_RULES.get(geometry.format_of(site.layer).of(geometry.slots[site.layer][0].plane))
        constants = None
        if rule is not None and calibration != "none" and site in found:
            frequencies = found[site].rotation.frequencies
            # The pages of a window are numbered from its first position on.
            table = PageTurns.of(frequencies, PAGE_TOKENS, first_page + num_pages).table[..., first_page:]
            constants = constants_of(found[site], rule, PageTurns(table.contiguous()), PAGE_TOKENS)
        layer = LayerPages(pools[site.group].pages, geometry, site.layer, constants)
        yield BoundSite(attention_rule, layer, site.group, site.writes)


def loss(model: Model, kernels: Kernels, sites: tuple[BoundSite, ...], tokens: torch.Tensor, position: int) -> float:
    """Mean negative log-likelihood of a window, in nats."""
    length = len(tokens)
    pages = torch.arange(-(-length // PAGE_TOKENS)).int()
    spans = [torch.tensor(values).int() for values in ([0, len(pages)], [0, length], [length])]
    step = PagedStep(kernels, sites, (GroupView(pages, *spans),) * len(model.spec.groups))
    rows = torch.arange(FIRST - 1, length - 1)
    logits = model.forward(tokens, torch.arange(position, position + length), rows, step)
    total = 0.0
    for first in range(0, len(rows), ROWS):
        wanted = tokens[rows[first : first + ROWS] + 1]
        total += float(torch.nn.functional.cross_entropy(logits[first : first + ROWS], wanted, reduction="sum"))
    return total / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of a checkpoint")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="files")
    parser.add_argument("--formats", nargs="+", default=["bf16", "int8", "int8:none", "k8v4", "int4", "int4:none"])
    parser.add_argument("--windows", type=int, default=8, help="of each text, one after the other")
    parser.add_argument("--tokens", type=int, default=2048, help="of a window")
    parser.add_argument("--position", type=int, default=0, help="of the first token of a window, a multiple of 32")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model, dtype="auto"), load_tokenizer(Path(options.model))
    assert tokenizer is not None, "texts need one"
    model.fix_length(None)
    kernels = choose_kernels(Environment.read())
    found = measure(model, kernels, calibration_tokens("auto", tokenizer, model.vocab_size))
    windows = {}
    for text in options.texts:
        token_ids = torch.tensor(tokenizer(text.read_text()).input_ids[: options.windows * options.tokens])
        windows[text.name] = [each for each in token_ids.split(options.tokens) if len(each) == options.tokens]
    base: dict[str, list[float]] = {}
    for name in options.formats:
        sites = tuple(bound_sites(model, name, found, options))
        for text, tokens in windows.items():
            losses = [loss(model, kernels, sites, each, options.position) for each in tokens]
            differences = [here - there for here, there in zip(losses, base.setdefault(text, losses), strict=True)]
            change = math.expm1(statistics.mean(differences))
            error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else math.nan
            perplexity = math.exp(statistics.mean(losses))
            print(f"{name:12} {text:30} perplexity {perplexity:8.3f} {change:+.2%} +- {error:.2%}", flush=True)


if __name__ == "__main__":
    main()
