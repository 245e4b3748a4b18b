"""The missing-modality engine: which tokens, frames or whole modalities of a sample are dropped.

A *protocol* is a frozen dataclass. What it drops is a pure function of (seed, split, sample id, modality, rate or
pattern, draw): it does not depend on the batch a sample sits in, on order, workers or processes, and it is nested in
the rate (what is dropped at 0.3 is dropped at 0.6). A *draw* is what re-draws the pattern: the epoch in training, the
repeat in evaluation.

Mask polarity everywhere: True = dropped. Masks are never True on padding, nor on the tokenizer's special tokens.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hf_msa.data.missing_base import (
    FRAME_RATES,
    MODALITY_RATES,
    BoolArray,
    Condition,
    FloatArray,
    IntArray,
    MissingMasks,
    MissingProtocol,
    Rate,
    RealisedRates,
    Samples,
    bound_rows,
    build_protocol,
    check_range,
    check_rate,
    check_seed,
    modality_names,
    numbered,
    states,
)
from hf_msa.data.missing_legacy import LegacyLnln
from hf_msa.data.rows import tokenize
from hf_msa.errors import MsaError, nearest, reason, unknown_name
from hf_msa.models.msa_missing import replace_missing
from hf_msa.models.msa_schema import (
    ATTENTION_MASK_KEYS,
    COMPLETE_ATTENTION_KEYS,
    COMPLETE_KEYS,
    MISSING_MASK_KEYS,
    MODALITIES,
    VALUE_KEYS,
)
from hf_msa.registry import Registry

__all__ = [
    "PROTOCOLS",
    "FRAME_RATES",
    "MODALITY_RATES",
    "BlockMissing",
    "CompleteProtocol",
    "Condition",
    "FixedPattern",
    "FrameMissing",
    "LegacyLnln",
    "MissingMasks",
    "MissingModality",
    "MissingProtocol",
    "ModalityMissing",
    "RandomPattern",
    "RealisedRates",
    "UserMasks",
    "Rate",
    "apply_missing",
    "conditions",
    "protocol_from_dict",
    "pad_rows",
    "register_protocol",
]


@dataclass(frozen=True)
class CompleteProtocol(MissingProtocol):
    """Nothing is dropped (P3).

    Example:
        ```python
        from hf_msa import CompleteProtocol

        CompleteProtocol()
        ```
    """

    name: ClassVar[str] = "complete"

    @classmethod
    def conditions(
        cls, modalities: Sequence[str], rates: Sequence[float] | None, mask_seeds: Sequence[int], /, **fields: Any
    ) -> list[Condition]:
        """The complete data, as rate 0; see `MissingProtocol.conditions`."""
        cls.check_rates(rates)
        return [Condition(mask_seeds[0], 0.0, build_protocol(cls, fields))]

    @property
    def modalities(self) -> tuple[str, ...]:
        """None."""
        return ()

    def drop(self, samples: Samples) -> tuple[dict[str, BoolArray], FloatArray]:
        """Drop from a batch; see `MissingProtocol.drop`."""
        return samples.whole({})


@dataclass(frozen=True)
class FrameMissing(MissingProtocol):
    """Tokens and frames are dropped one by one, independently (P1; LNLN, TCMR section 3.1, PGLH).

    Attributes:
        rate: The missing rate in [0, 1], the same for all samples and modalities: evaluation.
        rate_range: Instead of `rate`, ``(low, high)``: each sample, modality and draw gets its own rate, uniform in
            [low, high): training. TCMR uses (0, 1), PGLH (0, 0.9).
        rate_sampler: ``"uniform"``, or ``"lnln_half_clean"``: as LNLN's code, which sets the rate to 0 for a random
            half of the samples, independently per modality (here with probability 1/2 per sample).
        seed: The mask seed, not the training seed.
        modalities: The modalities that lose something; the others stay complete.

    Example:
        ```python
        from hf_msa import FrameMissing

        FrameMissing(rate=0.3)
        ```
    """

    name: ClassVar[str] = "frame"
    RATES: ClassVar[tuple[float, ...]] = FRAME_RATES

    rate: float | None = None
    rate_range: tuple[float, float] | None = None
    rate_sampler: Literal["uniform", "lnln_half_clean"] = "uniform"
    seed: int = 1111
    modalities: tuple[str, ...] = MODALITIES

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.rate_range is None):
            raise MsaError(
                f"FrameMissing got rate={self.rate} and rate_range={self.rate_range}; give exactly one of the two."
            )
        if self.rate is not None:
            check_rate(self.rate)
        if self.rate_range is not None:
            low, high = check_range(self.rate_range)
            object.__setattr__(self, "rate_range", (low, high))
        if self.rate_sampler not in (samplers := ("uniform", "lnln_half_clean")):
            raise unknown_name("rate_sampler", str(self.rate_sampler), samplers)
        if self.rate_sampler != "uniform" and self.rate_range is None:
            raise MsaError(
                f"rate_sampler={self.rate_sampler!r} draws rates, so it needs rate_range, not a fixed rate."
            )
        check_seed(self.seed)
        object.__setattr__(self, "modalities", modality_names("modalities", self.modalities))

    def drop(self, samples: Samples) -> tuple[dict[str, BoolArray], FloatArray]:
        """Drop from a batch; see `MissingProtocol.drop`."""
        masks = {}
        rates = np.zeros((len(samples.ids), len(MODALITIES)))
        for modality in (m for m in self.modalities if m in samples.maskable):
            rate = self._rates(samples, modality)
            field_ = samples.uniform(self.seed, f"frame/{modality}", samples.maskable[modality].shape[1])
            masks[modality] = field_ < rate[:, None]
            rates[:, MODALITIES.index(modality)] = rate
        return masks, rates

    def _rates(self, samples: Samples, modality: str) -> FloatArray:
        """The rate of each sample for one modality, shape (B,)."""
        if self.rate_range is None:
            return np.full(len(samples.ids), float(self.rate or 0.0))
        low, high = self.rate_range
        draw = samples.uniform(self.seed, f"rate/{modality}", 2)
        rate = low + (high - low) * draw[:, 0]
        return np.where(draw[:, 1] < 0.5, 0.0, rate) if self.rate_sampler == "lnln_half_clean" else rate


@dataclass(frozen=True)
class ModalityMissing(MissingProtocol):
    """Whole modalities are dropped at random, at a target rate met exactly over the split (P2 random; OMG-Agent).

    The shares of samples that lose two and one modalities are IMDer's and DiCMoR's table for MR 0.1 to 0.7; "0.7"
    leaves exactly one modality, which is a true MR of 2/3. The released code gives whole batches in loader order the
    same fate; here a seeded permutation of the split's samples decides, so that the shares hold to within half a
    sample, whatever the batches are. The last modality that a sample has is never dropped: with two modalities a
    sample of the "lose two" share loses one, and the realised rate, not the nominal one, says what happened.

    Attributes:
        rate: The target rate MR: 0.0, 0.1, ... 0.7.
        seed: The mask seed.

    Example:
        ```python
        from hf_msa import ModalityMissing, load_msa

        ModalityMissing(rate=0.3).bind(load_msa("data/sample", "test")["id"])
        ```
    """

    name: ClassVar[str] = "modality"
    RATES: ClassVar[tuple[float, ...]] = MODALITY_RATES
    SHARES: ClassVar[dict[int, tuple[int, int]]] = {
        0: (0, 0),
        1: (1, 1),
        2: (2, 2),
        3: (3, 3),
        4: (5, 2),
        5: (7, 1),
        6: (9, 0),
        7: (10, 0),
    }
    """MR in tenths -> (tenths of the samples that lose two modalities, tenths that lose one)."""

    rate: float
    seed: int = 1111
    _rows: dict[str, int] | None = field(default=None, init=False, repr=False, compare=False)
    _ranks: dict[tuple[str, int], IntArray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_rate(self.rate)
        tenths = round(self.rate * 10)
        if tenths not in self.SHARES or abs(self.rate * 10 - tenths) > 1e-6:
            near = min(tenths, max(self.SHARES)) / 10
            raise MsaError(f"The modality missing rate is {self.rate}; use 0.0, 0.1, ... 0.7, the nearest is {near}.")
        check_seed(self.seed)

    @property
    def modalities(self) -> tuple[str, ...]:
        """All: which of them a sample loses is part of the draw."""
        return MODALITIES

    def bind(self, ids: Iterable[str]) -> "ModalityMissing":
        """Return this protocol for the split with exactly these ids, in any order.

        Raises:
            MsaError: If an id comes twice.
        """
        bound = dataclasses.replace(self)
        object.__setattr__(bound, "_rows", numbered(sorted(ids)))
        return bound

    def _rank(self, split: str, draw: int) -> IntArray:
        """The place of each sample of the split in the permutation of this draw, shape (N,)."""
        if (split, draw) not in self._ranks:
            assert self._rows is not None
            draws = np.full(len(self._rows), draw, dtype=np.uint64)
            order = np.argsort(states(self.seed, split, list(self._rows), draws, "permutation"), kind="stable")
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))
            while len(self._ranks) >= 64:
                self._ranks.pop(next(iter(self._ranks)))
            self._ranks[split, draw] = rank
        return self._ranks[split, draw]

    def drop(self, samples: Samples) -> tuple[dict[str, BoolArray], FloatArray]:
        """Drop from a batch; see `MissingProtocol.drop`."""
        rows = bound_rows(self, self._rows, samples.ids)
        rank = np.empty(len(rows), dtype=np.int64)
        for draw in np.unique(samples.draws):
            chosen = samples.draws == draw
            rank[chosen] = self._rank(samples.split, int(draw))[rows[chosen]]
        two, one = self.SHARES[round(self.rate * 10)]
        total = len(self._rows or ())
        # Whole-number arithmetic: rounds half up, and both limits grow with the rate, which keeps the rates nested.
        target = (rank < (total * two + 5) // 10).astype(np.int64) + (rank < (total * (two + one) + 5) // 10)
        there = list(samples.lengths)
        keys = np.stack([samples.uniform(self.seed, f"modality/{m}", 1)[:, 0] for m in there], axis=1)
        present = np.stack([samples.lengths[m] > 0 for m in there], axis=1)
        order = np.argsort(np.argsort(np.where(present, keys, 2.0), axis=1, kind="stable"), axis=1)
        lost = np.minimum(target, np.maximum(present.sum(axis=1) - 1, 0))
        return samples.whole({m: order[:, column] < lost for column, m in enumerate(there)})


@dataclass(frozen=True)
class FixedPattern(MissingProtocol):
    """The same modalities are available in every sample, the others are dropped whole (P2 fixed; OMG-Agent Table 1).

    Text that is dropped whole keeps its special tokens; all others become the unknown token. A single sample that
    lacks the available modalities is left with none; a data set that lacks them all is refused.

    Attributes:
        available: The modalities that stay, at least one.

    Example:
        ```python
        from hf_msa import FixedPattern

        FixedPattern(available=("text", "audio"))
        ```
    """

    name: ClassVar[str] = "fixed"

    available: tuple[str, ...]

    @classmethod
    def conditions(
        cls, modalities: Sequence[str], rates: Sequence[float] | None, mask_seeds: Sequence[int], /, **fields: Any
    ) -> list[Condition]:
        """Every availability pattern, or the one that `available` names; see `MissingProtocol.conditions`."""
        cls.check_rates(rates)
        patterns = [p for size in range(1, len(modalities) + 1) for p in itertools.combinations(modalities, size)]
        # As OMG-Agent's tables have them: those without text first.
        patterns.sort(key=lambda pattern: (len(pattern), "text" in pattern))
        chosen = [fields.pop("available")] if "available" in fields else patterns
        protocols = [build_protocol(cls, {**fields, "available": modality_names("available", p)}) for p in chosen]
        return [Condition(mask_seeds[0], "+".join(p.to_dict()["available"]), p) for p in protocols]

    def __post_init__(self) -> None:
        object.__setattr__(self, "available", modality_names("available", self.available))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that are dropped."""
        return tuple(m for m in MODALITIES if m not in self.available)

    def drop(self, samples: Samples) -> tuple[dict[str, BoolArray], FloatArray]:
        """Drop from a batch; see `MissingProtocol.drop`."""
        if not any(m in samples.lengths for m in self.available):
            raise MsaError(
                f"The pattern keeps {' and '.join(self.available)}, but the data has only "
                f"{' and '.join(samples.lengths)}; keep a modality that the data has."
            )
        everyone = np.ones(len(samples.ids), dtype=bool)
        return samples.whole({m: everyone for m in self.modalities if m in samples.lengths})


@dataclass(frozen=True)
class RandomPattern(MissingProtocol):
    """Each sample keeps a uniformly drawn, non-empty subset of the modalities that it has: one model for all patterns.

    The training counterpart of `FixedPattern`; each draw is a new one. With three modalities each of the seven patterns,
    complete included, has probability 1/7, which is a true MR of 3/7. OMG-Agent's paper does not say which patterns its
    models for fixed patterns were trained on; this is our reading.

    Attributes:
        seed: The mask seed, not the training seed.

    Example:
        ```python
        from hf_msa import RandomPattern

        RandomPattern()
        ```
    """

    name: ClassVar[str] = "pattern"
    TESTED_AS: ClassVar[str | None] = "fixed"

    seed: int = 1111

    def __post_init__(self) -> None:
        check_seed(self.seed)

    @property
    def modalities(self) -> tuple[str, ...]:
        """All: which of them a sample loses is part of the draw."""
        return MODALITIES

    def drop(self, samples: Samples) -> tuple[dict[str, BoolArray], FloatArray]:
        """Drop from a batch; see `MissingProtocol.drop`."""
        there = [m for m in MODALITIES if m in samples.lengths]
        present = np.stack([samples.lengths[m] > 0 for m in there], axis=1)
        patterns = 2 ** present.sum(axis=1) - 1
        draw = samples.uniform(self.seed, "pattern", 1)[:, 0]
        # A number from 1 to 2^n - 1; its n binary digits say which of the n modalities stay.
        kept = 1 + np.floor(draw * patterns).astype(np.int64)
        digit = np.cumsum(present, axis=1) - 1
        lost = present & ((kept[:, None] >> np.maximum(digit, 0)) & 1 == 0)
        return samples.whole({m: lost[:, column] for column, m in enumerate(there)})


@dataclass(frozen=True)
class BlockMissing(MissingProtocol):
    """Contiguous blocks are dropped, as when a sensor or a line fails for a while.

    The droppable positions of a modality are cut into `blocks` equal parts, and in each part one block of about
    ``rate * part`` positions is dropped; the fraction of a position is rounded up or down at random, so that the
    expected share is the rate. Its place is uniform, and it grows in place with the rate, which keeps the rates
    nested.

    Attributes:
        rate: The missing rate in [0, 1].
        blocks: How many blocks per sample and modality, at most (two neighbours may touch).
        seed: The mask seed.
        modalities: The modalities that lose something; the others stay complete.

    Example:
        ```python
        from hf_msa import BlockMissing

        BlockMissing(rate=0.3, blocks=2)
        ```
    """

    name: ClassVar[str] = "block"
    RATES: ClassVar[tuple[float, ...]] = FRAME_RATES

    rate: float
    blocks: int = 1
    seed: int = 1111
    modalities: tuple[str, ...] = MODALITIES

    def __post_init__(self) -> None:
        check_rate(self.rate)
        if not isinstance(self.blocks, int) or isinstance(self.blocks, bool) or self.blocks < 1:
            raise MsaError(f"blocks is {self.blocks!r}; give a whole number of at least 1.")
        check_seed(self.seed)
        object.__setattr__(self, "modalities", modality_names("modalities", self.modalities))

    def drop(self, samples: Samples) -> tuple[dict[str, BoolArray], FloatArray]:
        """Drop from a batch; see `MissingProtocol.drop`."""
        masks = {}
        rates = np.zeros((len(samples.ids), len(MODALITIES)))
        for modality in (m for m in self.modalities if m in samples.maskable):
            maskable = samples.maskable[modality]
            place = np.cumsum(maskable, axis=1) - 1  # (B, T) number of each droppable position
            count = maskable.sum(axis=1)
            draw = samples.uniform(self.seed, f"block/{modality}", 2 * self.blocks)
            mask = np.zeros_like(maskable)
            for block in range(self.blocks):
                first, end = count * block // self.blocks, count * (block + 1) // self.blocks
                size = np.floor(self.rate * (end - first) + draw[:, 2 * block]).astype(np.int64)
                # With a fixed draw, size + 1 starts at this start or one earlier: the longer block holds the shorter.
                start = first + np.floor(draw[:, 2 * block + 1] * (end - first - size + 1)).astype(np.int64)
                mask |= (place >= start[:, None]) & (place < (start + size)[:, None])
            masks[modality] = mask
            rates[:, MODALITIES.index(modality)] = self.rate
        return masks, rates


@dataclass(frozen=True)
class UserMasks(MissingProtocol):
    """Masks that the user supplies, by sample id: the same for every split and draw.

    Attributes:
        source: A mapping ``{id: {modality: [0, 1, ...]}}``, or the path of a ``.json`` (a list of records) or
            ``.parquet`` file with the columns ``id`` and some of ``text``, ``audio``, ``vision``. 1 = dropped, one
            entry per true position; text counts the special tokens too, which are kept whatever the mask says. A
            modality that a record leaves out, or sets to null, stays complete.

    Example:
        ```python
        from hf_msa import UserMasks

        UserMasks({"one$_$0": {"audio": [0, 1, 1]}})
        ```
    """

    name: ClassVar[str] = "user"

    source: str | Mapping[str, Mapping[str, Sequence[int]]]
    _table: dict[str, dict[str, BoolArray]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.source, Mapping):
            plain = {
                str(key): {str(m): np.asarray(mask).astype(int).tolist() for m, mask in record.items()}
                for key, record in self.source.items()
            }
            object.__setattr__(self, "source", plain)
            records: list[dict[str, Any]] = [{"id": key, **record} for key, record in plain.items()]
        elif isinstance(self.source, (str, os.PathLike)):
            object.__setattr__(self, "source", os.fspath(self.source))
            records = _read_records(Path(self.source))
        else:
            raise MsaError(
                f"The source of the user masks is {self.source!r}; give a file's path or a mapping by sample id."
            )
        for record in records:
            sample_id = record.get("id")
            if not isinstance(sample_id, str) or sample_id in self._table:
                raise MsaError(
                    f"A record of the user masks has the id {sample_id!r}; ids are strings, each given once."
                )
            masks = {m: mask for m, mask in record.items() if m != "id" and mask is not None}
            for modality in masks:
                if modality not in MODALITIES:
                    raise unknown_name("modality in the user masks", modality, MODALITIES)
            self._table[sample_id] = {m: _flags(sample_id, m, mask) for m, mask in masks.items()}

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that some record has a mask for."""
        return tuple(m for m in MODALITIES if any(m in record for record in self._table.values()))

    def drop(self, samples: Samples) -> tuple[dict[str, BoolArray], FloatArray]:
        """Drop from a batch; see `MissingProtocol.drop`."""
        masks = {m: np.zeros_like(maskable) for m, maskable in samples.maskable.items()}
        for row, sample_id in enumerate(samples.ids):
            if sample_id not in self._table:
                raise MsaError(
                    f"The user masks have no record for the sample {sample_id!r}.{nearest(sample_id, self._table)}"
                )
            for modality, mask in self._table[sample_id].items():
                length = int(samples.lengths[modality][row]) if modality in samples.lengths else 0
                if len(mask) != length:
                    raise MsaError(
                        f"The user mask of sample {sample_id!r} for {modality} has {len(mask)} entries, but the "
                        f"sample has {length} positions; give one entry per position."
                    )
                masks[modality][row, :length] = mask
        rates = np.zeros((len(samples.ids), len(MODALITIES)))
        for modality, mask in masks.items():
            maskable = samples.maskable[modality]
            share = (mask & maskable).sum(axis=1) / np.maximum(maskable.sum(axis=1), 1)
            rates[:, MODALITIES.index(modality)] = share
        return masks, rates


def _flags(sample_id: str, modality: str, mask: Any) -> BoolArray:
    is_flat = isinstance(mask, list | tuple | np.ndarray) and all(
        isinstance(flag, int | float | np.number | np.bool_) for flag in mask
    )
    array = np.asarray(mask if is_flat else [[]])
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise MsaError(
            f"The user mask of sample {sample_id!r} for {modality} is not a flat list of 0 and 1 (1 = dropped)."
        )
    return array.astype(bool)


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Read a table of user masks."""
    if path.suffix not in (".json", ".parquet"):
        raise MsaError(f"The user masks are in {path.name!r}; give a .json or a .parquet file.")
    if not path.is_file():
        raise MsaError(f"There is no file of user masks at {str(path)!r}; check the path.")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return [dict(record) for record in pq.read_table(path).to_pylist()]
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            raise MsaError(
                f"The user masks in {path.name!r} cannot be read as Parquet ({reason(error):.200}); write the file again."
            ) from error
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MsaError(
            f"The user masks in {path.name!r} are not JSON ({reason(error)}); write a list of records."
        ) from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise MsaError(
            f"The user masks in {path.name!r} are not a list of records with the columns id, text, audio, vision."
        )
    return records


PROTOCOLS: Registry[type[MissingProtocol]] = Registry("protocol", "hf_msa.protocols")
"""Every protocol by the name that `to_dict`, recipes and the command line use."""


def register_protocol(protocol: type[MissingProtocol]) -> type[MissingProtocol]:
    """Add a missing-data protocol: recipes and `hf-msa evaluate --protocol` then know it; also a decorator.

    Args:
        protocol: A frozen dataclass made of `MissingProtocol`, with a name of its own.

    Raises:
        MsaError: If the name will not do or is taken.

    Example:
        ```python
        from dataclasses import dataclass
        from typing import ClassVar

        import numpy as np
        from hf_msa import MissingProtocol, register_protocol


        @register_protocol
        @dataclass(frozen=True)
        class NoSound(MissingProtocol):
            name: ClassVar[str] = "no_sound"
            modalities: ClassVar[tuple[str, ...]] = ("audio",)

            def drop(self, samples):
                return samples.whole({"audio": np.ones(len(samples.ids), dtype=bool)})
        ```
    """
    return PROTOCOLS.register(protocol.name, protocol)


for _protocol in (
    CompleteProtocol,
    FrameMissing,
    ModalityMissing,
    FixedPattern,
    RandomPattern,
    BlockMissing,
    UserMasks,
    LegacyLnln,
):
    register_protocol(_protocol)


def conditions(
    protocol: str,
    modalities: Sequence[str],
    rates: Sequence[float] | None = None,
    mask_seeds: Sequence[int] = (1111,),
    /,
    **fields: Any,
) -> list[Condition]:
    """List what a protocol is tested under; see `MissingProtocol.conditions`.

    Args:
        protocol: Its name, e.g. ``"frame"`` (P1: rates 0 to 0.9), ``"modality"`` (P2: rates 0 to 0.7), ``"fixed"`` (P2:
            every availability pattern) or ``"complete"``.
        modalities: Modalities of the data.
        rates: Missing rates instead of the protocol's own.
        mask_seeds: Seeds of the masks.
        **fields: The protocol's other fields.

    Raises:
        MsaError: For an unknown protocol, rates where the protocol has none, or a rate or seed that is given twice.
    """
    for option, values in (("--mask-seeds", mask_seeds), ("--rates", rates)):
        if values is not None and (not len(values) or len(set(values)) != len(values)):
            raise MsaError(f"{option} is {' '.join(map(str, values)) or 'empty'}; give at least one, and each once.")
    # Whole numbers among others: a rate is a float in every table.
    known_rates = None if rates is None else tuple(check_rate(rate) for rate in rates)
    return PROTOCOLS.find(protocol).conditions(modalities, known_rates, mask_seeds, **fields)


# What a test under a protocol goes through by itself.
_TESTED_ALL = ("name", "rate", "rate_range", "rate_sampler", "seed", "available")


def tested_as(values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Give the protocol under which models are tested whose checkpoint was chosen under another, or the same.

    Args:
        values: The selection protocol, as a recipe has it: ``name`` and the protocol's fields.

    Returns:
        Its name, and its fields beside rates, patterns and seeds: what `conditions` takes.
    """
    kind = PROTOCOLS.find(values["name"])
    fields = {key: value for key, value in values.items() if key not in _TESTED_ALL}
    return kind.TESTED_AS or kind.name, fields


def protocol_from_dict(values: Mapping[str, Any]) -> MissingProtocol:
    """Build a protocol from what `MissingProtocol.to_dict` gave, or from a recipe's entry.

    Args:
        values: ``name`` and the protocol's fields.

    Raises:
        MsaError: For an unknown name or field (the nearest valid one is named), or a value that is not allowed.
    """
    rest = dict(values)
    return build_protocol(PROTOCOLS.find(rest.pop("name", None)), rest)


# Applying masks


def apply_missing(
    batch: Mapping[str, Any], masks: MissingMasks | Mapping[str, NDArray[np.bool_]], unk_token_id: int
) -> dict[str, Any]:
    """Replace what is dropped: tokens by the unknown token, frames by zeros (LNLN; TCMR section 3.1).

    Args:
        batch: Model inputs: ``input_ids`` (B, L), ``audio_values`` (B, T, d), ``vision_values`` (B, T, d), torch
            tensors or numpy arrays; other keys pass through. Attention masks stay as they are: a dropped token is
            still attended to.
        masks: `MissingMasks`, or boolean arrays (B, T) by modality, True = dropped; narrower ones than the values are
            filled up with False, and what reaches beyond the values is cut.
        unk_token_id: The tokenizer's own unknown token.

    Returns:
        A new mapping with new values and with ``*_missing_mask`` for each modality in `batch`; `batch` is not changed.
    """
    arrays = masks.masks if isinstance(masks, MissingMasks) else masks
    result = dict(batch)
    for modality in MODALITIES:
        values = batch.get(VALUE_KEYS[modality])
        if values is None:
            continue
        mask = np.zeros(tuple(values.shape[:2]), dtype=bool)
        if modality in arrays:
            width = min(mask.shape[1], arrays[modality].shape[1])
            mask[:, :width] = arrays[modality][:, :width]
        fill = unk_token_id if modality == "text" else 0
        if isinstance(values, torch.Tensor):
            marks = torch.from_numpy(mask).to(values.device)
            result[VALUE_KEYS[modality]] = values.masked_fill(marks.view(*mask.shape, *[1] * (values.ndim - 2)), fill)
            result[MISSING_MASK_KEYS[modality]] = marks
        else:
            shaped = mask.reshape(*mask.shape, *[1] * (values.ndim - 2))
            result[VALUE_KEYS[modality]] = np.where(shaped, np.asarray(fill, dtype=values.dtype), values)
            result[MISSING_MASK_KEYS[modality]] = mask
    return result


def with_complete(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a batch of which nothing is dropped its values and attention masks under their ``complete_*`` names."""
    keys = [(VALUE_KEYS[m], COMPLETE_KEYS[m]) for m in MODALITIES]
    keys += [(ATTENTION_MASK_KEYS[m], COMPLETE_ATTENTION_KEYS[m]) for m in MODALITIES]
    return {**batch, **{complete: batch[key] for key, complete in keys if key in batch}}


def drop(batch: Mapping[str, Any], masks: MissingMasks, processor: Any) -> dict[str, Any]:
    """Drop from a batch what the masks say, and give what is wholly missing its one form.

    A modality is wholly missing where a sample does not have it, or its nominal rate is 1: then even how long it was is not
    known, see `hf_msa.models.msa_missing`. What is lost position by position keeps its length, even if nothing is left.

    Args:
        batch: See `apply_missing`; torch tensors.
        masks: What is dropped.
        processor: The model's `MsaProcessor`.

    Returns:
        As `apply_missing`; wider where the form of a missing modality is longer than the batch.
    """
    lost = np.isnan(masks.rates) | (masks.rates >= 1)
    missing = {m: torch.from_numpy(lost[:, column].copy()) for column, m in enumerate(MODALITIES)}
    return replace_missing(apply_missing(batch, masks, processor.tokenizer.unk_token_id), missing, processor)


class MissingModality:
    """Adds the masks of a protocol to rows of a data set: for ``dataset.map(fn, batched=True)`` and ``set_transform``.

    It adds the columns ``text_missing_mask`` (one boolean per token, special tokens included), ``audio_missing_mask``
    and ``vision_missing_mask`` (one per frame), True = dropped, and what the collator needs to make the same batch as
    with its own protocol: ``missing_rates`` (three numbers, NaN for a modality that is not there) and ``draw``. Values
    stay complete; the collator, or `apply_missing`, replaces them.

    Args:
        protocol: What is dropped. A protocol that has to be bound must be bound to the whole split.
        tokenizer: The model's tokenizer; None for data without text.
        split: The split that the rows come from.
        max_length: The most tokens per text, as in the processor; None for no limit.
        draw: The draw of rows that carry no ``draw`` column.

    Example:
        ```python
        from hf_msa import FrameMissing, MissingModality, load_msa
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained("data/sample/text_model")
        add_masks = MissingModality(FrameMissing(rate=0.3), tokenizer, split="test")
        test = load_msa("data/sample", "test").map(add_masks, batched=True)
        ```
    """

    def __init__(
        self,
        protocol: MissingProtocol,
        tokenizer: Any = None,
        split: str = "train",
        max_length: int | None = None,
        draw: int = 0,
    ) -> None:
        self.protocol = protocol
        self.tokenizer = tokenizer
        self.split = split
        self.max_length = max_length
        self.draw = draw

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return `batch` with the columns added.

        Args:
            batch: Columns of the data set as sequences of equal length: ``id``, and those of ``text``, ``audio``,
                ``vision`` that it has, with ``audio_present`` and ``vision_present`` where some samples lack a
                modality.
        """
        ids = list(batch["id"])
        special = None
        sizes: dict[str, IntArray] = {}
        lengths: dict[str, IntArray] = {}
        if "text" in batch and self.tokenizer is not None:
            marks = tokenize(self.tokenizer, batch["text"], self.max_length)[1]
            sizes["text"] = np.array([len(row) for row in marks], dtype=np.int64)
            special = pad_rows(marks, sizes["text"], False)
            lengths["text"] = np.where([row.all() for row in marks], 0, sizes["text"])
        for modality in ("audio", "vision"):
            if modality in batch:
                sizes[modality] = np.array([len(rows) for rows in batch[modality]], dtype=np.int64)
        for modality, size in ((m, size) for m, size in sizes.items() if m != "text"):
            present = batch.get(f"{modality}_present")
            lengths[modality] = size if present is None else np.where(np.asarray(present, dtype=bool), size, 0)
        draws = np.asarray(batch.get("draw", np.full(len(ids), self.draw)), dtype=np.int64)
        found = self.protocol.masks(ids, self.split, draws, lengths, special)
        added: dict[str, Any] = {"missing_rates": list(found.rates), "draw": draws.tolist()}
        for modality, mask in found.masks.items():
            # A sample that lacks the modality still holds one zero frame; its mask says False for it.
            wide = np.zeros((len(ids), int(sizes[modality].max(initial=0))), dtype=bool)
            wide[:, : mask.shape[1]] = mask
            added[MISSING_MASK_KEYS[modality]] = [row[:n] for row, n in zip(wide, sizes[modality], strict=True)]
        return {**batch, **added}


def pad_rows(
    rows: Sequence[NDArray[Any]], lengths: IntArray, fill: int | bool, width: int | None = None
) -> NDArray[Any]:
    """Put 1-D rows into one array (B, width), `fill` behind each; without a `width` the longest row decides."""
    padded = np.full((len(rows), int(lengths.max(initial=0)) if width is None else width), fill)
    for target, row, length in zip(padded, rows, lengths, strict=True):
        target[:length] = row[:length]
    return padded
