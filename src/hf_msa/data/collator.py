"""From rows to a batch: padding to the batch's need, and the missing-data masks in one vectorised step."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_msa.data.missing import CompleteProtocol, MissingProtocol, RealisedRates, drop, pad_rows, with_complete
from hf_msa.data.missing_base import BoolArray, IntArray, MissingMasks, maskable_positions
from hf_msa.data.rows import tokenize
from hf_msa.data.schema import ID, LABEL, PRESENCE, TEXT
from hf_msa.errors import MsaError
from hf_msa.models.msa_schema import (
    ATTENTION_MASK_KEYS,
    FEATURE_MODALITIES,
    MISSING_MASK_KEYS,
    MODALITIES,
    UNIMODAL_LABEL_KEYS,
    VALUE_KEYS,
)


class MsaCollator:
    """Makes a batch of torch tensors out of row dicts, for a `DataLoader` or a `Trainer`.

    Each modality is padded to the longest sequence of the batch. What is dropped comes from the rows'
    ``*_missing_mask`` columns where they have some (`MissingModality` writes them), otherwise from `protocol`; both
    ways give the same batch. It keeps no state, so workers and processes may each have a copy.

    Args:
        processor: The model's `MsaProcessor`: tokenizer, widths, longest lengths, feature statistics.
        protocol: What is dropped; None drops nothing. One that has to be bound must be bound to the whole split.
        split: The split that the rows come from; part of what the masks depend on.
        return_complete: Also give the values before anything was dropped, as ``complete_*``.
        pad_to_fixed: Pad to the processor's fixed maximum lengths, as the papers do; default: the processor's own way.

    Example:
        ```python
        from hf_msa import FrameMissing, MsaCollator, MsaProcessor, load_msa
        from torch.utils.data import DataLoader

        processor = MsaProcessor.from_pretrained("runs/text/seed-1")
        collator = MsaCollator(processor, FrameMissing(rate=0.5), split="test")
        batch = next(iter(DataLoader(load_msa("data/sample", "test"), batch_size=4, collate_fn=collator)))
        batch["text_missing_mask"]  # (4, tokens), True = dropped
        ```
    """

    def __init__(
        self,
        processor: Any,
        protocol: MissingProtocol | None = None,
        split: str = "train",
        return_complete: bool = False,
        pad_to_fixed: bool | None = None,
    ) -> None:
        self.processor = processor
        self.protocol = protocol or CompleteProtocol()
        self.split = split
        self.return_complete = return_complete
        self.pad_to_fixed = processor.pad_to_fixed if pad_to_fixed is None else pad_to_fixed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows.

        Args:
            rows: Dicts with ``id``, ``text`` (or, tokenized, ``input_ids`` and ``special_tokens_mask``) and the
                feature columns of the data set; optionally ``*_present``, ``label``, ``label_text`` ..., ``index``,
                ``draw`` and the columns of `MissingModality`.

        Returns:
            ``input_ids``, ``attention_mask`` (B, L); ``audio_values`` (B, Ta, da), ``audio_attention_mask`` (B, Ta)
            and the same for vision, where the model reads them; ``*_missing_mask``, True = dropped, values already
            replaced, with the form of `msa_missing` where all of a modality is; ``labels`` (B,) and unimodal labels where
            the rows have them; ``sample_index`` (-1 where a row has no ``index``), ``draw`` (B,); ``missing_rates`` (B, 3),
            NaN for a modality that is not there; ``complete_*`` if asked for, with attention masks of their own. Padding
            is 0 in values, the tokenizer's padding token in ``input_ids``, never dropped.

        Raises:
            MsaError: If the rows do not fit the processor or the protocol.
        """
        ids, special = self._tokens(rows)
        masks = self._masks(rows, [len(row) for row in ids], special)
        inputs = {**self._text(ids), **self._features(rows)}
        batch = {key: torch.from_numpy(values) for key, values in inputs.items()}
        if self.return_complete:
            batch = with_complete(batch)
        batch = drop(batch, masks, self.processor)
        for key, column in {"labels": LABEL, **{key: key for key in UNIMODAL_LABEL_KEYS.values()}}.items():
            if column in rows[0]:
                batch[key] = torch.tensor([float(row[column]) for row in rows], dtype=torch.float32)
        batch["sample_index"] = torch.tensor([int(row.get("index", -1)) for row in rows])
        batch["draw"] = torch.from_numpy(_draws(rows))
        batch["missing_rates"] = torch.from_numpy(masks.rates)
        return batch

    def masks(self, rows: Sequence[Mapping[str, Any]]) -> MissingMasks:
        """What a batch of these rows loses, without making the batch; frames that the processor would cut included."""
        ids, special = self._tokens(rows)
        return self._masks(rows, [len(row) for row in ids], special)

    def realised(self, rows: Iterable[Mapping[str, Any]]) -> RealisedRates:
        """What a pass over all these rows really drops."""
        total = RealisedRates()
        chunk: list[Mapping[str, Any]] = []
        for row in rows:
            chunk.append(row)
            if len(chunk) == 256:
                total.add(self.masks(chunk))
                chunk = []
        if chunk:
            total.add(self.masks(chunk))
        return total

    def _tokens(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[IntArray], list[BoolArray]]:
        """Token ids and special-token marks per row: those that the rows carry, or made here."""
        longest = self.processor.text_max_length
        if "input_ids" not in rows[0]:
            if TEXT not in rows[0]:
                raise MsaError(
                    f"The rows have no {TEXT!r}, but {', '.join(rows[0])}; a transformers.Trainer takes away what forward "
                    "does not name, so give it remove_unused_columns=False."
                )
            return tokenize(self.processor.tokenizer, [row[TEXT] or "" for row in rows], longest)
        ids = [np.asarray(row["input_ids"]) for row in rows]
        for row, tokens in zip(rows, ids, strict=True):
            if len(tokens) > longest:
                raise MsaError(
                    f"The sample {row[ID]!r} was tokenized to {len(tokens)} tokens, but this checkpoint reads at most "
                    f"{longest}; tokenize with max_length={longest}."
                )
        return ids, [np.asarray(row["special_tokens_mask"], dtype=bool) for row in rows]

    def _text(self, ids: Sequence[IntArray]) -> dict[str, NDArray[Any]]:
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        width = self.processor.text_max_length if self.pad_to_fixed else None
        tokens = pad_rows(ids, lengths, self.processor.tokenizer.pad_token_id, width)
        real = np.arange(tokens.shape[1]) < lengths[:, None]
        return {VALUE_KEYS["text"]: tokens, ATTENTION_MASK_KEYS["text"]: real.astype(np.int64)}

    def _features(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
        """Padded values and attention masks of the modalities that the model reads."""
        result: dict[str, NDArray[Any]] = {}
        extractor = self.processor.feature_extractor
        for modality in extractor.modalities:
            sequences = [
                np.asarray(row[modality], dtype=np.float32) if _present(row, modality) else None for row in rows
            ]
            try:
                values, mask = extractor.pad(modality, sequences, self.pad_to_fixed)
            except ValueError as error:
                raise MsaError(str(error)) from error
            result[VALUE_KEYS[modality]], result[ATTENTION_MASK_KEYS[modality]] = values, mask
        return result

    def _masks(
        self, rows: Sequence[Mapping[str, Any]], tokens: Sequence[int], special: Sequence[BoolArray]
    ) -> MissingMasks:
        """Masks over true lengths and the modalities of the data, so not on what the model reads or cuts."""
        counts = np.array(tokens, dtype=np.int64)
        # A text without a word is missing, as the processor has it.
        lengths = {"text": np.where([row.all() for row in special], 0, counts)}
        for modality in FEATURE_MODALITIES:
            if modality in rows[0]:
                frames = [len(row[modality]) if _present(row, modality) else 0 for row in rows]
                lengths[modality] = np.array(frames, dtype=np.int64)
        marks = pad_rows(special, counts, False)
        if any(key in rows[0] for key in MISSING_MASK_KEYS.values()):
            return _masks_of_columns(rows, lengths, marks)
        return self.protocol.masks([row[ID] for row in rows], self.split, _draws(rows), lengths, marks)


def _present(row: Mapping[str, Any], modality: str) -> bool:
    """Whether a row has something of a feature modality."""
    return row.get(modality) is not None and bool(row.get(PRESENCE[modality], True))


def _draws(rows: Sequence[Mapping[str, Any]]) -> IntArray:
    return np.array([row.get("draw", 0) for row in rows], dtype=np.int64)


def _masks_of_columns(
    rows: Sequence[Mapping[str, Any]], lengths: Mapping[str, IntArray], special: BoolArray
) -> MissingMasks:
    """The masks that the rows carry as columns; nominal rates are the dropped shares where the rows name none."""
    maskable = maskable_positions(lengths, special)
    masks = {modality: np.zeros_like(real) for modality, real in maskable.items()}
    for modality, mask in masks.items():
        key = MISSING_MASK_KEYS[modality]
        for row, target, length in zip(rows, mask, lengths[modality], strict=True):
            given = row.get(key)
            if given is None or not length:
                continue
            if len(given) != length:
                raise MsaError(
                    f"The column {key!r} of sample {row[ID]!r} has {len(given)} entries, but the sample has {length} "
                    "positions; make the masks with the same tokenizer and maximum length as the batch."
                )
            target[:length] = given
        mask &= maskable[modality]
    counts = {modality: real.sum(axis=1) for modality, real in maskable.items()}
    if "missing_rates" in rows[0]:
        rates = np.array([row["missing_rates"] for row in rows], dtype=np.float32)
    else:
        rates = np.full((len(rows), len(MODALITIES)), np.nan, dtype=np.float32)
        for modality, mask in masks.items():
            there = lengths[modality] > 0
            share = mask.sum(axis=1) / np.maximum(counts[modality], 1)
            rates[there, MODALITIES.index(modality)] = share[there]
    return MissingMasks(masks, rates, counts)
