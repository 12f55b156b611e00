"""Which families the spec of a cache is held to, by what their `model_type` is where a config.json tells of text.

A test holds the names equal to the families that are discovered. What is said of others is read as it is written, and
no network has been asked whether that is all.
"""

_NAMES = """
afmoe apertus arcee aria_text axk1 bailing_hybrid bamba bart beam bert bert-generation biogpt bitnet blenderbot
blenderbot-small bloom camembert codegen cohere cohere2 cohere2_moe cohere_compass_text ctrl cwm data2vec-text
dbrx deepseek_v2 deepseek_v3 dots1 electra emu3_text_model ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon
falcon_h1 falcon_mamba flex_olmo flint gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text git
glm glm4 glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite
granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe
hy_v3 hyperclovax internlm3 iquestcoder jais2 jamba kimi_linear kolibri1 laguna lfm2 lfm2_moe lfm3 llama
llama4_text longt5 m2m_100 mamba mamba2 marian mbart megatron-bert mellum minicpm3 minimax_m2 minimax_m3_vl_text
ministral ministral3 mistral mixtral modernbert-decoder mpt mt5 nanochat nemotron nemotron_h olmo olmo2 olmo3
olmo_hybrid olmoe openai-gpt opt pegasus pegasus_x persimmon phi phi3 phi4_multimodal phimoe plbart qwen2
qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next rembert roberta roberta-prelayernorm roc_bert
seed_oss smollm3 solar_open stablelm starcoder2 t5 t5_gemma_module umt5 vaultgemma whisper xglm xlm-roberta
xlm-roberta-xl xmod youtu zamba zamba2
"""
KNOWN_FAMILIES = frozenset(_NAMES.split())
# Families that have the architecture of another under a name of their own.
SAME_AS = {"kimi_k2": "deepseek_v3"}
