"""What a plan needs to know of a model and of a machine: frozen data, the same from a config.json as from the model.

`planning/checkpoint.py` reads the facts of a checkpoint, a loaded model gives its own, and a test holds the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.layouts.spec import CacheSpec
from pagoda.machine import available_memory_nbytes

# By the names that torch has for them.
DTYPE_NBYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class EncoderFacts:
    """What an encoder reads: text or sound, and up to so many tokens (None: any number)."""

    reads_text: bool
    max_tokens: int | None


@dataclass(frozen=True)
class ModelFacts:
    """What a model leaves behind, in which precision it computes, and how much it reads.

    max_model_len: the longest sequence unless a longer one is asked for. most_model_len: the longest that may be. Both
    are None where the position encoding sets no limit. weight_nbytes: None where nothing but a configuration is known.
    """

    spec: CacheSpec
    dtype: str
    vocab_size: int
    max_model_len: int | None
    most_model_len: int | None
    encoder: EncoderFacts | None = None
    weight_nbytes: int | None = None

    @property
    def number_nbytes(self) -> int:
        """Of one number in the precision of the weights."""
        return DTYPE_NBYTES[self.dtype]


@dataclass(frozen=True)
class MachineFacts:
    """Memory that pages may be taken from, weights loaded; None where nobody can tell.

    pages_nbytes: what pages take unless a configuration says otherwise; None is a share of that memory.
    """

    available_nbytes: int | None
    pages_nbytes: int | None = None

    @classmethod
    def measured(cls) -> MachineFacts:
        """Of this machine, now."""
        return cls(available_memory_nbytes())
