"""Says what the server needs of whoever computes: an LLM in this process (`local.py`), or machines elsewhere.

Interfaces alone. A backend has a thread of its own, or acts as if it had: it does there, between two of its steps, what
returns a Future, and tells news there. Nothing in the server waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pagoda.cache.inspector import CacheStats
from pagoda.cache.leases import LeaseInfo
from pagoda.cache.prefix.names import Identity
from pagoda.cache.prefix.outline import Outline
from pagoda.cache.session_file import SessionFile
from pagoda.chat.options import ChatOptions
from pagoda.sampling_params import StructuredOutputs
from pagoda.server.backend.facts import Lookups, PageFacts, ServedModel
from pagoda.server.ground.messages import Call, Job, News, Scope, SessionText

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from pagoda.engine.constraint import Constraint
    from pagoda.engine.sessions import LoadedSession, SavedSession, SessionTarget
    from pagoda.prompts import Prompt, ReadPrompt

Pooling = Literal["mean", "last"]  # which hidden states a vector is made of


class Texts(Protocol):
    """Turns what clients write into tokens. Used from several threads; takes as long as a text is."""

    @property
    def tokenizer(self) -> Any:
        """Hugging Face's, None if the model has none."""

    def need_tokenizer(self) -> Any:
        """Raises TokenizerRequiredError if there is none."""

    def read(self, prompt: Prompt) -> ReadPrompt:
        """Raises a RequestError for what cannot be read."""

    def check_text(self, text: str) -> None:
        """Raises a RequestError for what no tokenizer takes, and for text that is much too long."""

    def template(self, options: ChatOptions) -> str:
        """The chat template in Jinja. Raises TokenizerRequiredError if there is none."""

    def render(self, messages: Sequence[Mapping[str, Any]], options: ChatOptions) -> str:
        """The text of a conversation. Raises ChatTemplateError if the template refuses it or does too much."""


class Forms(Protocol):
    """Makes what holds an output to a form. Both raise a RequestError that says what is wrong with it."""

    def find(self, wanted: StructuredOutputs, tenant: str) -> Constraint | None:
        """What `compile` would give, if that is known; costs nothing."""

    def compile(self, wanted: StructuredOutputs, tenant: str, is_wanted: Callable[[], bool]) -> Constraint | None:
        """Takes its time, and gives up with RequestCancelledError when `is_wanted` says so."""


class Inspector(Protocol):
    """Tells what the cache holds, and changes nothing."""

    def stats(self) -> Future[CacheStats]: ...

    def stats_and_leases(self) -> Future[tuple[CacheStats, list[LeaseInfo]]]:
        """Of the same moment."""

    def outline(self, most: int, most_tokens: int, tenant: str | None) -> Future[list[Outline]]:
        """Up to `most` branches of the prefix tree of a tenant, or of all (None), each with its first `most_tokens`."""

    def lookups(self) -> Future[Lookups]:
        """What is remembered of late sequences."""

    def page_states(self, stride: int) -> Future[list[bytes]]:
        """What one page in `stride` of each group is."""


class Sessions(Protocol):
    """Writes what was computed of prompts to files, and puts it back. Takes as long as the files are."""

    def save(self, target: SessionTarget, prompt: ReadPrompt, scope: Scope, text: SessionText) -> Future[SavedSession]:
        """Of what is held of `prompt`; fails with SessionError."""

    def open(self, path: Path) -> SessionFile:
        """At once. Raises SessionError if it is no whole session."""

    def load(self, path: Path, scope: Scope) -> Future[LoadedSession]:
        """Hold the pages of a session for `scope`; fails with SessionError."""


class PreparedCall(Protocol):
    """A call that can be served and has not been started yet."""

    @property
    def jobs(self) -> Sequence[Job]:
        """One for each work of the call, in its order."""

    def start(self, tell: Callable[[int, News], None]) -> None:
        """`tell` gets the news of the job of that index, on the backend's thread: chunks where the call streams, and
        one end, whatever happens. Raises EngineClosedError.
        """

    def cancel(self) -> None:
        """End soon what has not ended."""


class Embedding(Protocol):
    """The vector of one text, on its way."""

    def advance(self, num_tokens: int) -> Future[np.ndarray | None]:
        """Compute so many more tokens; after the last, the vector, fp32 [width] of length 1."""


class Embedder(Protocol):
    """Makes vectors of texts."""

    @property
    def max_len(self) -> int:
        """The longest text that there is room for, in tokens."""

    def check(self, token_ids: list[int], tenant: str) -> None:
        """Raises a RequestError for what the model does not take."""

    def begin(self, token_ids: list[int], pooling: Pooling) -> Future[Embedding]: ...


class Backend(Protocol):
    """Computes what calls ask for."""

    @property
    def model(self) -> ServedModel: ...

    @property
    def pages(self) -> PageFacts: ...

    @property
    def texts(self) -> Texts: ...

    @property
    def forms(self) -> Forms: ...

    @property
    def inspector(self) -> Inspector: ...

    @property
    def sessions(self) -> Sessions: ...

    @property
    def is_alive(self) -> bool:
        """Whether it can still compute anything."""

    def ping(self) -> Future[None]:
        """Done when it has come to it."""

    def prepare(self, call: Call) -> PreparedCall:
        """Raises a RequestError for a call of which something can never be served; nothing has happened then."""

    def end_lease(self, scope: Scope, token_ids: list[int]) -> Future[bool]:
        """Keep just these tokens no longer, as nobody wants that any more; False if nobody had."""

    def observe(self, observer: Callable[[], None]) -> Callable[[], None]:
        """Call `observer` whenever the news of a step have been told. What is returned ends that."""

    def embedder(self) -> Embedder:
        """Raises UnsupportedModelError if the model makes no vectors."""

    def page_identity(self) -> Future[Identity]:
        """What its pages are of. All weights are read for that, once, and meanwhile nothing waits but who asks."""

    def forget_tiers(self) -> None:
        """Forget what tiers hold, as far as that is its own to forget. Takes as long as they do."""

    def reset(self) -> Future[int]:
        """Forget every page that no job uses; how many those were."""
