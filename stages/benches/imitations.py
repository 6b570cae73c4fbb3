"""Small imitations of the architectures that people train, each with what sets its family apart, with random weights.

The differences that matter here: what positions are, what a forward takes, which layers there are, how they are named,
what is tied, what is scaled, what drops out, what has a sequence classifier in the library, what sdpa cannot do.
"""

from dataclasses import dataclass, field

import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
LLAMA = {**BODY, "num_key_value_heads": 2, "intermediate_size": 64}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
GPT2_DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [4.0] * 4,
    "short_factor": [1.0] * 4,
    "original_max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Architecture:
    """A family of models. kind: the config's class in transformers; options: of a small one.

    template: the file of TRL that its chat models use; attention: what to set, where sdpa does not do.
    """

    kind: str
    options: dict = field(default_factory=lambda: LLAMA)
    template: str | None = None
    attention: str = "sdpa"


ARCHITECTURES = {
    "qwen3": Architecture("Qwen3Config", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True}, "qwen3"),
    "qwen2.5": Architecture("Qwen2Config", {**LLAMA, "tie_word_embeddings": True}, "qwen2_5"),
    "r1-distill": Architecture("Qwen2Config", LLAMA, "deepseek_r1_distill"),
    "llama-3.2": Architecture(
        "LlamaConfig", {**LLAMA, "tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}, "llama3_2"
    ),
    "smollm2": Architecture("LlamaConfig", {**LLAMA, "tie_word_embeddings": True}, "qwen2_5"),
    "smollm3": Architecture("SmolLM3Config", {**LLAMA, "no_rope_layers": [1, 0]}),
    "gemma-2": Architecture("Gemma2Config", {**LLAMA, "head_dim": 16, "sliding_window": 8}, "gemma", "eager"),
    "gemma-3": Architecture(
        "Gemma3TextConfig",
        {**LLAMA, "head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        "gemma3",
    ),
    "mistral": Architecture("MistralConfig", {**LLAMA, "sliding_window": 8}),
    "ministral": Architecture("MinistralConfig", {**LLAMA, "sliding_window": 8, "head_dim": 8}),
    "mixtral": Architecture("MixtralConfig", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi-2": Architecture("PhiConfig", {**BODY, "intermediate_size": 64, "resid_pdrop": 0.1}),
    "phi-3": Architecture("Phi3Config", {**LLAMA, "resid_pdrop": 0.1, "rope_parameters": LONGROPE}, "phi3"),
    "pythia": Architecture("GPTNeoXConfig", {**BODY, "intermediate_size": 64, "hidden_dropout": 0.1}),
    "gpt-2": Architecture("GPT2Config", {**GPT2, **GPT2_DROPOUT}),
    "gpt-neo": Architecture(
        "GPTNeoConfig",
        {
            **BODY,
            "num_layers": 2,
            "num_heads": 4,
            "window_size": 8,
            "attention_types": [[["global", "local"], 1]],
            "attention_dropout": 0.1,
        },
        None,
        "eager",
    ),
    "gpt-j": Architecture("GPTJConfig", {**GPT2, **GPT2_DROPOUT, "rotary_dim": 4}, None, "eager"),
    "gpt-bigcode": Architecture("GPTBigCodeConfig", {**GPT2, **GPT2_DROPOUT}),
    "codegen": Architecture("CodeGenConfig", {**GPT2, **GPT2_DROPOUT, "rotary_dim": 4}, None, "eager"),
    "opt": Architecture(
        "OPTConfig",
        {**BODY, "ffn_dim": 64, "word_embed_proj_dim": 16, "dropout": 0.1, "attention_dropout": 0.1, "layerdrop": 0.5},
    ),
    "olmo": Architecture("OlmoConfig", LLAMA),
    "olmo-2": Architecture("Olmo2Config", LLAMA),
    "olmo-3": Architecture("Olmo3Config", {**LLAMA, "sliding_window": 8}),
    "granite": Architecture(
        "GraniteConfig",
        {
            **LLAMA,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "attention_dropout": 0.1,
        },
    ),
    "granite-moe": Architecture("GraniteMoeConfig", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "falcon": Architecture(
        "FalconConfig",
        {**BODY, "multi_query": True, "alibi": False, "attention_dropout": 0.1, "hidden_dropout": 0.1},
    ),
    "falcon-rw": Architecture("FalconConfig", {**BODY, "multi_query": False, "alibi": True, "parallel_attn": False}),
    "gpt-oss": Architecture(
        "GptOssConfig",
        {**LLAMA, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
        "gptoss",
        "eager",
    ),
    "cohere": Architecture("CohereConfig", {**LLAMA, "logit_scale": 0.25}, "cohere"),
    "cohere-2": Architecture("Cohere2Config", {**LLAMA, "logit_scale": 0.25, "sliding_window": 8}, "cohere"),
    "starcoder2": Architecture("Starcoder2Config", {**LLAMA, "residual_dropout": 0.1, "embedding_dropout": 0.1}),
    "bloom": Architecture(
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.1, "attention_dropout": 0.1},
        None,
        "eager",
    ),
    "mpt": Architecture("MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}, None, "eager"),
    "stablelm": Architecture("StableLmConfig", {**LLAMA, "use_qkv_bias": True, "attention_dropout": 0.1}),
    "qwen2-moe": Architecture(
        "Qwen2MoeConfig",
        {**LLAMA, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32, "output_router_logits": True},
        "qwen2_5",
    ),
    "qwen3-moe": Architecture("Qwen3MoeConfig", {**LLAMA, **EXPERTS, "num_experts": 4, "head_dim": 8}, "qwen3"),
    "qwen3.5": Architecture(
        "Qwen3_5TextConfig",
        {
            **LLAMA,
            "head_dim": 16,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "deepseek-v3": Architecture(
        "DeepseekV3Config",
        {
            **LLAMA,
            **EXPERTS,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "glm-4": Architecture("Glm4Config", {**LLAMA, "head_dim": 8}),
    "nemotron": Architecture("NemotronConfig", LLAMA),
    "exaone-4": Architecture("Exaone4Config", {**LLAMA, "sliding_window": 8}),
    "lfm-2": Architecture("Lfm2Config", {**LLAMA, "layer_types": ["conv", "full_attention"]}),
    "mamba": Architecture("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, None, "eager"),
    "gemma-3-vision": Architecture(
        "Gemma3Config",
        {
            "text_config": {**LLAMA, "vocab_size": 1024, "head_dim": 16},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
        },
    ),
}


def small_model(name: str, vocab_size: int, tokens: dict) -> PreTrainedModel:
    """The imitation with random weights. tokens: ids of its control tokens."""
    architecture = ARCHITECTURES[name]
    config = getattr(transformers, architecture.kind)(**{**architecture.options, "vocab_size": vocab_size, **tokens})
    return AutoModelForCausalLM.from_config(config, attn_implementation=architecture.attention)
