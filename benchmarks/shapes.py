"""Generated data of MOSI's unaligned shapes, and a text encoder of MiniLM's size, both made in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from transformers import AutoTokenizer, BertConfig, BertTokenizer, PreTrainedTokenizerBase

from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import msa_features
from hf_msa.models.configuration_msa import MsaConfig
from hf_msa.models.configuration_tcmr import TcmrConfig
from hf_msa.models.feature_extraction_msa import MsaFeatureExtractor
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.processing_msa import MsaProcessor

# Common words, which a tokenizer that was trained on English keeps whole.
_WORDS = (
    "the a and but so it this that was is are were be been have has had not very really just like good bad great poor "
    "movie film story actor scene end part time way thing people man woman think know feel see say watch love hate"
).split()
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MINILM_VOCABULARY = 30522


@dataclass(frozen=True)
class Shapes:
    """Longest lengths and widths, and how long samples really are.

    The logarithm of the number of words is normal with the mean and standard deviation of MOSI's training transcripts
    (12 words on average). Frames per word follow from the longest lengths, `audio / text` and `vision / text`: 90 and
    120 on average, which is what 4.2 s, the average clip, are at 30 frames per second of vision. How fast a speaker
    talks varies by a fifth.

    Args:
        text: Longest text in tokens, special tokens included.
        audio: Longest audio in frames.
        vision: Longest vision in frames.
        audio_dim: Width of an audio frame.
        vision_dim: Width of a vision frame.
        text_layers: Layers of the text encoder that is made where no checkpoint is named.
        text_width: Its width.
        log_words: Mean of the logarithm of the number of words.
    """

    text: int = 50
    audio: int = 375
    vision: int = 500
    audio_dim: int = 5
    vision_dim: int = 20
    text_layers: int = 6
    text_width: int = 384
    log_words: float = 2.305

    LOG_WORDS_DEVIATION = 0.601
    LOG_TEMPO_DEVIATION = 0.2


MOSI = Shapes()
TOY = Shapes(text=12, audio=30, vision=40, text_layers=2, text_width=24, log_words=1.2)


@dataclass(frozen=True)
class TextModel:
    """A tokenizer, and a way to build models around its encoder.

    Args:
        name: What to call it in a report.
        tokenizer: The tokenizer.
        build: Makes a model of the given class and configuration around the encoder.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    build: Callable[[type[Any], MsaConfig], Any]


def text_model(checkpoint: str | None, shapes: Shapes) -> TextModel:
    """Return the text encoder of a checkpoint, or a randomly initialised one of the size that `shapes` names.

    Args:
        checkpoint: Folder or Hub name of a BERT-family checkpoint; None makes one without any file.
        shapes: Size of the one that is made.
    """
    if checkpoint is not None:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        return TextModel(
            checkpoint.rstrip("/").rpartition("/")[2],
            tokenizer,
            lambda kind, config: kind.from_text_pretrained(checkpoint, config),
        )
    layers, width = shapes.text_layers, shapes.text_width
    encoder = BertConfig(
        vocab_size=_MINILM_VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=4 * width,
    )
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate((*_SPECIAL, *_WORDS))})

    def build(kind: type[MsaPreTrainedModel], config: MsaConfig) -> MsaPreTrainedModel:
        return kind(type(config).from_dict(config.to_dict() | {"text_config": encoder.to_dict()}))

    return TextModel(f"BERT {layers} x {width}, random", tokenizer, build)


def shape_fields(shapes: Shapes) -> dict[str, Any]:
    """The configuration's fields that follow from the shapes."""
    return {
        "audio_dim": shapes.audio_dim,
        "vision_dim": shapes.vision_dim,
        "text_max_length": shapes.text,
        "audio_max_length": shapes.audio,
        "vision_max_length": shapes.vision,
    }


def tcmr_config(shapes: Shapes) -> TcmrConfig:
    """TCMR with the dimensions of its paper's Table 4, for these shapes."""
    return TcmrConfig(**shape_fields(shapes))


def processor(shapes: Shapes, tokenizer: PreTrainedTokenizerBase) -> MsaProcessor:
    """The processor for these shapes."""
    extractor = MsaFeatureExtractor(
        audio_dim=shapes.audio_dim,
        vision_dim=shapes.vision_dim,
        audio_max_length=shapes.audio,
        vision_max_length=shapes.vision,
    )
    return MsaProcessor(extractor, tokenizer, text_max_length=shapes.text)


def generated_rows(
    shapes: Shapes, count: int, split: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> MsaRows:
    """Make rows of random words and frames with realistic true lengths.

    Args:
        shapes: Widths and lengths.
        count: Number of rows.
        split: Name of the split.
        tokenizer: Tokenises the transcripts.
        seed: Seed of lengths and content.
    """
    generator = np.random.default_rng([seed, count])
    words = np.exp(generator.normal(shapes.log_words, shapes.LOG_WORDS_DEVIATION, count))
    tempo = np.exp(generator.normal(0.0, shapes.LOG_TEMPO_DEVIATION, count))

    def frames(longest: int, width: int) -> list[np.ndarray]:
        lengths = np.clip(np.rint(words * tempo * longest / shapes.text), 1, longest).astype(int)
        return [generator.standard_normal((length, width), dtype=np.float32) for length in lengths]

    spoken = np.clip(np.rint(words), 1, shapes.text - 2).astype(int)
    columns = {
        "id": [f"video{number}$_$0" for number in range(count)],
        "video_id": [f"video{number}" for number in range(count)],
        "clip_id": ["0"] * count,
        "text": [" ".join(generator.choice(_WORDS, number)) for number in spoken],
        "audio": frames(shapes.audio, shapes.audio_dim),
        "vision": frames(shapes.vision, shapes.vision_dim),
        "label": generator.uniform(-3, 3, count).astype(np.float32),
    }
    features = msa_features(shapes.audio_dim, shapes.vision_dim)
    return MsaRows(datasets.Dataset.from_dict(columns, features=features), split, tokenizer, shapes.text)
