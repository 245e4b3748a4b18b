"""Running a model over missing rates or patterns: data loaded once, all rates of a batch together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import Condition, MissingMasks, MissingProtocol, Rate, RealisedRates, drop
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError, as_msa_errors
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.msa_outputs import MsaOutput
from hf_msa.models.processing_msa import MsaProcessor


@dataclass(frozen=True)
class MaskedBatch:
    """Some rows before and after something was dropped of them, on the model's device.

    Attributes:
        protocol: Number of the protocol that dropped it.
        places: Places of the rows (batch,).
        members: The rows.
        masks: What was dropped.
        complete: The collated rows, labels and complete values included; only what a sample never had is missing.
        incomplete: The same as the protocol leaves them.
        inputs: What of it the model is given to predict with.
    """

    protocol: int
    places: NDArray[np.int64]
    members: list[dict[str, Any]]
    masks: MissingMasks
    complete: Mapping[str, torch.Tensor]
    incomplete: Mapping[str, torch.Tensor]
    inputs: dict[str, torch.Tensor]


def masked_batches(
    model: MsaPreTrainedModel,
    processor: MsaProcessor,
    rows: MsaRows,
    protocols: Sequence[MissingProtocol],
    what: str,
    *,
    places: Iterable[int] | None = None,
    batch_size: int = 128,
    split_ids: Sequence[str] | None = None,
) -> Iterator[MaskedBatch]:
    """Collate rows under several protocols; a batch is padded and moved once, then all protocols follow each other.

    Args:
        model: Says where to.
        processor: The model's.
        rows: Tokenised rows.
        protocols: What is dropped.
        what: Names the work, for the progress bar.
        places: Places of the rows that are wanted; default: all, in order of length, so that little is padded.
        batch_size: Rows per batch.
        split_ids: The ids of the whole split, where `rows` are a part of it: what a protocol drops of a sample must not
            depend on which other samples are looked at.
    """
    device = next(model.parameters()).device
    ids = rows.ids if split_ids is None else split_ids
    collate = MsaCollator(processor, None, split=rows.split, return_complete=True)
    drops = [MsaCollator(processor, protocol.bind(ids), split=rows.split).masks for protocol in protocols]
    order = rows.by_length() if places is None else np.array(list(places), dtype=np.int64)
    parts = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    bar = tqdm(rows.batches(batch_size, order), desc=what, total=len(parts), leave=False, disable=None)
    for part, members in zip(parts, bar, strict=True):
        complete = {key: value.to(device) for key, value in collate(members).items()}
        for number, masks_of in enumerate(drops):
            masks = masks_of(members)
            incomplete = drop(complete, masks, processor)
            inputs = model.inputs_from(incomplete, predicting=True)
            yield MaskedBatch(number, part, members, masks, complete, incomplete, inputs)


@torch.inference_mode()
def sweep(
    model: MsaPreTrainedModel,
    processor: MsaProcessor,
    rows: MsaRows,
    tested: Sequence[Condition],
    batch_size: int = 128,
    split_ids: Sequence[str] | None = None,
) -> tuple[list[dict[str, Any]], dict[tuple[int | None, Rate], dict[str, float]]]:
    """Predict all rows under all conditions.

    Args:
        model: In eval mode, on its device.
        processor: The model's processor.
        rows: Tokenised rows.
        tested: From `conditions`.
        batch_size: Rows per batch.
        split_ids: See `masked_batches`.

    Returns:
        One part of a prediction table per condition (see `predictions_table`), rows in their own order, with every
        number that the model says of a sample (see `MsaPreTrainedModel.per_sample_outputs`); and the realised missing
        shares by (mask seed, rate).

    Raises:
        MsaError: If a score or a class logit is not a finite number.
    """
    realised = [RealisedRates() for _ in tested]
    collected: list[dict[str, np.ndarray]] = [{} for _ in tested]
    # Where the outputs belong that are still to come.
    targets: list[tuple[NDArray[np.int64], dict[str, np.ndarray]]] = []

    def inputs() -> Iterator[tuple[dict[str, torch.Tensor], list[dict[str, Any]]]]:
        protocols = [protocol for _, _, protocol in tested]
        what = f"sweep of {len(tested)} conditions"
        for batch in masked_batches(
            model, processor, rows, protocols, what, batch_size=batch_size, split_ids=split_ids
        ):
            realised[batch.protocol].add(batch.masks)
            targets.append((batch.places, collected[batch.protocol]))
            yield batch.inputs, batch.members

    for outputs, (places, columns) in zip(_predicted(model, inputs(), processor), targets, strict=True):
        for name, value in model.per_sample_outputs(outputs).items():
            column = columns.setdefault("prediction" if name == "logits" else name, np.empty(len(rows), np.float32))
            column[places] = value.float().cpu().numpy()
    parts = []
    shares: dict[tuple[int | None, Rate], dict[str, float]] = {}
    for (seed, rate, _), columns, share in zip(tested, collected, realised, strict=True):
        _check_finite(columns, rows.ids, rate)
        parts.append({"id": rows.ids, "mask_seed": seed, "rate": rate, "label": rows.labels, **columns})
        shares[(seed, rate)] = share.shares()
    return parts, shares


def _check_finite(columns: Mapping[str, np.ndarray], ids: Sequence[str], rate: Rate) -> None:
    """Refuse predictions that are none, as a mean over the others would be one of other samples."""
    for name, column in columns.items():
        if name != "prediction" and not name.startswith("class_logits"):
            continue
        lost = [place for place, value in enumerate(np.isfinite(column).tolist()) if not value]
        if lost:
            some = ", ".join(repr(ids[place]) for place in lost[:3]) + (", ..." if len(lost) > 3 else "")
            raise MsaError(
                f"The model's {name.replace('_', ' ')} is not a finite number for {len(lost)} of {len(ids)} samples "
                f"({some}) at {rate!r}; look for values that are none in their features, or train at a lower learning rate."
            )


def _predicted(
    model: MsaPreTrainedModel,
    batches: Iterator[tuple[dict[str, torch.Tensor], list[dict[str, Any]]]],
    processor: MsaProcessor,
) -> Iterator[MsaOutput]:
    """The output for each batch."""
    with as_msa_errors():
        yield from model.predict_batches(batches, processor)
