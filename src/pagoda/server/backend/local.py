"""Makes an LLM of this process a backend: all that the server reads of an engine is read here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pagoda.cache.inspector import CacheStats
from pagoda.cache.leases import LeaseInfo
from pagoda.cache.prefix.names import Identity, PageNames
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.outline import Outline
from pagoda.cache.prefix.tree import Watcher
from pagoda.cache.session_file import SessionFile
from pagoda.chat.options import ChatOptions
from pagoda.chat.renderer import ChatRenderer
from pagoda.engine.embedding import Embedder, Embedding, Pooling
from pagoda.engine.engine import Engine
from pagoda.engine.loop import EngineLoop
from pagoda.engine.request import Request, new_request
from pagoda.engine.sessions import LoadedSession, SavedSession, Sessions, SessionTarget, conversation_of
from pagoda.layouts.spec import LayerGroup
from pagoda.llm import LLM
from pagoda.planning.memory import MemoryPlan
from pagoda.prompts import Prompt, PromptReader, ReadPrompt
from pagoda.sampling_params import SamplingParams
from pagoda.server.backend import base
from pagoda.server.backend.facts import GroupAttention, Lookups, PageFacts, PageKind, ServedModel
from pagoda.server.backend.local_call import LocalCall
from pagoda.server.ground.messages import Call, Scope, SessionText, Work

Result = TypeVar("Result")

NOTHING = SamplingParams(max_tokens=0)  # more than the prompt


class LocalBackend:
    """Computes with one LLM, which lives as long."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._engine, self._loop = llm.engine, llm.loop
        model = self._engine.model
        self.model = ServedModel(
            max_model_len=self._engine.max_model_len,
            vocab_size=model.vocab_size,
            eos_token_ids=model.eos_token_ids,
            # Without a word of the checkpoint an answer goes on to the end of the context.
            default_params=replace(
                llm.get_default_sampling_params(), max_tokens=model.generation.sampling.get("max_tokens")
            ),
            has_encoder=model.encoder is not None,
        )
        self.pages = _page_facts(self._engine)
        self.texts = LocalTexts(llm.reader, llm.chats, llm.tokenizer)
        self.forms = llm.grammars
        self.inspector = LocalInspector(self._engine, self._loop)
        self.sessions = LocalSessions(llm.sessions)
        self._identity: Future[Identity] | None = None

    @property
    def is_alive(self) -> bool:
        return self._loop.is_alive

    def ping(self) -> Future[None]:
        return self._loop.call(lambda: None)

    def prepare(self, call: Call) -> LocalCall:
        return LocalCall(call, [self._request(call, index, work) for index, work in enumerate(call.works)], self._llm)

    def end_lease(self, scope: Scope, token_ids: list[int]) -> Future[bool]:
        namespace = Namespace(scope.cache_salt, tenant=scope.tenant)
        return self._loop.call(lambda: self._engine.end_lease(namespace, token_ids))

    def observe(self, observer: Callable[[], None]) -> Callable[[], None]:
        return self._loop.observe(observer)

    def embedder(self) -> LocalEmbedder:
        return LocalEmbedder(self._engine, self._loop)

    def forget_tiers(self) -> None:
        if self._engine.residency is not None:
            self._engine.residency.forget()

    def reset(self) -> Future[int]:
        return self._loop.call(self._engine.reset_prefix_cache)

    @property
    def page_names(self) -> PageNames:
        """What others call the pages that `watch` tells of."""
        return self._engine.page_names

    def page_identity(self) -> Future[Identity]:
        if self._identity is None:
            self._identity = _in_a_thread(lambda: self.page_names.identity, "pagoda-identity")
        return self._identity

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher`, on the engine's thread, which pages are held now and from now on."""
        self._loop.call(lambda: self._engine.inspector.watch(watcher)).result()

    def _request(self, call: Call, index: int, work: Work) -> Request:
        prompt, params, scope = work.prompt, work.params, call.scope
        if params.stop_strings:
            self.texts.need_tokenizer()
        request = new_request(
            f"{call.call_id}-{index}",
            prompt.token_ids,
            params,
            prompt.text,
            scope.cache_salt,
            prompt.encoder_input,
            tenant=scope.tenant,
            breakpoints=work.breakpoints,
        )
        self._engine.validate(request)
        request.constraint = work.constraint
        return request


class LocalTexts:
    """Reads with the tokenizer, the prompt reader and the chat template of one LLM."""

    def __init__(self, reader: PromptReader, chats: ChatRenderer, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._reader = reader
        self._chats = chats

    def need_tokenizer(self) -> Any:
        return self._reader.need_tokenizer()

    def read(self, prompt: Prompt) -> ReadPrompt:
        return self._reader.read(prompt)

    def check_text(self, text: str) -> None:
        self._reader.check_text(text)

    def template(self, options: ChatOptions) -> str:
        return self._chats.template(options)

    def render(self, messages: Sequence[Mapping[str, Any]], options: ChatOptions) -> str:
        return self._chats.render(messages, options)


class LocalInspector:
    """Asks the engine between two steps."""

    def __init__(self, engine: Engine, loop: EngineLoop) -> None:
        self._engine = engine
        self._loop = loop

    def stats(self) -> Future[CacheStats]:
        return self._loop.call(self._engine.inspector.stats)

    def stats_and_leases(self) -> Future[tuple[CacheStats, list[LeaseInfo]]]:
        return self._loop.call(lambda: (self._engine.inspector.stats(), self._engine.inspector.leases()))

    def outline(self, most: int, most_tokens: int, tenant: str | None) -> Future[list[Outline]]:
        return self._loop.call(lambda: self._engine.inspector.outline(most, most_tokens, tenant))

    def lookups(self) -> Future[Lookups]:
        known = self._engine.lookups
        return self._loop.call(lambda: Lookups(tuple(known.all()), known.nbytes, known.memory_nbytes))

    def page_states(self, stride: int) -> Future[list[bytes]]:
        return self._loop.call(lambda: self._engine.inspector.page_states(stride))


class LocalSessions:
    """Copies between two steps of the engine; all else is done on a thread for each file."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def save(self, target: SessionTarget, prompt: ReadPrompt, scope: Scope, text: SessionText) -> Future[SavedSession]:
        said = conversation_of(prompt.token_ids, *text)
        request = new_request(
            "", prompt.token_ids, NOTHING, None, scope.cache_salt, prompt.encoder_input, tenant=scope.tenant
        )

        def save() -> SavedSession:
            taken = self._sessions.take(request.namespace, request.prompt)
            return self._sessions.write(target, request.namespace, taken, said)

        return _in_a_thread(save, "pagoda-session")

    def open(self, path: Path) -> SessionFile:
        return self._sessions.open(path)

    def load(self, path: Path, scope: Scope) -> Future[LoadedSession]:
        return _in_a_thread(lambda: self._sessions.load(path, scope.cache_salt, scope.tenant), "pagoda-session")


class LocalEmbedder:
    """Computes with the engine's model, between its steps."""

    def __init__(self, engine: Engine, loop: EngineLoop) -> None:
        self._engine = engine
        self._loop = loop
        self._embedder = Embedder(engine.model, engine.kernels)

    @property
    def max_len(self) -> int:
        return self._embedder.max_len

    def check(self, token_ids: list[int], tenant: str) -> None:
        self._engine.validate(new_request("", token_ids, NOTHING, tenant=tenant))

    def begin(self, token_ids: list[int], pooling: base.Pooling) -> Future[base.Embedding]:
        return self._loop.call(lambda: LocalEmbedding(self._embedder.begin(token_ids, Pooling(pooling)), self._loop))


class LocalEmbedding:
    """A vector of the engine's, on its way."""

    def __init__(self, embedding: Embedding, loop: EngineLoop) -> None:
        self._embedding = embedding
        self._loop = loop

    def advance(self, num_tokens: int) -> Future[np.ndarray | None]:
        return self._loop.call(lambda: self._advanced(num_tokens))

    def _advanced(self, num_tokens: int) -> np.ndarray | None:
        vector = self._embedding.advance(num_tokens)
        return None if vector is None else vector.numpy()


def _in_a_thread(function: Callable[[], Result], name: str) -> Future[Result]:
    """What comes of `function`, for all who ever ask: none of them can cancel it."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _page_facts(engine: Engine) -> PageFacts:
    memory = engine.memory
    return PageFacts(
        kinds=tuple(_kinds(memory)),
        formats=tuple(sorted({geometry.format_name for geometry in memory.geometries})),
        num_pages=memory.num_pages,
        page_tokens=memory.geometries[0].page_tokens if memory.geometries else 0,
        nbytes=memory.nbytes,
        constants=engine.fit.digest,
        attention=tuple(
            GroupAttention(each.group.name, each.kernels.name, each.obstacle or "")
            for each in engine.kernel_choice.groups
        ),
        miss_memory_nbytes=engine.lookups.memory_nbytes,
        have_tiers=engine.residency is not None,
    )


def _kinds(memory: MemoryPlan) -> list[PageKind]:
    kinds = [
        PageKind(_group_name(each.group), each.format_name, each.page_nbytes, each.page_tokens)
        for each in memory.geometries
    ]
    kinds = kinds or [PageKind("tokens", "none", 0, 0)]  # pages of nothing, which tell where prompts part
    if memory.states is not None:
        kinds.append(PageKind("state", "as computed", memory.states.geometry.page_nbytes, 1))
    return kinds


def _group_name(group: LayerGroup) -> str:
    return str(group.reach) if group.span is None else f"{group.reach} {group.span}"
