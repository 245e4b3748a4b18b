"""Fit of the ridge probe, in closed form: no steps, no learning rate.

Training rows are seen under as many mask draws as the recipe has epochs; the penalty is the one whose squared error is
smallest on the validation split, under the recipe's own masks and repeats.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray

from hf_msa.errors import require_package
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_ridge import RidgeForSentimentAnalysis

from .stages import RunContext

STAGES = ("main",)
FINAL_STAGE = "main"

_BATCH = 64


@torch.inference_mode()
def observed_columns(
    context: RunContext, model: RidgeForSentimentAnalysis, split: str, draws: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Columns of all rows of a split, and which are known, each `(draws * rows, columns)`, and the labels.

    Args:
        context: The run, whose protocol for the split drops what is dropped.
        model: Says what the columns are.
        split: Its name.
        draws: Number of mask draws.
    """
    rows, collate = context.rows[split], context.collator(split)
    values, known, labels = [], [], []
    for draw in range(draws):
        for members in rows.in_draw(draw).batches(_BATCH):
            inputs = model.inputs_from(collate(members), predicting=True)
            made, there = model.columns(model.read({name: value.to(model.device) for name, value in inputs.items()}))
            values.append(made.double().cpu().numpy())
            known.append(there.cpu().numpy())
            labels += [float(member["label"]) for member in members]
    return np.concatenate(values), np.concatenate(known), np.array(labels)


def fit(context: RunContext, folder: Path) -> dict[str, Any]:
    """Fit the probe, save it to `model` in the folder, and return the stage's facts."""
    model = context.new_model(RidgeForSentimentAnalysis).eval()
    model.to(PartialState().device)  # type: ignore[arg-type]  # the library wraps `to` in a way that type checkers misread
    epochs = max(1, round(context.arguments("main", True).num_train_epochs))
    draws = {"train": epochs, "validation": context.recipe.missing.selection_repeats}
    facts = {"split": "validation", "protocol": context.recipe.missing.validation, "repeats": draws["validation"]}
    if not model.config.probed_modalities:
        labels = {split: context.rows[split].labels for split in draws}
        weights, offset = np.zeros(0), float(np.median(labels["train"]))
        error = float(np.square(labels["validation"] - offset).mean())
        # Nothing is chosen: it is the training split's alone.
        chosen = {"rule": "last", "value": error}
    else:
        require_package("sklearn", "probes")
        from sklearn.linear_model import Ridge

        (raw, known, labels_), held_out = (observed_columns(context, model, split, draws[split]) for split in draws)
        weight = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, raw, 0.0).sum(axis=0) / weight
        std = np.sqrt(np.square(np.where(known, raw - mean, 0.0)).sum(axis=0) / weight)
        std = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1), std, 1.0)
        model.column_mean.copy_(torch.from_numpy(mean))
        model.column_std.copy_(torch.from_numpy(std))
        train, validation = (
            np.where(there, (values - mean) / std, 0.0) for values, there in ((raw, known), held_out[:2])
        )
        fits = [Ridge(alpha=penalty).fit(train, labels_) for penalty in model.config.penalties]
        errors = [float(np.square(made.predict(validation) - held_out[2]).mean()) for made in fits]
        best = int(np.argmin(errors))
        weights, offset = fits[best].coef_, float(fits[best].intercept_)
        chosen = {"rule": "best", "value": errors[best], "penalty": float(model.config.penalties[best])}
    with torch.no_grad():
        model.weights.copy_(torch.from_numpy(weights))
        model.offset.fill_(offset)
    model.cpu().save_pretrained(folder / "model")
    return {
        "epochs": epochs,
        "selection": {**facts, "metric": "loss", **chosen, "step": 0, "epoch": epochs},
        "history": [],
    }


def run(context: RunContext) -> MsaPreTrainedModel:
    """Fit the probe."""
    context.made_stage("main", lambda folder: fit(context, folder))
    return cast(
        MsaPreTrainedModel, RidgeForSentimentAnalysis.from_pretrained(context.stage_folder("main") / "model").eval()
    )
