"""`pagoda generate`: one prompt in, its continuation out, streamed as it is made.

Text goes to standard output and nothing else does; reports and errors go to standard error.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pagoda.commands.options import load_llm, sampling_params
from pagoda.commands.report import CacheWatch, RequestCost, table, time_rows
from pagoda.commands.sound import read_wav
from pagoda.errors import ConfigError
from pagoda.llm import LLM
from pagoda.outputs import CompletionOutput, RequestOutput
from pagoda.prompts import Prompt
from pagoda.sampling_params import SamplingParams, StructuredOutputs


def run(arguments: Namespace) -> int:
    params = partial(
        sampling_params,
        arguments,
        n=arguments.n,
        logprobs=arguments.logprobs,
        prompt_logprobs=arguments.prompt_logprobs,
        structured_outputs=_form(arguments),
    )
    params()  # what is wrong with them is told before a model is loaded
    prompt = _prompt(arguments)
    with load_llm(arguments) as llm:
        output, cache = _generate(llm, prompt, params(llm.get_default_sampling_params()), quiet=arguments.json)
        if arguments.json:
            sys.stdout.write(json.dumps(as_json(output), indent=2) + "\n")
        if arguments.stats:
            _print_stats(llm, output, cache)
    return 0


def as_json(output: RequestOutput) -> dict[str, Any]:
    """A RequestOutput as plain data, with the durations that its metrics derive and the verdict on its time."""
    plain = asdict(output)
    plain["metrics"]["queue_seconds"] = output.metrics.queue_seconds
    plain["metrics"]["ttft_seconds"] = output.metrics.ttft_seconds
    plain["verdict"] = output.verdict
    return plain


def _prompt(arguments: Namespace) -> Prompt:
    """What the options say is to be continued, or read by an encoder."""
    if arguments.audio is not None:
        if arguments.prompt or arguments.file or arguments.prompt_token_ids:
            raise ConfigError("There are a prompt and --audio; say what the text begins with by --decoder-prompt.")
        sound = {"multi_modal_data": {"audio": read_wav(arguments.audio)}}
        return {"encoder_prompt": sound, "decoder_prompt": arguments.decoder_prompt}
    prompt = arguments.prompt_token_ids or _read_prompt(arguments.prompt, arguments.file)
    if arguments.decoder_prompt is None:
        return prompt
    return {"encoder_prompt": prompt, "decoder_prompt": arguments.decoder_prompt}


def _read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from the command line, a file or standard input, without the newline that ends a file."""
    if prompt is not None:
        return prompt
    if file is not None:
        return _read_text(file).removesuffix("\n")
    if sys.stdin.isatty():
        raise ConfigError("There is no prompt; give it as an argument, with --file, or through a pipe.")
    return sys.stdin.read().removesuffix("\n")


def _read_text(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as text: {error}") from error


def _form(arguments: Namespace) -> StructuredOutputs | None:
    """The form that the options ask for."""
    if arguments.json_schema is not None:
        return StructuredOutputs(json=_read_text(arguments.json_schema))
    return None if arguments.regex is None else StructuredOutputs(regex=arguments.regex)


def _generate(llm: LLM, prompt: Prompt, params: SamplingParams, quiet: bool) -> tuple[RequestOutput, CacheWatch]:
    """Run the request, writing text as it comes; several samples are written one after the other at the end."""
    cache = CacheWatch(llm)
    shows = not quiet and params.n == 1
    for chunk in llm.stream(prompt, params):
        if shows:
            sys.stdout.write(chunk.text if llm.tokenizer else "".join(f"{token} " for token in chunk.token_ids))
            sys.stdout.flush()
        if chunk.output is not None:
            break
        cache.tick()
    output = chunk.output
    assert output is not None
    if shows:
        sys.stdout.write("\n")
    elif not quiet:
        for completion in output.outputs:
            sys.stdout.write(f"--- sample {completion.index + 1}\n{_text(completion)}\n")
    return output, cache


def _text(completion: CompletionOutput) -> str:
    return completion.text or " ".join(map(str, completion.token_ids))


def _print_stats(llm: LLM, output: RequestOutput, cache: CacheWatch) -> None:
    rows = [
        *RequestCost.of(output).rows(),
        ("finished", ", ".join(completion.finish_reason for completion in output.outputs)),
        *time_rows(output),
        *cache.rows(),
        ("kernels", llm.engine.kernels.name),
    ]
    Console(stderr=True).print(table(rows))
