"""Which files are one GGUF model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gguf_models import write_gguf
from pagoda.checkpoint.gguf_files import gguf_in, gguf_parts, model_stem, read_gguf
from pagoda.errors import CorruptCheckpointError, ModelNotFoundError


@pytest.fixture
def parts(tmp_path):
    """A model in two parts, as gguf's own writer divides it."""
    write_gguf(tmp_path / "model.gguf", split_max_tensors=12)
    return sorted(tmp_path.glob("*.gguf"))


def test_parts_are_found_from_any_of_them(parts):
    assert len(parts) == 2
    assert gguf_parts(parts[0]) == gguf_parts(parts[1]) == tuple(parts)
    assert gguf_in(parts[0].parent) == tuple(parts)
    model = read_gguf(parts)
    assert model.name == "model"
    assert {tensor.file for tensor in model.tensors.values()} == {*parts}


def test_a_part_that_is_missing_is_named(parts):
    parts[1].unlink()
    with pytest.raises(CorruptCheckpointError, match=f"no {parts[1].name} beside it"):
        gguf_parts(parts[0])


def test_parts_by_wrong_names(parts):
    (first, second), spare = parts, parts[0].with_name("spare")
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    with pytest.raises(CorruptCheckpointError, match="is part"):
        read_gguf(gguf_parts(first))


def test_one_part_alone_by_the_name_of_a_whole(parts):
    with pytest.raises(CorruptCheckpointError, match="is part"):
        read_gguf([parts[0]])


def test_parts_of_different_models(parts):
    shutil.copy(parts[0], parts[1])
    with pytest.raises(CorruptCheckpointError):
        read_gguf(parts)


def test_two_models_in_a_folder_are_named(tmp_path):
    for name in ("a-Q8_0.gguf", "b-Q4_0.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelNotFoundError, match=r"several.*a-Q8_0\.gguf, b-Q4_0\.gguf"):
        gguf_in(tmp_path)


def test_what_sees_for_a_model_is_not_another(tmp_path):
    for name in ("model.gguf", "mmproj-model.gguf"):
        (tmp_path / name).touch()
    assert gguf_in(tmp_path) == (tmp_path / "model.gguf",)


def test_names():
    for name in ("Qwen2.5-0.5B-Q4_K_M.gguf", "Qwen2.5-0.5B-Q4_K_M-00001-of-00002.gguf"):
        assert model_stem(Path(name)) == "Qwen2.5-0.5B-Q4_K_M"
