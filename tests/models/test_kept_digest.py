"""The digest of weights that is kept beside a checkpoint is right, or is not believed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints import edit, make_network, save
from pagoda import LLM
from pagoda.checkpoint.weights import SINGLE
from pagoda.models import kept_digest
from pagoda.models.digest import weights_digest
from pagoda.models.kept_digest import FILE_NAME, kept_weights_digest
from pagoda.models.loader import load_model
from pagoda.models.model import Model


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The networks whose weights were read. Small weights count, too, and files that have just been written."""
    networks: list[Any] = []

    def compute(network: Any) -> str:
        networks.append(network)
        return weights_digest(network)

    monkeypatch.setattr(kept_digest, "weights_digest", compute)
    monkeypatch.setattr(kept_digest, "WORTH_NBYTES", 0)
    monkeypatch.setattr(kept_digest, "SETTLED_SECONDS", -60.0)
    return networks


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(make_network(), tmp_path / "model")


def digest_of(model: Model) -> str:
    digest = kept_weights_digest(model.network, model.origin)
    assert digest == weights_digest(model.network)
    return digest


def test_a_digest_is_computed_once(checkpoint, computed) -> None:
    digest = digest_of(load_model(checkpoint))
    assert digest_of(load_model(checkpoint)) == digest
    assert len(computed) == 1
    assert json.loads((checkpoint / FILE_NAME).read_text())["weights"] == digest
    assert [each.name for each in checkpoint.glob(".*")] == [FILE_NAME]


def test_a_byte_changed_behind_the_time_of_its_file_is_seen(checkpoint, computed) -> None:
    digest = digest_of(load_model(checkpoint))
    file = checkpoint / SINGLE
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-5, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-5, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert digest_of(load_model(checkpoint)) != digest
    assert len(computed) == 2


def test_another_checkpoint_with_its_file_is_computed(checkpoint, computed, tmp_path) -> None:
    """A file that came with a download, or was copied with everything else, says nothing of these files."""
    digest_of(load_model(checkpoint))
    other = save(make_network(), tmp_path / "other")
    (other / FILE_NAME).write_bytes((checkpoint / FILE_NAME).read_bytes())
    digest_of(load_model(other))
    assert len(computed) == 2


@pytest.mark.parametrize("change", ["type", "positions"])
def test_what_decides_the_weights_beside_their_files_counts(checkpoint, computed, change) -> None:
    digest = digest_of(load_model(checkpoint))
    if change == "positions":
        edit(checkpoint / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    other = load_model(checkpoint, dtype="bfloat16" if change == "type" else "auto")
    assert digest_of(other) != digest


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: told[:-20],
        lambda told: re.sub('("weights": ".)(.)', lambda found: found[1] + ("1" if found[2] == "0" else "0"), told),
        lambda told: json.dumps(json.loads(told) | {"weights": "0" * 32}),
        lambda told: json.dumps(json.loads(told) | {"weights": ["0" * 32]}),
        lambda told: json.dumps(json.loads(told) | {"files": {}}),
        lambda told: json.dumps(json.loads(told) | {"scheme": 0}),
        lambda told: "[" * 100_000,
        lambda told: '"' + "a" * (2 << 20) + '"',
        lambda told: "[]",
        lambda told: "\udc80",
    ],
)
def test_a_damaged_file_is_written_again(checkpoint, computed, damage) -> None:
    digest_of(load_model(checkpoint))
    file = checkpoint / FILE_NAME
    right = file.read_bytes()
    file.write_bytes(damage(right.decode()).encode(errors="surrogateescape"))
    assert file.read_bytes() != right
    digest_of(load_model(checkpoint))
    assert len(computed) == 2
    assert file.read_bytes() == right


def test_a_folder_that_takes_no_file_is_no_obstacle(checkpoint, computed) -> None:
    (checkpoint / FILE_NAME).mkdir()
    assert digest_of(load_model(checkpoint)) == digest_of(load_model(checkpoint))
    assert len(computed) == 2
    assert [each.name for each in checkpoint.glob(".*")] == [FILE_NAME]


def test_changed_networks_are_neither_looked_up_nor_kept(checkpoint, computed) -> None:
    model = load_model(checkpoint)
    with torch.no_grad():
        model.network.lm_head.weight[3, 3] += 1
    changed = digest_of(model)
    assert not (checkpoint / FILE_NAME).exists()
    assert digest_of(load_model(checkpoint)) != changed
    assert digest_of(model) == changed
    model.network.lm_head.weight = torch.nn.Parameter(model.network.lm_head.weight.detach() - 1)
    digest_of(model)
    assert len(computed) == 4


def test_files_that_change_after_loading_are_not_those_of_the_network(checkpoint, computed) -> None:
    model = load_model(checkpoint)
    save(make_network(num_hidden_layers=1), checkpoint)
    digest_of(model)
    (checkpoint / SINGLE).unlink()
    digest_of(model)
    assert not (checkpoint / FILE_NAME).exists()


def test_files_that_were_changed_just_before_are_not_vouched_for(checkpoint, computed, monkeypatch) -> None:
    monkeypatch.setattr(kept_digest, "SETTLED_SECONDS", 3600.0)
    digest_of(load_model(checkpoint))
    assert not (checkpoint / FILE_NAME).exists()


def test_an_engine_keeps_digests_of_paths_alone(checkpoint, computed) -> None:
    """Whoever hands a model over may have changed it in ways that do not show."""
    options = {"kv_cache_memory_bytes": 1 << 20, "num_threads": 1, "skip_tokenizer_init": True}
    with LLM(load_model(checkpoint), **options) as llm:
        weights = llm.engine.page_names.identity.weights
        assert not (checkpoint / FILE_NAME).exists()
    for _ in range(2):
        with LLM(checkpoint, **options) as llm:
            assert llm.engine.page_names.identity.weights == weights
    assert len(computed) == 2
