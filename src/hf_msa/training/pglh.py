"""Training of PGLH: one stage, end to end (paper section 3.1.3)."""

from typing import Any

from torch import Tensor

from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_pglh import PglhForSentimentAnalysis

from .stages import RunContext
from .trainer import MsaTrainer

STAGES = ("main",)
FINAL_STAGE = "main"


class PglhTrainer(MsaTrainer):
    """Trains on prediction and reconstruction (eq. 17), validates on prediction alone."""

    model: PglhForSentimentAnalysis

    def model_inputs(self, inputs: dict[str, Tensor], training: bool) -> dict[str, Any]:
        """Reconstruction only in training steps, so that the checkpoint is chosen by what is predicted."""
        return {"reconstruct": training}


def run(context: RunContext) -> MsaPreTrainedModel:
    """Train the model with everything in it, the text encoder included."""
    return context.train_stage(
        "main", PglhForSentimentAnalysis, final=True, return_complete=True, trainer_class=PglhTrainer
    )
