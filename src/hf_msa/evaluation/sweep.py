"""Running a model over missing rates or patterns: data loaded once, all rates of a batch together."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import Condition, Rate, RealisedRates, apply_missing
from hf_msa.data.rows import MsaRows
from hf_msa.errors import as_msa_errors
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.msa_outputs import MsaOutput
from hf_msa.models.msa_schema import COMPLETE_KEYS, VALUE_KEYS
from hf_msa.models.processing_msa import MsaProcessor


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

    A batch is padded and moved to the device once; the conditions then differ by masks only. Rows go in order of length, so
    that little is padded.

    Args:
        model: In eval mode, on its device.
        processor: The model's processor.
        rows: Tokenised rows.
        tested: From `conditions`.
        batch_size: Rows per batch.
        split_ids: The ids of the whole split, where `rows` are a part of it: what a protocol drops of a sample must not
            depend on which other samples are looked at.

    Returns:
        One part of a prediction table per condition (see `predictions_table`), rows in their own order, with every
        number that the model says of a sample (see `MsaPreTrainedModel.per_sample_outputs`); and the realised missing
        shares by (mask seed, rate).
    """
    device = next(model.parameters()).device
    bound = [
        (seed, rate, protocol.bind(rows.ids if split_ids is None else split_ids)) for seed, rate, protocol in tested
    ]
    collator = MsaCollator(processor, None, split=rows.split)
    order = np.argsort(np.sum(list(rows.lengths.values()), axis=0), kind="stable")
    realised = [RealisedRates() for _ in bound]
    collected: list[dict[str, np.ndarray]] = [{} for _ in bound]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def given() -> Iterator[tuple[dict[str, torch.Tensor], list[dict[str, Any]]]]:
        for indices in tqdm(batches, desc=f"sweep of {len(bound)} conditions", leave=False):
            members = [rows[int(index)] for index in indices]
            complete = {key: value.to(device) for key, value in collator(members).items()}
            for number, (_, _, protocol) in enumerate(bound):
                masks = MsaCollator(processor, protocol, split=rows.split).masks(members)
                realised[number].add(masks)
                batch = apply_missing(complete, masks, processor.tokenizer.unk_token_id)
                originals = {COMPLETE_KEYS[m]: complete[key] for m, key in VALUE_KEYS.items() if key in complete}
                yield model.inputs_from({**batch, **originals}, predicting=True), members

    places = [(indices, columns) for indices in batches for columns in collected]
    for (indices, columns), outputs in zip(places, _predicted(model, given(), processor), strict=True):
        for name, value in model.per_sample_outputs(outputs).items():
            column = columns.setdefault("prediction" if name == "logits" else name, np.empty(len(rows), np.float32))
            column[indices] = value.float().cpu().numpy()
    parts = []
    shares: dict[tuple[int | None, Rate], dict[str, float]] = {}
    for (seed, rate, _), columns, share in zip(bound, collected, realised, strict=True):
        parts.append({"id": rows.ids, "mask_seed": seed, "rate": rate, "label": rows.labels, **columns})
        shares[(seed, rate)] = share.shares()
    return parts, shares


def _predicted(
    model: MsaPreTrainedModel,
    batches: Iterator[tuple[dict[str, torch.Tensor], list[dict[str, Any]]]],
    processor: MsaProcessor,
) -> Iterator[MsaOutput]:
    """The output for each batch."""
    with as_msa_errors():
        yield from model.predict_batches(batches, processor)
