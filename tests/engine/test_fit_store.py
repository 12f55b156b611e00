"""What was measured of a model is kept, and not measured again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.tiny import tiny_model
from pagoda import LLM
from pagoda.config import Environment
from pagoda.engine import format_fit
from pagoda.engine.fit_store import FitStore, key_of
from pagoda.engine.format_fit import Trial
from pagoda.kernels.dispatch import choose_kernels

pytestmark = pytest.mark.usefixtures("two_threads")

TOKENS = [token * 7919 % 97 for token in range(200)]


def trial(folder: Path | None, tokens: list[int] = TOKENS) -> Trial:
    found = Trial.of(tiny_model(), choose_kernels(Environment()), tokens, FitStore(folder))
    assert found is not None
    return found


@pytest.fixture
def no_runs(monkeypatch):
    """Calling it makes whatever runs the model fail."""

    def fail(*_: object) -> None:
        raise AssertionError("the model was run")

    def forbid() -> None:
        monkeypatch.setattr(format_fit, "measure", fail)
        monkeypatch.setattr(format_fit, "Passage", fail)

    return forbid


def test_a_second_load_runs_nothing(tmp_path, no_runs):
    first = trial(tmp_path / "new")
    loss = first.loss_in("int8")
    no_runs()
    second = trial(tmp_path / "new")
    assert second.loss_in("int8") == loss
    for site, found in first.statistics.items():
        again = second.statistics[site]
        assert again.is_explained == found.is_explained
        for name in ("means", "variances", "query_squares"):
            assert torch.equal(getattr(again, name), getattr(found, name))
        assert torch.equal(again.rotation.channels, found.rotation.channels)
        assert torch.equal(again.rotation.frequencies, found.rotation.frequencies)


def test_engines_keep_it_where_the_environment_says(tmp_path, no_runs):
    options = {"kv_cache_dtype": "int4", "kv_cache_memory_bytes": 8 << 20}
    environment = Environment(cache_dir=str(tmp_path))
    with LLM(environment=environment, **options) as llm:
        fit = llm.engine.fit
    no_runs()
    with LLM(environment=environment, **options) as llm:
        assert (llm.engine.fit.loss, llm.engine.fit.digest) == (fit.loss, fit.digest)


def test_other_weights_and_texts_have_keys_of_their_own():
    model, tokens = tiny_model(), torch.tensor(TOKENS)
    keys = {key_of(model, tokens), key_of(model, tokens[1:])}
    model.network.lm_head.weight.data *= 1.5
    keys.add(key_of(model, tokens))
    assert len(keys) == 3


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, None])
def test_a_file_that_is_broken_is_measured_again(tmp_path, content):
    loss = trial(tmp_path).loss_in("int8")
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-8] if content is None else content)
    assert trial(tmp_path).loss_in("int8") == loss
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size > 1000


def test_a_folder_that_cannot_be_written_is_no_trouble(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert trial(tmp_path / "file" / "folder").loss_in("int8") is not None


def test_the_folder_is_the_users_unless_another_is_named(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert Environment().cache_folder == Path("/somewhere/pagoda")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Environment().cache_folder == Path(os.environ["HOME"]) / ".cache" / "pagoda"
    assert Environment(cache_dir="").cache_folder is None
    assert Environment(cache_dir="/there").cache_folder == Path("/there")
