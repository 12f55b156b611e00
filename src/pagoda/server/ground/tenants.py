"""Knows who may ask for what: API keys, and the tenants they belong to.

Tenants share no pages. A key is compared in constant time with every key there is, by digest, so that neither its
length nor its place tells anything.
"""

from __future__ import annotations

import hmac
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

from pagoda.config import MAX_WEIGHT, MIN_WEIGHT, TenantShare, check_tenants
from pagoda.errors import ConfigError, HttpError
from pagoda.server.ground.options import ServerOptions


@dataclass(frozen=True)
class Tenant:
    """Whose request it is, and what it may have.

    page_quota: share of the pages that are never evicted for others. lease_budget: share of the pages that may be
    leased. weight: how much of the steps, seats and queue it has beside others, who have 1 unless they say otherwise.
    max_requests: samples in flight at once. is_admin: may reset the cache, and sees what all tenants do.
    """

    name: str = ""
    page_quota: float = 0.0
    lease_budget: float = 0.0
    weight: float = 1.0
    max_requests: int | None = None
    is_admin: bool = False


@dataclass(frozen=True)
class _Key:
    digest: bytes
    tenant: Tenant


class Tenants:
    """The tenants of a server."""

    def __init__(self, options: ServerOptions) -> None:
        only_admins = bool(options.admin_api_key)
        everybody = Tenant(is_admin=not only_admins and options.tenants is None)
        self._keys = [_Key(_digest(key), everybody) for key in options.api_key]
        self._keys += [_Key(_digest(key), Tenant(is_admin=True)) for key in options.admin_api_key]
        self._anonymous = None if options.has_keys else Tenant(is_admin=True)
        self.named: dict[str, Tenant] = {}
        if options.tenants is not None:
            self._read(options)

    @property
    def shares(self) -> dict[str, TenantShare]:
        """What the engine promises to each."""
        return {name: TenantShare(each.page_quota, each.lease_budget, each.weight) for name, each in self.named.items()}

    @property
    def weights(self) -> dict[str, float]:
        """Of everybody who may ask for something."""
        known = [key.tenant for key in self._keys] if self._anonymous is None else [self._anonymous]
        return {tenant.name: tenant.weight for tenant in known}

    @property
    def are_several(self) -> bool:
        """Whether there are others of whom a tenant may not know."""
        return len({key.tenant.name for key in self._keys}) > 1

    def identify(self, headers: Mapping[str, str]) -> Tenant:
        """The tenant of a request. Raises HttpError 401."""
        if self._anonymous is not None:
            return self._anonymous
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = _digest(token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", ""))
        found = None
        for key in self._keys:  # all of them, so that the time it takes tells nothing
            if hmac.compare_digest(key.digest, given):
                found = key.tenant
        if found is None:
            raise HttpError(
                401,
                "The API key is missing or wrong; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
                code="invalid_api_key",
            )
        return found

    def _read(self, options: ServerOptions) -> None:
        assert options.tenants is not None
        try:
            document = tomllib.loads(options.tenants.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"The tenants in {options.tenants} cannot be read: {error}") from error
        entries = document.get("tenants")
        if not isinstance(entries, dict) or not entries or set(document) != {"tenants"}:
            raise ConfigError(f"{options.tenants} must have a table [tenants.NAME] for each tenant, and nothing else.")
        for name, entry in entries.items():
            tenant, digests = _tenant(name, entry)
            self.named[name] = tenant
            self._keys += [_Key(digest, tenant) for digest in digests]
        digests = [key.digest for key in self._keys]
        if len(set(digests)) != len(digests):
            raise ConfigError("Two tenants have the same API key; give each its own.")
        check_tenants(self.shares)


def _tenant(name: str, entry: Any) -> tuple[Tenant, list[bytes]]:
    """A tenant and the digests of its keys, from its table."""
    if not name:
        raise ConfigError("A tenant's name is empty, which stands for those of no tenant; give it one.")
    if not isinstance(entry, dict):
        raise ConfigError(f"Tenant {name!r} must be a table.")
    known = {field.name for field in fields(Tenant)} - {"name"} | {"api_key", "api_key_sha256"}
    if unknown := set(entry) - known:
        raise ConfigError(f"Tenant {name!r} has no option {min(unknown)!r}; there are: {', '.join(sorted(known))}.")
    digests = [_digest(key) for key in _strings(name, entry, "api_key")]
    digests += [_from_hex(name, text) for text in _strings(name, entry, "api_key_sha256")]
    if not digests:
        raise ConfigError(f"Tenant {name!r} has no key; give api_key or api_key_sha256.")
    settings = {key: value for key, value in entry.items() if not key.startswith("api_key")}
    _check(name, settings)
    return Tenant(name=name, **settings), digests


def _check(name: str, settings: Mapping[str, Any]) -> None:
    """Types are compared as they are: true is a number for Python, and "no" is true."""
    for key in ("page_quota", "lease_budget"):
        share = settings.get(key, 0.0)
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise ConfigError(f"{key} of tenant {name!r} is {share!r}; it is a share of the pages, from 0 to 1.")
    weight = settings.get("weight", 1.0)
    if type(weight) not in (int, float) or not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise ConfigError(f"weight of tenant {name!r} is {weight!r}; give a number from {MIN_WEIGHT} to {MAX_WEIGHT}.")
    limit = settings.get("max_requests", 1)
    if type(limit) is not int or limit <= 0:
        raise ConfigError(f"max_requests of tenant {name!r} is {limit!r}; it must be a positive number.")
    is_admin = settings.get("is_admin", False)
    if type(is_admin) is not bool:
        raise ConfigError(f"is_admin of tenant {name!r} is {is_admin!r}; it is true or false, without quotes.")


def _strings(name: str, entry: Mapping[str, Any], key: str) -> list[str]:
    value = entry.get(key, [])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) and each for each in values):
        raise ConfigError(f"{key} of tenant {name!r} must be a string, or a list of them.")
    if not all(each.isascii() for each in values):
        raise ConfigError(f"{key} of tenant {name!r} has a character that is not ASCII, which headers cannot have.")
    return values


def _from_hex(name: str, text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != sha256().digest_size:
        raise ConfigError(f"api_key_sha256 of tenant {name!r} must be 64 hexadecimal digits.")
    return digest


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
