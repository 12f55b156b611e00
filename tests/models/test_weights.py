"""Weights are read from safetensors files of the checkpoint and from nothing else; what is wrong with them is named."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoints import edit, make_network, save, write_pickle
from pagoda.checkpoint.weights import INDEX, SINGLE, Outline
from pagoda.errors import CorruptCheckpointError, ModelError, ModelNotFoundError, UnsupportedModelError
from pagoda.models.loader import load_model

NORM = "model.norm.weight"


@pytest.fixture
def checkpoint(tmp_path):
    return save(make_network(), tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    """In two files and an index."""
    directory = save(make_network(), tmp_path / "model")
    weights = load_file(directory / SINGLE)
    norm = {NORM: weights.pop(NORM)}
    save_file(weights, directory / "a.safetensors", metadata={"format": "pt"})
    save_file(norm, directory / "b.safetensors", metadata={"format": "pt"})
    (directory / SINGLE).unlink()
    write_index(directory, **dict.fromkeys(weights, "a.safetensors"), **{NORM: "b.safetensors"})
    return directory


def write_index(directory, **names):
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))


def point_norm_to(directory, name):
    index = directory / INDEX
    write_index(directory, **json.loads(index.read_text())["weight_map"] | {NORM: name})


def test_shards_are_read(sharded):
    assert torch.equal(load_model(sharded).network.model.norm.weight, torch.ones(32))


def test_an_index_cannot_name_a_pickle(sharded, tmp_path):
    write_pickle(sharded / "w.bin", tmp_path / "mark")
    point_norm_to(sharded, "w.bin")
    with pytest.raises(CorruptCheckpointError, match=r"index\.json names 'w\.bin'"):
        load_model(sharded)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["../outside.safetensors", "sub/../b.safetensors", "/{outside}", "..\\b.safetensors"])
def test_an_index_cannot_name_a_file_elsewhere(sharded, tmp_path, name):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((sharded / "b.safetensors").read_bytes())
    point_norm_to(sharded, name.replace("/{outside}", str(outside)))
    with pytest.raises(CorruptCheckpointError, match="only files beside it"):
        load_model(sharded)


@pytest.mark.parametrize(
    "name", [3, None, ["b.safetensors"], {}, "", ".safetensors/", "b\0.safetensors", "x.safetensors"]
)
def test_an_index_names_files_that_are_there(sharded, name):
    point_norm_to(sharded, name)
    with pytest.raises(CorruptCheckpointError, match="names"):
        load_model(sharded)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000])
def test_an_index_that_is_none(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(CorruptCheckpointError, match=r"index\.json"):
        load_model(sharded)


def test_a_shard_may_be_a_link_as_in_the_cache_of_hugging_face(sharded, tmp_path):
    blob = tmp_path / "blobs" / "3f2a"
    blob.parent.mkdir()
    (sharded / "b.safetensors").rename(blob)
    (sharded / "b.safetensors").symlink_to(blob)
    load_model(sharded)


def test_a_link_to_a_device_is_no_shard(sharded):
    (sharded / "b.safetensors").unlink()
    (sharded / "b.safetensors").symlink_to("/dev/zero")
    with pytest.raises(CorruptCheckpointError, match="missing"):
        load_model(sharded)


def test_a_tensor_in_two_shards_is_taken_from_where_the_index_has_it(sharded):
    other = {NORM: torch.full((32,), 2.0)}
    save_file(load_file(sharded / "a.safetensors") | other, sharded / "a.safetensors", metadata={"format": "pt"})
    assert load_model(sharded).network.model.norm.weight[0] == 1
    point_norm_to(sharded, "a.safetensors")
    save_file(other | {"other": torch.ones(1)}, sharded / "b.safetensors", metadata={"format": "pt"})
    write_index(sharded, **json.loads((sharded / INDEX).read_text())["weight_map"] | {"other": "b.safetensors"})
    assert load_model(sharded).network.model.norm.weight[0] == 2


def test_two_shards_that_contradict_each_other(sharded):
    names = json.loads((sharded / INDEX).read_text())["weight_map"]
    del names[NORM]
    save_file({NORM: torch.ones(32)}, sharded / "c.safetensors", metadata={"format": "pt"})
    write_index(sharded, **names, x="b.safetensors", y="c.safetensors")
    with pytest.raises(CorruptCheckpointError, match=r"model\.norm\.weight in b\.safetensors and in c\.safetensors"):
        load_model(sharded)


def test_what_an_index_names_and_nobody_needs_may_be_missing(sharded):
    """Converters leave tied weights out of the files and in the index."""
    names = json.loads((sharded / INDEX).read_text())["weight_map"]
    write_index(sharded, **names, tied="a.safetensors")
    load_model(sharded)


def test_other_formats_beside_the_weights_are_not_read(checkpoint, tmp_path):
    mark = tmp_path / "mark"
    names = (
        "pytorch_model.bin",
        "adapter_model.bin",
        "training_args.bin",
        "head.safetensors",
        "pytorch_model.bin.index.json",
    )
    for name in names:
        write_pickle(checkpoint / name, mark)
    (checkpoint / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path), "peft_type": "LORA"})
    )
    (checkpoint / ".metadata").write_bytes((checkpoint / names[0]).read_bytes())  # of torch.distributed
    load_model(checkpoint)
    assert not mark.exists()


@pytest.mark.parametrize(
    "steering",
    [
        {"transformers_weights": "adapter_model.bin"},
        {"transformers_weights": "../model/model.safetensors"},
        {"transformers_weights": 7},
    ],
)
def test_a_configuration_cannot_name_other_weights(checkpoint, tmp_path, steering):
    write_pickle(checkpoint / "adapter_model.bin", tmp_path / "mark")
    edit(checkpoint / "config.json", **steering)
    with pytest.raises(CorruptCheckpointError, match=r"config\.json names"):
        load_model(checkpoint)
    assert not (tmp_path / "mark").exists()


def test_a_configuration_may_name_another_file_of_weights(checkpoint):
    (checkpoint / SINGLE).rename(checkpoint / "other.safetensors")
    edit(checkpoint / "config.json", transformers_weights="other.safetensors")
    load_model(checkpoint)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pytorch_model.bin", "pickles"),
        ("adapter_model.safetensors", "adapter"),
        ("model-00001-of-00002.safetensors", r"neither model\.safetensors nor"),
    ],
)
def test_without_weights_it_says_what_is_there(checkpoint, name, hint):
    (checkpoint / SINGLE).rename(checkpoint / name)
    with pytest.raises(ModelNotFoundError, match=hint):
        load_model(checkpoint)


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write_header(file, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"", b""),
        (b"{", b""),
        (b"[]", b""),
        (b"{}", b"data"),
        ({"a": entry(), "b": entry()}, bytes(4)),
        ({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)),
        ({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)),
        ({"a": entry(offsets=(0, 1 << 40))}, bytes(4)),
        ({"a": entry(shape=(1 << 62, 4))}, bytes(4)),
        ({"a": entry(shape=(-1,))}, bytes(4)),
        ({"a": entry(shape=(0, 1 << 62), offsets=(0, 0))}, b""),
        ({"a": entry(shape=[1] * 100)}, bytes(4)),
        ({"a" * 2000: entry()}, bytes(4)),
        ({"a": entry(dtype="Q4")}, bytes(4)),
        (b'{"a":' + b"[" * 100_000, b""),
        ({"__metadata__": {"format": 3}, "a": entry()}, bytes(4)),
    ],
)
def test_headers_that_are_none(checkpoint, header, data):
    write_header(checkpoint / SINGLE, header, data)
    with pytest.raises(CorruptCheckpointError, match=SINGLE):
        load_model(checkpoint)


def test_types_that_no_network_computes_in(checkpoint):
    write_header(checkpoint / SINGLE, {"a": entry(dtype="F4", shape=(8,))}, bytes(4))
    with pytest.raises(UnsupportedModelError, match="in F4; use a checkpoint in bf16"):
        load_model(checkpoint)


@pytest.mark.parametrize("length", [1 << 62, 99 << 20])
def test_headers_without_end(checkpoint, length):
    write_header(checkpoint / SINGLE, b"", bytes(100), length)
    with pytest.raises(CorruptCheckpointError, match=f"header of {length} bytes"):
        load_model(checkpoint)


def test_many_headers_without_end(sharded):
    names = {f"t{i}": f"s{i}.safetensors" for i in range(5)}
    for name in names.values():
        write_header(sharded / name, b"", bytes(100), 15 << 20)
    write_index(sharded, **names)
    with pytest.raises(ModelError, match="header of"):
        load_model(sharded)


def test_the_outline_of_weights():
    shapes = {"model.layers.11.up.weight": (8, 2), "model.norm2.weight": (8,), "empty.40": (0, 1000)}
    assert Outline.of(shapes) == Outline(2, num_elements=24, largest_size=8, largest_number=40, shapes=shapes)
    assert Outline.of({}) == Outline(0, 0, 0, 0)
