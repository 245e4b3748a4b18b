"""Training of PGLH: one stage, end to end (paper section 3.1.3)."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hf_msa.data.rows import MsaRows
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_pglh import PglhForSentimentAnalysis
from hf_msa.models.msa_schema import FEATURE_MODALITIES

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


def single_frame_note(rows: MsaRows, modalities: Sequence[str]) -> str | None:
    """One sentence on modalities of which no clip has more than one frame; None where there are none.

    What is masked of such a clip leaves nothing visible that the language-guided prompt is mixed into (eq. 7), so the masked
    loss gives prompt, attention and beta a gradient of exactly 0.

    Args:
        rows: The data.
        modalities: Those that the model reads.
    """
    single = [name for name in modalities if name in FEATURE_MODALITIES and rows.lengths[name].max() <= 1]
    if not single:
        return None
    return (
        f"No clip has more than one frame of {' or '.join(single)}, so nothing is left visible where it is masked, and the "
        "masked reconstruction loss cannot reach the language-guided prompt, its attention and beta: such data says nothing "
        "about PGLH's prompted masking (PCM2)."
    )


def run(context: RunContext) -> MsaPreTrainedModel:
    """Train the model with everything in it, the text encoder included."""
    note = single_frame_note(context.rows["train"], context.config.modalities)
    if note is not None:
        logging.getLogger(__name__).warning(note)
    return context.train_stage(
        "main", PglhForSentimentAnalysis, final=True, return_complete=True, trainer_class=PglhTrainer
    )
