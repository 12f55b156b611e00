"""Pages from tiers through the engine: no token changes, the same bytes come back, what is there is not computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.carried import DECODERS, LENGTH, MIB, PAGE_TOKENS, PARAMS, bodies, flood, make, prompt
from engine.greedy import tokens
from oracle.families import build_tiny
from oracle.generation import random_tokens
from page_records import make_put
from pagoda import LLM, SamplingParams
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.residency.labels import tenant_digest
from pagoda.cache.tiers.disk.parts import part_of
from pagoda.config import EngineConfig, TenantShare
from pagoda.engine.request import new_request
from pagoda.engine.tiers import open_tiers
from pagoda.models.model import Model
from pagoda.registry import REGISTRY


@pytest.fixture(scope="module", params=DECODERS)
def model(request: pytest.FixtureRequest) -> Model:
    return Model.from_transformers(build_tiny(request.param))


def conversation(llm: LLM, first: list[int], second: list[int]) -> tuple[list[int], list[int | None]]:
    """Two turns, the second of which goes on from the answer of the first; all tokens, and the cached ones of each."""
    [answer] = llm.generate([first], PARAMS)
    whole = [*first, *answer.outputs[0].token_ids, *second]
    [last] = llm.generate([whole], PARAMS)
    return [*whole, *last.outputs[0].token_ids], [answer.num_cached_tokens, last.num_cached_tokens]


def test_a_conversation_goes_on_after_a_restart_to_the_token(model: Model, tmp_path: Path) -> None:
    turns = prompt(0), prompt(1, 20)
    expected, cached = conversation(make(model), *turns)
    first = make(model, kv_disk=str(tmp_path))
    [answer] = first.generate([turns[0]], PARAMS)
    first.close()
    second = make(model, kv_disk=str(tmp_path))
    whole = [*turns[0], *answer.outputs[0].token_ids, *turns[1]]
    [last] = second.generate([whole], PARAMS)
    assert [*whole, *last.outputs[0].token_ids] == expected
    assert last.num_cached_tokens == cached[1] == LENGTH + PARAMS.max_tokens - 1
    assert last.cache_report.read_tokens == {"device": 0, "disk": last.num_cached_tokens}
    second.check_integrity()
    assert second.cache_stats().groups[0].in_transit == 0


def test_it_is_known_without_loading_how_much_tiers_have_of_a_prompt(model: Model, tmp_path: Path) -> None:
    first = make(model, kv_disk=str(tmp_path))
    assert stored(first, prompt()) == 0
    first.generate([prompt()], SamplingParams(max_tokens=0))
    first.close()
    second = make(model, kv_disk=str(tmp_path))
    expected = stored(second, prompt())
    [answer] = second.generate([[*prompt(), 1]], SamplingParams(max_tokens=1))
    assert answer.num_cached_tokens == expected >= LENGTH - 1
    assert stored(second, prompt(1)) == 0


@pytest.mark.parametrize("family", ["llama", "jamba"])
def test_what_the_pool_always_has_stays_on_disk(family: str, tmp_path: Path) -> None:
    """A prompt that all begin with is hit in the pool, and is to be found after a restart."""
    model = Model.from_transformers(build_tiny(family))
    alone = SamplingParams(max_tokens=0)
    measured = make(model, kv_disk=str(tmp_path / "measured"))
    measured.generate([prompt()], alone)
    assert measured.engine.residency.flush()
    [disk] = measured.engine.residency.report()
    limited = make(model, kv_disk=str(tmp_path / "limited"), kv_disk_bytes=24 * disk.stats.nbytes)
    for seed in range(36):
        limited.generate([prompt(seed)], alone)
        limited.generate([[*prompt(), 1]], alone)
        assert limited.engine.residency.flush()
    assert stored(limited, prompt()) >= LENGTH // PAGE_TOKENS * PAGE_TOKENS
    assert stored(limited, prompt(1)) == 0, "the oldest segments have gone"
    assert stored(limited, prompt(35)) >= LENGTH // PAGE_TOKENS * PAGE_TOKENS


def stored(llm: LLM, tokens: list[int]) -> int:
    return llm.loop.call(lambda: llm.engine.residency.num_stored(Namespace(), tokens)).result()


def test_pages_come_back_from_host_memory_with_the_same_bytes(model: Model) -> None:
    llm = make(model, kv_host_bytes=256 * MIB)
    [cold] = llm.generate([prompt()], PARAMS)
    whole = [*prompt(), *cold.outputs[0].token_ids[:-1]]
    before = bodies(llm, whole)
    flood(llm)
    [again] = llm.generate([[*whole, 1]], SamplingParams(temperature=0, max_tokens=1))
    assert again.cache_report.read_tokens == {"device": 0, "host": len(whole)}
    assert bodies(llm, whole) == before
    llm.check_integrity()


@pytest.mark.parametrize("format", REGISTRY["format"])
def test_every_format_comes_back_from_disk_with_the_same_bytes(format: str, tmp_path: Path) -> None:
    model = Model.from_transformers(build_tiny("llama").bfloat16())
    first = make(model, kv_cache_dtype=format, kv_disk=str(tmp_path))
    [cold] = first.generate([prompt()], PARAMS)
    whole = [*prompt(), *cold.outputs[0].token_ids[:-1]]
    expected = bodies(first, whole)
    first.close()
    second = make(model, kv_cache_dtype=format, kv_disk=str(tmp_path))
    [warm] = second.generate([[*whole, 1]], SamplingParams(temperature=0, max_tokens=1))
    assert warm.cache_report.read_tokens == {"device": 0, "disk": len(whole)}
    assert bodies(second, whole) == expected


def test_another_format_model_page_size_or_tenant_finds_nothing(tmp_path: Path) -> None:
    llama = Model.from_transformers(build_tiny("llama"))
    first = make(llama, kv_disk=str(tmp_path))
    first.generate([prompt()], PARAMS)
    first.close()
    other = Model.from_transformers(build_tiny("llama", seed=1))
    for model, options in ((other, {}), (llama, {"kv_cache_dtype": "int8"}), (llama, {"block_size": 32})):
        llm = make(model, kv_disk=str(tmp_path), **options)
        assert llm.generate([prompt()], PARAMS)[0].num_cached_tokens == 0
        llm.close()
    llm = make(llama, kv_disk=str(tmp_path))
    assert llm.generate([prompt()], PARAMS, cache_salt="mine")[0].num_cached_tokens == 0
    assert llm.generate([prompt()], PARAMS)[0].num_cached_tokens > 0


def test_outputs_of_encoders_come_back_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pagoda.models.encoder import Encoder

    model = Model.from_transformers(build_tiny("bart"))
    texts = [{"encoder_prompt": random_tokens(40, 0), "decoder_prompt": [2, 5, 7]}]
    first = make(model, kv_disk=str(tmp_path))
    expected = tokens(first.generate(texts, PARAMS))
    first.close()
    second = make(model, kv_disk=str(tmp_path))
    monkeypatch.setattr(Encoder, "encode", lambda *_: pytest.fail("what is on disk is read again"))
    assert tokens(second.generate(texts, PARAMS)) == expected
    second.check_integrity()


@pytest.mark.parametrize("store", ["redis_url", "bucket_url"])
def test_two_engines_share_prefixes_through_a_store(store: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(store)
    llama = Model.from_transformers(build_tiny("llama"))
    first, second = make(llama, kv_remote=url), make(llama, kv_remote=url)
    [cold] = first.generate([prompt()], PARAMS)
    assert first.engine.residency.flush()
    [warm] = second.generate([prompt()], PARAMS)
    assert warm.outputs[0].token_ids == cold.outputs[0].token_ids
    shared = LENGTH // PAGE_TOKENS * PAGE_TOKENS
    assert warm.cache_report.read_tokens == {"device": 0, "remote": shared}
    whole = prompt()[:shared]
    assert bodies(first, whole) == bodies(second, whole)


def test_a_store_that_is_not_there_costs_nothing_but_hits(tmp_path: Path) -> None:
    llama = Model.from_transformers(build_tiny("llama"))
    llm = make(llama, kv_remote="redis://127.0.0.1:1/0", kv_disk=str(tmp_path))
    [cold] = llm.generate([prompt()], PARAMS)
    flood(llm)
    [warm] = llm.generate([prompt()], PARAMS)
    assert warm.outputs[0].token_ids == cold.outputs[0].token_ids
    assert warm.cache_report.read_tokens["disk"] > 0
    [_, remote] = llm.engine.residency.report()
    assert "127.0.0.1:1" in (remote.stats.fault or "")


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_what_is_damaged_on_disk_is_computed_again(damage: str, tmp_path: Path) -> None:
    llama = Model.from_transformers(build_tiny("llama"))
    first = make(llama, kv_disk=str(tmp_path))
    [cold] = first.generate([prompt()], PARAMS)
    first.close()
    second = make(llama, kv_disk=str(tmp_path))
    for path in tmp_path.glob("segment-*"):
        if damage == "gone":
            path.unlink()
            continue
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    [warm] = second.generate([prompt()], PARAMS)
    assert warm.outputs[0].token_ids == cold.outputs[0].token_ids
    assert warm.num_cached_tokens < LENGTH // PAGE_TOKENS * PAGE_TOKENS
    second.check_integrity()


def test_loads_that_are_cancelled_leave_nothing_behind(model: Model, tmp_path: Path) -> None:
    first = make(model, kv_disk=str(tmp_path))
    [cold] = first.generate([prompt()], PARAMS)
    first.close()
    second = make(model, kv_disk=str(tmp_path))
    engine = second.engine

    def begin_and_cancel() -> bool:
        """On the thread of the engine, so that nothing can settle between."""
        request = new_request("cancelled", prompt(), PARAMS)
        engine.add(request)
        engine.step()
        was_loading = request.sequences[0].is_loading
        engine.cancel("cancelled")
        return was_loading

    assert second.loop.call(begin_and_cancel).result()
    second.check_integrity()
    assert all(each.free + each.idle == each.total for each in second.cache_stats().groups)
    outputs = second.generate([prompt()] * 3, PARAMS)
    assert tokens(outputs) == tokens([cold] * 3)
    second.check_integrity()


def test_damage_is_counted_and_what_is_damaged_is_forgotten(tmp_path: Path) -> None:
    llama = Model.from_transformers(build_tiny("llama"))
    llm = make(llama, kv_host_bytes=64 * MIB)
    llm.generate([prompt()], PARAMS)
    flood(llm)
    [host] = llm.engine.residency.tiers
    for record in host._records.values():
        record[-1] ^= 1
    llm.generate([prompt()], PARAMS)
    assert host.stats().num_damaged == LENGTH // PAGE_TOKENS


def test_a_reset_leaves_tiers_alone_unless_it_is_told_to(tmp_path: Path) -> None:
    llama = Model.from_transformers(build_tiny("llama"))
    llm = make(llama, kv_disk=str(tmp_path))
    llm.generate([prompt()], PARAMS)
    llm.engine.residency.flush()
    llm.reset_prefix_cache()
    assert llm.generate([prompt()], PARAMS)[0].cache_report.read_tokens["disk"] > 0
    llm.reset_prefix_cache(reset_external=True)
    assert llm.generate([prompt()], PARAMS)[0].num_cached_tokens == 0


@pytest.mark.parametrize("nbytes", [400_000, 3 << 20, 64 << 20])
@pytest.mark.parametrize("quotas", [(0.3, 0.2), (0.5, 0.5), (1.0,)])
def test_parts_of_tenants_are_no_more_than_the_whole(nbytes, quotas, tmp_path):
    tenants = {f"tenant {index}": TenantShare(page_quota=quota) for index, quota in enumerate(quotas)}
    config = EngineConfig(kv_host_bytes=nbytes, kv_disk=str(tmp_path), kv_disk_bytes=nbytes, tenants=tenants)
    for tier in open_tiers(config):
        limit = tier.stats().limit_nbytes
        tier.close()
        assert nbytes * 0.99 <= limit <= nbytes, tier.name


@pytest.mark.parametrize(("number", "num_kept"), [(3, 2), (16, 1)])
def test_parts_of_tenants_without_a_quota_now_are_within_the_limit(number, num_kept, tmp_path):
    config = EngineConfig(kv_disk=str(tmp_path), kv_disk_bytes=1 << 20)
    gone = [tenant_digest(name) for name in ("first", "second")]
    [tier] = open_tiers(replace(config, tenants={name: TenantShare(page_quota=0.45) for name in ("first", "second")}))
    tier.put([make_put(each, 40_000, tenant=tenant) for tenant in gone for each in range(number)])
    tier.close()
    [tier] = open_tiers(config)
    limit = tier.stats().limit_nbytes
    tier.close()
    left = [sum(each.stat().st_size for each in part_of(tmp_path, tenant).glob("segment-*")) for tenant in gone]
    assert len(list(filter(None, left))) == num_kept
    assert config.kv_disk_bytes / 2 <= limit <= config.kv_disk_bytes - sum(left)
