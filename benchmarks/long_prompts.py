"""Long prompts with answers that are known: texts and code that go on, and facts to be recalled.

text       prose held out from the training of the embedded model, continued
code       this repository's own source, continued
pass key, key-value, copy   what the embedded model was trained to recall
needle     one number in running text, asked for in the model's chat format
keys       the same with six numbers; `questions` asks for each of the six of one text, by turns
variables  a value that is assigned from name to name (RULER's variable tracking, arXiv 2404.06654)
turns      `keys`, asked for in the third turn: text, an exchange about something else, question
"""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.tokenizer import load_tokenizer

sys.path += [str(Path(__file__).parent.parent / "scripts"), str(Path(__file__).parent / "peers")]

from answers import Case
from recall_tasks import RecallTasks
from tiny_corpus import load_corpus
from train_tiny import load_words

SOURCE = Path(__file__).parent.parent / "src"
TEXTS = ("text", "code")
RECALL = ("pass key", "key-value", "copy")
TASKS = (*TEXTS, *RECALL, "needle", "keys", "questions", "variables", "turns")
CONTINUED = 64  # tokens of texts
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "ivory", "jade", "karst", "linen")
NUM_KEYS = 6
# What the second turn is about, in `turns`.
ASIDE = ("How many days does a week have?", "A week has seven days.")


@dataclass(frozen=True)
class Fact:
    """Lines to hide in a text, and what is asked of them; `reply` is how the answer begins."""

    lines: list[str]
    question: str
    reply: str
    answer: str


def cases_of(task: str, tokenizer: Any, options: Namespace) -> list[Case]:
    """The questions of a task; the same for every policy. `options`: data, work, tokens, cases."""
    if task == "code":
        return code_cases(tokenizer, options)
    if task in ("text", *RECALL):
        corpus = load_corpus(options.work, options.data, load_tokenizer(EMBEDDED_MODEL))
        if task == "text":
            return text_cases(corpus.held_out, options)
        words = load_words(corpus, load_tokenizer(EMBEDDED_MODEL))
        return list(recall_cases(RecallTasks(tokenizer, corpus.held_out, words), task, options))
    return [hidden_case(task, index, tokenizer, options) for index in range(options.cases)]


def text_cases(tokens: np.ndarray, options: Namespace) -> list[Case]:
    length = options.tokens
    stretches = np.random.default_rng(0).integers(len(tokens) - length - CONTINUED, size=options.cases)
    texts = [tokens[at : at + length + CONTINUED].tolist() for at in stretches]
    return [Case(text[:length], text[length:]) for text in texts]


def code_cases(tokenizer: Any, options: Namespace) -> list[Case]:
    files = sorted(path for path in SOURCE.rglob("*.py") if path.stat().st_size)
    source = "\n\n".join(path.read_text() for path in files)
    return text_cases(np.asarray(tokenizer(source, add_special_tokens=False).input_ids), options)


def recall_cases(tasks: RecallTasks, kind: str, options: Namespace) -> Iterator[Case]:
    """At distances up to the length of the prompt."""
    generator = np.random.default_rng(0)
    for index in range(options.cases):
        probe = tasks.probe(kind, (index + 1) * (options.tokens - 64) // options.cases, generator)
        lines = [at for at, token in enumerate(probe.prompt) if token == tasks.newline]
        yield Case(probe.prompt, probe.answer, len(probe.prompt) - lines[-1])


def hidden_case(task: str, index: int, tokenizer: Any, options: Namespace) -> Case:
    """A fact in running text; `questions` hides the same facts in the same text for six cases on end."""
    text, asked = (index // NUM_KEYS, index % NUM_KEYS) if task == "questions" else (index, None)
    draw = random.Random(f"{task}/{text}")
    fact = chain(draw) if task == "variables" else numbers(draw, 1 if task == "needle" else NUM_KEYS, asked)
    body = hidden(fact.lines, running_text(draw, tokenizer, options), draw)
    return asked_of(tokenizer, body, fact, aside=task == "turns")


def chain(draw: random.Random) -> Fact:
    value, names = draw.randrange(10_000, 100_000), [name.upper() for name in draw.sample(WORDS, k=4)]
    lines = [f"VAR {names[0]} = {value}.", *(f"VAR {new} = VAR {old}." for old, new in pairwise(names))]
    return Fact(lines, f"What is the value of VAR {names[-1]}?", "The value is", f" {value}")


def numbers(draw: random.Random, count: int, asked: int | None) -> Fact:
    names = draw.sample(WORDS, k=count)
    values = {name: draw.randrange(10_000, 100_000) for name in names}
    lines = [f"One of the special magic numbers for {name} is {value}." for name, value in values.items()]
    name = draw.choice(names) if asked is None else names[asked]
    question = f"What is the special magic number for {name}?"
    return Fact(lines, question, f"The special magic number for {name} is", f" {values[name]}")


def running_text(draw: random.Random, tokenizer: Any, options: Namespace) -> str:
    files = sorted(path for path in options.data.rglob("*") if path.is_file())
    text = max(files, key=lambda path: path.stat().st_size).read_text(errors="replace")
    start = draw.randrange(len(text) - 8 * options.tokens)
    token_ids = tokenizer(text[start : start + 8 * options.tokens], add_special_tokens=False).input_ids
    return str(tokenizer.decode(token_ids[: options.tokens - 200]))


def hidden(lines: list[str], text: str, draw: random.Random) -> str:
    cuts = sorted(draw.sample(range(len(text)), k=len(lines)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return pieces[0] + "".join(f"\n{line}\n{piece}" for line, piece in zip(lines, pieces[1:], strict=True))


def asked_of(tokenizer: Any, body: str, fact: Fact, aside: bool) -> Case:
    """In the chat format, if the model has one; what comes after the text is the question."""
    text, question = f"Remember what this text says.\n\n{body}\n\n", f"{fact.question} Answer at once."
    turns = [f"{text}{ASIDE[0]}", ASIDE[1], question] if aside else [text + question]
    if tokenizer.chat_template:
        roles = ("user", "assistant")
        messages = [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        prompt = (tokenizer.bos_token or "") + "\n".join(turns) + "\n"
    prompt += fact.reply
    encoded = partial(tokenizer, add_special_tokens=False)
    before = prompt[: prompt.index(text) + len(text)]
    token_ids = encoded(prompt).input_ids
    num_question = len(token_ids) - len(encoded(before).input_ids)
    return Case(token_ids, encoded(prompt + fact.answer).input_ids[len(token_ids) :], num_question)
