"""Small made-up predictions and results for the tests of tables, curves and comparisons."""

from typing import Any

import numpy as np
import pyarrow as pa

from hf_msa.evaluation.results import SCALE_COLUMNS, EvaluationFacts, Results, build_results, predictions_table

RATES = (0.0, 0.3, 0.6, 0.9)


def make_table(
    *,
    n: int = 60,
    training_seeds: tuple[int, ...] = (1111, 1112, 1113),
    mask_seeds: tuple[int, ...] = (1, 2),
    rates: tuple[float | str, ...] = RATES,
    noise: float = 0.5,
    family: str = "mosi",
    class_logits: bool = False,
    scale_logits: bool = False,
) -> pa.Table:
    """Predictions that get worse along the rates; the labels depend on `n` and the family alone.

    With `class_logits` a model that classifies: its logits follow its score, neutral ones near zero. With `scale_logits`
    one with seven classes, whose largest logit is that of the class nearest to its score.
    """
    width = 3.0 if family == "mosi" else 1.0
    labels = np.random.default_rng(n).uniform(-width, width, n).round(1)
    ids = [f"video{index // 4}$_${index}" for index in range(n)]
    parts = []
    for training_seed in training_seeds:
        for mask_seed in mask_seeds:
            rng = np.random.default_rng((training_seed, mask_seed))
            for index, rate in enumerate(rates):
                error = rng.normal(0, noise * width * (0.2 + 0.3 * index), n)
                scores = labels * (1 - 0.2 * index) + error
                logits = {
                    "class_logits_negative": -scores,
                    "class_logits_neutral": 0.2 * width - np.abs(scores),
                    "class_logits_positive": scores,
                }
                if scale_logits:
                    nearness = -np.abs(scores[:, None] - np.arange(-3, 4))
                    logits = dict(zip(SCALE_COLUMNS, nearness.T, strict=True))
                parts.append(
                    {
                        "id": ids,
                        "training_seed": training_seed,
                        "mask_seed": mask_seed,
                        "rate": rate,
                        "prediction": scores,
                        "label": labels,
                        **(logits if class_logits or scale_logits else {}),
                    }
                )
    return predictions_table(parts)


def make_results(table: pa.Table, *, family: str = "mosi", resamples: int = 200, **changes: Any) -> Results:
    facts: dict[str, Any] = {
        "method": "tcmr",
        "dataset": {"name": family, "split": "test", "label_family": family},
        "protocol": {"name": "frame", "seed": 1},
    }
    return build_results(table, EvaluationFacts(**(facts | changes)), resamples=resamples)
