"""The tokenizer of a checkpoint directory: found, absent, broken, or made to do harm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import pagoda
from models.checkpoints import edit, make_network, save, write_pickle
from models.tokenizers import replace, sequence, split, token, tokenizer_json
from pagoda.errors import ConfigError, CorruptCheckpointError, ModelNotFoundError
from pagoda.models.tokenizer import load_tokenizer

EMBEDDED = Path(pagoda.__file__).parent / "assets" / "tiny"


@pytest.fixture
def words(tmp_path):
    """A directory with a tokenizer that was saved by transformers."""
    words = Tokenizer(WordLevel({"[UNK]": 0, "pages": 1, "in": 2, "tiers": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path / "words")
    return tmp_path / "words"


@pytest.fixture
def embedded(tmp_path):
    """A copy of the embedded model's."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, directory)
    return directory


def write(directory, **parts):
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json(**parts)))


def test_a_saved_tokenizer_is_loaded(words):
    assert load_tokenizer(words)("pages in tiers")["input_ids"] == [1, 2, 3]


def test_a_directory_without_one_gives_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(tmp_path) is None


def test_paths_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="tokenizer is a list"):
        load_tokenizer([])
    with pytest.raises(ModelNotFoundError):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize("text", ["{", "[]", "{}", "[" * 100_000, '{"model": {"vocab": 3}}', '{"added_tokens": 5}'])
def test_a_broken_one_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CorruptCheckpointError, match="tokenizer"):
        load_tokenizer(tmp_path)


def test_one_with_an_unknown_expression_is_tried_and_loaded(tmp_path):
    write(tmp_path, pre_tokenizer=split(r"\p{L}+|\p{N}{1,2}|[^\s\p{L}\p{N}]+|\s+"))
    assert load_tokenizer(tmp_path)("aab").input_ids == [2, 1]


# By an expression of which nobody knows what it may match.
MULTIPLYING = {"type": "Replace", "pattern": {"Regex": "(a)"}, "content": "a" * 1000}


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"normalizer": sequence("normalizers", *[MULTIPLYING] * 4)}, "memory"),
        ({"normalizer": MULTIPLYING}, "becomes .* tokens"),
        ({"decoder": replace("aa", "a" * 1000)}, "become .* characters"),
        ({"pre_tokenizer": split("(a+)+$")}, "retry-limit"),
        ({"pre_tokenizer": split("([x-z]|[w-y])*$")}, "retry-limit"),
        ({"pre_tokenizer": split(r"(\w+\s?)*$")}, "retry-limit"),
        ({"pre_tokenizer": split("a+c")}, "grows much faster"),
        ({"pre_tokenizer": split("(")}, "parenthesis"),
        ({"normalizer": {"type": "Unheard"}}, "Normalizer"),
    ],
)
def test_one_that_does_harm_is_found_out(tmp_path, parts, complaint):
    write(tmp_path, **parts)
    with pytest.raises(CorruptCheckpointError, match=f"no usable tokenizer; a trial .*{complaint}"):
        load_tokenizer(tmp_path)


def test_harm_that_is_done_while_it_is_loaded(tmp_path):
    """Added tokens are normalised then."""
    normalizer = sequence("normalizers", *[MULTIPLYING] * 4)
    write(tmp_path, normalizer=normalizer, added_tokens=[token("a", normalized=True)])
    with pytest.raises(CorruptCheckpointError, match="memory"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("table", ["AAAA", "BAAAAP////8="])
def test_panics_of_the_library_are_named(tmp_path, table):
    """At the one when the file is read, at the other when a text is."""
    write(tmp_path, normalizer={"type": "Precompiled", "precompiled_charsmap": table})
    with pytest.raises(CorruptCheckpointError, match="PanicException"):
        load_tokenizer(tmp_path)


def test_padding_to_a_huge_length_is_without_effect(tmp_path):
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "b"}
    write(tmp_path, padding=padding | {"pad_to_multiple_of": None})
    assert load_tokenizer(tmp_path)("aab").input_ids == [2, 1]


def test_a_file_that_is_far_too_large(embedded):
    with (embedded / "vocab.txt").open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(CorruptCheckpointError, match=r"vocab\.txt has more than"):
        load_tokenizer(embedded)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "AutoModel", "RagRetriever", "GPT2Config", "pipeline", 5, ["x"]])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_only_classes_of_tokenizers_are_used(tmp_path, name, file):
    """A class of models would read pickles."""
    directory = save(make_network(), tmp_path / "model")
    (directory / "model.safetensors").unlink()
    write_pickle(directory / "pytorch_model.bin", tmp_path / "mark")
    write(directory)
    (directory / "tokenizer_config.json").write_text("{}")
    edit(directory / file, tokenizer_class=name)
    with pytest.raises(CorruptCheckpointError, match="which is no tokenizer"):
        load_tokenizer(directory)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "name", ["tokenizer_file", "vocab_file", "merges_file", "gguf_file", "spm_file", "vocab", "name_or_path"]
)
def test_settings_cannot_name_other_files(embedded, tmp_path, name):
    """Old checkpoints name the file of whoever saved them, which must not keep theirs from being read."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps(tokenizer_json()))
    edit(embedded / "tokenizer_config.json", **{name: str(other)})
    assert len(load_tokenizer(embedded)) == 4096


def test_settings_name_versions_beside_them_only(embedded, tmp_path):
    (tmp_path / "tokenizer.4.0.0.json").write_text(json.dumps(tokenizer_json()))
    edit(embedded / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.0.json"])
    with pytest.raises(CorruptCheckpointError, match="only files beside it"):
        load_tokenizer(embedded)
    edit(embedded / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])
    (embedded / "tokenizer.4.0.0.json").write_text(json.dumps(tokenizer_json(pre_tokenizer=split("(a+)+$"))))
    with pytest.raises(CorruptCheckpointError, match="retry-limit"):
        load_tokenizer(embedded)


def test_special_tokens_cannot_name_files(embedded, tmp_path):
    (embedded / "special_tokens_map.json").write_text(json.dumps({"tokenizer_file": str(tmp_path / "other.json")}))
    with pytest.raises(CorruptCheckpointError, match=r"special_tokens_map\.json has 'tokenizer_file'"):
        load_tokenizer(embedded)


@pytest.mark.parametrize(
    "settings",
    [
        {"init_inputs": ["/etc/passwd"]},
        {"added_tokens_decoder": {"4000000000": token("<x>")}},
        {"added_tokens_decoder": {"x": 5}},
        {"fast_tokenizer_files": 5},
        {"tokenizer_padding": "x"},
        {"post_processor": "x"},
        {"extra_special_tokens": 5},
        {"model_max_length": "x"},
        {"bos_token": ["x"]},
    ],
    ids=repr,
)
def test_settings_that_are_nonsense(embedded, settings):
    edit(embedded / "tokenizer_config.json", **settings)
    with pytest.raises(CorruptCheckpointError):
        load_tokenizer(embedded)


def test_code_of_its_own_is_not_run(embedded, tmp_path):
    (embedded / "own.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    edit(embedded / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]}, trust_remote_code=True)
    load_tokenizer(embedded)
    assert not (tmp_path / "mark").exists()


def test_the_configuration_beside_it_is_not_built(embedded):
    edit(embedded / "config.json", num_labels=10**9, configuration_files=["config.9.0.0.json"])
    assert len(load_tokenizer(embedded)) == 4096
