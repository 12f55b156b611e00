"""A decoder ready to run packed over pages.

Knows the network, its geometry and how to call it for one step. Does not know files (loader), nor which pages a step
uses (the engine binds them and passes a `PagedStep`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch

from pagoda.errors import UnsupportedModelError
from pagoda.kernels.base import AttentionRule
from pagoda.layouts.latent import LATENT_FAMILIES
from pagoda.layouts.spec import CacheSpec
from pagoda.models.attention import ATTENTION_NAME, PagedStep, in_flight, paged_attention
from pagoda.models.coded import coded_weights, held_weight
from pagoda.models.decoder_config import decoder_config
from pagoda.models.discovery import Discovered, discover
from pagoda.models.encoder import Encoder
from pagoda.models.fused import fuse
from pagoda.models.generation import GenerationTokens
from pagoda.models.joint import join
from pagoda.models.kept_digest import Origin
from pagoda.models.latent import attend_latents
from pagoda.models.linear import use_kernels
from pagoda.models.llama4 import take_temperature_from_positions
from pagoda.models.own_attention import OWN_ATTENTION_FAMILIES, call_function, interface_name
from pagoda.models.packed_decoder import PackedDecoder
from pagoda.models.positions import Rotation, max_positions, most_positions, position_offset
from pagoda.models.projections import projection_of
from pagoda.models.quiet import quiet
from pagoda.models.recurrent import attend_states
from pagoda.models.stacked import stack
from pagoda.models.sums import fuse_sums
from pagoda.models.time_steps import limit_time_steps
from pagoda.planning.facts import ModelFacts

# What has to be changed in a family before its packed forward is right.
ADAPTERS: dict[str, Callable[[Any], None]] = {
    **dict.fromkeys(LATENT_FAMILIES, attend_latents),
    **dict.fromkeys(OWN_ATTENTION_FAMILIES, partial(call_function, function=paged_attention)),
    "llama4": take_temperature_from_positions,
    "llama4_text": take_temperature_from_positions,
    **dict.fromkeys(("nemotron_h", "zamba2"), limit_time_steps),
}


class Model:
    """A Hugging Face network that attends through Pagoda, with what discovery found about it."""

    def __init__(self, network: Any, discovered: Discovered, generation: GenerationTokens) -> None:
        ADAPTERS.get(network.config.model_type, _leave_alone)(network)
        attend_states(network)
        use_kernels(network)
        fuse(network)
        fuse_sums(network)
        join(network, discovered.siblings)
        if network.device.type != "cpu":
            stack(network, discovered.siblings)
        self.network = network
        self.discovered = discovered
        self.generation = generation
        self.origin: Origin | None = None  # of the weights, where they are known to be those of files
        self._position_offset = 0 if network.config.is_encoder_decoder else position_offset(network)
        self._rotation = Rotation(network)
        self._decoder = PackedDecoder(network) if network.config.is_encoder_decoder else None
        self.encoder = Encoder(network) if network.config.is_encoder_decoder else None

    @classmethod
    def from_transformers(cls, network: Any) -> Model:
        """Wrap a loaded transformers model. The original keeps its own attention; the weights are shared."""
        shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        twin = copy.deepcopy(network, shared).eval()
        with quiet():
            twin.set_attn_implementation(interface_name(network.config, ATTENTION_NAME))
        discovered = discover(network.config, type(network)._from_config)
        return cls(twin, discovered, GenerationTokens.of(network.generation_config.to_diff_dict(), network.config))

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.network.config

    @property
    def spec(self) -> CacheSpec:
        return self.discovered.spec

    @property
    def rules(self) -> tuple[AttentionRule, ...]:
        return self.discovered.rules

    @property
    def projections(self) -> list[Callable[[], torch.Tensor] | None]:
        """What gives what each attention call's result is multiplied by, [heads * width, outputs].

        None where that is unsure. Coded ones are decoded anew each time.
        """
        names = self.discovered.projections
        return [None if name is None else partial(projection_of, self.network.get_submodule(name)) for name in names]

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self.generation.end

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.network.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where its weights lie, and all that is computed with them."""
        device: torch.device = self.network.device
        return device

    @cached_property
    def vocab_size(self) -> int:
        return int(decoder_config(self.config).vocab_size)

    @cached_property
    def max_model_len(self) -> int | None:
        """The longest sequence unless a longer one is asked for, or None if the position encoding sets no limit."""
        return max_positions(self.config, self._position_offset)

    @cached_property
    def most_model_len(self) -> int | None:
        """The longest sequence that may be asked for, or None if the position encoding sets no limit."""
        return most_positions(self.config, self._position_offset)

    def check_lengths(self) -> None:
        """Raise whatever is wrong with what the configuration says of them."""
        assert self.max_model_len is None or self.most_model_len is not None

    def fix_length(self, num_tokens: int | None) -> None:
        """Rotate positions as for sequences of up to `num_tokens`, in every step; None is `max_model_len`.

        Raises ConfigError if that was done for another length before, with other frequencies.
        """
        self._rotation.fix(num_tokens or self.max_model_len)

    def with_generation(self, generation: GenerationTokens) -> Model:
        """The same network, which generates in another way."""
        other = copy.copy(self)
        other.generation = generation
        return other

    def of_unknown_origin(self) -> Model:
        """The same network, which others had in their hands, so that its weights need not be those of its files."""
        other = copy.copy(self)
        other.origin = None
        return other

    @property
    def facts(self) -> ModelFacts:
        """What a plan needs to know."""
        return ModelFacts(
            spec=self.spec,
            dtype=str(self.dtype).removeprefix("torch."),
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            most_model_len=self.most_model_len,
            encoder=None if self.encoder is None else self.encoder.facts,
            weight_nbytes=self.weight_nbytes,
        )

    @cached_property
    def num_parameters(self) -> int:
        """Parameters, shared ones counted once."""
        coded: int = sum(each.num_weights - each.data.numel() for each in coded_weights(self.network).values())
        parameters: int = sum(parameter.numel() for parameter in self.network.parameters())
        return coded + parameters

    @cached_property
    def has_codes(self) -> bool:
        """Whether some weights are codes."""
        return bool(coded_weights(self.network))

    @cached_property
    def weight_nbytes(self) -> int:
        """As they are held."""
        nbytes: int = sum(parameter.nbytes for parameter in self.network.parameters())
        return nbytes

    @property
    def table_nbytes(self) -> int:
        """Of the table of tokens, of which a step reads few rows; none if the head has it too."""
        table, head = held_weight(self.network.get_input_embeddings()), self.network.get_output_embeddings()
        return 0 if head is None or held_weight(head) is table else table.nbytes

    @torch.inference_mode()
    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor, step: PagedStep
    ) -> torch.Tensor:
        """Run packed sequences end to end: `token_ids` and `positions` are int64 [rows], on the host or the device.

        Only the rows in `logit_rows` (int64 [n], ascending, none twice) go through the output head. Returns fp32 logits
        [n, vocabulary].
        """
        all_rows = len(logit_rows) == len(token_ids)
        token_ids, positions, logit_rows = (each.to(self.device) for each in (token_ids, positions, logit_rows))
        with in_flight(step):
            if self._decoder is not None:
                hidden = step.encoder.hidden if step.encoder else None
                return self._decoder(token_ids, positions, logit_rows, hidden).float()
            output = self.network(
                input_ids=token_ids[None],
                position_ids=(positions + self._position_offset)[None],
                use_cache=False,
                logits_to_keep=0 if all_rows else logit_rows,  # 0 is Hugging Face's word for all
            )
        return output.logits[0].float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def hidden_states(self, token_ids: torch.Tensor, positions: torch.Tensor, step: PagedStep) -> torch.Tensor:
        """What the last layer and the norm behind it make of each token, fp32 [rows, width]; as `forward` otherwise.

        Not for models with an encoder.
        """
        body = self.network.base_model
        if body is self.network:
            raise UnsupportedModelError(f"A {self.config.model_type} model does not tell its hidden states.")
        token_ids, positions = token_ids.to(self.device), positions.to(self.device)
        with in_flight(step):
            output = body(
                input_ids=token_ids[None], position_ids=(positions + self._position_offset)[None], use_cache=False
            )
        return output[0][0].float()  # type: ignore[no-any-return]


def _leave_alone(network: Any) -> None:
    """Most families need no adapter."""
