"""Writes the tables at the end of docs/planning.md: what plans say of the configurations that come with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pagoda.analysis.answer import Plan
from pagoda.analysis.catalog import Shape, shapes
from pagoda.analysis.plan import plan
from pagoda.commands.plan_tables import compact_count
from pagoda.errors import ConfigError
from pagoda.units import format_nbytes

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "planning.md"
HEADING = "## Tables\n"
LONG = 128 * 1024
USUAL, USUAL_CONTEXT = "H100", 4096
GPUS = (1, 2, 4, 8, 16, 32)

# Models that other planners get wrong, and how their bytes come about.
TRUTH = (
    ("llama-3-70b", "2 x 80 x 8 x 128 x 2 x N"),
    ("deepseek-v3", "61 x (512 + 64) x 2 x N"),
    ("gemma-3-27b", "2 x 16 x 128 x 2 x (10 x N + 52 x 1,024)"),
    ("gpt-oss-20b", "2 x 8 x 64 x 2 x (12 x N + 12 x 128)"),
    ("qwen3-next-80b-a3b", "2 x 2 x 256 x 2 x 12 x N, and states"),
    ("jamba-1.5-mini", "2 x 8 x 128 x 2 x 4 x N, and states"),
)

TRUTH_INTRODUCTION = f"""### One sequence of {LONG:,} tokens

In 2 bytes a number, no page rounded up. *Usual count*: 2 x layers x KV heads x head width x 2 x N for every model
alike, as other planners count, and how many times too much that is. *In pages*: what is allocated, pages of 32 tokens
and states included.
"""
ALL_INTRODUCTION = f"""### Every configuration that comes with Pagoda

In the precision of the published weights; names lead to where the configuration is from. *Takes*: one user of
{USUAL_CONTEXT:,} tokens, or of as many as the model takes, in pages, with its states and what an encoder read. *Fit*:
such users on so many {USUAL} of 80 GiB, the fewest that have room for weights, activations and a user; pages in the
model's own precision, and in int8.
"""


def tables() -> str:
    """The section, from its heading on."""
    lines = [HEADING, "Written by `make docs` from the plans themselves.", "", *_truth(), "", *_all()]
    return "\n".join(lines) + "\n"


def document() -> str:
    """The whole document, as it should be."""
    story = TARGET.read_text(encoding="utf-8").partition(HEADING)[0]
    return story + tables()


def _truth() -> Iterator[str]:
    yield TRUTH_INTRODUCTION
    yield "| model | formula | bytes | GiB | usual count | state | in pages |"
    yield "|---|---|---|---|---|---|---|"
    for name, formula in TRUTH:
        found = plan(name, context=LONG)
        main = found.main
        times = f"{_usual(found) / main.kept_nbytes:.2f}x"
        sizes = (f"{main.kept_nbytes:,}", f"{main.kept_nbytes / 2**30:.3f}", times, _state(found))
        yield f"| {name} | {formula} | {' | '.join(sizes)} | {main.context_nbytes / 2**30:.3f} GiB |"


def _all() -> Iterator[str]:
    yield ALL_INTRODUCTION
    yield f"| model | weights | in | a token | state | takes | {USUAL} | fit | fit in int8 |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for shape in shapes():
        yield row(shape)


def row(shape: Shape) -> str:
    """The line of one configuration."""
    found, gpus = _fitting(shape)
    own, codes = found.formats
    token = format_nbytes(own.nbytes_per_token) if own.groups else "-"
    if own.nbytes_per_encoder_token:
        token += f" + {format_nbytes(own.nbytes_per_encoder_token)}"
    weights = f"{compact_count(shape.parameters)} | {format_nbytes(found.model.weight_nbytes or 0)}"
    sizes = (token, _state(found), format_nbytes(own.context_nbytes), str(gpus), f"{own.users_by_memory:,}")
    return f"| [{shape.name}]({shape.source}) | {weights} | {' | '.join(sizes)} | {codes.users_by_memory:,} |"


def _fitting(shape: Shape) -> tuple[Plan, int]:
    """A plan for the fewest devices that are enough, and how many they are."""
    context = min(USUAL_CONTEXT, plan(shape.name).model.max_model_len or USUAL_CONTEXT)
    for gpus in GPUS:
        try:
            found = plan(
                shape.name,
                machine=USUAL,
                gpus=gpus,
                context=context,
                kv_cache_dtype=("auto", "int8"),
                max_num_seqs=2048,
            )
        except ConfigError:
            continue
        if found.main.users_by_memory:
            return found, gpus
    raise AssertionError(f"{shape.name} fits nowhere")


def _state(found: Plan) -> str:
    return format_nbytes(found.model.state_nbytes) if found.model.num_states else "-"


def _usual(found: Plan) -> int:
    return next(each.naive_nbytes for each in found.effects if each.name == "all in all")


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
