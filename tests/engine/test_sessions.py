"""Sessions through the engine: another engine goes on to the token, and never with pages that are not proven good."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.carried import DECODERS, LENGTH, MIB, PARAMS, bodies, make, prompt
from engine.greedy import tokens
from oracle.families import build_tiny
from oracle.generation import random_tokens
from pagoda import LLM, SamplingParams
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.session_file import SessionFile
from pagoda.config import Environment
from pagoda.engine.sessions import SessionTarget, conversation_of
from pagoda.errors import RequestError, SessionError
from pagoda.models.encoder import Encoder
from pagoda.models.model import Model
from pagoda.registry import REGISTRY


@pytest.fixture(scope="module")
def llama() -> Model:
    return Model.from_transformers(build_tiny("llama"))


@pytest.mark.parametrize("family", DECODERS)
def test_a_conversation_resumes_to_the_token_in_another_engine(family: str, tmp_path: Path) -> None:
    model, path = Model.from_transformers(build_tiny(family)), tmp_path / "talk.pagoda"
    with make(model) as first:
        [cold] = first.generate([prompt()], PARAMS)
        whole = [*prompt(), *cold.outputs[0].token_ids]
        saved = first.save_session(path, whole)
        expected = tokens(first.generate([whole, whole + prompt(1, 20)], PARAMS))
        held = bodies(first, whole)
    assert (saved.num_tokens, saved.num_held_tokens, saved.nbytes) == (len(whole), len(whole), path.stat().st_size)
    with make(model) as second:
        loaded = second.load_session(path)
        assert (loaded.token_ids, loaded.num_held_tokens, loaded.reason) == (whole, len(whole), None)
        assert bodies(second, whole) == held
        outputs = [second.generate([each], PARAMS)[0] for each in (whole, whole + prompt(1, 20))]
        assert [each.num_cached_tokens for each in outputs] == [len(whole) - 1, len(whole)]
        assert tokens(outputs) == expected
        second.check_integrity()


@pytest.mark.parametrize("format", REGISTRY["format"])
def test_every_format_comes_back_with_the_same_bytes(format: str, tmp_path: Path) -> None:
    model = Model.from_transformers(build_tiny("llama").bfloat16())
    with make(model, kv_cache_dtype=format) as first:
        first.save_session(tmp_path / "talk", prompt())
        held = bodies(first, prompt())
    with make(model, kv_cache_dtype=format) as second:
        assert second.load_session(tmp_path / "talk").num_held_tokens == LENGTH
        assert bodies(second, prompt()) == held


def test_what_is_in_no_page_is_computed_before_it_is_saved(llama: Model, tmp_path: Path) -> None:
    with make(llama) as llm:
        assert llm.save_session(tmp_path / "talk", prompt(), name="talk", title="a title").num_held_tokens == LENGTH
    with SessionFile.open(tmp_path / "talk") as file:
        assert (file.description.name, file.conversation.title, file.description.model) == ("talk", "a title", "llama")
        assert file.verify() == []


def test_whoever_loads_a_session_has_its_pages_and_nobody_else(llama: Model, tmp_path: Path) -> None:
    with make(llama) as first:
        first.save_session(tmp_path / "talk", prompt(), cache_salt="theirs")
    assert b"theirs" not in (tmp_path / "talk").read_bytes()
    with make(llama) as second:
        second.load_session(tmp_path / "talk", cache_salt="mine")
        cached = [
            second.generate([[*prompt(), 70]], PARAMS, cache_salt=salt)[0].num_cached_tokens
            for salt in ("theirs", "", "mine")
        ]
        assert cached == [0, 0, LENGTH]


def test_pages_of_another_model_format_or_page_size_are_refused_by_name(llama: Model, tmp_path: Path) -> None:
    with make(llama) as first:
        first.save_session(tmp_path / "talk", prompt())
    other = Model.from_transformers(build_tiny("llama", seed=1))
    for model, options, message in (
        (other, {}, "their weights is '"),
        (llama, {"kv_cache_dtype": "int8"}, "their format is 'fp32', and here it is 'int8'"),
        (llama, {"block_size": 32}, "their page_tokens is 16, and here it is 32"),
    ):
        with make(model, **options) as llm, pytest.raises(SessionError, match=message):
            llm.load_session(tmp_path / "talk")


def test_a_damaged_page_is_computed_again_and_the_reason_is_told(llama: Model, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    with make(llama) as first:
        first.save_session(path, prompt())
        expected = tokens(first.generate([prompt()], PARAMS))
    with SessionFile.open(path) as file:
        start = int(file._table["offset"][3])
    content = bytearray(path.read_bytes())
    content[start + 300] ^= 1
    path.write_bytes(content)
    with make(llama) as second:
        loaded = second.load_session(path)
        assert (loaded.token_ids, loaded.num_held_tokens) == (prompt(), 0)
        assert "damaged" in (loaded.reason or "")
        assert tokens(second.generate([prompt()], PARAMS)) == expected
        second.check_integrity()


def test_records_that_are_missing_or_of_other_tokens_are_not_used(llama: Model, tmp_path: Path) -> None:
    """Whole and undamaged, as whoever means harm would write them."""
    with make(llama) as llm:
        [cold] = llm.generate([prompt(5)], PARAMS)
        request = prompt(5)
        taken = llm.sessions.take(Namespace(), request)
        for number, (drafts, said) in enumerate(((taken.drafts[:-1], request), (taken.drafts, prompt(6)))):
            llm.sessions.write(
                SessionTarget(tmp_path / str(number)), Namespace(), replace(taken, drafts=drafts), conversation_of(said)
            )
    with make(llama) as second:
        for number in range(2):
            loaded = second.load_session(tmp_path / str(number))
            assert loaded.num_held_tokens == 0
            assert "a page" in (loaded.reason or "")
        [again] = second.generate([prompt(5)], PARAMS)
        assert (again.num_cached_tokens, tokens([again])) == (0, tokens([cold]))
        second.check_integrity()


def test_a_session_that_does_not_fit_is_refused_before_it_is_read(llama: Model, tmp_path: Path) -> None:
    with make(llama) as first:
        first.save_session(tmp_path / "long", prompt())
        taken = first.sessions.take(Namespace(), prompt())
        few = conversation_of(prompt(length=20))
        first.sessions.write(SessionTarget(tmp_path / "large"), Namespace(), replace(taken, resume_points=(20,)), few)
    with SessionFile.open(tmp_path / "large") as file:
        nbytes = file.records_nbytes // 2
    with make(llama, max_model_len=100) as short, pytest.raises(SessionError, match="max_model_len"):
        short.load_session(tmp_path / "long")
    with make(llama, kv_cache_memory_bytes=nbytes) as small, pytest.raises(SessionError, match="kv_cache_memory_bytes"):
        small.load_session(tmp_path / "large")


def test_where_others_have_the_room_it_says_so(llama: Model, tmp_path: Path) -> None:
    with make(llama) as first:
        first.save_session(tmp_path / "talk", prompt())
        with SessionFile.open(tmp_path / "talk") as file:
            nbytes = file.records_nbytes
    with make(llama, kv_cache_memory_bytes=nbytes + MIB // 16) as second:
        chunks = second.stream(prompt(3, 100), SamplingParams(max_tokens=100, ignore_eos=True))
        next(chunks)
        loaded = second.load_session(tmp_path / "talk")
        chunks.close()
        assert loaded.num_held_tokens == 0
        assert "no room" in (loaded.reason or "")
        second.check_integrity()


def test_with_a_key_it_is_read_with_that_key_alone(llama: Model, tmp_path: Path) -> None:
    environments = [replace(Environment.read(), kv_key=key) for key in ("11" * 32, "22" * 32, None)]
    with make(llama, environment=environments[0]) as first:
        first.save_session(tmp_path / "talk", prompt())
    with make(llama, environment=environments[0]) as second:
        assert second.load_session(tmp_path / "talk").num_held_tokens == LENGTH
    for environment in environments[1:]:
        with make(llama, environment=environment) as other, pytest.raises(SessionError, match="key"):
            other.load_session(tmp_path / "talk")


def test_without_prefix_caching_there_are_no_sessions(llama: Model, tmp_path: Path) -> None:
    with make(llama, enable_prefix_caching=False) as llm, pytest.raises(SessionError, match="enable_prefix_caching"):
        llm.save_session(tmp_path / "talk", prompt())


def test_what_an_encoder_made_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.from_transformers(build_tiny("bart"))
    text = {"encoder_prompt": random_tokens(40, 0), "decoder_prompt": [2, 5, 7]}
    with make(model) as first:
        first.save_session(tmp_path / "talk", text)
        expected = tokens(first.generate([text], PARAMS))
    with make(model) as second:
        second.load_session(tmp_path / "talk")
        monkeypatch.setattr(Encoder, "encode", lambda *_: pytest.fail("what was saved is read again"))
        assert tokens(second.generate([text], PARAMS)) == expected
        second.check_integrity()


MESSAGES = [{"role": "user", "content": "Where is the harbour?"}, {"role": "assistant", "content": "By the sea."}]


def test_messages_are_saved_with_what_a_template_makes_of_them(tmp_path: Path) -> None:
    with LLM(kv_cache_memory_bytes=16 * MIB, num_threads=1) as llm:
        expected = llm.chat_prompt(MESSAGES, add_generation_prompt=False)
        llm.save_session(tmp_path / "talk", MESSAGES)
    with LLM(kv_cache_memory_bytes=16 * MIB, num_threads=1) as llm:
        loaded = llm.load_session(str(tmp_path / "talk"))
        assert (loaded.token_ids, loaded.messages) == (expected, MESSAGES)
        [answer] = llm.chat([*MESSAGES, {"role": "user", "content": "And the lighthouse?"}], PARAMS, use_tqdm=False)
        assert answer.num_cached_tokens == len(expected)


@pytest.mark.parametrize("said", ["", [], [[1, 2]], {"prompt": ""}, [{"content": "no role"}], None])
def test_what_is_no_prompt_is_not_saved(said: Any, tmp_path: Path) -> None:
    with LLM(kv_cache_memory_bytes=16 * MIB, num_threads=1) as llm, pytest.raises(RequestError):
        llm.save_session(tmp_path / "talk", said)
    assert list(tmp_path.iterdir()) == []
