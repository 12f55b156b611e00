"""GGUF models as directories like those of Hugging Face."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_models import Unconfined, write_gguf
from pagoda.checkpoint.directory import checkpoint_directory, model_name, weights_nbytes
from pagoda.checkpoint.gguf_folder import gguf_folder
from pagoda.errors import ModelError
from pagoda.models.loader import load_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("PAGODA_CACHE_DIR", str(folder))
    monkeypatch.setattr("pagoda.checkpoint.gguf_description._confined", Unconfined)
    return folder


@pytest.fixture
def file(tmp_path):
    (tmp_path / "weights").mkdir()
    return write_gguf(tmp_path / "weights" / "model.gguf").file


def test_it_is_made_once_and_another_for_other_files(cache, file, monkeypatch):
    folder = gguf_folder(file)
    assert folder.is_relative_to(cache)
    assert (folder / "model.gguf").samefile(file)
    monkeypatch.setattr("pagoda.checkpoint.gguf_folder.describe", None)
    assert checkpoint_directory(file) == checkpoint_directory(file.parent) == checkpoint_directory(folder) == folder
    monkeypatch.undo()
    monkeypatch.setenv("PAGODA_CACHE_DIR", str(cache))
    monkeypatch.setattr("pagoda.checkpoint.gguf_description._confined", Unconfined)
    write_gguf(file, "qwen2")
    other = gguf_folder(file)
    assert other != folder
    assert json.loads((other / "config.json").read_text())["model_type"] == "qwen2"


def test_folders_go_whose_files_have_changed_or_are_gone(cache, file, tmp_path):
    (tmp_path / "more").mkdir()
    gone, kept = (write_gguf(tmp_path / "more" / f"{name}.gguf").file for name in ("gone", "kept"))
    before, of_gone, of_kept = gguf_folder(file), gguf_folder(gone), gguf_folder(kept)
    broken = of_kept.parent / "broken"
    broken.mkdir()
    (broken / ".pagoda-gguf.json").write_text('{"files": ["of an earlier version"]}')
    gone.unlink()
    write_gguf(file, "qwen2")
    after = gguf_folder(file)
    assert {*of_kept.parent.iterdir()} == {after, of_kept, broken}
    assert before != after and of_gone.parent == after.parent
    assert gguf_folder(kept) == of_kept


def test_a_configuration_beside_it_wins_also_when_it_comes_later(cache, file):
    folder = gguf_folder(file)
    values = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 0.25}
    (file.parent / "config.json").write_text(json.dumps(values))
    other = gguf_folder(file)
    assert other != folder
    assert json.loads((other / "config.json").read_text()) == values
    assert load_model(file.parent).config.rms_norm_eps == 0.25


@pytest.mark.parametrize("setting", ["", "/proc/nowhere"])
def test_without_a_cache_folder_it_lasts_as_long_as_the_process(file, setting):
    (file.parent / "config.json").write_text("{}")
    code = f"from pagoda.checkpoint.directory import checkpoint_directory; print(checkpoint_directory({str(file)!r}))"
    environment = os.environ | {"PAGODA_CACHE_DIR": setting}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "pagoda-gguf-" in done.stdout
    assert not Path(done.stdout.strip()).exists()


def test_the_child_process_says_the_same(cache, file, monkeypatch):
    here = (gguf_folder(file) / "config.json").read_text()
    shutil.rmtree(cache)
    monkeypatch.undo()
    monkeypatch.setenv("PAGODA_CACHE_DIR", str(cache))
    assert (gguf_folder(file) / "config.json").read_text() == here


def test_what_is_no_gguf_file(cache, tmp_path):
    file = tmp_path / "model.gguf"
    for content in (b"", b"GGUF", b"GGUF" + bytes(64), b"PK\3\4" + bytes(64)):
        file.write_bytes(content)
        with pytest.raises(ModelError, match="GGUF"):
            checkpoint_directory(file)


def test_safetensors_win_in_a_folder_that_has_both(cache, file):
    (file.parent / "model.safetensors").touch()
    assert checkpoint_directory(file.parent) == file.parent
    assert checkpoint_directory(file) != file.parent


def test_names_and_sizes(cache, file):
    assert model_name(file) == "model"
    assert model_name(file.parent) == "weights"
    assert weights_nbytes(file) == weights_nbytes(file.parent) == file.stat().st_size
