"""What is said of the cache while a request runs, for models with pages, with states, and with both."""

import pytest

from oracle.families import build_tiny
from pagoda import LLM, SamplingParams
from pagoda.commands.report import CacheWatch
from pagoda.models.model import Model


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ["KV cache per token", "pages used", "memory utilisation"]),
        ("jamba", ["KV cache per token", "recurrent state", "pages used", "memory utilisation", "states used"]),
        ("mamba", ["recurrent state", "states used"]),
    ],
)
def test_the_rows_are_those_of_the_model(family, names):
    with LLM(Model.from_transformers(build_tiny(family)), kv_cache_memory_bytes=64 << 20) as llm:
        watch = CacheWatch(llm, every=1)
        for _ in llm.stream([70, 71, 72], SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)):
            watch.tick()
            if watch.stats is not None:  # the engine may be several tokens ahead of what is read here
                break
        assert [name for name, _ in watch.rows()] == names
        assert all(value for _, value in watch.rows())
