"""Networks that transformers makes from a configuration, quietly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING

from pagoda.models.own_attention import interface_name
from pagoda.models.quiet import quiet

# Makes a network of a configuration: `build(config, attn_implementation=..., dtype=...)`.
Build = Callable[..., Any]


def generating_class(config: Any) -> Any:
    """The class of transformers that generates text with networks of `config`."""
    if not config.is_encoder_decoder:
        return AutoModelForCausalLM
    return AutoModelForSpeechSeq2Seq if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING else AutoModelForSeq2SeqLM


def network_class(config: Any) -> tuple[Any, Any]:
    """The class of such a network, and the part of `config` that it is made from, chosen as transformers does."""
    found = _get_model_class(config, generating_class(config)._model_mapping)  # type: ignore[no-untyped-call]
    text_class = config.sub_configs.get("text_config")
    is_text_alone = text_class is not None and found.config_class is text_class
    return found, config.get_text_config() if is_text_alone else config


def build_network(config: Any, **options: Any) -> Any:
    """A network of `config` with the weights its family starts training from."""
    return generating_class(config).from_config(config, **options)


def outlined_network(config: Any, attention_name: str) -> Any:
    """A network of `config` whose weights have shapes and no numbers."""
    with quiet(), torch.device("meta"):
        return build_network(config, attn_implementation=interface_name(config, attention_name))


def random_network(
    config: Any,
    attention_name: str,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Any:
    """A network with the random weights its family starts training from, ready for inference."""
    with quiet(), torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        name = interface_name(config, attention_name)
        return build_network(copy.deepcopy(config), attn_implementation=name, dtype=dtype).eval()
