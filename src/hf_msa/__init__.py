"""Multimodal sentiment analysis with missing modalities, as an extension of transformers.

Importing this package registers every method with the Auto classes of transformers. Everything else is loaded on first
use, so that the import costs no more than transformers itself.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from ._version import __version__
from .feature_sets import FEATURE_SETS, register_feature_set
from .methods import METHODS, register_method

if TYPE_CHECKING:
    from .data.collator import MsaCollator
    from .data.loading import load_msa
    from .data.missing import register_protocol
    from .data.schema import register_dataset
    from .evaluation.metrics import regression_metrics
    from .label_families import register_label_family
    from .models.processing_msa import MsaProcessor

_LAZY = {
    "MsaCollator": "hf_msa.data.collator",
    "MsaProcessor": "hf_msa.models.processing_msa",
    "load_msa": "hf_msa.data.loading",
    "register_dataset": "hf_msa.data.schema",
    "register_label_family": "hf_msa.label_families",
    "register_protocol": "hf_msa.data.missing",
    "regression_metrics": "hf_msa.evaluation.metrics",
}

__all__ = [
    "FEATURE_SETS",
    "METHODS",
    "MsaCollator",
    "MsaProcessor",
    "__version__",
    "load_msa",
    "register_dataset",
    "register_feature_set",
    "register_label_family",
    "register_method",
    "register_protocol",
    "regression_metrics",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_PIPELINE = {"impl": "hf_msa.models.msa_pipeline.MsaPipeline", "pt": (AutoModel,), "type": "multimodal"}
PIPELINE_REGISTRY.supported_tasks.update({"multimodal-sentiment-analysis": _PIPELINE})

# Those of other packages, so that the Auto classes and processors know them too.
list(METHODS)
list(FEATURE_SETS)
