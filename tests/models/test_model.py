"""A model's forward, its positions and its limits."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from pagoda.models.model import Model
from pagoda.models.positions import max_positions
from pagoda.models.quiet import quiet
from pagoda.models.selftest import SEQUENCE_TOKENS, PagedRun, tiny_network


def config_of(family, **settings):
    with quiet():
        return AutoConfig.for_model(family, **settings)


def test_wrapping_a_network_shares_weights_and_leaves_its_attention_alone():
    network = tiny_network(config_of("llama"))
    model = Model.from_transformers(network)
    assert network.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "pagoda"
    for own, shared in zip(network.parameters(), model.network.parameters(), strict=True):
        assert own.data_ptr() == shared.data_ptr()


def test_only_the_chosen_rows_go_through_the_output_head():
    model = Model.from_transformers(tiny_network(config_of("qwen2")))
    sequences = [torch.arange(64, 64 + length) for length in SEQUENCE_TOKENS]
    every_row = torch.cat(PagedRun(model).logits(sequences))
    head_rows = []
    model.network.lm_head.register_forward_hook(lambda _, args, __: head_rows.append(args[0].shape[1]))
    last = torch.tensor([SEQUENCE_TOKENS[0] - 1, sum(SEQUENCE_TOKENS) - 1])
    chosen = PagedRun(model).forward(sequences, (0, 0), SEQUENCE_TOKENS, last)
    assert head_rows == [2]
    torch.testing.assert_close(chosen, every_row[last])
    assert chosen.dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "settings", "limit"),
    [
        ("llama", {"max_position_embeddings": 4096}, 4096),
        ("gpt2", {}, 1024),
        ("opt", {}, 2048),
        ("mistral", {}, 131072),
    ],
)
def test_longest_sequence(family, settings, limit):
    assert max_positions(config_of(family, **settings), 0) == limit


def test_tables_that_start_after_the_padding_row_hold_fewer_positions():
    model = Model.from_transformers(tiny_network(config_of("roberta", is_decoder=True)))
    assert model.max_model_len == 512 - 2


def test_frequencies_that_would_change_limit_the_length():
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "original_max_position_embeddings": 4096}
    long_rope = {"rope_type": "longrope", "rope_theta": 10000.0} | factors
    config = config_of("phi3", max_position_embeddings=131072, rope_parameters=long_rope)
    assert max_positions(config, 0) == 4096
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    assert max_positions(config_of("llama", rope_parameters=dynamic), 0) == 2048
