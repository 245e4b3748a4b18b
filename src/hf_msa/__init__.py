"""Multimodal sentiment analysis with missing modalities, as an extension of transformers.

Importing this package registers every method with the Auto classes of transformers. Everything else is loaded on first
use, so that the import costs no more than transformers itself. docs/api.md says what each name is for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from ._version import __version__
from .errors import MsaError
from .feature_sets import FEATURE_SETS, register_feature_set
from .methods import METHODS, register_method
from .models.configuration_cmc import CmcConfig
from .models.configuration_late_fusion import LateFusionConfig
from .models.configuration_msa import MsaConfig
from .models.configuration_omg import OmgConfig
from .models.configuration_pglh import PglhConfig
from .models.configuration_ridge import RidgeConfig
from .models.configuration_tcmr import TcmrConfig
from .models.configuration_text import TextConfig
from .models.configuration_uacs import UacsConfig
from .models.configuration_ubm import UbmConfig
from .models.feature_extraction_msa import MsaFeatureExtractor
from .models.modeling_cmc import CmcForSentimentAnalysis
from .models.modeling_late_fusion import LateFusionForSentimentAnalysis
from .models.modeling_msa import MsaPreTrainedModel
from .models.modeling_omg import OmgForSentimentAnalysis
from .models.modeling_pglh import PglhForSentimentAnalysis
from .models.modeling_ridge import RidgeForSentimentAnalysis
from .models.modeling_tcmr import TcmrForSentimentAnalysis
from .models.modeling_text import TextForSentimentAnalysis
from .models.modeling_uacs import UacsForSentimentAnalysis
from .models.modeling_ubm import UbmForSentimentAnalysis
from .models.processing_msa import MsaProcessor

if TYPE_CHECKING:
    from .analysis import run_tool
    from .api import compare, evaluate, predict, predict_clips, sample_corpus, train
    from .baselines import make_baselines
    from .data.collator import MsaCollator
    from .data.loading import load_msa
    from .data.missing import (
        BlockMissing,
        CompleteProtocol,
        FixedPattern,
        FrameMissing,
        LegacyLnln,
        MissingModality,
        MissingProtocol,
        ModalityMissing,
        RandomPattern,
        UserMasks,
        register_protocol,
    )
    from .data.prepare import prepare_dataset
    from .data.rows import MsaRows
    from .data.schema import register_dataset
    from .evaluation.foreign import evaluate_predictions
    from .evaluation.metrics import regression_metrics
    from .hub.push import push
    from .imputation import impute
    from .label_families import register_label_family
    from .models.msa_pipeline import MsaPipeline
    from .pipelines import load_pipeline
    from .recordings.extract import extract
    from .training.arguments import MsaTrainingArguments
    from .training.omg.entries import build_knowledge_base
    from .training.trainer import MsaTrainer
    from .uacs_calibration import calibrate

_LAZY = {
    "BlockMissing": "hf_msa.data.missing",
    "CompleteProtocol": "hf_msa.data.missing",
    "FixedPattern": "hf_msa.data.missing",
    "FrameMissing": "hf_msa.data.missing",
    "LegacyLnln": "hf_msa.data.missing",
    "MissingModality": "hf_msa.data.missing",
    "MissingProtocol": "hf_msa.data.missing",
    "ModalityMissing": "hf_msa.data.missing",
    "MsaCollator": "hf_msa.data.collator",
    "MsaPipeline": "hf_msa.models.msa_pipeline",
    "MsaRows": "hf_msa.data.rows",
    "MsaTrainer": "hf_msa.training.trainer",
    "MsaTrainingArguments": "hf_msa.training.arguments",
    "RandomPattern": "hf_msa.data.missing",
    "UserMasks": "hf_msa.data.missing",
    "build_knowledge_base": "hf_msa.training.omg.entries",
    "calibrate": "hf_msa.uacs_calibration",
    "compare": "hf_msa.api",
    "evaluate": "hf_msa.api",
    "evaluate_predictions": "hf_msa.evaluation.foreign",
    "extract": "hf_msa.recordings.extract",
    "impute": "hf_msa.imputation",
    "load_msa": "hf_msa.data.loading",
    "load_pipeline": "hf_msa.pipelines",
    "make_baselines": "hf_msa.baselines",
    "predict": "hf_msa.api",
    "predict_clips": "hf_msa.api",
    "prepare_dataset": "hf_msa.data.prepare",
    "push": "hf_msa.hub.push",
    "register_dataset": "hf_msa.data.schema",
    "register_label_family": "hf_msa.label_families",
    "register_protocol": "hf_msa.data.missing",
    "regression_metrics": "hf_msa.evaluation.metrics",
    "run_tool": "hf_msa.analysis",
    "sample_corpus": "hf_msa.api",
    "train": "hf_msa.api",
}

__all__ = [
    "BlockMissing",
    "CmcConfig",
    "CmcForSentimentAnalysis",
    "CompleteProtocol",
    "FEATURE_SETS",
    "FixedPattern",
    "FrameMissing",
    "LateFusionConfig",
    "LateFusionForSentimentAnalysis",
    "LegacyLnln",
    "METHODS",
    "MissingModality",
    "MissingProtocol",
    "ModalityMissing",
    "MsaCollator",
    "MsaConfig",
    "MsaError",
    "MsaFeatureExtractor",
    "MsaPipeline",
    "MsaPreTrainedModel",
    "MsaProcessor",
    "MsaRows",
    "MsaTrainer",
    "MsaTrainingArguments",
    "OmgConfig",
    "OmgForSentimentAnalysis",
    "PglhConfig",
    "PglhForSentimentAnalysis",
    "RandomPattern",
    "RidgeConfig",
    "RidgeForSentimentAnalysis",
    "TcmrConfig",
    "TcmrForSentimentAnalysis",
    "TextConfig",
    "TextForSentimentAnalysis",
    "UacsConfig",
    "UacsForSentimentAnalysis",
    "UbmConfig",
    "UbmForSentimentAnalysis",
    "UserMasks",
    "__version__",
    "build_knowledge_base",
    "calibrate",
    "compare",
    "evaluate",
    "evaluate_predictions",
    "extract",
    "impute",
    "load_msa",
    "load_pipeline",
    "make_baselines",
    "predict",
    "predict_clips",
    "prepare_dataset",
    "push",
    "register_dataset",
    "register_feature_set",
    "register_label_family",
    "register_method",
    "register_protocol",
    "regression_metrics",
    "run_tool",
    "sample_corpus",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_PIPELINE = {"impl": "hf_msa.models.msa_pipeline.MsaPipeline", "pt": (AutoModel,), "type": "multimodal"}
PIPELINE_REGISTRY.supported_tasks.update({"multimodal-sentiment-analysis": _PIPELINE})

# Those of other packages, so that the Auto classes and processors know them too.
list(METHODS)
list(FEATURE_SETS)
