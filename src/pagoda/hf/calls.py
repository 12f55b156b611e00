"""One call of the model as a `PagedCache` must understand it: which tokens come, after how many, what is read of them.

Refuses by name what would make keys and values depend on more than tokens and their positions, or what the caller
would miss of tokens that are not computed. Knows arguments; neither pages nor layers.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.errors import UnsupportedCallError

# The arguments that say nothing of keys and values beside those read here.
HARMLESS = ("use_cache", "return_dict", "output_attentions", "output_hidden_states", "logits_to_keep")
READ = ("input_ids", "attention_mask", "position_ids", "past_key_values")
# Whoever asks for these wants them of every token.
OF_EVERY_TOKEN = ("output_attentions", "output_hidden_states")


@dataclass(frozen=True)
class Call:
    """`ids` [rows, columns] come after `num_past` columns: None where the caller leaves that to the cache.

    Rows begin after `paddings`, None where there is no mask. The caller reads logits of the last `num_wanted` columns,
    None where it does not say.
    """

    ids: torch.Tensor
    num_past: int | None
    paddings: tuple[int, ...] | None
    positions: torch.Tensor | None
    num_wanted: int | None

    @property
    def num_columns(self) -> int:
        return int(self.ids.shape[1])

    def tokens(self, paddings: Sequence[int], num_past: int) -> list[array[int]]:
        """Of each row, without its padding."""
        starts = [max(padding - num_past, 0) for padding in paddings]
        return [array(TOKEN_TYPE, row[start:]) for row, start in zip(self.ids.tolist(), starts, strict=True)]

    def check_positions(self, paddings: Sequence[int], num_past: int) -> None:
        """Raise UnsupportedCallError unless token t of every row is at position t."""
        if self.positions is None:
            if any(paddings):
                raise UnsupportedCallError(
                    "A batch with padding needs position_ids that count from the first token of each row, as "
                    "generate makes them: attention_mask.cumsum(-1) - 1."
                )
            return
        expected = torch.arange(num_past, num_past + self.num_columns) - torch.tensor(paddings)[:, None]
        if not ((self.positions.cpu() == expected) | (expected < 0)).all():
            raise UnsupportedCallError(
                "position_ids do not count the tokens of each row from 0, so its keys are those of other positions; "
                "leave position_ids out, or call reset() where another sequence begins."
            )


def read_call(arguments: Mapping[str, Any]) -> Call:
    """What `arguments`, by name, ask for. Raises UnsupportedCallError for what pages cannot serve."""
    for name, value in arguments.items():
        if name not in (*READ, *HARMLESS) and value is not None and value != {}:
            raise UnsupportedCallError(
                f"{name} may change keys and values, which pages find by tokens alone; leave it out, or use another "
                "cache for this call."
            )
    ids, mask, positions = (arguments.get(name) for name in READ[:3])
    if ids is None:
        raise UnsupportedCallError("PagedCache finds pages by tokens: call the model with input_ids.")
    if arguments.get("use_cache") is False:
        raise UnsupportedCallError("use_cache is False beside a cache; leave out one of the two.")
    paddings = None if mask is None else _paddings(mask)
    if positions is not None and positions.dim() != 2:
        raise UnsupportedCallError("position_ids of more than one number for a token are not those of plain text.")
    return Call(ids, _num_past(ids, mask, positions), paddings, positions, _num_wanted(arguments, ids.shape[1]))


def _num_past(ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None) -> int | None:
    if mask is not None:
        return int(mask.shape[1] - ids.shape[1])
    return None if positions is None else int(positions[0, 0])


def _paddings(mask: torch.Tensor) -> tuple[int, ...]:
    if mask.dim() != 2:
        raise UnsupportedCallError("An attention_mask of more than two dimensions decides what tokens see; give none.")
    seen = mask.bool()
    paddings = seen.int().argmax(dim=1)
    if not (seen.sum(dim=1) + paddings == seen.shape[1]).all() or not seen[:, -1].all():
        raise UnsupportedCallError(
            "attention_mask hides tokens that are no padding on the left; set tokenizer.padding_side = 'left'."
        )
    return tuple(paddings.tolist())


def _num_wanted(arguments: Mapping[str, Any], num_columns: int) -> int | None:
    if any(arguments.get(name) for name in OF_EVERY_TOKEN):
        return num_columns
    wanted = arguments.get("logits_to_keep")
    if wanted is None:
        return None
    is_last = isinstance(wanted, int) and 0 < wanted <= num_columns
    return wanted if is_last else num_columns  # 0 is Hugging Face's word for all
