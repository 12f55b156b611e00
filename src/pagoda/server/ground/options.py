"""Validates, once, how the server is run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pagoda.errors import ConfigError
from pagoda.server.ground.loopback import is_loopback

LOG_FORMATS = ("text", "json")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/A-Z]+")
POSITIVE = (
    "max_queued_requests",
    "max_body_bytes",
    "max_connections",
    "receive_timeout_seconds",
    "send_timeout_seconds",
    "keep_alive_timeout_seconds",
    "max_session_bytes",
    "max_session_bytes_per_tenant",
)


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Names are vLLM's where the meaning is the same. Raises ConfigError.

    served_model_name: what clients may call the model; by default its directory.
    api_key: keys that are served; with none, only this machine is, unless `allow_no_api_key`.
    admin_api_key: keys of admins, who may also reset the cache; without any, and without tenants, every key is one.
    tenants: a TOML file that maps keys to tenants.
    allowed_origins: web pages that may call beside those of this machine, as https://chat.example; "*" is any.
    max_queued_requests: beyond so many waiting ones, the answer is 429.
    max_body_bytes: longer bodies are refused; 8 MiB are the text of a million tokens and more.
    max_connections: so many are open at once, fewer if descriptors are short; beyond that idle ones are closed.
    receive_timeout_seconds: how long the headers of a request may take, and a body longer than it takes at 4 KiB/s.
    send_timeout_seconds: how long a client may leave an answer unread, longer than it takes at 32 KiB/s.
    keep_alive_timeout_seconds: how long a connection stays open between requests.
    stream_interval_seconds: tokens of a stream are sent at most so often, but for the first and the last.
    strict_fields: what means nothing here is refused, instead of ignored and named.
    min_cacheable_tokens: marks before so many tokens of a prompt are ignored, as vendors do.
    request_timeout_seconds: requests that take longer end; None waits for ever.
    drain_timeout_seconds: how long requests in flight may go on after SIGTERM.
    chat_template: a Jinja file that replaces the tokenizer's.
    metrics_without_key: with tenants, lets anybody read the metrics of all of them, as a Prometheus without a key.
    metrics_compat: also names metrics as this engine does ("vllm").
    request_log: a file that gets a line for each request, with lengths and names of pages, for `pagoda simulate`.
    otlp_traces_endpoint: where OpenTelemetry is sent a span for each request, over HTTP.
    session_dir: a folder where clients may save conversations with their pages; without one they may not.
    max_session_bytes: of all that is there; max_session_bytes_per_tenant: of what one tenant has there.
    kv_prewarm: files of prompts that are computed once the server is ready.
    kv_events_endpoint: a ZMQ address, such as tcp://*:5557, where routers are told which pages are held;
    kv_events_replay_endpoint: where they ask for what they have missed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: tuple[str, ...] = ()
    api_key: tuple[str, ...] = ()
    admin_api_key: tuple[str, ...] = ()
    tenants: Path | None = None
    allow_no_api_key: bool = False
    allowed_origins: tuple[str, ...] = ()
    max_queued_requests: int = 1024
    max_body_bytes: int = 8 << 20
    max_connections: int = 2048
    receive_timeout_seconds: float = 20.0
    send_timeout_seconds: float = 60.0
    keep_alive_timeout_seconds: int = 75
    stream_interval_seconds: float = 0.05
    strict_fields: bool = False
    min_cacheable_tokens: int = 0
    request_timeout_seconds: float | None = None
    drain_timeout_seconds: float = 30.0
    chat_template: Path | None = None
    metrics_without_key: bool = False
    metrics_compat: str | None = None
    log_format: str = "text"
    request_log: Path | None = None
    otlp_traces_endpoint: str | None = None
    session_dir: Path | None = None
    max_session_bytes: int = 64 << 30
    max_session_bytes_per_tenant: int = 16 << 30
    kv_prewarm: tuple[Path, ...] = ()
    kv_events_endpoint: str | None = None
    kv_events_replay_endpoint: str | None = None
    kv_events_topic: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must be at most 65535, and 0 takes any that is free.")
        for name in POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive.")
        if self.request_timeout_seconds is not None and self.request_timeout_seconds <= 0:
            raise ConfigError(f"request_timeout_seconds is {self.request_timeout_seconds}; it must be positive.")
        for name in ("drain_timeout_seconds", "stream_interval_seconds", "min_cacheable_tokens"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative.")
        if self.log_format not in LOG_FORMATS:
            raise ConfigError(f"log_format is {self.log_format!r}; choose one of: {', '.join(LOG_FORMATS)}.")
        if self.chat_template_text == "":
            raise ConfigError(f"chat_template {self.chat_template} is empty; give a Jinja file, or leave it out.")
        if self.metrics_compat not in (None, "vllm"):
            raise ConfigError(f"metrics_compat is {self.metrics_compat!r}; the choice is: vllm.")
        if self.kv_events_replay_endpoint is not None and self.kv_events_endpoint is None:
            raise ConfigError("kv_events_replay_endpoint needs kv_events_endpoint.")
        if not all(key and key.isascii() for key in (*self.api_key, *self.admin_api_key)):
            raise ConfigError("An API key is empty or not ASCII, as headers are; leave it out or give another.")
        self._check_origins()
        if not (self.has_keys or self.allow_no_api_key or is_loopback(self.host)):
            raise ConfigError(
                f"host is {self.host}, where other machines can reach the server, and there is no API key; give "
                "--api-key or --tenants, or say --allow-no-api-key."
            )

    def _check_origins(self) -> None:
        for origin in self.allowed_origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"allowed_origins has {origin!r}; give what browsers send, such as https://chat.example or "
                    "http://10.0.0.7:3000, in small letters and without a path, or *."
                )

    @cached_property
    def chat_template_text(self) -> str | None:
        """What is in the file, as it was when the options were made."""
        if self.chat_template is None:
            return None
        try:
            return self.chat_template.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"chat_template {self.chat_template} cannot be read: {error}; give a file.") from error

    @property
    def has_keys(self) -> bool:
        return bool(self.api_key or self.admin_api_key or self.tenants)

    @property
    def metrics_need_admin(self) -> bool:
        """Whether metrics would tell one tenant of another."""
        return self.tenants is not None and not self.metrics_without_key

    @property
    def serves_this_machine_alone(self) -> bool:
        """Whether whoever is on this machine is let in without a key."""
        return not self.has_keys and is_loopback(self.host)
