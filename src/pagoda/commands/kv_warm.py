"""`pagoda kv warm`: computes documents once and writes their pages to a folder, which servers read them from."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from time import perf_counter

from tqdm import tqdm

from pagoda.cache.prefix.namespace import Namespace as PageNamespace
from pagoda.cache.residency.movers import STAGED_NBYTES
from pagoda.cache.residency.residency import Residency
from pagoda.cache.tiers.base import TierStats
from pagoda.commands.extras import need
from pagoda.commands.options import load_llm
from pagoda.commands.reading import read_text
from pagoda.errors import ConfigError, RequestError, TierError
from pagoda.llm import LLM
from pagoda.units import format_nbytes


@dataclass
class Outcome:
    """What became of the documents. Tokens of documents that were there before, or failed, are not computed ones."""

    num_documents: int = 0
    num_there: int = 0
    num_tokens: int = 0
    num_computed_tokens: int = 0
    written_nbytes: int = 0
    folder_nbytes: int = 0
    seconds: float = 0.0
    num_failed: int = 0

    @property
    def tokens_per_second(self) -> float:
        return self.num_computed_tokens / self.seconds if self.seconds else 0.0

    @property
    def text(self) -> str:
        computed = f"{self.num_computed_tokens:,} computed"
        if self.num_computed_tokens:
            computed += f" at {self.tokens_per_second:,.0f} tokens/s"
        documents = f"{self.num_documents:,} document{'s' * (self.num_documents != 1)}"
        return (
            f"{documents} of {self.num_tokens:,} tokens, {computed}; "
            f"{self.num_there:,} were there, {self.num_failed:,} failed\n"
            f"{format_nbytes(self.written_nbytes)} written; {format_nbytes(self.folder_nbytes)} in the folder\n"
        )


@dataclass(frozen=True)
class _Document:
    """A prompt to be stored for requests of `namespace`."""

    name: str
    tokens: Sequence[int]
    namespace: PageNamespace


def run(arguments: Namespace) -> int:
    need("fastapi", "orjson")
    from pagoda.commands.prompt_files import prompt_texts, read_prompts
    from pagoda.commands.request_file import RequestFiles

    prefix = "" if arguments.prefix is None else read_text(arguments.prefix)
    texts = prompt_texts(arguments.files, prefix)
    template = None if arguments.chat_template is None else read_text(arguments.chat_template)
    arguments.kv_disk = str(arguments.directory)
    with load_llm(arguments) as llm:
        if llm.engine.model.encoder is not None:
            raise ConfigError("This model has an encoder: what its decoder computes is of no use for other inputs.")
        tokenizer = llm.reader.need_tokenizer()
        with closing(RequestFiles(tokenizer, llm.engine.max_model_len, template)) as requests:
            prompts = read_prompts(texts, requests)
        documents = [
            _Document(each.name, each.prompt.token_ids, _namespace(arguments.tenant, each.prompt.settings))
            for each in prompts
        ]
        outcome = _Warming(llm).run(documents)
    told = asdict(outcome) | {"tokens_per_second": outcome.tokens_per_second}
    sys.stdout.write(json.dumps(told, indent=2) + "\n" if arguments.json else outcome.text)
    return 1 if outcome.num_failed else 0


def _namespace(tenant: str, settings: object) -> PageNamespace:
    salt = settings.get("cache_salt", "") if isinstance(settings, dict) else ""
    return PageNamespace(salt, tenant=tenant)


class _Warming:
    """Of the folder that an LLM writes to. Each document is written down before the next one begins."""

    def __init__(self, llm: LLM) -> None:
        from pagoda.server.backend.local import LocalBackend
        from pagoda.server.backend.warmer import Warmer

        assert llm.engine.residency is not None
        self._llm = llm
        self._residency: Residency = llm.engine.residency
        backend = LocalBackend(llm)
        kinds = [kind for kind in backend.pages.kinds if kind.page_tokens > 1]
        token_nbytes = sum(kind.page_nbytes / kind.page_tokens for kind in kinds)
        self._page_tokens = max((kind.page_tokens for kind in kinds), default=1)
        # What waits to be written is bounded; half of that is never too much.
        piece_tokens = int(STAGED_NBYTES / 2 / token_nbytes) if token_nbytes else 1 << 30
        self._warmer = Warmer(backend, max(piece_tokens, self._page_tokens), between=self._write_down)

    def run(self, documents: Sequence[_Document]) -> Outcome:
        if (fault := self._stats.fault) is not None:
            raise TierError(f"{fault} Stop whoever writes there, or name another folder.")
        outcome = Outcome(num_documents=len(documents))
        for each in tqdm(documents, desc="Computed", unit="doc", disable=None):
            begun = perf_counter()
            self._store(each, outcome)
            outcome.seconds += perf_counter() - begun
        stats = self._stats
        outcome.written_nbytes, outcome.folder_nbytes = stats.written_nbytes, stats.nbytes
        return outcome

    def _store(self, document: _Document, outcome: Outcome) -> None:
        from pagoda.server.ground.messages import Scope

        outcome.num_tokens += len(document.tokens)
        if self._num_stored(document) >= len(document.tokens) - 1:  # the last one is computed in any case
            outcome.num_there += 1
            return
        namespace = document.namespace
        try:
            warmed = self._warmer.warm(document.tokens, Scope(namespace.tenant, namespace.salt))
        except RequestError as error:
            outcome.num_failed += 1
            sys.stderr.write(f"error: {document.name}: {error}\n")
            return
        outcome.num_there += not warmed.num_computed
        outcome.num_computed_tokens += warmed.num_computed
        self._write_down()
        if self._num_stored(document) < len(document.tokens) // self._page_tokens * self._page_tokens:
            outcome.num_failed += 1
            reason = self._stats.fault or "there is no room for all of it; raise --kv-disk-bytes."
            sys.stderr.write(f"error: {document.name} is not in the folder as a whole: {reason}\n")

    def _num_stored(self, document: _Document) -> int:
        """How many of its tokens could be had from the folder alone."""
        stored = self._llm.loop.call(lambda: self._residency.num_stored(document.namespace, document.tokens))
        return int(stored.result())

    def _write_down(self) -> None:
        self._residency.flush()

    @property
    def _stats(self) -> TierStats:
        return self._residency.report()[-1].stats
