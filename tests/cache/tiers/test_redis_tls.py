"""A store behind TLS and a password: it is used if both are right, and who comes with wrong ones hears which it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from page_records import make_put
from pagoda.cache.tiers.base import TierSettings
from pagoda.cache.tiers.guarded import GuardedTier, Limits
from pagoda.cache.tiers.redis import RedisTier
from pagoda.errors import ConfigError, TierError
from shared_stores import free_port, redis_server

PASSWORD = "open sesame"
RECORD = make_put(1, 1000)


class Authority:
    """Signs certificates; `file` is what clients have of it."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        basic = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._signed(self._name, self._key.public_key(), basic)
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def certify(self, host: str) -> tuple[Path, Path]:
        """A certificate for a host of this address, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        host_names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))])
        certificate = self._signed(name, key.public_key(), host_names)
        files = self._folder / f"{host}.crt", self._folder / f"{host}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.PKCS8
        files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        return files

    def _signed(self, subject: x509.Name, key: Any, extension: x509.ExtensionType) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=False)
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        return builder.sign(self._key, hashes.SHA256())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "authority")


@pytest.fixture(scope="module")
def server(folder: Path, authority: Authority) -> Iterator[str]:
    with tls_server(folder, authority, "127.0.0.1") as server:
        yield server


@contextmanager
def tls_server(folder: Path, authority: Authority, certified_host: str) -> Iterator[str]:
    """Host and port of a server that speaks TLS alone and asks for a password."""
    certificate, key = authority.certify(certified_host)
    port = free_port()
    options = {
        "port": "0",
        "tls-port": str(port),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(authority.file),
        "tls-auth-clients": "no",
        "requirepass": PASSWORD,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    try:
        with redis_server(folder, *words, port=port):
            yield f"127.0.0.1:{port}"
    except RuntimeError:
        if "tls-port" not in (folder / "redis.log").read_text():
            raise
        pytest.skip("needs a redis-server that was built with TLS")


def url(server: str, authority: Authority) -> str:
    return f"rediss://{server}?ssl_ca_certs={authority.file}"


def opened(where: str, password: str | None = PASSWORD) -> RedisTier:
    return RedisTier.open(TierSettings(where=where, timeout_seconds=30, password=password))


def test_records_come_back(server: str, authority: Authority) -> None:
    tier = opened(url(server, authority))
    assert tier.put([RECORD]) == [True]
    assert tier.get([RECORD.key]) == [bytes(RECORD.record)]
    assert tier.num_leading([RECORD.key]) == 1
    tier.close()


@pytest.mark.parametrize("password", [None, "s3cret"])
def test_a_wrong_password_ends_the_start(server: str, authority: Authority, password: str | None) -> None:
    with pytest.raises(ConfigError, match="PAGODA_KV_REMOTE_PASSWORD") as caught:
        opened(url(server, authority), password)
    assert "s3cret" not in str(caught.value)


def test_a_server_of_another_authority_is_not_talked_to(server: str, folder: Path) -> None:
    other = Authority(folder, "other")
    with pytest.raises(TierError, match=f"{server}.*certificate"):
        opened(url(server, other))
    where = TierSettings(where=url(server, other), timeout_seconds=30, password=PASSWORD)
    guard = GuardedTier("remote", lambda: RedisTier.open(where), Limits(call_seconds=30))
    assert guard.put([RECORD]) == [False]
    assert "certificate" in (guard.stats().fault or "")
    guard.close()


def test_a_server_that_nobody_vouches_for_is_not_talked_to(server: str) -> None:
    with pytest.raises(TierError, match="ssl_ca_certs=FILE"):
        opened(f"rediss://{server}")


def test_a_certificate_of_another_host_is_none(tmp_path: Path, authority: Authority) -> None:
    with tls_server(tmp_path, authority, "127.0.0.2") as server, pytest.raises(TierError, match="certificate"):
        opened(url(server, authority))


def test_a_certificate_that_is_missing_is_named(server: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"ssl_ca_certs .*missing\.crt, which is no file"):
        opened(f"rediss://{server}?ssl_ca_certs={folder}/missing.crt")


def test_who_speaks_no_tls_is_off(server: str) -> None:
    with pytest.raises(TierError, match=server):
        opened(f"redis://{server}")
