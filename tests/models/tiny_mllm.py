"""A Qwen2.5-Omni thinker with random weights and its processor of real classes, made in memory, without the network."""

from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from hf_msa.models.msa_mllm import LocalMllm, MllmRequest
from hf_msa.models.msa_mllm_processing import FramesVideoProcessor, OmniFramesProcessor

SPECIAL = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
TURN = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
# What the checkpoints' own template does with the kinds of content used here.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FRAME_PIXELS = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}


def tiny_mllm_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, one for "-0" and "0." each, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "-0", "0."])}
    raw = Tokenizer(models.BPE(vocabulary, merges=[("-", "0"), ("0", ".")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True) for token in (*TURN, *SPECIAL.values())])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=SPECIAL,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_mllm_processor() -> OmniFramesProcessor:
    """Audio of at most two seconds; frames of one to four merged patches."""
    processor = OmniFramesProcessor(
        Qwen2VLImageProcessorPil(),
        FramesVideoProcessor(size=FRAME_PIXELS),
        WhisperFeatureExtractor(feature_size=16, chunk_length=2, return_attention_mask=True),
        tiny_mllm_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )
    processor.videos_kwargs = {"size": dict(FRAME_PIXELS)}
    return processor


def tiny_thinker_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5OmniThinkerConfig:
    """Two layers of width 32 in every part."""
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL.items()}
    return Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
            "tie_word_embeddings": False,
            "initializer_range": 0.3,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
        audio_config={
            "num_mel_bins": 16,
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "output_dim": 32,
            "n_window": 50,
            "initializer_range": 0.2,
        },
        image_token_index=ids["image_token"],
        audio_token_index=ids["audio_token"],
        video_token_index=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
        initializer_range=0.3,
    )


def tiny_thinker(seed: int = 0) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """The model, with weights large enough that its answers depend on what it is given."""
    tokenizer = tiny_mllm_tokenizer()
    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(tiny_thinker_config(tokenizer)).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def tiny_mllm(seed: int = 0) -> LocalMllm:
    """Model and processor as one back end."""
    return LocalMllm(tiny_thinker(seed), tiny_mllm_processor(), name="tiny-thinker")


def tiny_audio(seed: int = 0, seconds: float = 0.5) -> np.ndarray:
    """A noisy tone at 16 kHz."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(16000 * seconds)) / 16000
    noise = generator.normal(scale=0.05, size=len(time))
    return (np.sin(2 * np.pi * generator.uniform(100, 400) * time) * 0.3 + noise).astype(np.float32)


def tiny_frames(seed: int = 0, count: int = 3, height: int = 30, width: int = 44) -> np.ndarray:
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def tiny_requests() -> list[MllmRequest]:
    """One request of each kind: text, with audio, with frames, with both."""
    parts: list[dict[str, Any]] = [
        {},
        {"audio": tiny_audio(1)},
        {"frames": tiny_frames(2)},
        {"audio": tiny_audio(3, 0.8), "frames": tiny_frames(4, 4), "system": "Answer with a number."},
    ]
    prompts = ["How does it sound?", "And this one, which is longer?", "Score?", "What is felt?"]
    return [MllmRequest(prompt, **part) for prompt, part in zip(prompts, parts, strict=True)]
