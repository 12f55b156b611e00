"""Text in, text out: the public class of Pagoda, with vLLM's names where the meaning is the same.

Turns prompts into requests, hands them to the engine's thread and waits. Everything a caller receives was put
together on that thread, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from numbers import Integral
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from tqdm import tqdm

from pagoda.cache.inspector import CacheStats
from pagoda.chat.messages import read_conversation, read_conversations
from pagoda.chat.options import ChatOptions
from pagoda.chat.renderer import ChatRenderer
from pagoda.checkpoint.directory import checkpoint_directory, model_name
from pagoda.checks import shown
from pagoda.collector import Collector
from pagoda.config import EngineConfig, engine_config
from pagoda.devices import find_device
from pagoda.engine.engine import Engine
from pagoda.engine.format_fit import calibration_text
from pagoda.engine.loop import EngineLoop
from pagoda.engine.pools import obstacle_on_gpu
from pagoda.engine.repeating import read_repeat_prompt
from pagoda.engine.request import Request, new_request
from pagoda.engine.sessions import LoadedSession, SavedSession, Sessions, SessionTarget, conversation_of
from pagoda.errors import ConfigError, InvalidSamplingError, RequestError
from pagoda.kernels.dispatch import choose_kernels
from pagoda.machine import bound_primitives
from pagoda.models.feature_extractor import load_feature_extractor
from pagoda.models.loader import load_model
from pagoda.models.model import Model
from pagoda.models.tokenizer import load_tokenizer
from pagoda.outputs import RequestOutput, StreamChunk
from pagoda.prompts import Prompt, PromptReader
from pagoda.sampling_params import SamplingParams
from pagoda.structured.compiler import GrammarCompiler
from pagoda.tokenizing import encode

logger = logging.getLogger(__name__)

# Before a session is saved without all of its pages.
ATTEMPTS = 3
PROMPT_ALONE = SamplingParams(max_tokens=0)
EMBEDDED_MODEL = Path(__file__).parent / "assets" / "tiny"

Message = Mapping[str, Any]
Output = TypeVar("Output")


class LLM:
    """Generates text from a Hugging Face checkpoint over a paged, prefix-shared KV cache.

    model: directory of a checkpoint, a GGUF file, a `pagoda.models.model.Model`, or None for the embedded model.
    tokenizer: directory of a tokenizer if it is not the model's; skip_tokenizer_init works with token ids alone.
    Further options are the fields of `EngineConfig`. Raises a ModelError or ConfigError.

    It can be used from several threads. Close it, or use it as a context manager, to free its memory at a known time.
    """

    def __init__(
        self,
        model: str | Path | Model | None = None,
        *,
        tokenizer: str | Path | None = None,
        skip_tokenizer_init: bool = False,
        **options: Any,
    ) -> None:
        config = engine_config(**options)
        device = _device_of(model, config)
        kernels = choose_kernels(config.environment, config.deterministic, device.type)
        bound_primitives()
        self.tokenizer: Any = None
        feature_extractor: Any = None
        if tokenizer is not None and not skip_tokenizer_init:  # before the model, which takes longer
            self.tokenizer = load_tokenizer(tokenizer)
            if self.tokenizer is None:
                raise ConfigError(f"There is no tokenizer in {tokenizer}; give the directory of one.")
        if isinstance(model, Model):
            loaded = model.of_unknown_origin()
        else:
            path = checkpoint_directory(EMBEDDED_MODEL if model is None else model)
            loaded = load_model(
                path,
                dtype=config.dtype,
                quantization=config.quantization,
                activations=config.activations,
                generation_config=config.generation_config,
                device=device,
            )
            if tokenizer is None and not skip_tokenizer_init:
                self.tokenizer = load_tokenizer(path)
            feature_extractor = load_feature_extractor(path) if loaded.encoder else None
        loaded = _generating(loaded, self.tokenizer, config.generation_config)
        calibration = partial(calibration_text, config.kv_cache_calibration, self.tokenizer, loaded.vocab_size)
        repeat_prompt = read_repeat_prompt(self.tokenizer, loaded.vocab_size)
        self.engine = Engine(loaded, kernels, config, calibration=calibration, repeat_prompt=repeat_prompt)
        self.reader = PromptReader(loaded, self.tokenizer, feature_extractor, self.engine.most_prompt_tokens)
        self.chats = ChatRenderer(self.tokenizer, self.engine.most_prompt_tokens)
        self.grammars = GrammarCompiler(self.tokenizer, loaded.vocab_size, loaded.eos_token_ids)
        self.loop = EngineLoop(self.engine, config.num_threads)
        self.sessions = Sessions(self.engine, self.loop, config, _name_of(model))
        self._ids = count()
        self._close = weakref.finalize(self, _close, self.loop, self.grammars, self.chats)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """One output per prompt, in order. All prompts are checked before any is started.

        Requests of different `cache_salt` share no pages. Ctrl-C cancels what is running and frees its pages.
        """
        return self._run(self._requests(prompts, sampling_params, cache_salt), use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        cache_salt: str = "",
        **options: Any,
    ) -> list[RequestOutput]:
        """`generate` for one conversation or several, each a list of {"role", "content"}.

        Further options are the fields of `ChatOptions`: chat_template, tools, continue_final_message and others.
        """
        prompts = self._chat_prompts(messages, options)
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, cache_salt=cache_salt)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, cache_salt: str = ""
    ) -> Iterator[StreamChunk]:
        """The samples of one prompt as they grow. Leaving the iteration early cancels the request."""
        requests = self._requests([prompt], sampling_params, cache_salt)
        return self._stream(requests)

    async def generate_async(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """`generate` for asyncio. Cancelling the task cancels the requests."""
        requests = self._requests(prompts, sampling_params, cache_salt)
        events = asyncio.get_running_loop()
        ends = {request.request_id: events.create_future() for request in requests}

        def collector(request: Request) -> Collector:
            end = ends[request.request_id]
            return Collector(request, self.tokenizer, on_end=lambda output: _set_soon(events, end, output))

        self._submit(requests, collector)
        try:
            return [_raised(await end) for end in ends.values()]
        finally:
            self._cancel(requests)

    async def chat_async(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        cache_salt: str = "",
        **options: Any,
    ) -> list[RequestOutput]:
        """`chat` for asyncio."""
        prompts = await asyncio.to_thread(self._chat_prompts, messages, options)
        return await self.generate_async(prompts, sampling_params, cache_salt=cache_salt)

    async def stream_async(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, cache_salt: str = ""
    ) -> AsyncIterator[StreamChunk]:
        """`stream` for asyncio."""
        requests = self._requests([prompt], sampling_params, cache_salt)
        events = asyncio.get_running_loop()
        chunks: asyncio.Queue[StreamChunk | RequestError] = asyncio.Queue()

        def put(chunk: StreamChunk | RequestError) -> None:
            events.call_soon_threadsafe(chunks.put_nowait, chunk)

        self._submit(requests, lambda request: Collector(request, self.tokenizer, on_chunk=put))
        try:
            while (chunk := _raised(await chunks.get())).output is None:
                yield chunk
            yield chunk
        finally:
            self._cancel(requests)

    def chat_prompt(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """The token ids of a conversation, by its chat template. `options` are the fields of `ChatOptions`."""
        return self._chat_prompt(read_conversation(messages), ChatOptions(**options))

    def get_default_sampling_params(self) -> SamplingParams:
        """What requests without `sampling_params` have: as the checkpoint says, where it does."""
        return SamplingParams(**self.engine.model.generation.sampling)

    def check_integrity(self) -> None:
        """Raise IntegrityError if the cache's bookkeeping contradicts itself."""
        self.loop.call(self.engine.inspector.check_integrity).result()

    def cache_stats(self) -> CacheStats:
        """Pages by state, hits and evictions."""
        stats: CacheStats = self.loop.call(self.engine.inspector.stats).result()
        return stats

    def reset_prefix_cache(self, reset_external: bool = False) -> int:
        """Forget every page that no running request uses; returns how many. Tiers do so if `reset_external`."""
        if reset_external and self.engine.residency is not None:
            self.engine.residency.forget()
        count: int = self.loop.call(self.engine.reset_prefix_cache).result()
        return count

    def save_session(
        self,
        path: str | Path,
        said: Prompt | Sequence[Message],
        *,
        name: str = "",
        title: str = "",
        cache_salt: str = "",
        **options: Any,
    ) -> SavedSession:
        """Write a prompt or a conversation with its pages to a file, from which `load_session` resumes it to the token.

        said: text, token ids, vLLM's dictionary of either, or messages, with the fields of `ChatOptions` as `options`.
        What is not in the cache is computed first. Raises a RequestError or SessionError.
        """
        messages, prompt = None, cast(Prompt, said)
        if isinstance(said, (list, tuple)) and any(isinstance(each, Mapping) for each in said):
            messages = read_conversation(said)
            is_answered = messages[-1]["role"] == "assistant"
            prompt = self._chat_prompt(messages, ChatOptions(**{"add_generation_prompt": not is_answered} | options))
        for _ in range(ATTEMPTS):
            [request] = self._requests([prompt], PROMPT_ALONE, cache_salt)
            self._run([request])
            taken = self.sessions.take(request.namespace, request.prompt)
            if taken.num_held_tokens == len(request.prompt):
                break  # else others have taken the room meanwhile
        session = conversation_of(request.prompt, title, messages)
        return self.sessions.write(SessionTarget(Path(path), name), request.namespace, taken, session)

    def load_session(self, path: str | Path, *, cache_salt: str = "") -> LoadedSession:
        """Put the pages of a session into the cache: a request that begins with its tokens computes none of them.

        Raises SessionError if the file cannot be read, or is of another model, format or page size.
        """
        return self.sessions.load(Path(path), cache_salt)

    def close(self) -> None:
        """Cancel what is running and stop the engine. Closing twice is fine."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, requests: list[Request], use_tqdm: bool = False) -> list[RequestOutput]:
        finished: SimpleQueue[RequestOutput | RequestError] = SimpleQueue()
        self._submit(requests, lambda request: Collector(request, self.tokenizer, on_end=finished.put))
        outputs: dict[str, RequestOutput] = {}
        try:
            # None shows the bar on a terminal only.
            hide = None if use_tqdm and len(requests) > 1 else True
            for _ in tqdm(requests, desc="Processed prompts", unit="req", disable=hide):
                output = _raised(finished.get())
                outputs[output.request_id] = output
        finally:
            self._cancel(requests)
        return [outputs[request.request_id] for request in requests]

    def _stream(self, requests: list[Request]) -> Iterator[StreamChunk]:
        chunks: SimpleQueue[StreamChunk | RequestError] = SimpleQueue()
        self._submit(requests, lambda request: Collector(request, self.tokenizer, on_chunk=chunks.put))
        try:
            while (chunk := _raised(chunks.get())).output is None:
                yield chunk
            yield chunk
        finally:
            self._cancel(requests)

    def _chat_prompts(self, messages: Any, options: Mapping[str, Any]) -> list[Prompt]:
        read, how = read_conversations(messages), ChatOptions(**options)
        return [self._chat_prompt(conversation, how) for conversation in read]

    def _chat_prompt(self, messages: Sequence[Message], options: ChatOptions) -> list[int]:
        text = self.chats.render(messages, options)
        self.reader.check_text(text)
        return list(encode(self.reader.need_tokenizer(), text, add_special_tokens=False).input_ids)

    def _requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        cache_salt: str,
    ) -> list[Request]:
        """Checked requests, not submitted yet."""
        listed = _listed(prompts)
        default = self.get_default_sampling_params()
        params = _params_of_each(default if sampling_params is None else sampling_params, len(listed))
        if not isinstance(cache_salt, str):
            raise RequestError(f"cache_salt is {shown(cache_salt)}; it must be text.")
        requests = []
        for prompt, wanted in zip(listed, params, strict=True):
            if wanted.stop_strings:
                self.reader.need_tokenizer()
            read = self.reader.read(prompt)
            name = f"request-{next(self._ids)}"
            request = new_request(name, read.token_ids, wanted, read.text, cache_salt, read.encoder_input)
            self.engine.validate(request)
            request.constraint = self.grammars.compile(wanted.structured_outputs)
            requests.append(request)
        return requests

    def _submit(self, requests: list[Request], collector: Callable[[Request], Collector]) -> None:
        self.loop.submit(requests, [collector(request) for request in requests])

    def _cancel(self, requests: list[Request]) -> None:
        """End what has not ended; the others are unknown to the engine by now."""
        for request in requests:
            self.loop.cancel(request.request_id)


def _close(loop: EngineLoop, grammars: GrammarCompiler, chats: ChatRenderer) -> None:
    """Without the LLM, so that one which is forgotten is closed as well; in a forked process nothing of it is left."""
    if loop.is_forked:
        return
    grammars.close()
    chats.close()
    loop.close()


def _raised(output: Output | RequestError) -> Output:
    if isinstance(output, RequestError):
        raise output
    return output


def _name_of(model: str | Path | Model | None) -> str:
    """What people call it."""
    if isinstance(model, Model):
        return str(model.config.model_type)
    return model_name(EMBEDDED_MODEL if model is None else Path(model).expanduser().absolute())


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, whether one was given or several."""
    if isinstance(prompts, (str, bytes, Mapping)):
        return [prompts]
    try:
        listed: list[Any] = list(prompts.tolist() if isinstance(prompts, (np.ndarray, torch.Tensor)) else prompts)
    except (TypeError, RuntimeError) as error:
        message = f"The prompts are a {type(prompts).__name__}; give text, token ids, or a list of either."
        raise RequestError(message) from error
    return [listed] if listed and all(isinstance(item, Integral) for item in listed) else listed


def _generating(model: Model, tokenizer: Any, generation_config: str) -> Model:
    """The model with what its tokenizer takes for an end too, and without what is not wanted of its settings."""
    generation = model.generation.tokens_alone if generation_config == "vllm" else model.generation
    end = getattr(tokenizer, "eos_token_id", None)
    generation = generation if end is None else generation.with_end([end], model.vocab_size)
    return model if generation == model.generation else model.with_generation(generation)


def _params_of_each(given: SamplingParams | Sequence[SamplingParams], num_prompts: int) -> list[SamplingParams]:
    """The parameters for each prompt, whether one was given for all or one for each."""
    if isinstance(given, SamplingParams):
        return [given] * num_prompts
    params = list(given) if isinstance(given, Iterable) else [given]
    wrong = [type(each).__name__ for each in params if not isinstance(each, SamplingParams)]
    if wrong:
        raise InvalidSamplingError(f"sampling_params has a {wrong[0]}; give SamplingParams(...).")
    if len(params) != num_prompts:
        raise RequestError(f"There are {num_prompts} prompts and {len(params)} sampling_params; give one each.")
    return params


def _set_soon(events: asyncio.AbstractEventLoop, end: asyncio.Future[Any], output: Any) -> None:
    """Resolve a future of another thread's event loop, unless its task is gone by then."""

    def resolve() -> None:
        if not end.done():
            end.set_result(output)

    events.call_soon_threadsafe(resolve)


def _device_of(model: str | Path | Model | None, config: EngineConfig) -> torch.device:
    """Where a model lies, or is to be loaded. By itself no GPU is taken that could not do what is asked for."""
    if isinstance(model, Model):
        if config.device == "cuda" and model.device.type == "cpu":
            raise ConfigError("device is 'cuda', and the model that was given lies on the processor; leave it out.")
        return model.device
    obstacle = obstacle_on_gpu(config) if config.device == "auto" else None
    if obstacle is not None:
        logger.warning("Running on the processor: %s", obstacle)
    return find_device(config.device if obstacle is None else "cpu")
