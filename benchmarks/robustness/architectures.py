"""Random models of many architectures, small enough for tests, saved as a user would save them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 300
SIZES = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
GROUPED = dict(
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=256, pad_token_id=None
)
WINDOW = dict(sliding_window=4)  # shorter than the prompts of the probe at load
EXTRA: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED | WINDOW,
    "qwen2": GROUPED | WINDOW | dict(use_sliding_window=True, max_window_layers=1),
    "qwen3": GROUPED | dict(head_dim=32),
    "gemma2": GROUPED | WINDOW | dict(head_dim=16, attn_logit_softcapping=2.0, query_pre_attn_scalar=16),
    "gpt_oss": GROUPED | WINDOW | dict(head_dim=16, num_local_experts=4, num_experts_per_tok=2),
    "phi3": GROUPED | WINDOW,
    "olmo2": GROUPED,
    "gpt2": dict(n_positions=256, eos_token_id=256, bos_token_id=256),
    "gpt_neo": dict(num_layers=3, num_heads=4, attention_types=[[["global", "local", "global"], 1]], window_size=4),
    "gptj": dict(rotary_dim=8),
    "bloom": {},
    "falcon": dict(new_decoder_architecture=False),
    "deepseek_v3": GROUPED
    | dict(
        num_key_value_heads=4, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16
    )
    | dict(n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1)
    | dict(moe_intermediate_size=32),
    "mamba": dict(state_size=4),
}


def make_tiny(architecture: str, folder: Path, tie: bool = False) -> Path:
    """Write a random model of the architecture and a byte tokenizer into the folder, and return it."""
    sizes = {name: size for name, size in SIZES.items() if architecture != "gpt_neo" or not name.startswith("num_")}
    config = AutoConfig.for_model(architecture, **sizes, **EXTRA[architecture], tie_word_embeddings=tie)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() >= 2:  # at the usual 0.02 a random model hardly looks at its context
                    parameter.normal_(std=0.2)
    module.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, id 256 ends a text."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
