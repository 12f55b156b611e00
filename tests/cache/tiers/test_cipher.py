"""Records at rest: nothing of them can be read or changed without the key."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.cache.tiers.cipher import AesGcmCipher, read_key
from pagoda.cache.tiers.record import HEADER_NBYTES, Draft, Kind, Label, read_record
from pagoda.config import Environment
from pagoda.errors import ConfigError, PageRecordError

KEY = bytes(range(100, 132))
CIPHER = AesGcmCipher(KEY)
DIGEST = bytes(range(16))
LABEL = Label(DIGEST, DIGEST, bytes(8), Kind.PAGE, 0, DIGEST, DIGEST, 4, tokens=b"these are tokens")
BODY = b"keys and values " * 8


def sealed(cipher, body=BODY):
    draft = Draft(LABEL, len(body))
    draft.body[:] = np.frombuffer(body, np.uint8)
    return bytes(draft.seal(1, cipher))


def test_what_was_encrypted_is_read_with_its_key():
    record = read_record(sealed(CIPHER), CIPHER)
    assert (record.tokens, bytes(record.body)) == (LABEL.tokens, BODY)
    record.check_is(LABEL)


def test_nothing_of_it_stands_in_the_record():
    record = sealed(CIPHER)
    pieces = [BODY[start : start + 4] for start in range(16)] + [LABEL.tokens[start : start + 4] for start in range(12)]
    assert not [piece for piece in pieces if piece in record]
    assert len(record) == len(sealed(None)) + CIPHER.extra_nbytes


def test_no_two_records_are_equal():
    assert sealed(CIPHER)[HEADER_NBYTES:] != sealed(CIPHER)[HEADER_NBYTES:]


@pytest.mark.parametrize("cipher", [None, AesGcmCipher(bytes(32))], ids=["no key", "another key"])
def test_without_its_key_it_is_a_miss_that_says_so(cipher):
    with pytest.raises(PageRecordError) as caught:
        read_record(sealed(CIPHER), cipher)
    assert caught.value.field == "key"


@given(st.integers(0, len(sealed(CIPHER)) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(position, change):
    record = bytearray(sealed(CIPHER))
    record[position] ^= change
    with pytest.raises(PageRecordError):
        read_record(record, CIPHER)


@given(st.integers(0, len(BODY) + len(LABEL.tokens) + CIPHER.extra_nbytes - 1), st.integers(1, 255))
def test_the_payload_is_held_by_more_than_checksums(position, change):
    payload = bytearray(CIPHER.encrypt(LABEL.tokens + BODY, bytes(12), b"fields"))
    payload[position] ^= change
    with pytest.raises(PageRecordError, match="another key"):
        CIPHER.decrypt(payload, bytes(12), b"fields")


def test_a_payload_belongs_to_its_header():
    payload = CIPHER.encrypt(BODY, bytes(12), b"fields")
    assert CIPHER.decrypt(payload, bytes(12), b"fields") == BODY
    with pytest.raises(PageRecordError):
        CIPHER.decrypt(payload, bytes(12), b"others")
    with pytest.raises(PageRecordError):
        CIPHER.decrypt(payload[:10], bytes(12), b"fields")


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex(),
        f" {KEY.hex().upper()}\n",
        base64.b64encode(KEY).decode(),
        base64.urlsafe_b64encode(b"\xff" * 32).decode().rstrip("="),
    ],
)
def test_keys_are_hex_or_base64(text):
    assert read_key(text) in (KEY, b"\xff" * 32)


@pytest.mark.parametrize("text", ["", "secret", KEY.hex()[2:], base64.b64encode(KEY + b"1").decode(), "é" * 32])
def test_what_is_no_key_is_refused(text):
    with pytest.raises(ConfigError, match="openssl rand -hex 32") as caught:
        AesGcmCipher.from_text(text)
    assert not text or text not in str(caught.value)


def test_keys_come_from_the_environment_and_are_not_shown(monkeypatch):
    monkeypatch.setenv("PAGODA_KV_KEY", KEY.hex())
    monkeypatch.setenv("PAGODA_KV_REMOTE_PASSWORD", "open sesame")
    environment = Environment.read()
    assert (environment.kv_key, environment.kv_remote_password) == (KEY.hex(), "open sesame")
    assert KEY.hex() not in repr(environment)
    assert "sesame" not in repr(environment)
