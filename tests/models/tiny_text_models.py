"""Causal language models that read text alone, with random weights, made in memory."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
)

from hf_msa.models.msa_mllm import LocalMllm
from tiny_mllm import tiny_mllm_tokenizer

# As in the templates of Llama and Gemma, which write the beginning of text themselves.
BOS_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2}

FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "qwen2": (Qwen2Config, _GROUPED),
    "llama": (LlamaConfig, _GROUPED),
    "gemma3_text": (Gemma3TextConfig, {**_GROUPED, "head_dim": 8, "sliding_window": 16}),
    "phi3": (Phi3Config, _GROUPED),
    "gpt2": (GPT2Config, {**_SIZES, "n_positions": 1024}),
    "gpt_neox": (GPTNeoXConfig, _SIZES),
    "falcon": (FalconConfig, {**_SIZES, "new_decoder_architecture": False}),
    "qwen2_moe": (
        Qwen2MoeConfig,
        {
            **_GROUPED,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
}
"""Families of language models -> their configurations: other names of layers, other kinds of attention."""


def tiny_text_tokenizer(chat_template: str | None = BOS_TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per byte, with a beginning of text that the tokenizer puts before everything, as Llama's does."""
    tokenizer = tiny_mllm_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.chat_template = chat_template
    from tokenizers.processors import TemplateProcessing

    begin = ("<|begin|>", tokenizer.convert_tokens_to_ids("<|begin|>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[begin])
    return tokenizer


def tiny_text_model(family: str = "qwen2", seed: int = 0) -> Any:
    """The model, with weights large enough that its answers depend on what it is given."""
    config_class, sizes = FAMILIES[family]
    tokenizer = tiny_text_tokenizer()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_class(vocab_size=len(tokenizer), **sizes)).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def tiny_text_mllm(family: str = "qwen2", chat_template: str | None = BOS_TEMPLATE) -> LocalMllm:
    """Model and tokenizer as one back end."""
    return LocalMllm(tiny_text_model(family), tiny_text_tokenizer(chat_template), name=f"tiny-{family}")
