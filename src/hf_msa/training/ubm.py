"""Training of the UBM: one stage on complete data (paper appendix B), and the temperature where it is to be fitted."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_msa.data.missing import Condition
from hf_msa.evaluation.sweep import sweep
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_ubm import UbmForSentimentAnalysis
from hf_msa.models.msa_schema import SENTIMENT_CLASSES

from .calibration import fit_temperature
from .stages import RunContext
from .trainer import AdamTrainer

STAGES = ("main",)
FINAL_STAGE = "main"


def ensemble_members(rows: int, heads: int, fraction: float, seed: int) -> Tensor:
    """Which head of the ensemble learns from which training row.

    Each head gets a random part of the rows, drawn without replacement. Whether a head sees a row depends on nothing but the
    seed, the head and the row's index, so it is the same in every epoch and process.

    Args:
        rows: Number of training rows.
        heads: Number of heads.
        fraction: Share of the rows that a head sees, in expectation.
        seed: The run's seed.

    Returns:
        `torch.BoolTensor` of shape `(rows, heads)`.
    """
    drawn = [np.random.default_rng([seed, head]).random(rows) < fraction for head in range(heads)]
    return torch.from_numpy(np.stack(drawn, axis=1))


class UbmTrainer(AdamTrainer):
    """Trains score, class and the uncertainty's own heads, and validates on score and class, whatever the uncertainty.

    The optimizer is Adam (appendix B).
    """

    model: UbmForSentimentAnalysis

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.model.config
        self.members = ensemble_members(
            len(self.train_rows), config.ensemble_size, config.ensemble_fraction, self.args.seed
        )

    def model_inputs(self, inputs: dict[str, Tensor], training: bool) -> dict[str, Any]:
        """In training steps the uncertainty's own losses, and who learns from the rows of this batch."""
        if not training:
            return {"train_uncertainty": False}
        members = self.members[inputs["sample_index"].cpu()].to(inputs["labels"].device)
        return {"train_uncertainty": True, "ensemble_members": members}

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All but the biases and norms of the text encoder (Self-MM)."""
        decayed = set(super().get_decay_parameter_names(model))
        names = [name for name, _ in model.named_parameters()]
        return [name for name in names if name in decayed or not name.startswith("text_encoder.")]


def validation_logits(context: RunContext, model: UbmForSentimentAnalysis) -> tuple[Tensor, Tensor]:
    """Class logits `(rows, 3)` and classes `(rows,)` of the validation split, under the protocol of selection.

    Args:
        context: The run.
        model: The trained model, in eval mode.
    """
    rows, protocol = context.rows["validation"], context.collator("validation").protocol
    (found,), _ = sweep(model, context.processor, rows, [Condition(0, "validation", protocol)])
    logits = np.stack([found[f"class_logits_{name}"] for name in SENTIMENT_CLASSES], axis=1)
    return torch.from_numpy(logits), model.label_classes(torch.from_numpy(rows.labels))


def run(context: RunContext) -> MsaPreTrainedModel:
    """Train the model and, where the configuration asks for it, fit the temperature of its class probabilities.

    The temperature is a function of the finished stage and the validation split: a run that was interrupted in between fits
    the same one again.
    """
    model = context.train_stage("main", UbmForSentimentAnalysis, final=True, trainer_class=UbmTrainer)
    if model.config.calibrate_temperature:
        model.config.temperature = fit_temperature(*validation_logits(context, model))
    return model
