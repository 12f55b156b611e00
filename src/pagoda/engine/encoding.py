"""What encoders have to read in a step: inputs that are in no pages yet, each once for all sequences that share it.

Knows an encoder and the cache's entries. An input that the encoder fails on ends those who asked about it and nobody
else, so it is read before the step begins.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from pagoda.cache.groups.cross import CrossTable, Entry
from pagoda.cache.view import build_encoder_view
from pagoda.engine.request import Sequence
from pagoda.models.attention import EncoderTokens
from pagoda.models.encoder import Encoder

logger = logging.getLogger(__name__)


@dataclass
class NewInputs:
    """The readers of each new output, and the output; `failed` sequences cannot be computed."""

    readers: dict[Entry, list[Sequence]] = field(default_factory=dict)
    outputs: dict[Entry, torch.Tensor] = field(default_factory=dict)
    failed: dict[Sequence, Exception] = field(default_factory=dict)

    def tokens(self) -> EncoderTokens | None:
        """The outputs one after the other, or None if there are none."""
        if not self.outputs:
            return None
        return EncoderTokens(torch.cat(list(self.outputs.values())), build_encoder_view(list(self.outputs)))

    def broken(self, tokens: EncoderTokens | None) -> list[Sequence]:
        """Those who attend to keys and values of NaN or infinity."""
        flags = [] if tokens is None else tokens.finite.tolist()
        pairs = zip(self.outputs, flags, strict=True)
        return [reader for entry, finite in pairs if not finite for reader in self.readers[entry]]


def read_new_inputs(encoder: Encoder | None, group: int | None, sequences: Iterable[Sequence]) -> NewInputs:
    """Read what is in no pages of `group` yet; each input by itself, so that an output depends on nothing beside it."""
    new = NewInputs()
    if encoder is None or group is None:
        return new
    for sequence in sequences:
        assert sequence.cached is not None
        table: CrossTable = sequence.cached.tables[group]
        if not table.entry.is_written:
            new.readers.setdefault(table.entry, []).append(sequence)
    for entry, readers in new.readers.items():
        input = readers[0].request.encoder_input
        assert input is not None, "refused by Engine.validate"
        try:
            new.outputs[entry] = encoder.encode(input)
        except Exception as error:
            logger.exception("The encoder failed on an input of %d tokens", input.num_tokens)
            new.failed |= dict.fromkeys(readers, error)
    return new
