"""`pagoda chat`: a conversation in the terminal, each turn on top of the pages of the last.

Reads lines from a terminal or a pipe. Answers go to standard output; all else goes to standard error, so a piped
conversation yields its answers alone.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import partial

from rich.console import Console

from pagoda.chat.options import ChatOptions
from pagoda.commands.conversation import Conversation
from pagoda.commands.options import load_llm, sampling_params
from pagoda.commands.report import RequestCost
from pagoda.errors import ConfigError, RequestError, TokenizerRequiredError
from pagoda.llm import LLM
from pagoda.outputs import RequestOutput
from pagoda.sampling_params import SamplingParams
from pagoda.units import format_rate, format_seconds

HELP = """/help   this list
/reset  forget the conversation; its pages stay in the cache
/stats  show or hide what each turn cost
/quit   leave (also Ctrl-D); Ctrl-C stops an answer"""


def run(arguments: Namespace) -> int:
    sampling_params(arguments)  # what is wrong with them is told before a model is loaded
    with load_llm(arguments) as llm:
        if llm.tokenizer is None:
            raise TokenizerRequiredError("Chat needs a tokenizer, and this model has none; give one with --tokenizer.")
        if llm.engine.model.encoder is not None:
            raise ConfigError(
                "Chat goes on from its own answers, and this model answers what its encoder reads; use pagoda generate."
            )
        params = sampling_params(arguments, llm.get_default_sampling_params())
        Chat(llm, params, arguments.system, arguments.stats).run()
    return 0


class Chat:
    """One session at the terminal."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None, shows_stats: bool) -> None:
        self._llm = llm
        self._params = params
        self._system = system
        self._shows_stats = shows_stats
        self._is_interactive = sys.stdin.isatty()
        self._aside = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._conversation = self._new_conversation()

    def run(self) -> None:
        if self._is_interactive:
            self._aside.print("/help lists what can be typed.", style="dim")
        if not self._llm.chats.has_template:
            self._aside.print("This model has no chat template: it continues your text instead.", style="dim")
        for line in self._lines():
            if line == "/quit":
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._turn(line)

    def _lines(self) -> Iterator[str]:
        if not self._is_interactive:
            yield from (line.strip() for line in sys.stdin)
            return
        import readline  # noqa: F401  gives input() history and editing

        while True:
            try:
                yield input("> ").strip()
            except EOFError:
                sys.stdout.write("\n")
                return

    def _command(self, line: str) -> None:
        if line == "/help":
            self._aside.print(HELP)
        elif line == "/reset":
            self._conversation = self._new_conversation()
            self._aside.print("Forgotten.", style="dim")
        elif line == "/stats":
            self._shows_stats = not self._shows_stats
            self._aside.print(f"Statistics are {'on' if self._shows_stats else 'off'}.", style="dim")
        else:
            self._aside.print(f"There is no command {line}; /help lists them.", style="yellow")

    def _turn(self, question: str) -> None:
        """Ask and show the answer. A refused or interrupted turn leaves a terminal session alive."""
        try:
            self._answer(question)
        except RequestError as error:
            if not self._is_interactive:
                raise
            self._aside.print(f"error: {error} (/reset starts over)", style="red")

    def _answer(self, question: str) -> None:
        text, token_ids, output = "", list[int](), None
        try:
            for chunk in self._llm.stream(self._conversation.ask(question), self._params):
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
                text += chunk.text
                token_ids += chunk.token_ids
                output = chunk.output
        except KeyboardInterrupt:
            if not self._is_interactive:
                raise
        sys.stdout.write("\n")
        # An interrupted answer and one that ends at a stop string have tokens that their text lacks.
        is_cut = output is None or isinstance(output.outputs[0].stop_reason, str)
        self._conversation.answered(question, text, token_ids, is_cut)
        if output is not None and self._shows_stats:
            self._aside.print("\n".join([_cost_line(output), *output.verdict]), style="dim")

    def _new_conversation(self) -> Conversation:
        chats = self._llm.chats
        template = partial(chats.render, options=ChatOptions()) if chats.has_template else None
        return Conversation(self._llm.tokenizer, template, self._llm.engine.model.eos_token_ids, self._system)


def _cost_line(output: RequestOutput) -> str:
    cost = RequestCost.of(output)
    num_new_tokens = cost.num_prompt_tokens - cost.num_cached_tokens
    return (
        f"[{cost.num_prompt_tokens:,} prompt tokens: {cost.num_cached_tokens:,} cached, {num_new_tokens:,} computed; "
        f"first token after {format_seconds(cost.ttft_seconds)}; "
        f"{cost.num_output_tokens:,} generated at {format_rate(cost.decode_tokens_per_second, 'tokens')}]"
    )
