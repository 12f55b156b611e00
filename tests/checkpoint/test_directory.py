"""What people give in the place of a checkpoint's directory is named, with what to do about it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pagoda.checkpoint.directory import checkpoint_directory
from pagoda.errors import ConfigError, ModelNotFoundError
from pagoda.models.loader import load_model


@pytest.mark.parametrize("path", [5, b"model", ["model"], 2.5, True, object(), "", "model\0.json"])
def test_what_is_no_path(path):
    with pytest.raises(ConfigError, match=r"^model is .*; give the path of a directory"):
        checkpoint_directory(path)


@pytest.mark.parametrize(
    "path", ["x" * 5000, "/proc/self/mem/model", "~nobody-of-this-name/model", "\udcff", "/dev/null"]
)
def test_paths_that_lead_nowhere(path):
    with pytest.raises(ModelNotFoundError):
        checkpoint_directory(path)


def test_a_name_on_the_hub():
    with pytest.raises(ModelNotFoundError, match=r"downloads nothing.*hf download meta-llama/Llama-3-8B"):
        load_model("meta-llama/Llama-3-8B")


def test_a_file_instead_of_its_directory(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelNotFoundError, match="Give a GGUF file, or the directory of a checkpoint"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("pytorch_model.bin", "pickles"), ("adapter_config.json", "adapter")],
)
def test_a_directory_of_something_else(tmp_path, name, hint):
    (tmp_path / name).touch()
    with pytest.raises(ModelNotFoundError, match=f"has no config.json.*{hint}"):
        load_model(tmp_path)


def test_paths_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert checkpoint_directory(tmp_path) == tmp_path
    assert checkpoint_directory(str(tmp_path)) == tmp_path
    assert checkpoint_directory(f"~/{tmp_path.name}") == Path(tmp_path)


def test_the_option_is_named():
    with pytest.raises(ConfigError, match=re.escape("tokenizer is a list")):
        checkpoint_directory([], "tokenizer")
