"""A Llama of random weights with tokenizers of two kinds, for what it may write."""

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_msa.models.msa_mllm import LocalMllm
from tiny_mllm import tiny_mllm_tokenizer

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}>"
)


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: a mark for spaces, several digits to a token, bytes for what is not there."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"-.0123456789:?,",
        *"Scorean",
    ]
    merged = ["12", "123", "1.", "1.5", "-1", "\u25811", "\u2581-", "\u2581\u2581", "\u258112", ".5", "--", "..."]
    merges = [("1", "2"), ("12", "3"), ("1", "."), ("1.", "5"), ("-", "1"), ("\u2581", "1"), ("\u2581", "-")]
    merges += [("\u2581", "\u2581"), ("\u25811", "2"), (".", "5")]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *merged])}
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_mllm_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


TOKENIZERS = {"bytes": byte_tokenizer, "spaced": spaced_tokenizer}


class TextProcessor:
    """A tokenizer in the place of a processor."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def __call__(self, **options: Any) -> Any:
        return self.tokenizer(**options)

    def apply_chat_template(self, turns: Any, **options: Any) -> str:
        texts = [{**turn, "content": turn["content"]} for turn in turns]
        return str(self.tokenizer.apply_chat_template(texts, **options))


def tiny_llama(tokenizer: PreTrainedTokenizerFast, seed: int) -> LocalMllm:
    """Random weights, large enough for answers of all kinds, and more ids than the tokenizer knows."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=1.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LocalMllm(LlamaForCausalLM(config).eval(), TextProcessor(tokenizer), name="tiny-llama")
