"""The part of a transformers configuration that is about the layers which generate text."""

from typing import Any


def decoder_config(config: Any) -> Any:
    """The configuration of the decoder, which for most models is the whole."""
    return config.get_text_config(decoder=True) if config.is_encoder_decoder else config.get_text_config()


def num_decoder_layers(config: Any) -> int | None:
    """How many layers the decoder has, if the configuration tells."""
    # Encoder-decoder configurations give the encoder's number the plain name.
    names = ("decoder_layers", "num_decoder_layers") if config.is_encoder_decoder else ()
    found = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    return found if found is not None else getattr(decoder_config(config), "num_hidden_layers", None)
