"""Pagoda: LLM inference whose heart is the KV cache, kept in pages that are shared, compact and bounded.

Public names are imported on first use, so `import pagoda` is light and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pagoda.analysis.plan import plan as plan
    from pagoda.cache.inspector import CacheStats as CacheStats
    from pagoda.config import EngineConfig as EngineConfig
    from pagoda.engine.request import FinishReason as FinishReason
    from pagoda.llm import LLM as LLM
    from pagoda.outputs import CompletionOutput as CompletionOutput
    from pagoda.outputs import RequestOutput as RequestOutput
    from pagoda.outputs import StreamChunk as StreamChunk
    from pagoda.sampling_params import SamplingParams as SamplingParams
    from pagoda.sampling_params import StructuredOutputs as StructuredOutputs

__version__ = "0.1.0"

_EXPORTS = {
    "LLM": "pagoda.llm",
    "SamplingParams": "pagoda.sampling_params",
    "StructuredOutputs": "pagoda.sampling_params",
    "RequestOutput": "pagoda.outputs",
    "CompletionOutput": "pagoda.outputs",
    "StreamChunk": "pagoda.outputs",
    "FinishReason": "pagoda.engine.request",
    "EngineConfig": "pagoda.config",
    "CacheStats": "pagoda.cache.inspector",
    "plan": "pagoda.analysis.plan",
}

__all__ = [
    "LLM",
    "CacheStats",
    "CompletionOutput",
    "EngineConfig",
    "FinishReason",
    "RequestOutput",
    "SamplingParams",
    "StreamChunk",
    "StructuredOutputs",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pagoda' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
