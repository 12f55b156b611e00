"""Headers of GGUF files: what is right is read, whatever the rest is, it is a named error."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from gguf_models import write_gguf
from pagoda.checkpoint import gguf_walk
from pagoda.checkpoint.gguf_header import read_gguf_header
from pagoda.errors import CorruptCheckpointError, UnsupportedModelError

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "fuzz_gguf.py"
MUTATIONS = 200
VERSION, NUM_TENSORS, NUM_KEYS, FIRST_KEY = 4, 8, 16, 24
HUGE = (1 << 64) - 1


def more(writer):
    writer.add_string("a.text", "à é 中文")
    writer.add_float32("a.number", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_int64("a.negative", -5)
    writer.add_array("a.list", ["one", "two"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.long", [str(number) for number in range(5000)])


@pytest.fixture
def file(tmp_path):
    return write_gguf(tmp_path / "model.gguf", "llama", more=more).file


def changed(file, place, code, *values):
    data = bytearray(file.read_bytes())
    struct.pack_into(code, data, place, *values)
    file.write_bytes(data)
    return file


def refused(file, error=CorruptCheckpointError, match="."):
    with pytest.raises(error, match=match):
        read_gguf_header(file)


def test_keys_and_tensors_are_those_that_gguf_reads(file):
    header, reader = read_gguf_header(file), GGUFReader(file)
    assert header.architecture == "llama"
    assert [header.get(f"a.{key}") for key in ("text", "number", "flag", "negative", "list", "numbers")] == [
        *("à é 中文", 0.5, True, -5, ["one", "two"], [1, 2, 3]),
    ]
    assert header.get("llama.block_count") == 2
    assert header.get("a.long") is None  # it is passed over
    assert header.get("nothing", 7) == 7
    for tensor in reader.tensors:
        mine = header.tensors[tensor.name]
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert (mine.type_name, mine.start, mine.nbytes) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
    assert len(header.tensors) == len(reader.tensors)


def test_other_alignments(tmp_path):
    file = tmp_path / "model.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_custom_alignment(256)
    writer.add_tensor("a", np.ones(3, np.float32))
    writer.add_tensor("b", np.full(5, 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    start = read_gguf_header(file).tensors["b"].start
    assert start % 256 == 0
    assert np.fromfile(file, np.float32, 5, offset=start).tolist() == [2] * 5


def test_a_file_that_ends_anywhere_in_its_header(file):
    whole = file.read_bytes()
    start = min(tensor.start for tensor in read_gguf_header(file).tensors.values())
    for nbytes in [*range(200), *range(200, start, 997)]:
        file.write_bytes(whole[:nbytes])
        refused(file)


def test_a_file_that_ends_in_its_weights(file):
    file.write_bytes(file.read_bytes()[:-100])
    refused(file, match="cut off")


@pytest.mark.parametrize(
    ("place", "code", "value", "error", "match"),
    [
        (0, "<I", 0x46475546, CorruptCheckpointError, "does not begin"),
        (VERSION, "<I", 1, UnsupportedModelError, "version 1"),
        (VERSION, "<I", 4, UnsupportedModelError, "version 4"),
        (VERSION, ">I", 3, UnsupportedModelError, "other byte order"),
        (NUM_TENSORS, "<Q", HUGE, CorruptCheckpointError, "tensors"),
        (NUM_TENSORS, "<Q", 1000, CorruptCheckpointError, "not a whole GGUF"),
        (NUM_KEYS, "<Q", HUGE, CorruptCheckpointError, "keys"),
        (NUM_KEYS, "<Q", 4000, CorruptCheckpointError, "not a whole GGUF"),
        (FIRST_KEY, "<Q", HUGE, CorruptCheckpointError, "bytes in a text"),
    ],
)
def test_numbers_that_a_file_makes_up(file, place, code, value, error, match):
    refused(changed(file, place, code, value), error, match)


@pytest.mark.parametrize("count", [HUGE, 1 << 62, 1 << 40, 1 << 21])
def test_counts_of_arrays(file, count):
    """Beyond the file, or beyond what any file has; nothing is allocated by them."""
    place = file.read_bytes().index(b"a.long") + len("a.long") + 8
    refused(changed(file, place, "<Q", count))


def test_arrays_of_many_empty_texts_are_refused_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_walk, "MAX_ENTRIES", 1 << 12)
    file = tmp_path / "model.gguf"
    key = struct.pack("<Q1sIIQ", 1, b"a", gguf_walk.ARRAY, gguf_walk.TEXT, 1 << 13)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + bytes(8 << 13))
    refused(file, match="entries in an array")


def entry(name=b"a", shape=(32,), kind=0, start=0):
    return struct.pack(f"<Q{len(name)}sI{len(shape)}QIQ", len(name), name, len(shape), *shape, kind, start)


def with_tensors(file, *entries, nbytes=4096):
    header = b"GGUF" + struct.pack("<IQQ", 3, len(entries), 0) + b"".join(entries)
    file.write_bytes(header + bytes(-len(header) % 32 + nbytes))
    return file


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([entry(shape=(1 << 40, 1 << 40))], "cut off"),
        ([entry(shape=(HUGE, HUGE))], "cut off"),
        ([entry(shape=(2, 2, 2, 2, 2))], "dimensions"),
        ([entry(shape=(0,))], "shape"),
        ([entry(shape=(33,), kind=GGMLQuantizationType.Q8_0)], "shape"),
        ([entry(start=1 << 60)], "cut off"),
        ([entry(start=5)], "not aligned"),
        ([entry(), entry()], "one name"),
        ([entry(), entry(b"b")], "where another tensor lies"),
        ([entry(), entry(b"b", start=64)], "where another tensor lies"),
        ([entry(b"\xff")], "no text"),
    ],
)
def test_tensors_that_cannot_be(tmp_path, entries, match):
    refused(with_tensors(tmp_path / "model.gguf", *entries), match=match)


def test_an_unknown_type(tmp_path):
    refused(with_tensors(tmp_path / "model.gguf", entry(kind=4)), UnsupportedModelError, "type 4")


def test_a_key_that_stands_twice(tmp_path):
    key = struct.pack("<Q1sIB", 1, b"a", 0, 5)
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * key)
    refused(tmp_path / "model.gguf", match="twice")


def test_mutated_headers():
    """The same few every time; the script makes any number of others."""
    command = [sys.executable, str(SCRIPT), "--mutations", str(MUTATIONS), "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{MUTATIONS} mutations" in done.stdout
