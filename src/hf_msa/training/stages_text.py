"""Training of the text-only baseline: one stage, under the same masks as every other method."""

from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_text import TextForSentimentAnalysis

from .stages import RunContext

STAGES = ("main",)
FINAL_STAGE = "main"


def run(context: RunContext) -> MsaPreTrainedModel:
    """Train the baseline; see `RunContext.train_stage`."""
    return context.train_stage("main", TextForSentimentAnalysis, final=True)
