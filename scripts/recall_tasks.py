"""Synthetic recall tasks: facts stated in running text and asked for again further on.

Three kinds of fact share one shape (statement, question, answer): a five-digit pass key, a
`word -> word` pair, and a note of eight random words to be copied. Training rows hold many
facts at once, asked at distances drawn up to the row's end; a probe holds one whose answer lies
an exact number of tokens back, so that accuracy can be measured by distance.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tiny_corpus import ASSISTANT, END_OF_TEXT, USER, TokenArray
from transformers import PreTrainedTokenizerFast

NOTE_WORDS = 8
WORD_COUNT = 1000
ANSWER_WEIGHT = 4.0
MOST_PENDING = 12
PROBE_LEAD_IN = 32  # tokens before a probe's answer is first stated
PROBE_DISTRACTORS = 7  # other pairs after the one a key-value probe asks for

Row = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Fact:
    """Text of a fact up to its answer, the answer, and the two ways to ask for it."""

    stem: str
    answer: str
    ending: str
    question: str
    chat_question: str
    reply: str
    subject: str


@dataclass(frozen=True)
class Probe:
    """A prompt whose right continuation is `answer`."""

    prompt: list[int]
    answer: list[int]


def common_words(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """The most frequent lower-case words of 4 to 8 letters that are one token after a space."""
    counts = Counter(re.findall(r"(?<= )[a-z]{4,8}(?= )", text))
    vocabulary = tokenizer.get_vocab()
    return [word for word, _ in counts.most_common() if f"Ġ{word}" in vocabulary][:WORD_COUNT]


class RowBuilder:
    """A row under construction: tokens, and how much the loss of predicting each one counts."""

    def __init__(self, newline: int) -> None:
        self.tokens: list[int] = []
        self.weights: list[float] = []
        self.newline = newline

    def add(self, tokens: list[int], weight: float) -> None:
        self.tokens += tokens
        self.weights += [weight] * len(tokens)

    def begin_line(self) -> None:
        if self.tokens and self.tokens[-1] != self.newline:
            self.add([self.newline], 0.0)

    def finish(self, length: int) -> Row:
        return np.array(self.tokens[:length]), np.array(self.weights[:length], dtype=np.float32)


class RecallTasks:
    """Draws training rows and probes; every draw comes from the generator it is given."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, filler: TokenArray, words: list[str]) -> None:
        self.tokenizer = tokenizer
        self.filler = filler
        self.words = words
        self.newline = self.encode("\n")[0]
        self.makers: dict[str, Callable[[np.random.Generator], Fact]] = {
            "pass key": self.pass_key,
            "key-value": self.key_value,
            "copy": self.note,
        }

    def encode(self, text: str) -> list[int]:
        encoding: Any = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return list(encoding.ids)

    def running_text(self, generator: np.random.Generator, length: int) -> list[int]:
        start = generator.integers(len(self.filler) - length)
        return [int(token) for token in self.filler[start : start + length]]

    def pass_key(self, generator: np.random.Generator) -> Fact:
        answer = f" {generator.integers(10_000, 100_000)}"
        ask, reply = "What is the pass key?", "The pass key is"
        return Fact(reply, answer, ". Remember it.\n", f"{ask} {reply}", ask, reply, "pass key")

    def key_value(self, generator: np.random.Generator) -> Fact:
        word, value = (str(word) for word in generator.choice(self.words, 2))
        reply, ask = f"{word} ->", f"What is the value of {word}?"
        return Fact(reply, f" {value}", "\n", reply, ask, reply, word)

    def note(self, generator: np.random.Generator) -> Fact:
        subject, *words = (str(word) for word in generator.choice(self.words, NOTE_WORDS + 1))
        reply, ask = f"Note {subject}:", f"Repeat note {subject}."
        return Fact(reply, " " + " ".join(words), "\n", reply, ask, reply, f"note {subject}")

    def new_fact(self, generator: np.random.Generator, taken: set[str]) -> Fact | None:
        """A fact of a random kind, unless its subject is still to be asked for."""
        fact = self.makers[str(generator.choice(list(self.makers)))](generator)
        return None if fact.subject in taken else fact

    def state(self, row: RowBuilder, fact: Fact) -> None:
        """Write a statement; nothing in it can be predicted, so it carries no loss."""
        row.begin_line()
        row.add(self.encode(fact.stem + fact.answer + fact.ending), 0.0)

    def ask(self, row: RowBuilder, fact: Fact, chat: bool) -> None:
        """Write a question and its answer, as running text or as a turn of chat."""
        if chat:
            row.add(self.encode(USER + fact.chat_question), 0.0)
            row.add(self.encode(ASSISTANT)[:1], 0.0)
            row.add(self.encode(fact.reply), 1.0)
        else:
            row.begin_line()
            row.add(self.encode(fact.question), 0.0)
        row.add(self.encode(fact.answer), ANSWER_WEIGHT)
        row.add(self.encode(END_OF_TEXT if chat else fact.ending), 1.0)

    def recall_row(self, generator: np.random.Generator, length: int) -> Row:
        """Running text with facts in it, each asked for at a distance drawn uniformly."""
        row = RowBuilder(self.newline)
        if generator.random() < 0.5:
            row.add(self.encode(END_OF_TEXT), 0.0)
        chat = generator.random() < 0.2
        longest_run = int(2 ** generator.uniform(1, np.log2(length) - 1))
        most_pending = int(generator.integers(1, MOST_PENDING + 1))
        pending: list[tuple[int, int, Fact]] = []
        while len(row.tokens) < length:
            position = len(row.tokens)
            if pending and pending[0][0] <= position:
                self.ask(row, heapq.heappop(pending)[2], chat)
            elif len(pending) < most_pending and generator.random() < 0.6:
                taken = {fact.subject for _, _, fact in pending}
                if fact := self.new_fact(generator, taken):
                    self.state(row, fact)
                    due = generator.integers(position, max(position + 1, length - 16))
                    heapq.heappush(pending, (int(due), position, fact))
            else:
                row.add(self.running_text(generator, int(generator.integers(1, longest_run + 1))), 1.0)
        return row.finish(length)

    def repeat_row(self, generator: np.random.Generator, length: int) -> Row:
        """One stretch of random tokens, or of text, again and again: the plainest copying task."""
        period = int(2 ** generator.uniform(3, np.log2(length) - 1))
        if generator.random() < 0.5:
            stretch = self.running_text(generator, period)
        else:
            stretch = [int(token) for token in generator.integers(4, len(self.tokenizer), period)]
        tokens = np.array(stretch * (length // period + 1))[:length]
        weights = np.ones(length, dtype=np.float32)
        weights[:period] = 0.0
        return tokens, weights

    def probe(self, kind: str, distance: int, generator: np.random.Generator) -> Probe:
        """A prompt whose answer was first given exactly `distance` tokens before it is due."""
        fact = self.makers[kind](generator)
        row = RowBuilder(self.newline)
        stem = [self.newline, *self.encode(fact.stem)]
        row.add(self.running_text(generator, PROBE_LEAD_IN - len(stem)) + stem, 0.0)
        due = len(row.tokens) + distance
        row.add(self.encode(fact.answer + fact.ending), 0.0)
        question = [self.newline, *self.encode(fact.question)]
        for _ in range(PROBE_DISTRACTORS if kind == "key-value" else 0):
            other = self.new_pair(generator, fact.subject)
            if len(row.tokens) + len(other) + len(question) <= due:
                row.add(other, 0.0)
        row.add(self.running_text(generator, due - len(question) - len(row.tokens)), 0.0)
        return Probe(row.tokens + question, self.encode(fact.answer))

    def new_pair(self, generator: np.random.Generator, subject: str) -> list[int]:
        """The line of another key-value pair."""
        fact = self.key_value(generator)
        while fact.subject == subject:
            fact = self.key_value(generator)
        return self.encode(fact.stem + fact.answer + fact.ending)
