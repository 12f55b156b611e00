"""What makes features of sound, as a checkpoint describes it."""

from __future__ import annotations

import json

import pytest

from encoder_checkpoints import extractor
from pagoda.errors import CorruptCheckpointError, ModelError
from pagoda.models.feature_extractor import load_feature_extractor


def test_none(tmp_path):
    assert load_feature_extractor(tmp_path) is None


def test_a_saved_one(tmp_path):
    extractor().save_pretrained(tmp_path)
    assert load_feature_extractor(tmp_path).n_samples == extractor().n_samples


def test_one_inside_of_the_processor(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor().to_dict()}))
    assert load_feature_extractor(tmp_path).n_samples == extractor().n_samples


@pytest.mark.parametrize(
    "values",
    [
        {"n_fft": 10**9},
        {"feature_size": 10**9},
        {"chunk_length": 10**9},
        {"hop_length": 0},
        {"sampling_rate": "x"},
        {"feature_extractor_type": "Wav2Vec2FeatureExtractor"},
        {"feature_extractor_type": "AutoModel"},
    ],
    ids=repr,
)
def test_nonsense(tmp_path, values):
    extractor().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(ModelError, match="preprocessor_config"):
        load_feature_extractor(tmp_path)


def test_what_is_no_object(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(CorruptCheckpointError, match="not an object"):
        load_feature_extractor(tmp_path)
