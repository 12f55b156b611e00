"""Places in the queue and samples in flight: what one tenant takes is never another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.errors import ConfigError, HttpError
from pagoda.server.accepted.quotas import Quotas, check_limit
from pagoda.server.ground.options import ServerOptions
from pagoda.server.ground.tenants import Tenant, Tenants


def tenants(tmp_path: Path, **weights: float) -> Tenants:
    lines = [f'[tenants.{name}]\napi_key = "{name}"\nweight = {weight}\n' for name, weight in weights.items()]
    file = tmp_path / "tenants.toml"
    file.write_text("".join(lines))
    return Tenants(ServerOptions(tenants=file))


def room(quotas: Quotas, name: str, waiting: dict[str, int]) -> int:
    """How many requests of a tenant still find a place, one after the other."""
    waiting = dict(waiting)
    for count in range(1000):
        try:
            quotas.check_queue(Tenant(name=name), 1, waiting, "prompt", 1)
        except HttpError:
            return count
        waiting[name] = waiting.get(name, 0) + 1
    raise AssertionError("without a bound")


def test_one_tenant_has_the_whole_queue() -> None:
    quotas = Quotas(16, Tenants(ServerOptions()))
    assert room(quotas, "", {}) == 16


def test_a_tenant_that_fills_the_queue_leaves_the_others_theirs(tmp_path: Path) -> None:
    quotas = Quotas(16, tenants(tmp_path, a=1, b=1))
    assert room(quotas, "a", {}) == 12
    assert room(quotas, "b", {"a": 12}) == 4
    with pytest.raises(HttpError) as refused:
        quotas.check_queue(Tenant(name="a"), 1, {"a": 12, "b": 4}, "prompt", 7)
    assert (refused.value.status, refused.value.code, refused.value.retry_after_seconds) == (429, "queue_full", 7)


def test_weights_divide_the_queue(tmp_path: Path) -> None:
    quotas = Quotas(16, tenants(tmp_path, a=3, b=1))
    assert room(quotas, "b", {"a": 14}) == 2
    assert room(quotas, "a", {"b": 10}) == 6


def test_what_could_never_wait_is_refused_for_good(tmp_path: Path) -> None:
    quotas = Quotas(16, tenants(tmp_path, a=1, b=1))
    quotas.check_queue(Tenant(name="a"), 12, {}, "prompt", 1)
    with pytest.raises(HttpError, match="prompt has 13 prompts") as refused:
        quotas.check_queue(Tenant(name="a"), 13, {}, "prompt", 1)
    assert refused.value.status == 400


def test_samples_count() -> None:
    tenant = Tenant(max_requests=4)
    check_limit(tenant, 2, 2, "prompt", 1)
    with pytest.raises(HttpError) as later:
        check_limit(tenant, 3, 2, "prompt", 7)
    assert (later.value.status, later.value.retry_after_seconds) == (429, 7)
    with pytest.raises(HttpError) as never:
        check_limit(tenant, 5, 0, "prompt", 1)
    assert never.value.status == 400


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan", "true", '"2"'])
def test_a_weight_is_a_positive_number(tmp_path: Path, weight: str) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(f'[tenants.a]\napi_key = "x"\nweight = {weight}\n')
    with pytest.raises(ConfigError, match="weight of tenant 'a'"):
        Tenants(ServerOptions(tenants=file))
