"""Holds what a backend says of itself once and for all: which model it serves, and which pages it has."""

from __future__ import annotations

from dataclasses import dataclass

from pagoda.cache.recent import Looked
from pagoda.sampling_params import SamplingParams


@dataclass(frozen=True)
class ServedModel:
    """Which model is served.

    default_params: of requests that say nothing; without a limit an answer goes on to the end of the context.
    has_encoder: whether it reads what an encoder reads, too.
    """

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    default_params: SamplingParams
    has_encoder: bool = False


@dataclass(frozen=True)
class PageKind:
    """Pages of a layer group: `name` says what is in them, `format_name` how."""

    name: str
    format_name: str
    page_nbytes: int
    page_tokens: int


@dataclass(frozen=True)
class GroupAttention:
    """The `kernels` that a layer group attends with, and the `obstacle` to better ones, if there is one."""

    group: str
    kernels: str
    obstacle: str = ""


@dataclass(frozen=True)
class PageFacts:
    """Which pages there are.

    kinds: in the order of `CacheStats.groups`. formats: those that attention reads, each once. num_pages: of each group
    that attends. page_tokens: of the first of these, 0 without any. nbytes: of all pages. constants: a digest of what
    was fitted to the model. attention: of each group that attends. miss_memory_nbytes: the most that is kept to explain
    misses. have_tiers: whether pages are kept elsewhere too.
    """

    kinds: tuple[PageKind, ...]
    formats: tuple[str, ...]
    num_pages: tuple[int, ...]
    page_tokens: int
    nbytes: int
    constants: str | None = None
    attention: tuple[GroupAttention, ...] = ()
    miss_memory_nbytes: int = 0
    have_tiers: bool = False


@dataclass(frozen=True)
class Lookups:
    """Late sequences, in the order in which they were looked up; all that is remembered takes `nbytes`, of at most
    `most_nbytes`, of which 0 means that nothing is.
    """

    sequences: tuple[Looked, ...]
    nbytes: int
    most_nbytes: int
