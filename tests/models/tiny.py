"""Tiny random models of every method, a tokenizer of a few words, and rows: made in memory, without the network."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import BertTokenizer

from hf_msa.models.configuration_cmc import CmcConfig
from hf_msa.models.configuration_late_fusion import LateFusionConfig
from hf_msa.models.configuration_msa import MsaConfig
from hf_msa.models.configuration_omg import OmgConfig
from hf_msa.models.configuration_pglh import PglhConfig
from hf_msa.models.configuration_ridge import RidgeConfig
from hf_msa.models.configuration_tcmr import TcmrConfig
from hf_msa.models.configuration_text import TextConfig
from hf_msa.models.configuration_uacs import UacsConfig
from hf_msa.models.configuration_ubm import UbmConfig
from hf_msa.models.feature_extraction_msa import MsaFeatureExtractor
from hf_msa.models.processing_msa import MsaProcessor

WORDS = ["a", "bad", "dull", "film", "good", "great", "it", "not", "plot", "the", "was", "what"]
VOCABULARY = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
UNK = VOCABULARY["[UNK]"]
WIDTHS = {"audio_dim": 5, "vision_dim": 7}
LENGTHS = {"text_max_length": 12, "audio_max_length": 12, "vision_max_length": 12}


def tiny_backbone() -> dict[str, Any]:
    """A BERT of two layers; without dropout, so that training mode computes what evaluation mode does."""
    return {
        "model_type": "bert",
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def tiny_text_config(**overrides: Any) -> TextConfig:
    """The text-only baseline."""
    return TextConfig(**{"text_config": tiny_backbone(), **WIDTHS, **LENGTHS, **overrides})


def tiny_ridge_config(**overrides: Any) -> RidgeConfig:
    """The ridge probe."""
    return RidgeConfig(**{"text_config": tiny_backbone(), **WIDTHS, **LENGTHS, **overrides})


def tiny_late_fusion_config(**overrides: Any) -> LateFusionConfig:
    """Late fusion with heads of width 8, without dropout."""
    sizes = {"hidden_size": 8, "dropout": 0.0, "modality_dropout": 0.0}
    return LateFusionConfig(**{"text_config": tiny_backbone(), **WIDTHS, **LENGTHS, **sizes, **overrides})


def tiny_tcmr_config(**overrides: Any) -> TcmrConfig:
    """TCMR with two heads of width 4 on tokens of width 16."""
    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "feedforward_dim": 16,
        "hyper_head_dim": 4,
        "confnet_hidden": [16, 8],
        "gate_hidden": 8,
        "polarity_hidden": 8,
    }
    return TcmrConfig(**{"text_config": tiny_backbone(), **WIDTHS, **LENGTHS, **sizes, **overrides})


def tiny_pglh_config(**overrides: Any) -> PglhConfig:
    """PGLH with two heads and two prompts on tokens of width 16."""
    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "encoder_feedforward_dim": 16,
        "decoder_feedforward_dim": 8,
        "dropout": 0.0,
        "num_prompts": 2,
    }
    return PglhConfig(**{"text_config": tiny_backbone(), **WIDTHS, **LENGTHS, **sizes, **overrides})


def tiny_cmc_config(**overrides: Any) -> CmcConfig:
    """CMC with two layers of two heads on vectors of width 16, without dropout."""
    sizes = {
        "embed_dim": 16,
        "num_attention_heads": 2,
        "feedforward_dim": 16,
        "encoder_dropout": 0.0,
        "head_dropout": 0.0,
    }
    return CmcConfig(**{"text_config": tiny_backbone(), **WIDTHS, **LENGTHS, **sizes, **overrides})


def tiny_ubm_config(**overrides: Any) -> UbmConfig:
    """UBM with LSTMs of width 8 and 6 on a fused vector of width 16, without dropout."""
    sizes = {
        "audio_hidden_size": 8,
        "vision_hidden_size": 6,
        "audio_output_size": 4,
        "vision_output_size": 3,
        "fusion_dim": 16,
        "fusion_dropout": 0.0,
        "head_dim": 8,
    }
    return UbmConfig(**{"text_config": tiny_backbone(), **WIDTHS, **LENGTHS, **sizes, **overrides})


def tiny_uacs_config(**overrides: Any) -> UacsConfig:
    """U-ACS with the small model of `tiny_ubm_config`, without an expert."""
    return UacsConfig(**{**tiny_ubm_config().to_dict(), "model_type": "hf_msa_uacs", **overrides})


def tiny_omg_config(**overrides: Any) -> OmgConfig:
    """OMG-Agent with denoisers of two layers of width 16, which take four steps, and without dropout."""
    sizes = {
        "query_dim": 8,
        "latent_dim": 6,
        "vae_hidden": 8,
        "denoiser_dim": 16,
        "denoiser_layers": 2,
        "denoiser_heads": 2,
        "denoiser_feedforward_dim": 16,
        "num_inference_steps": 4,
        "fusion_dim": 8,
        "dropout": 0.0,
    }
    return OmgConfig(**{"text_config": tiny_backbone(), **WIDTHS, **LENGTHS, **sizes, **overrides})


TINY_CONFIGS: dict[str, Callable[..., MsaConfig]] = {
    "text": tiny_text_config,
    "ridge": tiny_ridge_config,
    "late_fusion": tiny_late_fusion_config,
    "tcmr": tiny_tcmr_config,
    "pglh": tiny_pglh_config,
    "cmc": tiny_cmc_config,
    "ubm": tiny_ubm_config,
    "uacs": tiny_uacs_config,
    "omg": tiny_omg_config,
}


MISSING_LENGTHS = {"text": 6, "audio": 5, "vision": 6}


def tiny_processor(config: MsaConfig) -> MsaProcessor:
    """The processor that goes with a tiny model."""
    extractor = MsaFeatureExtractor(
        config.audio_dim, config.vision_dim, config.audio_max_length, config.vision_max_length
    )
    tokenizer = BertTokenizer(vocab=VOCABULARY)
    return MsaProcessor(extractor, tokenizer, text_max_length=config.text_max_length, missing_lengths=MISSING_LENGTHS)


def tiny_rows(config: MsaConfig, count: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of different lengths with text, the feature modalities of `config`, and a label."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        row: dict[str, Any] = {
            "text": " ".join(generator.choice(WORDS, size=3 + index % 5)),
            "label": float(generator.uniform(-3, 3)),
        }
        for modality in config.modalities[1:]:
            shape = (4 + (3 * index) % 7, getattr(config, f"{modality}_dim"))
            row[modality] = generator.normal(size=shape).astype(np.float32)
        rows.append(row)
    return rows


def tiny_names(config: MsaConfig) -> dict[str, list[str]]:
    """A name for each feature."""
    widths = {"audio": config.audio_dim, "vision": config.vision_dim}
    return {name: [f"{name} {index}" for index in range(width or 0)] for name, width in widths.items()}


def tiny_batch(config: MsaConfig, count: int = 4, seed: int = 0, **kwargs: Any) -> dict[str, torch.Tensor]:
    """Model inputs of `tiny_rows`, without labels."""
    return dict(tiny_processor(config).from_rows(tiny_rows(config, count, seed), **kwargs))


def tiny_labels(config: MsaConfig, count: int = 4, seed: int = 0) -> torch.Tensor:
    """The labels of `tiny_rows`."""
    return torch.tensor([row["label"] for row in tiny_rows(config, count, seed)])
