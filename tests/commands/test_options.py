"""Options of the command line against the configurations they stand for."""

from __future__ import annotations

from dataclasses import fields

from pagoda.cli import build_parser
from pagoda.commands.options import ENGINE_OPTIONS, SAMPLING_OPTIONS, engine_options, sampling_params
from pagoda.config import EngineConfig
from pagoda.sampling_params import SamplingParams

# `seed` of the engine is for requests without one of their own; a command has a single request and its own --seed.
NOT_ENGINE_OPTIONS = {"environment", "seed", "tenants"}
# These belong to `generate` alone; the others have no use in a terminal.
OF_GENERATE = {"n", "logprobs", "prompt_logprobs", "structured_outputs"}
# A command has a single request, for which the engine's own options do.
OF_ENGINE = {"kv_compression", "sparse_attention", "context_full", "memory_full"}
NOT_SAMPLING_OPTIONS = OF_GENERATE | OF_ENGINE | {"logit_bias", "include_stop_str_in_output", "skip_special_tokens"}


def test_every_engine_field_has_an_option() -> None:
    assert {option.field for option in ENGINE_OPTIONS} == {f.name for f in fields(EngineConfig)} - NOT_ENGINE_OPTIONS


def test_every_sampling_field_has_an_option() -> None:
    expected = {field.name for field in fields(SamplingParams)} - NOT_SAMPLING_OPTIONS
    assert {option.field for option in SAMPLING_OPTIONS} == expected


def test_without_options_the_defaults_are_those_of_the_python_api() -> None:
    arguments = build_parser().parse_args(["generate", "x"])
    assert EngineConfig(**engine_options(arguments)) == EngineConfig()
    assert sampling_params(arguments) == SamplingParams(max_tokens=128)


def test_options_reach_their_fields() -> None:
    given = "--no-enable-prefix-caching --kv-cache-memory-bytes 1.5G --top-k 5 --stop a --stop b --stop-token-ids 1 2"
    arguments = build_parser().parse_args(["generate", "x", *given.split()])
    assert engine_options(arguments)["enable_prefix_caching"] is False
    assert engine_options(arguments)["kv_cache_memory_bytes"] == 3 << 29
    params = sampling_params(arguments, n=2)
    assert (params.top_k, list(params.stop), params.stop_token_ids, params.n) == (5, ["a", "b"], [1, 2], 2)


def test_sizes_of_tiers_are_read_as_people_write_them() -> None:
    given = "--kv-host-bytes 8GiB --kv-disk pages --kv-disk-bytes 20GiB --kv-remote redis://here --kv-write second-hit"
    config = EngineConfig(**engine_options(build_parser().parse_args(["serve", *given.split()])))
    assert (config.kv_host_bytes, config.kv_disk, config.kv_disk_bytes) == (8 << 30, "pages", 20 << 30)
    assert (config.kv_remote, config.kv_write) == ("redis://here", "second-hit")
