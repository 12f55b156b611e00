"""The layer behind attention is found whatever it is called, and only where it takes what attention gave."""

from __future__ import annotations

import pytest
import torch

from oracle.families import build_tiny
from pagoda.models.model import Model


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.1.self_attn.o_proj"),
        ("gpt2", "transformer.h.1.attn.c_proj"),
        ("gptj", "transformer.h.1.attn.out_proj"),
        ("falcon", "transformer.h.1.self_attention.dense"),
        ("bloom", "transformer.h.1.self_attention.dense"),
        ("ernie", "ernie.encoder.layer.1.attention.output.dense"),
        ("gemma3", "model.language_model.layers.1.self_attn.o_proj"),
    ],
)
def test_rows_are_multiplied_by_what_the_layer_has(family, name):
    model = Model.from_transformers(build_tiny(family))
    assert model.discovered.projections[1] == name
    module, projection = model.network.get_submodule(name), model.projections[1]()
    rows = torch.randn(3, len(projection))
    with torch.inference_mode():
        torch.testing.assert_close(module(rows) - module(torch.zeros_like(rows)), rows @ projection)


@pytest.mark.parametrize("family", ["diffllama", "qwen3_next", "deepseek_v3"])
def test_what_is_mixed_gated_or_in_latent_space_goes_through_none(family):
    assert set(Model.from_transformers(build_tiny(family)).projections) == {None}
