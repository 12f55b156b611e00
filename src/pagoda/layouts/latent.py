"""The latents of multi-head latent attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pagoda.layouts.base import Axis, Layout, Plane

# Families whose layers keep latents in this form; see `models/latent.py`.
LATENT_FAMILIES = (
    "axk1",
    "bailing_hybrid",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe_lite",
    "kimi_linear",
    "longcat_flash",
    "minicpm3",
    "youtu",
)


@dataclass(frozen=True)
class LatentLayout(Layout):
    """One row per token for all heads: the normalised latent, then the rotary key (DeepSeek-V2, arXiv 2405.04434).

    Queries attend in latent space, where the whole row is the key and the latent is the value too.
    """

    latent_width: int
    rotary_width: int

    @property
    def planes(self) -> tuple[Plane, ...]:
        return (Plane("latent", 1, self.latent_width + self.rotary_width, Axis.CHANNEL, self.latent_width),)

    @classmethod
    def examples(cls) -> Mapping[str, Self]:
        return {"latent": cls(latent_width=64, rotary_width=16)}

    def resumable_tokens(self, num_matched_tokens: int) -> int:
        """Any prefix of a causal layer can be resumed at any token."""
        return num_matched_tokens
