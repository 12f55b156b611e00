"""Command-line options that several commands share, and what the engine makes of them.

Every option is a field of `EngineConfig` or `SamplingParams` under the same name, with the same default, so the Python
API and the command line cannot drift apart. Imports no torch: `--help` must be quick.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pagoda.cache.compression.choice import EXAMPLE
from pagoda.cache.reading import EXAMPLE as SPARSE
from pagoda.config import ACTIVATIONS, DEVICES, DTYPES, QUANTIZATIONS, WRITE_POLICIES, EngineConfig
from pagoda.errors import ConfigError
from pagoda.registry import names
from pagoda.sampling_params import SamplingParams
from pagoda.server.ground.options import LOG_FORMATS, ServerOptions
from pagoda.units import parse_nbytes

if TYPE_CHECKING:
    from pagoda.llm import LLM


class Option(NamedTuple):
    """One field of a configuration as an option; `more` goes to argparse."""

    field: str
    help: str
    more: dict[str, Any]


def size(text: str) -> int:
    """`parse_nbytes` as argparse wants it, which drops the message of a ValueError."""
    try:
        return parse_nbytes(text)
    except ConfigError as error:
        raise ArgumentTypeError(str(error)) from error


def _option(field: str, help: str, **more: Any) -> Option:
    return Option(field, help, more)


DEFAULT_PARAMS = SamplingParams()
# What generation_config.json may have defaults for.
OF_CHECKPOINTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

ENGINE_OPTIONS = (
    _option("dtype", "precision of the weights; auto takes the checkpoint's", choices=DTYPES),
    _option("quantization", "bits of the weights that are computed with, if not those of dtype", choices=QUANTIZATIONS),
    _option(
        "activations",
        "what coded weights are multiplied by; for full, which is exact, they are decoded",
        choices=ACTIVATIONS,
    ),
    _option("device", "what computes; auto takes a GPU if there is one that can do what is asked for", choices=DEVICES),
    _option(
        "gpu_memory_utilization",
        "how much of a GPU's memory is used, by weights, pages and all others on it",
        type=float,
        metavar="SHARE",
    ),
    _option(
        "kv_cache_dtype",
        f"format of the pages: auto (the precision of the weights), {', '.join(names('format'))}, or a pair for keys "
        "and values, as bf16/int8",
        metavar="FORMAT",
    ),
    _option("kv_cache_dtype_skip_layers", "layers that keep the precision of the weights", nargs="+", metavar="LAYER"),
    _option(
        "kv_cache_calibration",
        "text that pages of codes are fitted to the model with: auto (the package's), none, or a file",
        metavar="SOURCE",
    ),
    _option(
        "kv_compression",
        f"which tokens sequences keep: none, or {', '.join(names('compression'))} with a budget, as {EXAMPLE}",
        metavar="POLICY",
    ),
    _option(
        "sparse_attention",
        f"how much of their pages generated tokens read: none for all of it, or quest with a budget, as {SPARSE}",
        metavar="METHOD",
    ),
    _option(
        "context_full",
        "what becomes of sequences that reach max_model_len: stop, truncate_oldest, or streaming with a budget",
        metavar="ACTION",
    ),
    _option(
        "memory_full",
        "what becomes of running sequences whose pages others need: preempt, demote (to tiers), reject, or a policy "
        "with a budget as for kv_compression",
        metavar="ACTION",
    ),
    _option("block_size", "tokens per page, a multiple of 16", type=int, metavar="TOKENS"),
    _option(
        "generation_config",
        "where sampling defaults come from: auto (the checkpoint), vllm (nowhere), or a directory",
        metavar="SOURCE",
    ),
    _option(
        "max_model_len",
        "longest sequence; by default what model and memory allow, more where its positions can be stretched",
        type=int,
        metavar="TOKENS",
    ),
    _option(
        "kv_cache_memory_bytes",
        "memory for pages, such as 512MiB or 4G; by default 40%% of free memory, at most 4 GiB",
        type=size,
        metavar="SIZE",
    ),
    _option("snapshot_memory_share", "how much of it is for copies of recurrent states", type=float, metavar="SHARE"),
    _option(
        "snapshot_interval_tokens",
        "tokens between such copies in a long prompt; by default as the share allows, 0 makes none",
        type=int,
        metavar="TOKENS",
    ),
    _option("max_num_seqs", "sequences that run at once", type=int, metavar="N"),
    _option(
        "max_num_batched_tokens", "tokens computed in one step; longer prompts go in chunks", type=int, metavar="N"
    ),
    _option("enable_prefix_caching", "share the pages of equal prefixes", action=BooleanOptionalAction),
    _option(
        "eviction_policy",
        f"which idle pages go first when memory is short: {', '.join(names('eviction'))}",
        metavar="NAME",
    ),
    _option(
        "prefix_cache_ttl_seconds",
        "forget what nobody has used for so long; by default only the policy ttl does, after 300",
        type=float,
        metavar="SECONDS",
    ),
    _option(
        "miss_memory_bytes",
        "memory for what explains why prompts missed, such as 64MiB; 0 remembers nothing",
        type=size,
        metavar="SIZE",
    ),
    _option(
        "kv_host_bytes",
        "memory for pages that leave the page pools, such as 8GiB; 0 keeps none",
        type=size,
        metavar="SIZE",
    ),
    _option("kv_disk", "folder for pages, where they outlive the process", metavar="DIR"),
    _option(
        "kv_disk_bytes",
        "what that folder may take, such as 20GiB; by default half of what is free, at most 20 GiB",
        type=size,
        metavar="SIZE",
    ),
    _option("kv_remote", "store of pages that several servers share: redis://... or s3://...", metavar="URL"),
    _option(
        "kv_remote_ttl_seconds",
        "how long pages are of use there; by default as long as the store keeps them",
        type=float,
        metavar="SECONDS",
    ),
    _option(
        "kv_write",
        "when pages go to disk and store: seal (once they are full), evict (once they leave the pools), second-hit "
        "(then, if they were of use before) or auto (as seal while pages come back, else as second-hit)",
        choices=WRITE_POLICIES,
    ),
    _option(
        "deterministic",
        "compute the same bits however prompts are cut, batched or cached; long prompts may take longer",
        action="store_true",
    ),
    _option("num_threads", "threads that compute; by default one per core", type=int, metavar="N"),
)

SAMPLING_OPTIONS = (
    _option("max_tokens", "tokens to generate at most", type=int, metavar="N"),
    _option("min_tokens", "tokens to generate at least", type=int, metavar="N"),
    _option("temperature", "0 is greedy", type=float, metavar="T"),
    _option("top_k", "choose among the K most likely tokens; 0 is all", type=int, metavar="K"),
    _option("top_p", "choose among the likeliest tokens that make up P", type=float, metavar="P"),
    _option("min_p", "drop tokens below P times the likeliest one", type=float, metavar="P"),
    _option("repetition_penalty", "above 1 makes tokens seen before less likely", type=float, metavar="X"),
    _option("presence_penalty", "subtracted once a token was generated", type=float, metavar="X"),
    _option("frequency_penalty", "subtracted for each time a token was generated", type=float, metavar="X"),
    _option("seed", "same seed, same text", type=int, metavar="N"),
    _option("stop", "end before this text; may be repeated", action="append", metavar="TEXT"),
    _option("stop_token_ids", "end after any of these tokens", type=int, nargs="+", metavar="ID"),
    _option("ignore_eos", "go on after the end-of-sequence token", action="store_true"),
)


SERVER_OPTIONS = (
    _option("host", "address to listen on", metavar="HOST"),
    _option("port", "port to listen on; 0 takes any that is free", type=int, metavar="PORT"),
    _option(
        "served_model_name",
        "what clients may call the model; by default its directory or file",
        nargs="+",
        metavar="NAME",
    ),
    _option("api_key", "serve only those who send this key; may be repeated", action="append", metavar="KEY"),
    _option(
        "admin_api_key",
        "a key that may also reset the cache, which then only admins may",
        action="append",
        metavar="KEY",
    ),
    _option("tenants", "a TOML file of API keys and what each may have", type=Path, metavar="FILE"),
    _option("allow_no_api_key", "let other machines in without a key", action="store_true"),
    _option(
        "allowed_origins",
        "web pages that may call beside those of this machine, as https://chat.example; * is any",
        nargs="+",
        metavar="ORIGIN",
    ),
    _option("chat_template", "a Jinja file that replaces the tokenizer's chat template", type=Path, metavar="FILE"),
    _option(
        "strict_fields",
        "refuse what means nothing here, instead of ignoring and naming it",
        action="store_true",
    ),
    _option("min_cacheable_tokens", "ignore marks before so many tokens of a prompt", type=int, metavar="N"),
    _option("max_queued_requests", "answer 429 when so many wait", type=int, metavar="N"),
    _option("max_body_bytes", "refuse longer bodies, such as 8MiB", type=size, metavar="SIZE"),
    _option("max_connections", "how many may be open; fewer if `ulimit -n` is low", type=int, metavar="N"),
    _option(
        "receive_timeout_seconds",
        "how long the headers of a request may take, and a body beyond what it takes at 4 KiB/s",
        type=float,
        metavar="SECONDS",
    ),
    _option(
        "send_timeout_seconds",
        "how long a client may leave an answer unread, beyond what it takes at 32 KiB/s",
        type=float,
        metavar="SECONDS",
    ),
    _option(
        "keep_alive_timeout_seconds",
        "how long a connection stays open between requests",
        type=int,
        metavar="SECONDS",
    ),
    _option(
        "stream_interval_seconds",
        "send tokens of a stream at most so often; 0 sends each",
        type=float,
        metavar="SECONDS",
    ),
    _option("request_timeout_seconds", "end requests that take longer", type=float, metavar="SECONDS"),
    _option("drain_timeout_seconds", "how long requests may go on after SIGTERM", type=float, metavar="SECONDS"),
    _option("metrics_without_key", "with --tenants, let anybody read /metrics, not admins alone", action="store_true"),
    _option("metrics_compat", "name metrics as this engine does, too", choices=("vllm",)),
    _option(
        "request_log",
        "add a line for each request to this file: lengths and names of pages, for `pagoda simulate`",
        type=Path,
        metavar="FILE",
    ),
    _option("otlp_traces_endpoint", "send a span for each request to this address (OTLP over HTTP)", metavar="URL"),
    _option(
        "session_dir", "let clients save conversations with their pages in this folder", type=Path, metavar="FOLDER"
    ),
    _option("max_session_bytes", "bytes of all sessions, such as 64GiB", type=size, metavar="SIZE"),
    _option("max_session_bytes_per_tenant", "bytes of the sessions of one tenant", type=size, metavar="SIZE"),
    _option("kv_events_endpoint", "tell routers over ZMQ which pages are held, as tcp://*:5557", metavar="ADDRESS"),
    _option("kv_events_replay_endpoint", "where they ask for events they have missed", metavar="ADDRESS"),
    _option("kv_events_topic", "topic of the events", metavar="TEXT"),
    _option(
        "kv_prewarm",
        "compute the prompts in this file once the server is ready: text, JSON with a prompt or messages, or a line of "
        "that for each (.jsonl); may be repeated",
        action="append",
        type=Path,
        metavar="FILE",
    ),
    _option("log_format", "how log lines are written", choices=LOG_FORMATS),
)


def add_model_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", type=Path, metavar="PATH", help="checkpoint directory or GGUF file (default: the embedded model)"
    )
    group.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer directory, if it is not the model's")
    group.add_argument("--skip-tokenizer-init", action="store_true", help="token ids in, token ids out")


def add_engine_options(parser: ArgumentParser, without: Sequence[str] = ()) -> None:
    """Those fields that the command decides `without` being asked have no option."""
    options = tuple(each for each in ENGINE_OPTIONS if each.field not in without)
    _add(parser.add_argument_group("engine"), options, _defaults(EngineConfig))
    parser.set_defaults(**dict.fromkeys(without))


def add_sampling_options(parser: ArgumentParser, max_tokens: int) -> None:
    """`max_tokens` is the default: a terminal wants more than the 16 tokens at which SamplingParams stops.

    Other defaults hold where the checkpoint has none of its own.
    """
    defaults = _defaults(SamplingParams) | {"max_tokens": max_tokens}
    _add(parser.add_argument_group("sampling"), SAMPLING_OPTIONS, defaults)
    parser.set_defaults(**dict.fromkeys(OF_CHECKPOINTS))


def add_server_options(parser: ArgumentParser) -> None:
    _add(parser.add_argument_group("server"), SERVER_OPTIONS, _defaults(ServerOptions))


def load_llm(arguments: Namespace, **more: Any) -> LLM:
    """The model that the options ask for; `more` are options of `LLM`. The caller closes it."""
    from pagoda.llm import LLM

    return LLM(
        arguments.model,
        tokenizer=arguments.tokenizer,
        skip_tokenizer_init=arguments.skip_tokenizer_init,
        **engine_options(arguments),
        **more,
    )


def engine_options(arguments: Namespace) -> dict[str, Any]:
    return options_given(arguments, ENGINE_OPTIONS)


def sampling_params(arguments: Namespace, defaults: SamplingParams = DEFAULT_PARAMS, **more: Any) -> SamplingParams:
    """What was given on the command line, and else the `defaults` of a model."""
    return replace(defaults, **options_given(arguments, SAMPLING_OPTIONS), **more)


def options_given(arguments: Namespace, options: tuple[Option, ...]) -> dict[str, Any]:
    """The fields that have a value; the others keep the default of their configuration."""
    values = {option.field: getattr(arguments, option.field) for option in options}
    return {field: value for field, value in values.items() if value is not None}


def _add(group: Any, options: tuple[Option, ...], defaults: dict[str, Any]) -> None:
    for option in options:
        # An empty tuple stands for "none given", and argparse could not append to it.
        default = defaults[option.field] if defaults[option.field] != () else None
        flag = "--" + option.field.replace("_", "-")
        help = option.help + _shown_default(default)
        group.add_argument(flag, dest=option.field, default=default, help=help, **option.more)


def _shown_default(default: Any) -> str:
    if default is None or default is False:
        return ""
    return f" (default: {'on' if default is True else default})"


def _defaults(config: type) -> dict[str, Any]:
    return {field.name: field.default for field in fields(config)}
