"""A Qwen2.5-Omni thinker with random weights, of the true sizes or a tiny one, and its processor, made in memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from hf_msa.data.rows import MsaRows
from hf_msa.models.msa_mllm import SAMPLING_RATE, LocalMllm
from hf_msa.models.msa_mllm_processing import FramesVideoProcessor, OmniFramesProcessor

_PLACEHOLDERS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
_BEGIN, _END, _PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_TEMPLATE = (
    "{% for turn in messages %}" + _BEGIN + "{{ turn['role'] }}\n{% for part in turn['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}" + _END + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + _BEGIN + "assistant\n{% endif %}"
)
# The true tokenizer is not there: one that is made from the prompts themselves keeps their words whole, as that one does.
_MADE_VOCABULARY = 2000


@dataclass(frozen=True)
class ExpertShapes:
    """Sizes of the thinker, and of the clips that it is shown.

    Args:
        text: Of the language model.
        vision: Of the vision tower.
        audio: Of the audio tower.
        mel_bins: Of the audio features.
        seconds: Length of a clip's sound.
        frames: Number of its pictures.
        side: Their height and width in pixels.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    audio: dict[str, Any]
    mel_bins: int = 128
    seconds: float = 4.0
    frames: int = 8
    side: int = 224


def _true_sizes(width: int, layers: int, heads: int, key_heads: int, inner: int, vocabulary: int) -> ExpertShapes:
    return ExpertShapes(
        {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "intermediate_size": inner,
            "vocab_size": vocabulary,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        {"hidden_size": 1280, "out_hidden_size": width},
        {"output_dim": width},
    )


SHAPES = {
    "tiny": ExpertShapes(
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "vocab_size": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        {
            "num_mel_bins": 16,
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "output_dim": 64,
            "n_window": 50,
        },
        mel_bins=16,
        seconds=0.5,
        frames=2,
        side=56,
    ),
    # What the configurations of the checkpoints Qwen2.5-Omni-3B and -7B say; what is left out is the library's default.
    "3b": _true_sizes(2048, 36, 16, 2, 11008, 151936),
    "7b": _true_sizes(3584, 28, 28, 4, 18944, 152064),
}


class Clips(MsaRows):
    """Rows with sound and pictures, the same noise in every row: what is in them does not matter for the speed.

    Args:
        rows: The rows.
        shapes: Of sound and pictures.
    """

    def __init__(self, rows: MsaRows, shapes: ExpertShapes) -> None:
        vars(self).update(vars(rows))
        noise = np.random.default_rng(0)
        self.media = {
            "waveform": noise.standard_normal(int(shapes.seconds * SAMPLING_RATE), dtype=np.float32) * 0.1,
            "frames": noise.integers(0, 256, (shapes.frames, shapes.side, shapes.side, 3), dtype=np.uint8),
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A row, with both."""
        return {**super().__getitem__(index), **self.media}


def thinker_tokenizer(prompts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer for these prompts with the thinker's special tokens."""
    special = [AddedToken(token, special=True) for token in (_BEGIN, _END, _PAD, *_PLACEHOLDERS.values())]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MADE_VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    raw.train_from_iterator(prompts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=_END,
        pad_token=_PAD,
        extra_special_tokens=_PLACEHOLDERS,
        chat_template=_TEMPLATE,
    )


def thinker_config(shapes: ExpertShapes, tokenizer: PreTrainedTokenizerFast | None = None) -> Qwen2_5OmniThinkerConfig:
    """The configuration; without a tokenizer the placeholders' ids are the library's."""
    ids: dict[str, Any] = (
        {} if tokenizer is None else {k: tokenizer.convert_tokens_to_ids(v) for k, v in _PLACEHOLDERS.items()}
    )
    named = {
        "image_token_index": "image_token",
        "audio_token_index": "audio_token",
        "video_token_index": "video_token",
        "audio_start_token_id": "audio_bos_token",
        "audio_end_token_id": "audio_eos_token",
        "vision_start_token_id": "vision_bos_token",
        "vision_end_token_id": "vision_eos_token",
    }
    return Qwen2_5OmniThinkerConfig(
        text_config={"tie_word_embeddings": False, **shapes.text},
        vision_config=shapes.vision,
        audio_config=shapes.audio,
        **{field: ids[name] for field, name in named.items() if ids},
    )


def thinker(
    shapes: ExpertShapes, prompts: Iterable[str], where: torch.device, dtype: torch.dtype, batch_size: int
) -> LocalMllm:
    """Model and processor as one back end.

    Args:
        shapes: Sizes.
        prompts: What the tokenizer is made from.
        where: The device on which the weights are made.
        dtype: Their type.
        batch_size: Requests that are answered together.
    """
    tokenizer = thinker_tokenizer(prompts)
    torch.manual_seed(0)
    with where:
        model = Qwen2_5OmniThinkerForConditionalGeneration._from_config(thinker_config(shapes, tokenizer), dtype=dtype)
    # No token ends an answer: each has full length, as every answer of equal length does.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    pixels = {"shortest_edge": 28 * 28, "longest_edge": shapes.side**2}
    processor = OmniFramesProcessor(
        Qwen2VLImageProcessorPil(),
        FramesVideoProcessor(size=pixels),
        WhisperFeatureExtractor(
            feature_size=shapes.mel_bins, chunk_length=int(np.ceil(shapes.seconds)), return_attention_mask=True
        ),
        tokenizer,
        chat_template=_TEMPLATE,
    )
    processor.videos_kwargs = {"size": dict(pixels)}
    return LocalMllm(model.eval(), processor, "random thinker", batch_size)
