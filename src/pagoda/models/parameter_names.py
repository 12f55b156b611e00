"""Which parameter of a network a tensor of a checkpoint is, as transformers names it anew when it loads one.

Knows transformers' rules for that. Does not read tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


def parameter_names(network: Any, tensors: Iterable[str]) -> dict[str, str]:
    """The names of parameters of `network` that tensors are, by the names of these.

    Those that are parts of a parameter, such as single experts, and those without a place are left out.
    """
    rules = get_model_conversion_mapping(network)
    renamings = [each for each in rules if isinstance(each, WeightRenaming)]
    converters = [each for each in rules if isinstance(each, WeightConverter)]
    places, prefix = network.state_dict(), network.base_model_prefix
    found: dict[str, str] = {}
    for tensor in tensors:
        name, part_of = rename_source_key(tensor, renamings, converters, prefix, places)
        if name not in places and tensor in places:
            name, part_of = tensor, None
        if part_of is None and name in places:
            found[tensor] = name
    return found
