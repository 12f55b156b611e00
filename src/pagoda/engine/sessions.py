"""Saves what an engine holds of a conversation to a file, and puts it back, to the token.

May be called on any thread but the engine's, where only bytes in memory are copied; files are read and written here.
A file says nothing of whose it is: whoever loads it has the pages as their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any, TypeVar

import numpy as np

from pagoda.cache.prefix.keys import TOKEN_NBYTES
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.residency.carry import Carrier
from pagoda.cache.session_file import SessionFile, write_session
from pagoda.cache.session_parts import Conversation, Description, Written
from pagoda.cache.tiers.cipher import cipher_of
from pagoda.cache.tiers.record import HEADER_NBYTES, Draft, Record
from pagoda.config import EngineConfig
from pagoda.engine.engine import Engine
from pagoda.engine.loop import EngineLoop
from pagoda.errors import OutOfPagesError, PageRecordError, SessionError

Result = TypeVar("Result")


@dataclass(frozen=True)
class SessionTarget:
    """Where a session is written, and what it is called.

    `reserve` is called with the bytes by which its file will grow, and may raise SessionTooLargeError.
    """

    path: Path
    name: str = ""
    reserve: Callable[[int], None] = lambda _: None


@dataclass(frozen=True)
class TakenSession:
    """Pages of a conversation as they were, with which it can be resumed after each of `resume_points` tokens."""

    drafts: Sequence[Draft]
    resume_points: tuple[int, ...]

    @property
    def num_held_tokens(self) -> int:
        return max(self.resume_points, default=0)


@dataclass(frozen=True)
class SavedSession:
    """What was written: `num_held_tokens` of its `num_tokens` need not be computed when it is resumed."""

    path: Path
    nbytes: int
    num_tokens: int
    num_held_tokens: int


@dataclass(frozen=True)
class LoadedSession:
    """What was read. A request that begins with `token_ids` finds the first `num_held_tokens` in the cache.

    If those are fewer than were saved `reason` says why; the others will be computed.
    """

    token_ids: list[int]
    num_held_tokens: int
    name: str
    title: str
    messages: list[Any] | None
    written: Written | None = None
    reason: str | None = None


class Sessions:
    """Of one engine, made by `config`, which `loop` runs; people call its model `model_name`."""

    def __init__(self, engine: Engine, loop: EngineLoop, config: EngineConfig, model_name: str) -> None:
        self._engine = engine
        self._loop = loop
        self._config = config
        self._model_name = model_name

    def take(self, namespace: Namespace, tokens: Sequence[int]) -> TakenSession:
        """Copy all that is held of `tokens`."""
        carrier = self._carrier()

        def take() -> TakenSession:
            # A prompt that ends where it was saved computes its last token again.
            points = [len(tokens)] if carrier.resumes_anywhere else [len(tokens) - 1, len(tokens)]
            told = _told(namespace)
            taken = [carrier.take_out(namespace, tokens[:point], told) for point in points]
            drafts = {draft.label.key: draft for each in taken for draft in each.drafts}
            return TakenSession([*drafts.values()], tuple(sorted({each.num_tokens for each in taken} - {0})))

        return self._called(take)

    def write(
        self, target: SessionTarget, namespace: Namespace, taken: TakenSession, conversation: Conversation
    ) -> SavedSession:
        """Write a session. Raises SessionError."""
        created_ms = int(time() * 1000)
        description = Description(
            identity=self._engine.page_names.identity,
            model=self._model_name,
            created_ms=created_ms,
            name=target.name,
            encoder_digest=namespace.encoder_digest.hex(),
            num_encoder_tokens=namespace.num_encoder_tokens,
            resume_points=taken.resume_points,
        )
        cipher = cipher_of(self._config.environment.kv_key)
        records = (draft.seal(created_ms, cipher) for draft in taken.drafts)
        nbytes = write_session(target.path, description, conversation, records, cipher, target.reserve)
        return SavedSession(target.path, nbytes, len(conversation.tokens), taken.num_held_tokens)

    def open(self, path: Path) -> SessionFile:
        """For whoever closes it. Raises SessionError if it is no whole session."""
        return SessionFile.open(path, cipher_of(self._config.environment.kv_key))

    def load(self, path: Path, salt: str = "", tenant: str = "") -> LoadedSession:
        """Hold the pages of a session for those of a salt and a tenant.

        Raises SessionError if the file cannot be read, or is of something else than this engine's pages.
        """
        carrier = self._carrier()
        with self.open(path) as file:
            description, said = file.description, file.conversation
            description.check_is_of(self._engine.page_names.identity)
            self._check_size(file)
            digest = bytes.fromhex(description.encoder_digest)
            namespace = Namespace(salt, digest, description.num_encoder_tokens, tenant)
            records, damages = _records(file)
        tokens, reason, num_held = said.tokens.tolist(), damages, 0
        for point in sorted(description.resume_points):
            try:
                self._put_in(carrier, namespace, tokens[:point], records)
                num_held = point
            except PageRecordError as error:
                reason = damages or f"a page is not as it was saved: {error}"
            except OutOfPagesError as error:
                reason = f"there is no room for its pages: {error}"
        is_whole = num_held == description.num_held_tokens
        told = description.name, said.title, said.messages, said.written
        return LoadedSession(tokens, num_held, *told, None if is_whole else reason)

    def _put_in(self, carrier: Carrier, namespace: Namespace, tokens: list[int], records: dict[bytes, Record]) -> int:
        return self._called(lambda: carrier.put_in(namespace, tokens, records, _told(namespace)))

    def _carrier(self) -> Carrier:
        """Made here, as all weights are read for the names of its pages."""
        if not self._config.enable_prefix_caching:
            raise SessionError("Sessions are pages that others may hit; leave enable_prefix_caching on.")
        return self._engine.carrier

    def _called(self, function: Callable[[], Result]) -> Result:
        result: Result = self._loop.call(function).result()
        return result

    def _check_size(self, file: SessionFile) -> None:
        """Before its pages are read into memory."""
        memory = self._engine.memory
        if len(file.tokens) > self._engine.max_model_len:
            raise SessionError(
                f"{file.path} has {len(file.tokens):,} tokens, and here are at most {self._engine.max_model_len:,}; "
                "raise max_model_len."
            )
        overhead = len(file.keys) * (2 * HEADER_NBYTES + file.description.identity.page_tokens * TOKEN_NBYTES)
        if file.records_nbytes > memory.nbytes + overhead:
            raise SessionError(
                f"{file.path} has {file.records_nbytes:,} bytes of pages, and here is room for {memory.nbytes:,}; "
                "raise kv_cache_memory_bytes."
            )


def conversation_of(
    tokens: Sequence[int], title: str = "", messages: list[Any] | None = None, written: Written | None = None
) -> Conversation:
    return Conversation(np.array(tokens, np.int32), title, messages, written)


def _told(namespace: Namespace) -> Namespace:
    """The same without whose it is."""
    return Namespace(encoder_digest=namespace.encoder_digest, num_encoder_tokens=namespace.num_encoder_tokens)


def _records(file: SessionFile) -> tuple[dict[bytes, Record], str | None]:
    """Those that are as they should be, and what is wrong with the first that is not."""
    records, damage = dict[bytes, Record](), None
    for number, key in enumerate(file.keys):
        try:
            records[key] = file.record(number)
        except PageRecordError as error:
            damage = damage or f"a page is damaged: {error}"
    return records, damage
