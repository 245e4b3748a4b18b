"""The rest of a sample's words, sound and pictures where a batch says that something of it is dropped.

Used by models that show samples to a language model: U-ACS its expert, OMG-Agent its planner.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .msa_schema import ATTENTION_MASK_KEYS, MISSING_MASK_KEYS

GAP = "..."
"""Stands for words that are dropped."""


def missing_positions(
    rows: Sequence[Mapping[str, Any]], inputs: Mapping[str, Tensor] | None
) -> list[dict[str, np.ndarray]]:
    """What is dropped of each row.

    Args:
        rows: The samples, complete; see `MsaPreTrainedModel.predict_rows`.
        inputs: The batch of these rows; None: nothing is dropped.

    Returns:
        For each row modality -> `(positions,)` of bool, True = dropped, for each modality that the row has, and of which the
        batch has a mask. A mask of frames ends with the row's frames, or with those that the model reads where it reads
        fewer. Nothing says what is dropped of sound or pictures without features.
    """
    given = {} if inputs is None else inputs
    masks = {name: given[key].bool().cpu().numpy() for name, key in MISSING_MASK_KEYS.items() if key in given}
    real = {name: given[key].bool().cpu().numpy() for name, key in ATTENTION_MASK_KEYS.items() if key in given}

    def has(row: Mapping[str, Any], name: str) -> bool:
        if name == "text":
            return bool((row.get("text") or "").strip())
        return row.get(name) is not None and bool(row.get(f"{name}_present", True))

    def of_row(name: str, index: int, row: Mapping[str, Any]) -> np.ndarray:
        mask: np.ndarray = masks[name][index]
        if name == "text":
            return mask
        # What is wholly missing has a length of its own; behind the end of any other sequence nothing is dropped.
        if name in real and mask.any() and not (real[name][index] & ~mask).any():
            return np.ones(len(row[name]), dtype=bool)
        return mask[: len(row[name])]

    return [{name: of_row(name, index, row) for name in masks if has(row, name)} for index, row in enumerate(rows)]


def visible_words(input_ids: Sequence[int], missing: np.ndarray, tokenizer: Any) -> str | None:
    """The transcript as far as it is left.

    Args:
        input_ids: Tokens, with special ones and padding.
        missing: True = dropped `(tokens,)`.
        tokenizer: Knows what they mean.

    Returns:
        The tokens that are left, with "..." for each gap; None where none is.
    """
    runs: list[list[int]] = []
    for token, gone in zip(input_ids, missing, strict=True):
        if gone or token == tokenizer.unk_token_id:
            # An empty run is a gap.
            runs += [[]] if not runs or runs[-1] else []
        elif token not in tokenizer.all_special_ids:
            if runs and runs[-1]:
                runs[-1].append(token)
            else:
                runs.append([token])
    if not any(runs):
        return None
    return " ".join(tokenizer.decode(run).strip().removeprefix("##") if run else GAP for run in runs)


def visible_media(values: np.ndarray, missing: np.ndarray | None, cut: bool) -> np.ndarray | None:
    """Sound or pictures without what is dropped of the features that were taken from them at equal distances.

    Args:
        values: In the order of time.
        missing: True = dropped `(feature frames,)`; None: nothing is.
        cut: Leave out what is dropped; otherwise it is silent.

    Returns:
        What is left; None where nothing is.
    """
    if missing is None or not missing.any():
        return values
    if missing.all():
        return None
    gone = missing[np.arange(len(values)) * len(missing) // len(values)]
    return values[~gone] if cut else np.where(gone, 0, values)


def in_usual_case(transcript: str) -> str:
    """Put a transcript that is all in capitals, as CMU-MOSI's are, into small letters: to language models it is shouted."""
    return transcript.lower() if transcript.isupper() else transcript
