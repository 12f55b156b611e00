"""The cache for plain Hugging Face code: what transformers calls, answered from pages that calls share.

Transformers shows its caches no tokens, so a hook on the model looks at each call that brings this cache: it finds what
pages have of the prompt, and takes that off what the model is given to compute. A second hook hears how the call
ended. Other calls of the model pass both untouched. Which tokens are on which page is decided by the same code as in
the engine (`cache/cache.py`).
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from time import monotonic
from typing import Any, Self
from weakref import finalize

import torch
from transformers import Cache as TransformersCache
from transformers.cache_utils import DummyLayer

from pagoda.cache.inspector import Inspector
from pagoda.cache.pool import HOST
from pagoda.cache.prefix.names import PageNames
from pagoda.cache.session_file import SessionFile
from pagoda.config import EngineConfig
from pagoda.engine.identity import identity_of
from pagoda.engine.pools import make_pools
from pagoda.errors import ConfigError, OutOfPagesError, SessionError, UnsupportedCallError
from pagoda.hf.calls import Call, read_call
from pagoda.hf.files import Shelf, load_pages, save_pages
from pagoda.hf.hooks import hook, unhook
from pagoda.hf.layer import FromPages, FullLayer, WindowLayer
from pagoda.hf.layer_bytes import LayerBytes
from pagoda.hf.rows import Prompt, Rows
from pagoda.hf.stats import PagedCacheStats
from pagoda.hf.subject import CachedLayer, Subject
from pagoda.models.digest import weights_digest, weights_mark
from pagoda.planning.caches import make_cache
from pagoda.planning.facts import MachineFacts
from pagoda.planning.memory import plan_memory

# A call computes a whole prompt at once, so windows need as many pages as there are for a prompt.
MOST_STEP_TOKENS = 1 << 20


class PagedCache(TransformersCache):
    """Keys and values of `model` in pages, which every call with this cache shares.

    kv_cache_dtype, kv_cache_memory_bytes, block_size, eviction_policy: as in EngineConfig.

    Pass it as `past_key_values` to `model.generate(...)` or to the model itself. A call begins another sequence where
    its attention_mask or position_ids say so, as those of every `generate` do; without them it goes on, up to
    `reset()`. Of tokens that are read from pages there are no logits: the last one is always computed.
    """

    def __init__(
        self,
        model: Any,
        *,
        kv_cache_dtype: str = "auto",
        kv_cache_memory_bytes: int | None = None,
        block_size: int = 32,
        eviction_policy: str = "lru",
    ) -> None:
        """Raises ConfigError or UnsupportedModelError, which say what to do, if the model cannot use pages."""
        self._subject = Subject.of(model)
        if model.device.type == "cuda":
            raise ConfigError("A PagedCache keeps its pages on the processor; move the model there: model.to('cpu').")
        config = EngineConfig(
            kv_cache_dtype=kv_cache_dtype,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            block_size=block_size,
            eviction_policy=eviction_policy,
            max_num_batched_tokens=MOST_STEP_TOKENS,
        )
        self._memory = plan_memory(self._subject.facts, MachineFacts.measured(), config)
        self._pools = make_pools(self._memory, config.environment.poison_pages, HOST)
        self._cache = make_cache(self._memory, self._pools, config, monotonic)
        self._rows = Rows(self._cache)
        self._running: torch.Tensor | None = None  # what the model is given to compute of the call that runs
        self._mark = _mark(model)
        self._hit_tokens = self._queried_tokens = self._computed_tokens = 0
        layers = [self._layer(each) for each in self._subject.layers]
        self._paged = [layer for layer in layers if layer is not None]
        super().__init__(layers=[layer or DummyLayer() for layer in layers])  # type: ignore[no-untyped-call]
        self._unhook = finalize(self, unhook, hook(self, model))

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        model: Any,
        *,
        kv_cache_dtype: str | None = None,
        kv_cache_memory_bytes: int | None = None,
        eviction_policy: str = "lru",
    ) -> Self:
        """A cache for `model` with the pages that `save` has written, in their format unless another is named.

        Raises SessionError if the file is damaged, or its pages are of another model, other weights or another format.
        """
        with SessionFile.open(Path(path)) as file:
            identity = file.description.identity
            try:
                cache = cls(
                    model,
                    kv_cache_dtype=kv_cache_dtype or identity.format,
                    kv_cache_memory_bytes=kv_cache_memory_bytes,
                    block_size=identity.page_tokens,
                    eviction_policy=eviction_policy,
                )
            except ConfigError as error:
                raise SessionError(
                    f"{path} has pages in {identity.format}, for which no cache can be made here: {error} Name "
                    "kv_cache_dtype as it was when they were saved."
                ) from error
            try:
                load_pages(file, cache._shelf())
            except BaseException:
                cache.close()
                raise
        return cache

    def save(self, path: str | PathLike[str]) -> None:
        """Write all pages to a file. Reads all weights, to say what the pages are of: a second for each gigabyte."""
        self.reset()
        self._check_weights()
        save_pages(Path(path), self._shelf(), self._subject.config.model_type)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens whose keys and values are held."""
        prefixes = self._cache.main.prefixes
        assert prefixes is not None
        sealed = sum(node.recompute_tokens for node in prefixes.tree.nodes() if node.page >= 0)
        return sealed + self._rows.num_open_tokens

    def stats(self) -> PagedCacheStats:
        return PagedCacheStats(
            queried_tokens=self._queried_tokens,
            hit_tokens=self._hit_tokens,
            computed_tokens=self._computed_tokens,
            num_cached_tokens=self.num_cached_tokens,
            groups=tuple(group.holdings.counts for group in self._cache.groups),
            nbytes=self._memory.nbytes,
        )

    def check_integrity(self) -> None:
        """Raise IntegrityError unless free + open + in use + idle = total and every count is what the tables say."""
        Inspector(self._cache).check_integrity()

    def clear(self) -> None:
        """Forget all pages."""
        self.reset()
        self._cache.reset()

    def close(self) -> None:
        """Take the hooks off the model and forget all pages. Calling it again does nothing."""
        self._unhook()
        self.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> Any:
        raise UnsupportedCallError(
            "A PagedCache is not copied or pickled: its pages are shared as it is, and save() writes them to a file."
        )

    # What transformers asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns in a call that runs. None between calls, as the next one may begin anything."""
        return 0 if self._running is None else super().get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        self._check_called()
        return super().get_mask_sizes(query_length, layer_idx)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._check_called()
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def reset(self) -> None:
        """End the sequences of the last call, whose pages stay: the next call begins others."""
        self._rows.commit()
        self._begin_layers(0)
        self._rows.end()

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, given as a negative number."""
        if tokens_to_remove > 0:
            raise UnsupportedCallError(f"crop takes back {tokens_to_remove} tokens; give a negative number.")
        is_begun = tokens_to_remove < 0 and self._rows.crop(-tokens_to_remove)
        if is_begun or (tokens_to_remove and not all(layer.can_crop for layer in self._paged)):
            self._begin_layers(self._rows.num_columns)  # pages have what is not dense any more
        else:
            super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Any) -> None:
        self._pick(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._pick(torch.arange(len(self._rows)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Any) -> None:
        self._pick(torch.arange(len(self._rows))[indices.cpu()])

    def _pick(self, indices: Any) -> None:
        self._rows.pick(indices.tolist())
        for layer in self._paged:
            layer.reorder_cache(indices)

    # What the hooks call.

    def enter(self, arguments: dict[str, Any], is_training: bool) -> dict[str, Any]:
        """A call with this cache begins; what the model is to compute of it."""
        if self._running is not None:
            raise UnsupportedCallError("Two calls use one PagedCache at once; wait for the first, or use two caches.")
        if is_training:
            raise UnsupportedCallError("The model is in training mode, and pages would keep its dropout: call eval().")
        call = read_call(arguments)
        num_past = self._rows.num_columns if call.num_past is None else call.num_past
        num_read = self._go_on(call, num_past) if num_past else self._begin(call)
        for layer in self._paged:
            layer.num_written = 0
        self._running = call.ids[:, num_read:]
        positions = {} if call.positions is None else {"position_ids": call.positions[:, num_read:]}
        return arguments | {"input_ids": self._running} | positions

    def leave(self, given: object, is_done: bool) -> None:
        """The call that was `given` these tokens to compute has ended. If it failed, what it wrote is forgotten."""
        if self._running is None or given is not self._running:
            return
        self._running = None
        is_whole = all(layer.num_written == 1 for layer in self._paged)
        if is_done and is_whole:
            self._computed_tokens += len(self._rows.places[0].pages)
            return
        self._begin_layers(0)
        self._rows.end()
        if is_done:
            raise UnsupportedCallError("The model left out layers, or ran some twice: nothing of this call is kept.")

    def _begin(self, call: Call) -> int:
        """Rows of their own; how many columns of the call are read from pages."""
        self.reset()
        self._check_weights()
        paddings = call.paddings or (0,) * len(call.ids)
        call.check_positions(paddings, 0)
        prompts = [Prompt(*each) for each in zip(call.tokens(paddings, 0), paddings, strict=True)]
        num_read = self._attach(prompts, call.num_columns - (call.num_wanted or 1), call.num_columns)
        self._queried_tokens += sum(len(prompt.tokens) for prompt in prompts)
        return num_read

    def _go_on(self, call: Call, num_past: int) -> int:
        """The same rows; how many columns of the call are read from pages, which the caller must have allowed."""
        paddings = self._rows.paddings
        if num_past != self._rows.num_columns or len(call.ids) != len(self._rows):
            raise UnsupportedCallError(
                f"The call goes on after {num_past} columns of {len(call.ids)} rows, and the cache holds "
                f"{self._rows.num_columns} of {len(self._rows)}; give all tokens of the prompt, or call reset() first."
            )
        if (call.paddings or (0,) * len(paddings)) != paddings:
            raise UnsupportedCallError("The call goes on with another attention_mask than its rows began with.")
        call.check_positions(paddings, num_past)
        new = call.tokens(paddings, num_past)
        if call.num_wanted is not None and call.num_wanted < call.num_columns:
            prompts = [
                Prompt(old.tokens + more, old.padding) for old, more in zip(self._rows.prompts(), new, strict=True)
            ]
            stop = num_past + call.num_columns
            if self._rows.num_known(prompts, stop - call.num_wanted) > num_past:
                self._rows.commit()
                num_read = self._attach(prompts, stop - call.num_wanted, stop)
                if num_read >= num_past:
                    return num_read - num_past
                self.reset()
                raise OutOfPagesError(
                    "Pages of this sequence had to go to read more of it; raise kv_cache_memory_bytes."
                )
        self._rows.grow(new, call.num_columns)
        return 0

    def _attach(self, prompts: list[Prompt], limit: int, num_columns: int) -> int:
        """Begin rows, with room for all their columns; how many of these are read from pages, at most `limit`."""
        num_read = self._rows.begin(prompts, limit)
        self._begin_layers(num_read)
        new = [prompt.tokens[max(num_read - prompt.padding, 0) :] for prompt in prompts]
        try:
            self._rows.grow(new, num_columns - num_read)
        except BaseException:
            self.reset()
            raise
        self._hit_tokens += sum(len(prompt.tokens) for prompt in prompts) - sum(map(len, new))
        return num_read

    def _layer(self, layer: CachedLayer) -> FromPages | None:
        if layer.slot is None:
            return None
        group = layer.slot.group
        kept = LayerBytes(self._pools[group].pages, self._memory.geometries[group], layer.slot.layer)
        if layer.window is None:
            return FullLayer(kept, self._rows, group)
        return WindowLayer(kept, self._rows, group, sliding_window=layer.window)

    def _begin_layers(self, num_columns: int) -> None:
        for layer in self._paged:
            layer.begin(num_columns)

    def _check_called(self) -> None:
        if self._running is None:
            raise UnsupportedCallError(
                "This PagedCache is used by another model than it was made for, or by a part of it, or is closed: make "
                "one with the model that is called."
            )

    def _shelf(self) -> Shelf:
        identity = identity_of(self._subject, self._memory, None, weights_digest(self._subject.network))
        return Shelf(self._cache, self._pools, PageNames(identity), self._subject.facts.vocab_size)

    def _check_weights(self) -> None:
        """Pages are of the weights that made them."""
        mark = _mark(self._subject.network)
        if mark != self._mark:
            self._cache.reset()
            self._mark = mark


def _mark(network: Any) -> int:
    return weights_mark((*network.parameters(), *network.buffers()))
