"""Training of the UBM: one stage on complete data (paper appendix B), and what is fitted on validation when it has ended."""

import re
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_callback import TrainerState

from hf_msa.data.missing import Condition
from hf_msa.evaluation.sweep import sweep
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_ubm import UbmForSentimentAnalysis
from hf_msa.models.msa_schema import SENTIMENT_CLASSES

from .calibration import conformal_quantile, fit_errors, fit_temperature
from .stages import RunContext
from .trainer import AdamTrainer

STAGES = ("main",)
FINAL_STAGE = "main"

_MEMBER = re.compile(r"^members\.\d+\.")


def ensemble_members(rows: int, heads: int, fraction: float, seed: int) -> Tensor:
    """Which member or head of an ensemble learns from which training row.

    Each gets a random part of the rows, drawn without replacement. Whether it sees a row depends on nothing but the seed,
    its number and the row's index, so it is the same in every epoch and process.

    Args:
        rows: Number of training rows.
        heads: Number of members or heads.
        fraction: Share of the rows that each of them sees, in expectation.
        seed: The run's seed.

    Returns:
        `torch.BoolTensor` of shape `(rows, heads)`.
    """
    drawn = [np.random.default_rng([seed, head]).random(rows) < fraction for head in range(heads)]
    return torch.from_numpy(np.stack(drawn, axis=1))


class UbmTrainer(AdamTrainer):
    """Trains score, class and what the uncertainty needs, and validates on score and class, whatever the uncertainty.

    The optimizer is Adam (appendix B). Members of an ensemble are trained in the same steps, each on its own rows: they
    share the order of batches and the epoch that is kept, but no weight and, without gradient clipping, no gradient.
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

    def build_optimizer(self, parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The parts of a member have the rates of the model's own."""
        return super().build_optimizer([(_MEMBER.sub("", name), parameter) for name, parameter in parameters])

    def fit(self) -> TrainerState:
        """Train to the end, then fit the error to be expected where the uncertainty needs it; see `MsaTrainer.fit`."""
        state = super().fit()
        if self.model.config.fits_errors:
            self.fit_expected_error()
        return state

    @torch.no_grad()
    def fit_expected_error(self) -> None:
        """Fit the error to be expected and the width of intervals on validation; the same in every process.

        Raises:
            MsaError: If there are too few rows.
        """
        model, config = self.model.eval(), self.model.config
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for batch in DataLoader(self.eval_dataset, self.args.eval_batch_size, collate_fn=self.eval_collator):
            inputs = cast("dict[str, Tensor]", self._prepare_inputs(batch))
            seen = model.run_network(model.read(model.inputs_from(inputs, predicting=True)))
            errors = (seen.logits.squeeze(-1) - inputs["labels"]).abs()
            found.append((inputs["sample_index"], model.error_features(seen), errors))
        rows, features, errors = (torch.cat(part).double().cpu().numpy() for part in zip(*found, strict=True))
        fit = fit_errors(features, errors, rows)
        model.error_weights.copy_(torch.from_numpy(fit.weights))
        model.error_offsets.copy_(torch.tensor([fit.constant, fit.least]))
        if "conformal" in config.uncertainties:
            quantile = conformal_quantile(errors / fit.held_out, config.conformal_coverage)
            config.conformal_fit = {"coverage": config.conformal_coverage, "quantile": quantile}

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
