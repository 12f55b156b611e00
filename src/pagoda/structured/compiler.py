"""From the form that was asked for to the constraint that enforces it.

Grammars are compiled, and followed, in confined children: one of a kilobyte can take any time and memory. Only their
masks come back. Knows a tokenizer and the tokens that end a sequence; knows no requests. llguidance is an optional
dependency, which the children alone import.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import count
from typing import Any

import torch

from pagoda.confined.errors import ConfinedError, CrashedError, FunctionError, NotReadyError, NotWantedError
from pagoda.confined.pool import Confined, Preparation
from pagoda.errors import RequestCancelledError, StructuredOutputError, TokenizerRequiredError
from pagoda.sampling_params import StructuredOutputs
from pagoda.structured.grammar import Grammar, penalties_of_bytes
from pagoda.structured.lane import Lanes, Step
from pagoda.structured.source import Source, one_line, source_of
from pagoda.structured.verdicts import Verdicts

logger = logging.getLogger(__name__)

WORKER = "pagoda.structured.worker:Worker"
COMPILE = f"{WORKER}.compile"
# On a processor. The schema of a hundred tools takes a thirtieth of a second.
COMPILE_SECONDS = 2.0
PREPARE_SECONDS = 30.0
MEMORY_NBYTES = 2 << 30
RESULT_NBYTES = 16 << 20
NUM_COMPILING = 2
TOO_HARD_LATER = "what may come next took too much time or memory to find; ask for a simpler form."


class GrammarCompiler:
    """Makes constraints for a model with `vocab_size` tokens, of which `end_token_ids` end a sequence.

    Several threads may compile at once. Close it to end its children at a known time.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, end_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._verdicts = Verdicts()
        self._numbers = count()
        self._unusable: str | None = None
        described = partial(_described, tokenizer, vocab_size, end_token_ids)
        preparation = Preparation(WORKER, described, PREPARE_SECONDS)
        confined = partial(Confined, memory_nbytes=MEMORY_NBYTES, result_nbytes=RESULT_NBYTES, preparation=preparation)
        self._compilers = confined(num_children=NUM_COMPILING)
        self._lanes = Lanes(partial(confined, gives_way=False))
        self._end = weakref.finalize(self, _close, self._compilers, self._lanes)

    def compile(
        self, wanted: StructuredOutputs | None, tenant: str = "", is_wanted: Callable[[], bool] = lambda: True
    ) -> Grammar | None:
        """What enforces `wanted`, None if nothing is. Raises a RequestError that names what is wrong with it.

        Gives up, with RequestCancelledError, when `is_wanted` says so.
        """
        if wanted is None:
            return None
        source = source_of(wanted)
        first = self._verdicts.find(source)
        if first is None:
            self._check_usable()
            self._lanes.lane_of(tenant).start()
            first = self._first_step(source, is_wanted)
            self._verdicts.accept(source, first)
        return self._grammar(source, first, tenant)

    def find(self, wanted: StructuredOutputs, tenant: str = "") -> Grammar | None:
        """What `compile` would give or raise, if that is known; costs nothing."""
        source = source_of(wanted)
        first = self._verdicts.find(source)
        return None if first is None else self._grammar(source, first, tenant)

    def close(self) -> None:
        """End all children. What still compiles is given up. Closing twice is fine."""
        self._end()

    def _grammar(self, source: Source, first: Step, tenant: str) -> Grammar:
        lane, failed = self._lanes.lane_of(tenant), partial(self._fail, source, tenant)
        return Grammar(source, first, lane, self._penalties, self._numbers, failed)

    def _fail(self, source: Source, tenant: str) -> None:
        """A grammar that was good has used up what it may."""
        self._verdicts.refuse(source, f"{source.kind} cannot be enforced: {TOO_HARD_LATER}")
        self._lanes.suspect(tenant)

    def _first_step(self, source: Source, is_wanted: Callable[[], bool]) -> Step:
        try:
            step, warnings = _compiled(
                self._compilers.call(COMPILE, tuple(source), seconds=COMPILE_SECONDS, is_wanted=is_wanted)
            )
        except NotWantedError as error:
            raise RequestCancelledError("The form of the output is not wanted any longer.") from error
        except NotReadyError as error:
            raise self._not_ready(error) from error
        except FunctionError as error:
            raise self._refused(source, one_line(str(error))) from error
        except ConfinedError as error:
            raise self._refused(source, f"to compile it {error}; ask for a simpler form.") from error
        if step.problem:
            raise self._refused(source, one_line(step.problem))
        for warning in warnings:
            logger.warning("%s: %s", source.kind, one_line(str(warning)))
        return step

    def _refused(self, source: Source, why: str) -> StructuredOutputError:
        message = f"{source.kind} cannot be enforced: {why}"
        self._verdicts.refuse(source, message)
        return StructuredOutputError(message)

    def _not_ready(self, error: NotReadyError) -> StructuredOutputError:
        """What a tokenizer lacks it will lack the next time; a machine without memory may have some."""
        message = f"This tokenizer cannot have structured_outputs: {one_line(str(error))}"
        if error.is_final:
            self._unusable = message
        return StructuredOutputError(message)

    def _check_usable(self) -> None:
        if find_spec("llguidance") is None:
            raise StructuredOutputError(
                'structured_outputs need llguidance, which is not installed: pip install "pagoda-kv[structured]".'
            )
        if self._tokenizer is None:
            raise TokenizerRequiredError("structured_outputs are about text; this LLM was made without a tokenizer.")
        if self._unusable is not None:
            raise StructuredOutputError(self._unusable)

    @cached_property
    def _penalties(self) -> torch.Tensor:
        return penalties_of_bytes()


def _compiled(reply: Any) -> tuple[Step, list[str]]:
    """Of a child that may have been taken over."""
    try:
        step, warnings = reply
        return Step.of(step), [str(warning) for warning in warnings]
    except (TypeError, ValueError) as error:
        raise CrashedError("gave an answer that cannot be read") from error


def _close(compilers: Confined, lanes: Lanes) -> None:
    """Without the compiler, so that one which is forgotten is closed as well."""
    compilers.close()
    lanes.close()


def _described(tokenizer: Any, vocab_size: int, end_token_ids: frozenset[int]) -> tuple[str, int, list[int], list[int]]:
    """What `Vocabulary` takes."""
    description = tokenizer.backend_tokenizer.to_str()
    return description, vocab_size, sorted(end_token_ids), list(tokenizer.all_special_ids)
