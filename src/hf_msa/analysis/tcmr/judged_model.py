"""TCMR's prediction, its confidence and the true-class probability of the same texts under the same masks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_msa.analysis.common.trained_runs import TrainedRun
from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import MissingProtocol, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.sweep import sweep
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_tcmr import TcmrPolarityClassifier
from hf_msa.models.processing_msa import MsaProcessor


def polarity_classifier(run: TrainedRun) -> TcmrPolarityClassifier:
    """Load the polarity classifier of a run, frozen and in eval mode.

    Raises:
        MsaError: If its stage was deleted.
    """
    folder = run.folder / "stages" / "polarity" / "model"
    if not folder.is_dir():
        raise MsaError(
            f"{run.folder} no longer has its polarity classifier ({folder.relative_to(run.folder)}); give the folder that "
            "`hf-msa train` wrote, its stages included."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = TcmrPolarityClassifier.from_pretrained(folder).to(device).eval()
    return cast(TcmrPolarityClassifier, model.requires_grad_(False))


class JudgedModel(nn.Module):
    """A TCMR model and its polarity classifier as one, so that one sweep runs both under the same masks.

    Args:
        model: In eval mode.
        classifier: In eval mode, on the same device.
    """

    def __init__(self, model: MsaPreTrainedModel, classifier: TcmrPolarityClassifier) -> None:
        super().__init__()
        self.model = model
        self.classifier = classifier

    def inputs_from(self, batch: Mapping[str, Tensor], *, predicting: bool) -> dict[str, Tensor]:
        """The model's inputs, and labels: the classifier needs them; the model does not get to see them."""
        return {**self.model.inputs_from(batch, predicting=predicting), "labels": batch["labels"]}

    def forward(self, labels: Tensor, **inputs: Any) -> dict[str, Tensor]:
        """Predict.

        Args:
            labels (`torch.FloatTensor` of shape `(batch,)`): True scores, for the classifier.
            **inputs: The model's inputs.

        Returns:
            logits, confidence and truth (the true-class probability), each `(batch, 1)`.
        """
        outputs = self.model(**inputs)
        truth = self.classifier.true_class_probability(inputs["input_ids"], inputs["attention_mask"], labels)
        return {"logits": outputs.logits, "confidence": outputs.confidence, "truth": truth.unsqueeze(1)}

    def predict_batches(
        self, batches: Iterable[tuple[Mapping[str, Tensor], Sequence[Any]]], processor: Any
    ) -> Iterator[dict[str, Tensor]]:
        """Predict; neither model reads the rows."""
        for inputs, _ in batches:
            yield self(**inputs)

    def per_sample_outputs(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The three numbers of each sample, each `(batch,)`."""
        return {name: value.squeeze(1) for name, value in outputs.items()}


def judge(run: TrainedRun, rows: MsaRows, rates: Sequence[float], mask_seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Predict all rows at all missing rates.

    Args:
        run: A TCMR run.
        rows: Tokenised for this run.
        rates: Missing rates, the same for all modalities.
        mask_seeds: Seeds of the masks.

    Returns:
        Per mask seed and rate the single values ``training_seed``, ``mask_seed`` and ``rate``; per row ``id``,
        ``label``, ``prediction``, ``confidence``, ``truth``, each (N,); ``text_masks``, per row the dropped tokens
        (T,); and ``kept``, the share of each row's words that survives (N,).

    Raises:
        MsaError: If the run is the upper bound, which predicts no confidence, or does not fit the data.
    """
    model, processor = run.load(rows)
    if model.config.is_oracle:
        raise MsaError(
            f"{run.folder} is the upper bound, which is told the confidence instead of predicting it; give a run of TCMR."
        )
    tested = conditions("frame", ("text",), rates, mask_seeds)
    judged = cast(MsaPreTrainedModel, JudgedModel(model, polarity_classifier(run)))
    parts, _ = sweep(judged, processor, rows, tested)
    marks = [np.asarray(rows[index]["special_tokens_mask"], dtype=bool) for index in range(len(rows))]
    # All but special tokens can be dropped.
    droppable = np.maximum(np.array([int((~special).sum()) for special in marks]), 1)
    for part, (_, _, protocol) in zip(parts, tested, strict=True):
        masks = text_masks(processor, rows, protocol)
        part |= {"training_seed": run.seed, "text_masks": masks}
        part["kept"] = 1 - np.array([mask.sum() for mask in masks]) / droppable
    return parts


def text_masks(processor: MsaProcessor, rows: MsaRows, protocol: MissingProtocol) -> list[NDArray[np.bool_]]:
    """Which tokens of each row a protocol drops: per row (T,), True = dropped, special tokens included as False."""
    collator = MsaCollator(processor, protocol.bind(rows.ids), split=rows.split)
    return [
        mask[: len(row["input_ids"])]
        for _, members in rows.batches(256)
        for mask, row in zip(collator.masks(members).masks["text"], members, strict=True)
    ]
