"""`pagoda serve`: a model behind OpenAI's and Anthropic's APIs."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from pagoda.checkpoint.directory import model_name
from pagoda.commands.extras import need
from pagoda.commands.options import SERVER_OPTIONS, load_llm, options_given
from pagoda.config import Environment
from pagoda.errors import ConfigError
from pagoda.server.entrance.listener import listen
from pagoda.server.ground.options import ServerOptions
from pagoda.server.ground.tenants import Tenants

if TYPE_CHECKING:
    from pagoda.commands.prompt_files import PromptText
    from pagoda.server.accepted.service import Service
    from pagoda.server.backend.local import LocalBackend

EMBEDDED_NAME = "pagoda-tiny"


def run(arguments: Namespace) -> int:
    options = ServerOptions(**options_given(arguments, SERVER_OPTIONS))
    need("fastapi", "httptools", "orjson", "prometheus_client", "uvicorn", "uvloop")
    from pagoda.server.watched import logs

    logs.set_up(options.log_format, logging.getLevelNamesMapping()[Environment.read().log_level.upper()])
    from pagoda.commands.prompt_files import prompt_texts

    texts = prompt_texts(options.kv_prewarm) if options.kv_prewarm else []  # what is wrong is told at once
    tenants, listener = Tenants(options), listen(options)
    host, port = listener.getsockname()[:2]
    name = EMBEDDED_NAME if arguments.model is None else model_name(arguments.model)
    with ExitStack() as stack:
        stack.enter_context(listener)
        llm = stack.enter_context(load_llm(arguments, tenants=tenants.shares))
        from pagoda.server.accepted.service import Service
        from pagoda.server.backend.local import LocalBackend
        from pagoda.server.run import serve

        backend = LocalBackend(llm)
        service = Service(backend, options, tenants, name)
        stack.callback(_publish(backend, options))
        stack.callback(_trace(service, options))
        stack.callback(_log_requests(service, backend, options))
        stack.callback(_prewarm(service, texts))
        sys.stderr.write(f"Serving {service.names[0]} at http://{f'[{host}]' if ':' in host else host}:{port}\n")
        serve(service, listener)
    return 0


def _prewarm(service: Service, texts: Sequence[PromptText]) -> Callable[[], None]:
    """Begin to compute prompts that clients will ask for; what is returned ends it."""
    if not texts:
        return lambda: None
    from pagoda.commands.prewarm import Prewarm
    from pagoda.commands.prompt_files import read_prompts
    from pagoda.commands.request_file import RequestFiles

    backend, template = service.backend, service.options.chat_template_text
    if backend.model.has_encoder:
        raise ConfigError("--kv-prewarm is for prompts, and this model's decoder depends on what its encoder reads.")
    with closing(RequestFiles(backend.texts.need_tokenizer(), backend.model.max_model_len, template)) as requests:
        prompts = read_prompts(texts, requests)
    prewarm = Prewarm(backend, prompts, list(service.tenants.weights), lambda: bool(service.in_flight))
    prewarm.start()
    return prewarm.close


def _publish(backend: LocalBackend, options: ServerOptions) -> Callable[[], None]:
    """Tell routers which pages are held, if that is wanted; what is returned ends it."""
    if options.kv_events_endpoint is None:
        return lambda: None
    need("msgspec", "zmq", extra="events")
    from pagoda.server.watched.kv_events import KvEvents

    endpoints = (options.kv_events_endpoint, options.kv_events_replay_endpoint)
    events = KvEvents(*endpoints, options.kv_events_topic, backend.pages.page_tokens, backend.page_names)
    backend.watch(events)
    backend.observe(events.flush)
    return events.close


def _trace(service: Service, options: ServerOptions) -> Callable[[], None]:
    """Send a span for each request, if that is wanted; what is returned ends it."""
    if options.otlp_traces_endpoint is None:
        return lambda: None
    need("opentelemetry.sdk", "opentelemetry.exporter", extra="otel")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    from pagoda.server.watched.traces import Traces

    traces = Traces(OTLPSpanExporter(endpoint=options.otlp_traces_endpoint), service.names[0])
    service.on_end = traces.count
    return traces.close


def _log_requests(service: Service, backend: LocalBackend, options: ServerOptions) -> Callable[[], None]:
    """Write a line for each request, if that is wanted; what is returned ends it."""
    if options.request_log is None:
        return lambda: None
    from pagoda.server.watched.request_log import RequestLog

    if backend.model.has_encoder or not backend.pages.page_tokens:
        raise ConfigError(
            "--request-log names pages, which this model does not keep of its prompts alone; leave it out."
        )
    log = RequestLog(options.request_log, backend.page_names, backend.pages.page_tokens)
    service.log_request = log.add
    return log.close
