"""MOSI, MOSEI and CH-SIMS metrics for users of the `evaluate` library: ``evaluate.load("<path of this folder>")``.

The library copies this file into a cache of its own, hence the absolute import; and it finds imports by a pattern that
takes one module per line.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_msa.evaluation.metrics import METRICS, METRICS_BY_CLASSES, class_metrics, regression_metrics
from hf_msa.label_families import LABEL_FAMILIES

_DESCRIPTION = "Regression and derived classification metrics of multimodal sentiment analysis, as MMSA computes them."


def _available(name: str) -> str:
    families = ", ".join(key for key, family in LABEL_FAMILIES.items() if name in family.metrics)
    by_classes = (f"with {n} class_logits" for n, names in METRICS_BY_CLASSES.items() if name in names)
    return families or next(by_classes, "other label families")


_RETURNS = "\n".join(f"    {name} ({_available(name)}): {metric.description}" for name, metric in METRICS.items())
_INPUTS = f"""
Args:
    predictions: sentiment scores in label units, one float per sample.
    references: labels, one float per sample.
    family: "mosi" for MOSI and MOSEI (labels in [-3, 3]), "sims" for CH-SIMS v1 and v2 (labels in [-1, 1]).
    class_logits: logits of negative, neutral and positive, three floats per sample in the order of the predictions, or
        with the family "mosi" those of the scores -3 to 3, seven floats; for models that give them.
Returns:
{_RETURNS}
"""


class MsaMetric(evaluate.Metric):
    """All metrics of a label family at once; undefined values are NaN."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float32"), "references": datasets.Value("float32")}
            ),
        )

    def _compute(
        self, predictions: Any, references: Any, family: str = "mosi", class_logits: Any = None
    ) -> dict[str, float]:
        labels = np.asarray(references)
        scores = regression_metrics(np.asarray(predictions), labels, family)
        return scores if class_logits is None else scores | class_metrics(class_logits, labels, family)
