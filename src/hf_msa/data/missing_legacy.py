"""The missing patterns of LNLN's public code (``core/dataset.py``), for comparison with numbers made by it."""

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.missing_base import (
    FRAME_RATES,
    BoolArray,
    FloatArray,
    IntArray,
    MissingProtocol,
    Samples,
    bound_rows,
    check_rate,
    check_seed,
    numbered,
    states,
)
from hf_msa.errors import MsaError
from hf_msa.models.msa_schema import MODALITIES


@functools.lru_cache(maxsize=6)
def legacy_field(seed: int, count: int, width: int) -> NDArray[np.float64]:
    """The uniform field of one modality over a padded split, shape (count, width).

    The reference seeds its generator anew for each modality, so two modalities of the same width share one field.

    Args:
        seed: The mask seed, 1111 in the reference's files.
        count: Samples in the split.
        width: Padded length of the modality.
    """
    values = np.random.RandomState(seed).uniform(size=(count, width))
    values.setflags(write=False)
    return values


@functools.lru_cache(maxsize=6)
def legacy_train_rates(seed: int, count: int, vision_width: int) -> NDArray[np.float64]:
    """The training rates, shape (count, 3) in the order text, audio, vision, before half of them are set to 0.

    The vision field is the last thing the reference draws from the generator that it has just seeded, so every refresh
    after the first continues from there and draws the same rates.

    Args:
        seed: The mask seed.
        count: Samples in the split.
        vision_width: Padded length of vision.
    """
    generator = np.random.RandomState(seed)
    generator.uniform(size=(count, vision_width))
    values = np.concatenate([generator.uniform(size=(count, 1)) for _ in range(3)], axis=1)
    values.setflags(write=False)
    return values


@dataclass(frozen=True)
class LegacyLnln(MissingProtocol):
    """The fields of LNLN's public code (``core/dataset.py``), for comparison with numbers made by it.

    As there: one numpy generator seeded anew for each modality, one uniform field over the whole padded split in file
    order, a position is kept when its value exceeds the rate, and the field never changes, so that only the rate moves
    the mask. It has to be bound to the split's ids in file order, and the samples' lengths must fit the padded widths.

    Different from there, on purpose: what may not be dropped is what the tokenizer calls special, not the first and
    the last token by position; a dropped token becomes the tokenizer's own unknown token; training rates are re-drawn
    by the draw number for all samples at once (the reference refreshes them when sample 0 happens to be fetched, in
    that worker only); which half is complete comes from the counter-based engine, because the reference takes it from
    Python's global generator. The rates themselves are those that the reference settles on from its second refresh:
    the stream that follows the vision field.

    Attributes:
        rate: The fixed rate of validation (0.5) or of a sweep; None draws training rates.
        seed: The seed of the fields, 1111 in the reference's files.
        text_width: Padded length of text.
        audio_width: Padded length of audio.
        vision_width: Padded length of vision.

    Example:
        ```python
        from hf_msa import LegacyLnln, load_msa

        LegacyLnln(rate=0.5).bind(load_msa("data/sample", "test")["id"])
        ```
    """

    name: ClassVar[str] = "legacy_lnln"
    RATES: ClassVar[tuple[float, ...]] = FRAME_RATES

    rate: float | None = None
    seed: int = 1111
    text_width: int = 50
    audio_width: int = 375
    vision_width: int = 500
    _rows: dict[str, int] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.rate is not None:
            check_rate(self.rate)
        check_seed(self.seed)
        if self.seed >= 1 << 32 or self.seed < 0:
            raise MsaError(f"The seed is {self.seed}; numpy's RandomState takes 0 to {(1 << 32) - 1}.")
        for modality in MODALITIES:
            if self._width(modality) < 1:
                raise MsaError(f"{modality}_width is {self._width(modality)}; give a length of at least 1.")

    @property
    def modalities(self) -> tuple[str, ...]:
        """All."""
        return MODALITIES

    def _width(self, modality: str) -> int:
        return int(getattr(self, f"{modality}_width"))

    def bind(self, ids: Iterable[str]) -> "LegacyLnln":
        """Return this protocol for the split whose rows have these ids, in the order of the file.

        Raises:
            MsaError: If an id comes twice.
        """
        bound = dataclasses.replace(self)
        object.__setattr__(bound, "_rows", numbered(ids))
        return bound

    def drop(self, samples: Samples) -> tuple[dict[str, BoolArray], FloatArray]:
        """Drop from a batch; see `MissingProtocol.drop`."""
        rows = bound_rows(self, self._rows, samples.ids)
        masks = {}
        rates = self._rates(samples, rows)
        for modality, maskable in samples.maskable.items():
            width = self._width(modality)
            if maskable.shape[1] > width:
                raise MsaError(
                    f"A sample has {maskable.shape[1]} positions of {modality}, but {modality}_width is {width}; "
                    f"set {modality}_width to the padded length of the reference's file."
                )
            values = legacy_field(self.seed, len(self._rows or ()), width)[rows, : maskable.shape[1]]
            masks[modality] = values <= rates[:, MODALITIES.index(modality), None]
        return masks, rates

    def _rates(self, samples: Samples, rows: IntArray) -> FloatArray:
        """The rate per sample and modality, shape (B, 3)."""
        if self.rate is not None:
            return np.full((len(rows), len(MODALITIES)), float(self.rate))
        total = len(self._rows or ())
        rates = legacy_train_rates(self.seed, total, self.vision_width)[rows]
        ids = list(self._rows or ())
        for draw in np.unique(samples.draws):
            chosen = samples.draws == draw
            for column, modality in enumerate(MODALITIES):
                draws = np.full(total, draw, dtype=np.uint64)
                order = np.argsort(states(self.seed, samples.split, ids, draws, f"half/{modality}"), kind="stable")
                clean = np.zeros(total, dtype=bool)
                clean[order[: total // 2]] = True
                rates[chosen & clean[rows], column] = 0.0
        return rates
