"""Which families of transformers that generate text run through pages, and why the others do not.

Names are model types of `MODEL_FOR_CAUSAL_LM_MAPPING`, and encoder-decoder models of the mappings for text and speech;
every one of them is in exactly one of the tables below.
`build_tiny` makes the tiny random model that all oracle tests compare against: fp32, eager attention, fixed seed.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from pagoda.models.quiet import quiet
from pagoda.models.selftest import tiny_network


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Logits through pages equal transformers' own, uncached and in generate().
FAMILIES: tuple[str, ...] = _words(
    """
    afmoe apertus arcee aria_text axk1 bailing_hybrid bamba beam bert bert-generation biogpt bitnet bloom
    codegen cohere cohere2 cohere2_moe cohere_compass_text ctrl cwm dbrx deepseek_v2 deepseek_v3 diffllama dots1
    electra emu3 ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint
    fuyu gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified_text git glm glm4
    glm4_moe glm4_moe_lite got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj
    granite granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hunyuan_v1_dense
    hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 jamba jetmoe kimi_linear kolibri1 laguna lfm2
    lfm2_moe lfm3 llama llama4 llama4_text longcat_flash mamba mamba2 megatron-bert mellum mimo_v2_flash
    minicpm3 minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder
    moss_transcribe_diarize mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt
    persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text
    qwen3_5_text qwen3_moe qwen3_next rembert roc_bert seed_oss smollm3 solar_open stablelm starcoder2
    vaultgemma xglm youtu zamba zamba2
    """
)

# The same of families whose decoders attend to an encoder's output.
ENCODER_DECODERS: tuple[str, ...] = _words(
    """
    bart blenderbot blenderbot-small longt5 m2m_100 marian mbart mt5 pegasus pegasus_x plbart t5 t5gemma umt5 whisper
    """
)

# Logits through pages equal transformers' own uncached forward, but generate() does not agree with that forward.
FORWARD_ONLY: dict[str, str] = {
    **dict.fromkeys(
        ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
        "generate() passes positions from 0, the forward counts from the padding index",
    ),
    "hrm_text": "the tiny copy states fewer layers than it runs through, and transformers' cache believes it",
    "moshi": "its cache forgets by a window that its attention does not have",
}

# Every other family is refused at load; the message contains the text given here.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        _words(
            """
            big_bird cpmant doge reformer roformer rwkv trocr xlm xlnet
            """
        ),
        "never calls the attention interface",
    ),
    **dict.fromkeys(
        _words(
            """
            canary cohere_asr dia moonshine moonshine_streaming pop2piano seamless_m4t seamless_m4t_v2
            speech-encoder-decoder speech_to_text speecht5
            """
        ),
        "reads sound in a way of its own",
    ),
    **dict.fromkeys(("bigbird_pegasus", "nllb-moe", "switch_transformers"), "beside other requests"),
    **dict.fromkeys(("led", "mvp", "prophetnet"), "never calls the attention interface"),
    **dict.fromkeys(("fsmt", "musicgen", "musicgen_melody"), "cannot build"),
    "t5gemma2": "cannot build",  # one softmax over the tokens of encoder and decoder
    "encoder-decoder": "gives other logits",
    **dict.fromkeys(
        _words(
            """
            axk2 deepseek_v32 deepseek_v4 dots3_note dots3_note_text glm_moe_dsa hy_v4 inkling2_text
            inkling_text qwen4_exp qwen4_exp_text
            """
        ),
        "layers of kind",
    ),
    "blt": "blt",  # patches bytes by entropy; where its forward stops depends on uninitialised weights
    "gemma3n": "timm",  # the text decoder alone, gemma3n_text, runs
    "gemma4_assistant": "cannot build",  # a drafter that reads the cache of another model
    "gemma4_unified": "blockwise_overlay",  # image blocks attend both ways; gemma4_unified_text runs
    "gemma4_unified_assistant": "cannot build",
    **dict.fromkeys(("minimax", "recurrent_gemma"), "something other than keys and values"),
    **dict.fromkeys(("xlstm", "zaya"), "recurrent state"),
    "mllama": "layers",  # cross-attention to images
}

# Default configurations are not always complete, and encoders become decoders when asked.
OVERRIDES: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {"attn_config": {"kv_n_heads": 4, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 30}
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "longcat_flash": {"n_routed_experts": 16},  # 512 of them take more memory than there is
    "bamba": {"attn_layer_indices": [3, 9]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    # Transformers limits time steps from below where it scans and not where it decodes; see `time_steps.py`.
    "nemotron_h": {"time_step_min": 1e-30},
    "zamba2": {"time_step_min": 1e-30},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    # Refused at any size, and slow at their own.
    "rwkv": {"num_hidden_layers": 2, "hidden_size": 64, "attention_hidden_size": 64},
    "xlm": {"n_layers": 2},
    "cpmant": {"num_hidden_layers": 2},
    "xlstm": {"num_hidden_layers": 2},
    "xmod": {"default_language": "en_XX"},
}


def encoder_decoders() -> set[str]:
    """The model types of transformers that generate text from what an encoder reads."""
    names = {*MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES}
    with quiet():
        return {name for name in names if AutoConfig.for_model(name).is_encoder_decoder}


def default_config(family: str) -> Any:
    """The configuration a family has by default, as a decoder."""
    with quiet():
        config = AutoConfig.for_model(family, **OVERRIDES.get(family, {}))
    if "is_decoder" in config.to_dict():
        config.is_decoder = True
    return config


def build_tiny(family: str, seed: int = 0) -> Any:
    """A tiny transformers model with random weights: fp32, eager attention, on the CPU."""
    return tiny_network(default_config(family), seed)
