"""TCMR's prediction, its confidence and the true-class probability of the same texts under the same masks."""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch

from hf_msa.analysis.common.trained_runs import TrainedRun
from hf_msa.data.missing import conditions
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.sweep import masked_batches
from hf_msa.models.modeling_msa import MsaStageModel
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis, TcmrPolarityClassifier, TcmrTextRegressor
from hf_msa.models.processing_msa import MsaProcessor

Stage = TypeVar("Stage", bound=MsaStageModel)


def load_judged(
    run: TrainedRun, rows: MsaRows
) -> tuple[TcmrForSentimentAnalysis, MsaProcessor, TcmrPolarityClassifier]:
    """Load a run's model, its processor and its polarity classifier.

    Raises:
        MsaError: If the run is the upper bound, which predicts no confidence, or does not fit the rows.
    """
    model, processor = run.load(rows)
    if model.config.is_oracle:
        raise MsaError(
            f"{run.folder} is the upper bound, which is told the confidence instead of predicting it; give a run of TCMR."
        )
    return cast(TcmrForSentimentAnalysis, model), processor, polarity_classifier(run)


def polarity_classifier(run: TrainedRun) -> TcmrPolarityClassifier:
    """Load the polarity classifier of a run, frozen and in eval mode.

    Raises:
        MsaError: If its stage was deleted.
    """
    return _stage_model(run, "polarity", "polarity classifier", TcmrPolarityClassifier)


def text_regressor(run: TrainedRun) -> TcmrTextRegressor:
    """Load the text regressor of a run, frozen and in eval mode; on complete text it gives what is to be rebuilt.

    Raises:
        MsaError: If its stage was deleted, as earlier versions did.
    """
    return _stage_model(run, "regressor", "text regressor", TcmrTextRegressor)


def _stage_model(run: TrainedRun, stage: str, what: str, model_class: type[Stage]) -> Stage:
    folder = run.folder / "stages" / stage / "model"
    if not folder.is_dir():
        raise MsaError(
            f"{run.folder} no longer has its {what} ({folder.relative_to(run.folder)}); give the folder that "
            "`hf-msa train` wrote, its stages included, or train it again if an earlier version did not keep it."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return cast(Stage, model_class.from_pretrained(folder).to(device).eval().requires_grad_(False))


@torch.inference_mode()
def judge(run: TrainedRun, rows: MsaRows, rates: Sequence[float], mask_seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Predict all rows at all missing rates, the same for all modalities.

    Returns:
        Per mask seed and rate the single values ``training_seed``, ``mask_seed`` and ``rate``; per row ``id``,
        ``label``, ``prediction``, ``confidence``, ``truth``, each (N,); ``text_masks``, per row the dropped tokens
        (T,); and ``kept``, the share of each row's words that survives (N,).

    Raises:
        MsaError: See `load_judged`.
    """
    model, processor, classifier = load_judged(run, rows)
    tested = conditions("frame", ("text",), rates, mask_seeds)
    parts: list[dict[str, Any]] = [
        {"training_seed": run.seed, "mask_seed": seed, "rate": rate, "id": rows.ids, "label": rows.labels}
        | {name: np.empty(len(rows), np.float32) for name in ("prediction", "confidence", "truth")}
        | {"kept": np.empty(len(rows)), "text_masks": [np.empty(0)] * len(rows)}
        for seed, rate, _ in tested
    ]
    protocols = [protocol for _, _, protocol in tested]
    for batch in masked_batches(model, processor, rows, protocols, f"texts under {len(tested)} conditions"):
        part, inputs = parts[batch.protocol], batch.inputs
        outputs = model(**inputs)
        truth = classifier.true_class_probability(
            inputs["input_ids"], inputs["attention_mask"], batch.complete["labels"]
        )
        for name, values in (("prediction", outputs.logits), ("confidence", outputs.confidence), ("truth", truth)):
            part[name][batch.places] = values.float().cpu().numpy().reshape(-1)
        for place, row, dropped in zip(batch.places, batch.members, batch.masks.masks["text"], strict=True):
            part["text_masks"][place] = dropped[: len(row["input_ids"])]
            # All tokens can be dropped except special ones.
            part["kept"][place] = 1 - dropped.sum() / max(int((~row["special_tokens_mask"].astype(bool)).sum()), 1)
    return parts
