"""Makes vectors of texts from the hidden states of a model that writes, no trained embedding model: `/v1/embeddings`.

Each tenant's are computed one after the other, and those of all tenants a piece at a time between the steps of the
backend.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Coroutine
from functools import partial
from time import monotonic
from typing import Any, Literal

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from pagoda.errors import HttpError, PagodaError
from pagoda.prompts import Prompt
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import json_response, origin_of
from pagoda.server.asked.body import MOST_TOKENS, Body, Items, TokenIds
from pagoda.server.backend.base import Embedder, Pooling
from pagoda.server.ground.errors import client_gone, refused, too_late
from pagoda.server.ground.messages import Origin

MOST_INPUTS = 2048  # as OpenAI has it
MOST_WAITING = 32  # calls of one tenant
PIECE_TOKENS = 64  # always, since rounding depends on it


class EmbeddingBody(Body):
    model: str
    input: str | Items[str] | TokenIds | Items[TokenIds]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None  # without effect
    pooling: Literal["mean", "last"] = "mean"  # ours


class Embeddings:
    """The handler, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._turn = asyncio.Lock()  # memory is for one text at a time
        self._waiting: Counter[str] = Counter()

    async def create(self, body: EmbeddingBody, request: Request) -> Response:
        """A vector of length 1 for each text: the mean of the last hidden states of its tokens, or the last one."""
        service, origin = self._service, origin_of(request)
        service.check_model(body.model)
        inputs = _inputs(body.input)
        if body.dimensions is not None:
            raise HttpError(
                400, "dimensions: vectors of this model mean nothing when cut; leave it out.", param="dimensions"
            )
        service.check_room(origin.tenant, "input")
        embedder = self._embedder()
        token_ids = await service.read(partial(self._read, embedder, origin), inputs, "input", origin.tenant)
        work = self._vectors(embedder, token_ids, body.pooling, origin.tenant.name)
        vectors = await self._while_wanted(work, origin)
        num_tokens = sum(map(len, token_ids))
        request.state.counts = {"prompt_tokens": num_tokens}
        return json_response(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
                    for index, vector in enumerate(vectors)
                ],
                "model": body.model,
                "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
            }
        )

    def _embedder(self) -> Embedder:
        try:
            return self._service.backend.embedder()
        except PagodaError as error:
            raise refused(error, "model") from error

    def _read(self, embedder: Embedder, origin: Origin, inputs: list[Prompt]) -> list[list[int]]:
        """Beside the event loop."""
        read = [self._service.backend.texts.read(each).token_ids for each in inputs]
        for token_ids in read:
            embedder.check(token_ids, origin.tenant.name)
            if len(token_ids) > embedder.max_len:
                raise HttpError(
                    400,
                    f"A text has {len(token_ids)} tokens, and embeddings are of at most {embedder.max_len}; cut it.",
                    param="input",
                )
        if sum(map(len, read)) > MOST_TOKENS:
            raise HttpError(400, f"All texts have more than {MOST_TOKENS} tokens; send fewer at once.", param="input")
        return read

    async def _while_wanted(self, work: Coroutine[Any, Any, list[np.ndarray]], origin: Origin) -> list[np.ndarray]:
        """What comes of `work`, unless the client goes or its time is over."""
        wanted, gone = asyncio.ensure_future(work), asyncio.ensure_future(origin.until_gone())
        try:
            seconds = self._service.seconds_left(origin)
            await asyncio.wait((wanted, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if wanted.done():
                return wanted.result()
            if not gone.done():
                raise too_late()
            raise client_gone()
        except PagodaError as error:
            raise refused(error, "model") from error
        finally:
            wanted.cancel()
            gone.cancel()

    async def _vectors(
        self, embedder: Embedder, token_ids: list[list[int]], pooling: Pooling, name: str
    ) -> list[np.ndarray]:
        if self._waiting[name] >= MOST_WAITING:
            message = f"{MOST_WAITING} calls of this key wait for embeddings; try later."
            raise HttpError(429, message, code="too_many_embeddings", retry_after_seconds=1)
        self._waiting[name] += 1
        try:
            async with self._turns[name]:
                return [await self._vector(embedder, each, pooling) for each in token_ids]
        finally:
            self._waiting[name] -= 1

    async def _vector(self, embedder: Embedder, token_ids: list[int], pooling: Pooling) -> np.ndarray:
        async with self._turn:
            embedding = await asyncio.wrap_future(embedder.begin(token_ids, pooling))
            vector: np.ndarray | None = None
            while vector is None:
                started = monotonic()
                vector = await asyncio.wrap_future(embedding.advance(PIECE_TOKENS))
                if self._service.in_flight:  # requests that run have as much time again
                    await asyncio.sleep(monotonic() - started)
        if not np.isfinite(vector).all():
            raise HttpError(500, "The model gave NaN or infinity for a text.", code="engine_error")
        return vector


def _inputs(given: str | list[str] | list[int] | list[list[int]]) -> list[Prompt]:
    """A list of texts, whether one was given or several."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise HttpError(400, "input is empty; give text or token ids.", param="input")
    if isinstance(given[0], int):
        return [given]
    if len(given) > MOST_INPUTS:
        raise HttpError(400, f"There are {len(given)} texts; give at most {MOST_INPUTS} at once.", param="input")
    return list(given)


def _written(vector: np.ndarray, encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
