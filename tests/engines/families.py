"""Micro models of several families, each with what makes it special switched on."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import micro
from xwincli.chat import Template
from xwincli.models import Loaded, Place

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "attn_implementation": "eager",
    "tie_word_embeddings": False,  # a random model with tied ones repeats its last token for ever
}
FAMILIES = {
    "llama": {},
    "llama-mha": {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 6},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4},
    "gpt_neox": {},
}
SLOW = {
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4},  # attention sinks
    "mamba": {"state_size": 4},
    "bloom": {},
}


def model(family: str, vocabulary: int, seed: int = 0, **special):
    torch.manual_seed(seed)
    options = {**COMMON, **FAMILIES.get(family, SLOW.get(family, {})), **special, "vocab_size": vocabulary}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.partition("-")[0], **options))
    with torch.no_grad():  # sharp enough that no greedy choice is a near-tie
        for p in made.parameters():
            if p.ndim >= 2:
                p.mul_(4)
    made.generation_config.bos_token_id = None
    return made.eval()


def loaded(family: str, seed: int = 0, **special) -> Loaded:
    tok = micro.tokenizer()
    made = model(family, len(tok), seed, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, **special)
    place = Place(torch.device("cpu"), torch.float32)
    return Loaded(made, tok, Template(tok, [tok.eos_token_id]), place, family)
