"""The command line: which commands there are, their options, and how errors end a command.

Exit status: 0 done; 1 the model or a request failed; 2 the command or an option is wrong; 130 interrupted. Knows no
torch: a command's module is imported when the command runs, so `pagoda --help` is quick.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from pagoda import __version__
from pagoda.commands.explain_options import add_explain_options
from pagoda.commands.kv_options import EXAMPLES as KV_EXAMPLES
from pagoda.commands.kv_options import add_kv_options
from pagoda.commands.options import add_engine_options, add_model_options, add_sampling_options, add_server_options
from pagoda.commands.plan_options import add_plan_options
from pagoda.commands.quantize import add_quantize_options
from pagoda.commands.session_options import add_session_options
from pagoda.commands.simulate_options import add_simulate_options
from pagoda.commands.streams import UNWRITABLE, forget_output, keep_usable
from pagoda.config import Environment
from pagoda.errors import ConfigError, InvalidSamplingError, KernelUnavailableError, PagodaError

FAILED, USAGE, BROKEN_PIPE, INTERRUPTED = 1, 2, 141, 130
OPERANDS = {
    "generate": " [prompt]",
    "plan": " [model]",
    "quantize": " SRC DST",
    "simulate": " trace",
    "explain": " [EARLIER LATER]",
    "kv": " ls|verify|gc|export|import|warm DIR",
    "session": " ACTION",
}
USAGE_ERRORS = (ConfigError, InvalidSamplingError, KernelUnavailableError)

GENERATE_EXAMPLES = """examples:
  pagoda generate "The room was a pleasant one," --max-tokens 64
  pagoda generate --file prompt.txt --temperature 0 --stats
  echo "Once upon a time" | pagoda generate --model ~/models/Qwen2.5-0.5B --json
  pagoda generate --model ~/models/whisper-small --audio speech.wav --decoder-prompt '<|startoftranscript|>'"""

CHAT_EXAMPLES = """examples:
  pagoda chat --model ~/models/Qwen2.5-0.5B-Instruct --stats
  printf 'Who are you?\\nSince when?\\n' | pagoda chat

Each turn starts from the pages of the last one, so only the new words are computed. /help lists what can be typed."""

SERVE_EXAMPLES = """examples:
  pagoda serve
  pagoda serve --model ~/models/Qwen2.5-0.5B-Instruct --port 9000 --kv-cache-dtype int8
  pagoda serve --host 0.0.0.0 --api-key secret

Point an OpenAI client at http://HOST:PORT/v1, an Anthropic client at http://HOST:PORT, a browser at http://HOST:PORT.
SIGTERM lets requests in flight finish."""

BENCH_EXAMPLES = """examples:
  pagoda bench
  pagoda bench --scenario shared-prefix --prompt-tokens 1024 --batch 16
  pagoda bench --random-weights qwen2.5-0.5b --scenario single --json result.json
  pagoda bench --model ~/models/Qwen2.5-0.5B-Instruct --report report.html"""

QUALITY_EXAMPLES = """examples:
  pagoda bench quality
  pagoda bench quality --model ~/models/Qwen2.5-0.5B-Instruct --formats int8 k8v4 int4 int4:none --plot quality.png
  pagoda bench quality --model ~/models/Qwen2.5-0.5B-Instruct --texts novel.txt code.py --position 8192"""

PLAN_EXAMPLES = """examples:
  pagoda plan llama-3-70b --machine H100 --gpus 4 --context 4096 --users 8
  pagoda plan ~/models/Qwen2.5-0.5B --machine this --kv-cache-dtype auto int8
  pagoda plan deepseek-v3 --machine B200 --gpus 8 --shared-prefix 2048 --explain
  pagoda plan gemma-3-27b --memory 80GiB --bandwidth 3.35TB/s --flops 990TFLOPS --plot plan.png

No weights are loaded. Sizes are powers of 1024 (80GiB), rates powers of 1000 (3.35TB/s, 990TFLOPS)."""
QUANTIZE_EXAMPLES = """examples:
  pagoda quantize ~/models/Qwen2.5-0.5B-Instruct ~/models/Qwen2.5-0.5B-Instruct-int4
  pagoda quantize ~/models/Qwen2.5-0.5B-Instruct /srv/models/qwen-int8 --quantization int8

The format is pack-quantized of compressed-tensors. Tokenizer, chat template and generation_config.json are copied."""
SIMULATE_EXAMPLES = """examples:
  pagoda simulate trace.jsonl
  pagoda simulate trace.jsonl.gz --policy all --capacity 5% 20% inf --plot curves.png --csv curves.csv
  pagoda simulate requests.jsonl --model llama-3-70b --capacity 10GiB 40GiB 160GiB --ttl 300
  pagoda simulate azure.csv --prefill-rate 20000 --decode-rate 40 --replicas 4 --routing prefix-aware

A trace is JSON lines or CSV, also compressed with gzip: blocks with hash_ids, lengths, prompts or chat messages, or
what `pagoda serve --request-log` writes. Capacities are tokens (100000), pages (400pages), bytes with --model (8GiB), a
part of what the trace fills (10%), or inf; several are written one after the other, or with commas: 10%,20%,inf."""
EXPLAIN_EXAMPLES = """examples:
  pagoda explain earlier.json later.json
  pagoda explain earlier.txt later.txt --model ~/models/Qwen2.5-0.5B-Instruct --show-text
  pagoda explain earlier.json later.json --prefill-rate 900 --price-input 2.50 --price-cached 0.25
  pagoda explain --url http://localhost:8000 --request-id chatcmpl-123
  pagoda explain earlier.json later.json --url http://a:8000 --url http://b:8001
  pagoda explain earlier.json later.json --identity before-restart.json after-restart.json

A file has text, a list of messages, or the body of a request as OpenAI and Anthropic have it; - is standard input."""

SESSION_EXAMPLES = """examples:
  pagoda session save --file prompt.txt talk.pagoda
  pagoda session load talk.pagoda "And then?"
  pagoda session show talk.pagoda
  pagoda session verify talk.pagoda

A session is one file: the tokens of a conversation, and the pages that were computed for them."""

DOCTOR_EXAMPLES = """examples:
  pagoda doctor
  pagoda doctor --model ~/models/Qwen2.5-0.5B-Instruct
  pagoda doctor --measure --model ~/models/Qwen2.5-0.5B-Instruct
  pagoda doctor --json

The exit status is 1 if something is broken; slow but working is a warning."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that ends like the rest of Pagoda: one line that says what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {message}\nTry '{self.prog} --help'.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    keep_usable()
    try:
        arguments = build_parser().parse_args(argv)
        logging.basicConfig(level=_log_level(), format="%(levelname)s: %(message)s")
        return _run(arguments)
    except PagodaError as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE if isinstance(error, USAGE_ERRORS) else FAILED
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return INTERRUPTED
    except BrokenPipeError:
        forget_output()  # its reader has gone, as in `pagoda generate | head`
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        sys.stderr.write(f"error: Standard output cannot be written: {error.strerror}; send it elsewhere.\n")
        forget_output()
        return FAILED


def _run(arguments: argparse.Namespace) -> int:
    status = int(import_module(f"pagoda.commands.{arguments.command}").run(arguments))
    sys.stdout.flush()  # here its failure is an error like others
    return status


def build_parser() -> Parser:
    parser = Parser(prog="pagoda", description="LLM inference whose heart is the KV cache.")
    parser.add_argument("--version", action="version", version=f"pagoda {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)
    _add_generate(_command(commands, "generate", "continue a prompt", GENERATE_EXAMPLES))
    _add_chat(_command(commands, "chat", "talk with a model in the terminal", CHAT_EXAMPLES))
    _add_serve(_command(commands, "serve", "serve a model to OpenAI and Anthropic clients", SERVE_EXAMPLES))
    _add_bench(_command(commands, "bench", "measure this machine with a model", BENCH_EXAMPLES))
    add_plan_options(
        _command(commands, "plan", "how many users fit, how long, how fast, before anything is loaded", PLAN_EXAMPLES)
    )
    add_quantize_options(_command(commands, "quantize", "write a checkpoint of fewer bits", QUANTIZE_EXAMPLES))
    add_simulate_options(_command(commands, "simulate", "what a cache would find in a trace", SIMULATE_EXAMPLES))
    add_explain_options(_command(commands, "explain", "why a prompt missed the cache", EXPLAIN_EXAMPLES))
    add_kv_options(_command(commands, "kv", "pages that a disk keeps: list, check, thin out, carry, make", KV_EXAMPLES))
    add_session_options(_command(commands, "session", "conversations with their pages, as files", SESSION_EXAMPLES))
    _add_doctor(_command(commands, "doctor", "what runs here, how fast, and why", DOCTOR_EXAMPLES))
    return parser


def _command(commands: argparse._SubParsersAction[Parser], name: str, summary: str, examples: str) -> Parser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        usage=f"pagoda {name} [options]{OPERANDS.get(name, '')}",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_generate(parser: Parser) -> None:
    parser.add_argument("prompt", nargs="?", help="text to continue, or to encode (default: standard input)")
    parser.add_argument("--file", type=Path, metavar="FILE", help="read the prompt from a file")
    parser.add_argument("--prompt-token-ids", type=int, nargs="+", metavar="ID", help="the prompt as token ids")
    parser.add_argument("--decoder-prompt", metavar="TEXT", help="what the decoder goes on from, if an encoder reads")
    parser.add_argument("--audio", type=Path, metavar="FILE", help="a WAV file that the encoder reads")
    parser.add_argument("--n", type=int, default=1, metavar="N", help="samples of the one prompt (default: 1)")
    parser.add_argument("--logprobs", type=int, metavar="K", help="with --json: log-probabilities and K alternatives")
    parser.add_argument("--prompt-logprobs", type=int, metavar="K", help="with --json: the same of the prompt's tokens")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json-schema", type=Path, metavar="FILE", help="write JSON that is valid by this schema")
    form.add_argument("--regex", metavar="PATTERN", help="write what this regular expression matches")
    parser.add_argument("--json", action="store_true", help="print the whole RequestOutput as JSON")
    parser.add_argument("--stats", action="store_true", help="report times, cache hits and pages on standard error")
    add_model_options(parser)
    add_sampling_options(parser, max_tokens=128)
    add_engine_options(parser)


def _add_chat(parser: Parser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--stats", action="store_true", help="after each answer: tokens cached and computed, times")
    add_model_options(parser)
    add_sampling_options(parser, max_tokens=512)
    add_engine_options(parser)


def _add_serve(parser: Parser) -> None:
    add_server_options(parser)
    add_model_options(parser)
    add_engine_options(parser)


def _add_bench(parser: Parser) -> None:
    parser.add_argument(
        "--scenario",
        action="append",
        choices=("single", "batch", "shared-prefix", "cache"),
        help="what to measure; may be repeated (default: all)",
    )
    parser.add_argument("--prompt-tokens", type=int, default=256, metavar="N", help="length of prompts (default: 256)")
    parser.add_argument("--output-tokens", type=int, default=32, metavar="N", help="tokens generated (default: 32)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="requests at once (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="measurements of each (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement to a file")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write a page (HTML) with plots: where the time and bytes went"
    )
    parser.add_argument("--force", action="store_true", help="write over the file of --report if it exists")
    parser.add_argument(
        "--random-weights",
        metavar="SHAPE",
        help="random weights of a built-in shape (qwen2.5-0.5b, llama-3.2-1b) or of a config.json",
    )
    add_model_options(parser)
    add_engine_options(parser)
    kinds = parser.add_subparsers(metavar="quality", parser_class=Parser)
    _add_quality(
        kinds.add_parser(
            "quality",
            help="measure what formats of pages cost a model",
            description="Measure what formats of pages cost a model in quality, and what they save.",
            usage="pagoda bench quality [options]",
            epilog=QUALITY_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )


def _add_quality(parser: Parser) -> None:
    parser.set_defaults(command="quality")
    add = parser.add_argument
    formats = ("auto", "int8", "fp8_e4m3", "k8v4", "int4")
    add(
        "--formats",
        nargs="+",
        default=formats,
        metavar="FORMAT",
        help=f"as for --kv-cache-dtype; with :none behind, not fitted to the model (default: {' '.join(formats)})",
    )
    add("--texts", nargs="+", type=Path, metavar="FILE", help="to continue (default: Python's documentation, sources)")
    add("--windows", type=int, default=8, metavar="N", help="prompts of each text, one after the other (default: 8)")
    add("--window-tokens", type=int, default=1024, metavar="N", help="tokens of a window (default: 1024)")
    add("--position", type=int, default=0, metavar="N", help="of the first token, a multiple of 32 (default: 0)")
    distances = (256, 768)
    add(
        "--distances",
        nargs="*",
        type=int,
        default=distances,
        metavar="N",
        help="tokens between what is told and what is asked (default: 256 768)",
    )
    add("--probes", type=int, default=10, metavar="N", help="questions of each kind and distance (default: 10)")
    add("--repeats", type=int, default=3, metavar="N", help="measurements of decode speed (default: 3)")
    add("--skip-speed", action="store_true", help="do not measure decode speed")
    add("--json", type=Path, metavar="FILE", help="also write every figure to a file")
    add("--plot", type=Path, metavar="FILE", help="draw loss over memory (needs the plot extra)")
    dtypes = ("auto", "float32", "float16", "bfloat16")
    add("--dtype", default="auto", choices=dtypes, help="precision of the weights (default: auto)")
    add("--model", type=Path, metavar="PATH", help="checkpoint directory or GGUF file (default: the embedded model)")
    add("--tokenizer", type=Path, metavar="PATH", help="tokenizer directory, if it is not the model's")
    for action in parser._actions:
        if action.dest in ("model", "tokenizer", "dtype", "json", "repeats"):
            action.default = argparse.SUPPRESS  # `pagoda bench` has them too, and what was given before "quality"


def _add_doctor(parser: Parser) -> None:
    parser.add_argument(
        "--model", type=Path, metavar="PATH", help="checkpoint or GGUF file to try (default: the embedded model)"
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure memory, arithmetic, kernels and the model's decode steps"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def _log_level() -> int:
    name = Environment.read().log_level.upper()
    level = logging.getLevelNamesMapping().get(name)
    if level is None:
        raise ConfigError(f"PAGODA_LOG_LEVEL is {name!r}; choose DEBUG, INFO, WARNING or ERROR.")
    return level


if __name__ == "__main__":
    sys.exit(main())
