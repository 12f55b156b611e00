"""What llm-comply says of each API, with a model whose answers end: it writes "H." and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig

from pagoda import LLM
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.loader import Model, model_from_config
from server.running import MODEL, MOST_SECONDS, Running, running


def brief_model() -> Model:
    """Each token says which comes next: after any other one "H", then ".", then the end. Inside a form, where
    "H" may not come, strings end at once."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    start, stop, quote = (tokenizer.convert_tokens_to_ids(text) for text in ("H", ".", '"'))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = model_from_config(config)
    state = model.network.state_dict()
    with torch.no_grad():
        for name, weight in state.items():
            if not name.endswith("norm.weight"):
                weight.zero_()
        embeddings, logits = state["model.embed_tokens.weight"], state["lm_head.weight"]
        embeddings[:, 0] = 1
        embeddings[[start, stop], 0] = 0
        embeddings[start, 1] = embeddings[stop, 2] = 1
        logits[start, 0], logits[stop, 1], logits[tokenizer.eos_token_id, 2], logits[quote] = 100, 100, 100, 50
    return model


@pytest.fixture(scope="module")
def brief():
    with (
        LLM(brief_model(), tokenizer=EMBEDDED_MODEL, kv_cache_memory_bytes=8 << 20, num_threads=1) as llm,
        running(llm) as server,
    ):
        yield server


@pytest.mark.parametrize(
    ("format", "image"),
    [("openai-chat", "chat-image-input"), ("open-responses", "image-input"), ("anthropic", "anth-image-input")],
)
def test_all_complies_but_for_images_which_are_refused(brief: Running, format: str, image: str) -> None:
    command = [str(Path(sys.executable).parent / "llm-comply"), "run", "--json", "--format", format]
    command += ["-u", brief.url + "/v1", "-m", MODEL, "-k", "none"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=MOST_SECONDS)
    results = {each["id"]: each for each in json.loads(done.stdout)["results"]}
    assert results.pop(image)["errors"][0] == "HTTP 400 (expected [200])"
    assert {name: each["errors"] for name, each in results.items() if each["status"] == "failed"} == {}
    assert sum(each["status"] == "passed" for each in results.values()) > 5
