"""GGUF files through pages: the logits of transformers over the numbers that are decoded from the files."""

from __future__ import annotations

import json
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gguf_models import FAMILIES, write_gguf
from pagoda.checkpoint.directory import checkpoint_directory
from pagoda.errors import CorruptCheckpointError, UnsupportedModelError
from pagoda.models.coded import coded_weights, decode
from pagoda.models.digest import outline_digest, weights_digest
from pagoda.models.gguf_weights import ARCHITECTURES, gguf_weights
from pagoda.models.kept_digest import kept_weights_digest
from pagoda.models.loader import load_model
from pagoda.models.selftest import PagedRun

TYPES = GGMLQuantizationType
TABLE = "model.embed_tokens.weight"
TOLERANCE = 1e-4  # rounding of fp32


pytestmark = pytest.mark.usefixtures("gguf_read_here")


def token_ids(network):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, network.config.vocab_size, (count,), generator=generator) for count in (37, 23)]


@torch.inference_mode()
def check_logits(model, network):
    """Those of packed pages, prefilled and decoded, beside those of transformers' own forward."""
    decode(model.network)  # inputs of codes are coded, too, which is another test's matter
    sequences = token_ids(network)
    for ids, logits in zip(sequences, PagedRun(model).logits(sequences), strict=True):
        expected = network(ids[None]).logits[0].float()
        assert (logits - expected).norm() < TOLERANCE * expected.norm()


@pytest.mark.parametrize("architecture", FAMILIES)
def test_logits_are_those_of_the_decoded_numbers(tmp_path, architecture):
    written = write_gguf(tmp_path / "model.gguf", architecture)
    model = load_model(written.file, dtype="float32")
    assert coded_weights(model.network), "nothing is coded"
    check_logits(model, written.network)


def test_all_architectures_that_are_read_are_held_to_transformers():
    assert set(FAMILIES) == ARCHITECTURES


@pytest.mark.parametrize("kind", [TYPES.Q4_0, TYPES.Q5_0, TYPES.Q4_K, TYPES.F32, TYPES.F16, TYPES.BF16])
def test_types(tmp_path, kind):
    written = write_gguf(tmp_path / "model.gguf", "llama", kind, hidden_size=256, intermediate_size=256)
    model = load_model(written.file, dtype="float32")
    is_plain = kind in (TYPES.F32, TYPES.F16, TYPES.BF16)
    assert bool(coded_weights(model.network)) is not is_plain
    check_logits(model, written.network)


def test_weights_are_decoded_for_full_activations(tmp_path):
    written = write_gguf(tmp_path / "model.gguf", "llama")
    assert not coded_weights(load_model(written.file, activations="full").network)


def test_codes_are_those_of_the_file(tmp_path):
    """In the order of transformers' rows, to the last bit."""
    written = write_gguf(tmp_path / "model.gguf", "llama", TYPES.Q4_0)
    coded = coded_weights(load_model(written.file).network)
    own = written.network.state_dict()
    assert {name for name, weight in own.items() if weight.dim() == 2} == coded.keys()
    for name, weight in coded.items():
        assert torch.equal(weight.decode(torch.float32), own[name]), name


EXPERTS = "model.layers.1.mlp.experts"


@pytest.mark.parametrize("architecture", ["qwen2moe", "qwen3moe"])
def test_experts_are_held_in_the_codes_of_the_file(tmp_path, architecture):
    """And nothing else of them: gates and what they gate are columns of one matrix."""
    written = write_gguf(tmp_path / "model.gguf", architecture, TYPES.Q4_0)
    network = load_model(written.file, dtype="float32").network
    coded, own = coded_weights(network), written.network.state_dict()
    for name in (f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"):
        assert torch.equal(coded[name].decode(torch.float32), own[name])
        assert coded[name].nbytes == own[name].numel() * 18 // 32
    parameters = [each for name, each in network.named_parameters() if EXPERTS in name]
    assert sum(each.nbytes for each in parameters) == sum(
        weight.nbytes for name, weight in coded.items() if EXPERTS in name
    )


def test_experts_whose_gates_have_a_type_of_their_own(tmp_path):
    def kind(name):
        return TYPES.Q5_0 if "gate_exps" in name else TYPES.Q4_0

    written = write_gguf(tmp_path / "model.gguf", "qwen3moe", kind)
    model = load_model(written.file, dtype="float32")
    coded, own = coded_weights(model.network), written.network.state_dict()[f"{EXPERTS}.gate_up_proj"]
    parts = [coded[f"{EXPERTS}.gate_up_proj.{part}"] for part in range(2)]
    assert [part.kind for part in parts] == ["q5_0", "q4_0"]
    assert torch.equal(torch.cat([part.decode() for part in parts], dim=1), own)
    check_logits(model, written.network)


def test_experts_of_a_type_that_is_not_kept_are_decoded(tmp_path):
    """Of one matrix alone: the other is coded, and products with both are made."""

    def kind(name):
        return TYPES.F16 if "up_exps" in name else TYPES.Q4_0

    written = write_gguf(tmp_path / "model.gguf", "qwen3moe", kind)
    model = load_model(written.file, dtype="float32")
    assert [name for name in coded_weights(model.network) if EXPERTS in name] == [f"{EXPERTS}.down_proj"]
    ids = token_ids(model.network)
    with torch.inference_mode():
        expected = [written.network(each[None]).logits[0] for each in ids]
        for logits, theirs in zip(PagedRun(model).logits(ids), expected, strict=True):
            assert (logits - theirs).norm() < 0.1 * theirs.norm()
    check_logits(model, written.network)


def test_a_head_of_its_own_beside_a_table_of_another_type(tmp_path):
    def kind(name):
        return TYPES.Q4_0 if name == "token_embd.weight" else TYPES.Q8_0

    written = write_gguf(tmp_path / "model.gguf", "qwen2", kind, tie_word_embeddings=False)
    model = load_model(written.file, dtype="float32")
    assert coded_weights(model.network)["lm_head.weight"].nbytes > coded_weights(model.network)[TABLE].nbytes
    check_logits(model, written.network)


def test_a_tied_head_holds_nothing(tmp_path):
    written = write_gguf(tmp_path / "model.gguf", "qwen2")
    model = load_model(written.file)
    assert model.weight_nbytes < written.file.stat().st_size
    assert model.table_nbytes == 0


def test_the_file_decides_whether_a_head_is_tied(tmp_path):
    """What configurations say is often of another file."""
    written = write_gguf(tmp_path / "model.gguf", "qwen2", tie_word_embeddings=False)
    (tmp_path / "config.json").write_text(json.dumps(written.network.config.to_dict() | {"tie_word_embeddings": True}))
    check_logits(load_model(written.file, dtype="float32"), written.network)


def test_numbers_that_are_decoded_have_the_type_that_is_asked_for(tmp_path):
    written = write_gguf(tmp_path / "model.gguf", "llama")
    assert load_model(written.file).dtype is torch.bfloat16
    assert load_model(written.file, dtype="float16").dtype is torch.float16
    plain = write_gguf(tmp_path / "plain.gguf", "llama", TYPES.F16)
    assert load_model(plain.file).dtype is torch.float16


def test_rotations_of_llama_3(tmp_path):
    """Their factors are a tensor, which transformers' own loader leaves out."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    settings = {"rope_parameters": scaling, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    written = write_gguf(tmp_path / "model.gguf", "llama", more=rope_factors(scaling, 32), **settings)
    model = load_model(written.file, dtype="float32")
    assert torch.allclose(model.network.model.rotary_emb.inv_freq, written.network.model.rotary_emb.inv_freq, rtol=1e-4)


def rope_factors(scaling, width):
    def write(writer):
        plain = torch.tensor(scaling["rope_theta"]) ** (-torch.arange(0, width, 2) / width)
        config = AutoConfig.for_model("llama", head_dim=width, rope_parameters=scaling, max_position_embeddings=1 << 17)
        stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        writer.add_tensor("rope_freqs.weight", (plain / stretched).numpy())

    return write


def test_rotations_by_factors_of_no_known_kind_are_refused(tmp_path):
    def write(writer):
        writer.add_tensor("rope_freqs.weight", np.array([1, 2, 3, 5, 8, 13, 21, 34], np.float32))

    written = write_gguf(tmp_path / "model.gguf", more=write)
    with pytest.raises(UnsupportedModelError, match="factors"):
        load_model(written.file)


def test_a_weight_that_is_missing(tmp_path):
    written = write_gguf(tmp_path / "model.gguf", without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(
        CorruptCheckpointError, match=r"model\.gguf lacks 1 weights of the model: model\.layers\.1\.mlp\.up"
    ):
        load_model(written.file)


def test_a_weight_that_has_no_place(tmp_path):
    """Transformers' own loader would leave it out."""

    def write(writer):
        writer.add_tensor("blk.0.attn_q.bias", np.zeros(64, np.float32))

    written = write_gguf(tmp_path / "model.gguf", more=write)
    with pytest.raises(UnsupportedModelError, match=r"no place for: blk\.0\.attn_q\.bias"):
        load_model(written.file)


def test_an_architecture_that_transformers_does_not_read_is_refused_by_name(tmp_path):
    written = write_gguf(tmp_path / "model.gguf")
    changed = written.file.read_bytes().replace(b"llama", b"olmo2")
    written.file.write_bytes(changed)
    with pytest.raises(UnsupportedModelError, match="olmo2"):
        load_model(written.file)
    (tmp_path / "config.json").write_text(json.dumps(written.network.config.to_dict()))
    with pytest.raises(UnsupportedModelError, match="olmo2"):
        load_model(written.file)


def test_parts_of_a_split_model(tmp_path):
    written = write_gguf(tmp_path / "model.gguf", split_max_tensors=12)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 2
    for path in (tmp_path, parts[1]):
        check_logits(load_model(path, dtype="float32"), written.network)


def test_without_compiled_kernels_all_weights_are_decoded(tmp_path, monkeypatch):
    written = write_gguf(tmp_path / "model.gguf", kind=TYPES.Q4_0)
    monkeypatch.setattr("pagoda.models.gguf_weights.can_hold_codes", lambda: False)
    with gguf_weights(checkpoint_directory(written.file)) as weights:
        network = weights.load(written.network.config, torch.float32)
    assert not coded_weights(network)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, written.network.state_dict()[name]), name


def test_digests_tell_codings_apart(tmp_path):
    """Another rounding is another model."""
    eight, four = (write_gguf(tmp_path / f"{kind.name}.gguf", kind=kind).file for kind in (TYPES.Q8_0, TYPES.Q4_0))
    models = [load_model(file) for file in (eight, four, eight)]
    assert weights_digest(models[0].network) == weights_digest(models[2].network)
    assert weights_digest(models[0].network) != weights_digest(models[1].network)
    assert outline_digest(models[0].network) == outline_digest(models[2].network)
    assert outline_digest(models[0].network) != outline_digest(models[1].network)


def test_the_digest_is_kept_and_never_stale(tmp_path, monkeypatch):
    monkeypatch.setattr("pagoda.models.kept_digest.WORTH_NBYTES", 0)
    monkeypatch.setattr("pagoda.models.kept_digest.SETTLED_SECONDS", -1.0)
    written = write_gguf(tmp_path / "model.gguf")
    model = load_model(written.file)
    digest = kept_weights_digest(model.network, model.origin)
    computed = Mock(side_effect=weights_digest)
    monkeypatch.setattr("pagoda.models.kept_digest.weights_digest", computed)
    again = load_model(written.file)
    assert kept_weights_digest(again.network, again.origin) == digest
    assert not computed.called
    write_gguf(written.file, kind=TYPES.Q4_0)
    other = load_model(written.file)
    assert kept_weights_digest(other.network, other.origin) != digest
    assert computed.called
