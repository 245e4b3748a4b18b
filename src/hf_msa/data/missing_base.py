"""The ground of all missing-data protocols: counter-based randomness, masks, the abstract protocol, checks.

Randomness is counter based. A sample's 64-bit key is the blake2b hash of (seed, split, id); everything after it is
splitmix64 over the key, the purpose, the draw and the position, so that one vectorised numpy step serves a whole batch
and no global random state is read or changed.
"""

import dataclasses
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_msa.errors import MsaError, unknown_name
from hf_msa.models.msa_schema import MODALITIES

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
KeyArray = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


# Counter-based randomness


def _mix(x: KeyArray) -> KeyArray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), elementwise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _string_key(text: str) -> int:
    """Hash a string to 64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@functools.lru_cache(maxsize=1 << 17)
def _sample_key(seed: int, split: str, sample_id: str) -> int:
    """The 64-bit key of a sample. The length of `split` keeps ("a", "bc") and ("ab", "c") apart."""
    return _string_key(f"{seed}/{len(split)}:{split}/{sample_id}")


@functools.lru_cache(maxsize=256)
def _purpose_key(purpose: str) -> np.uint64:
    return np.uint64(_string_key(purpose))


def states(seed: int, split: str, ids: Sequence[str], draws: KeyArray, purpose: str) -> KeyArray:
    """One 64-bit stream state per sample, shape (B,), distinct per purpose and draw."""
    keys = np.array([_sample_key(seed, split, sample_id) for sample_id in ids], dtype=np.uint64)
    return _mix(_mix(keys ^ _purpose_key(purpose)) + draws * _GOLDEN)


def uniform(states: KeyArray, width: int) -> FloatArray:
    """Uniform floats in [0, 1) of shape (B, width); entry (b, t) depends on ``states[b]`` and t alone."""
    counters = np.arange(1, width + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(states[:, None] + counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


# What a protocol is given, and what it gives back


@dataclass(frozen=True)
class Samples:
    """A batch as the protocols see it."""

    ids: Sequence[str]
    split: str
    draws: KeyArray  # (B,)
    lengths: Mapping[str, IntArray]  # (B,) per modality of the data set, 0 = the sample lacks it
    maskable: Mapping[str, BoolArray]  # (B, T) True = a real position that may be dropped

    def uniform(self, seed: int, purpose: str, width: int) -> FloatArray:
        """Uniform floats in [0, 1) of shape (B, width) for one purpose."""
        return uniform(states(seed, self.split, self.ids, self.draws, purpose), width)

    def whole(self, dropped: Mapping[str, BoolArray]) -> tuple[dict[str, BoolArray], FloatArray]:
        """Masks and rates that drop whole modalities; `dropped` holds one boolean per sample, shape (B,)."""
        masks = {m: self.maskable[m] & rows[:, None] for m, rows in dropped.items()}
        rates = np.zeros((len(self.ids), len(MODALITIES)))
        for modality, rows in dropped.items():
            rates[:, MODALITIES.index(modality)] = rows
        return masks, rates


@dataclass(frozen=True)
class MissingMasks:
    """What is dropped in one batch.

    Attributes:
        masks: Per modality of the data set a boolean array of shape (B, T_max), True = dropped; never True on padding
            nor on special tokens.
        rates: float32 of shape (B, 3), the nominal rate per sample and modality in the order of `MODALITIES`; 1 or 0
            where whole modalities are dropped; NaN where the data set or the sample does not have the modality.
        maskable: Per modality an int64 array of shape (B,): how many positions could have been dropped.
    """

    masks: dict[str, BoolArray]
    rates: NDArray[np.float32]
    maskable: dict[str, IntArray]

    def realised(self) -> dict[str, float]:
        """Share of droppable positions that are dropped, per modality that has such positions."""
        total = RealisedRates()
        total.add(self)
        return total.shares()


class RealisedRates:
    """Sums what batches really dropped, since a nominal rate is only met on average.

    Example:
        >>> total = RealisedRates()
        >>> for masks in batches_of_masks:
        ...     total.add(masks)
        >>> total.shares()
        {'text': 0.298, 'audio': 0.301}
    """

    def __init__(self) -> None:
        self._dropped = dict.fromkeys(MODALITIES, 0)
        self._maskable = dict.fromkeys(MODALITIES, 0)
        self._lost = 0
        self._present = 0

    def add(self, masks: MissingMasks) -> None:
        """Add one batch."""
        for modality, mask in masks.masks.items():
            dropped, maskable = mask.sum(axis=1), masks.maskable[modality]
            self._dropped[modality] += int(dropped.sum())
            self._maskable[modality] += int(maskable.sum())
            self._lost += int(((maskable > 0) & (dropped == maskable)).sum())
            self._present += int((maskable > 0).sum())

    def shares(self) -> dict[str, float]:
        """Dropped positions over droppable positions, per modality that has any."""
        return {m: self._dropped[m] / self._maskable[m] for m in MODALITIES if self._maskable[m]}

    def modality_rate(self) -> float:
        """MR = 1 - (modalities left) / (modalities there were); lost is one of which nothing is left.

        NaN before anything was added.
        """
        return self._lost / self._present if self._present else float("nan")


def maskable_positions(lengths: Mapping[str, IntArray], special: NDArray[Any] | None) -> dict[str, BoolArray]:
    """Where something may be dropped: real positions that hold no special token.

    Args:
        lengths: True lengths per modality, shape (B,).
        special: Boolean of shape (B, >= longest text), True on special tokens; needed when `lengths` has text.

    Returns:
        Per modality a boolean array of shape (B, longest).

    Raises:
        MsaError: If `special` is absent or too small.
    """
    maskable = {m: np.arange(n.max(initial=0)) < n[:, None] for m, n in lengths.items()}
    if "text" in maskable:
        count, width = maskable["text"].shape
        if special is None or special.ndim != 2 or special.shape[0] != count or special.shape[1] < width:
            got = "none" if special is None else f"one of shape {special.shape}"
            raise MsaError(f"Text of shape {(count, width)} needs a mask of special tokens that covers it; got {got}.")
        maskable["text"] &= ~special[:, :width].astype(bool)
    return maskable


# The protocols


FRAME_RATES = tuple(round(0.1 * step, 1) for step in range(10))
"""Missing rates of tokens and frames that models are tested at."""

MODALITY_RATES = tuple(round(0.1 * step, 1) for step in range(8))
"""Missing rates of whole modalities that models are tested at."""

Rate = float | str
"""A missing rate, or the name of an availability pattern such as ``"text+audio"``."""


class Condition(NamedTuple):
    """One of the settings that a protocol is tested at.

    Attributes:
        mask_seed: Seed of the masks.
        rate: What the result calls the rate or pattern.
        protocol: What makes it.
    """

    mask_seed: int
    rate: Rate
    protocol: "MissingProtocol"


class MissingProtocol(ABC):
    """What every missing-data protocol offers; subclasses are frozen dataclasses with a `name`.

    Attributes:
        name: As recipes, results and the command line call it.
        RATES: The missing rates that it is tested at; none for a protocol that has no rate.
        TESTED_AS: The protocol under which models are tested that it chose, where that is another one.

    Example:
        ```python
        from hf_msa import FrameMissing, MissingProtocol

        isinstance(FrameMissing(rate=0.3), MissingProtocol)  # one of your own: see `register_protocol`
        ```
    """

    name: ClassVar[str]
    RATES: ClassVar[tuple[float, ...]] = ()
    TESTED_AS: ClassVar[str | None] = None

    @classmethod
    def conditions(
        cls, modalities: Sequence[str], rates: Sequence[float] | None, mask_seeds: Sequence[int], /, **fields: Any
    ) -> list[Condition]:
        """List what a model is tested under.

        Here: every mask seed at every rate, as far as the protocol has seeds and rates.

        Args:
            modalities: Modalities of the data.
            rates: Missing rates in place of `RATES`; None: those.
            mask_seeds: Seeds of the masks; a protocol without randomness takes the first.
            **fields: The protocol's other fields.

        Raises:
            MsaError: For rates where the protocol has none, or a field or value that it does not take.
        """
        cls.check_rates(rates)
        known = {field.name for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
        seeds = tuple(mask_seeds) if "seed" in known else tuple(mask_seeds)[:1]
        swept: Sequence[float | None] = (cls.RATES if rates is None else tuple(rates)) or (None,)
        found = []
        for seed in seeds:
            for rate in swept:
                given = {**fields, **({"seed": seed} if "seed" in known else {})}
                given |= {} if rate is None else {"rate": rate}
                label: Rate = cls.name if rate is None else rate
                found.append(Condition(seed, label, build_protocol(cls, given)))
        return found

    @classmethod
    def check_rates(cls, rates: Sequence[float] | None) -> None:
        """Refuse rates where the protocol has none."""
        if rates is not None and not cls.RATES:
            raise MsaError(
                f"The protocol {cls.name!r} has no rates; leave --rates out, or use a protocol that is tested at rates."
            )

    @property
    @abstractmethod
    def modalities(self) -> tuple[str, ...]:
        """The modalities that this protocol may drop something of."""

    @abstractmethod
    def drop(self, samples: Samples) -> tuple[dict[str, BoolArray], FloatArray]:
        """Drop from a batch.

        Args:
            samples: The batch; its `uniform` gives random numbers that depend on the sample, not on its neighbours.

        Returns:
            Boolean masks (B, T) of the modalities that lose something, True = dropped, padding and special tokens as they
            come; and the nominal rates (B, 3), in the order of `MODALITIES`.
        """

    def masks(
        self,
        ids: Sequence[str],
        split: str,
        draws: NDArray[Any],
        lengths: Mapping[str, NDArray[Any]],
        special: NDArray[Any] | None = None,
    ) -> MissingMasks:
        """Say what is dropped of each sample.

        Args:
            ids: The samples' ids, B of them.
            split: The split that they come from: the same id in another split gets another pattern.
            draws: Non-negative integers of shape (B,).
            lengths: Per modality of the data set the true lengths, shape (B,): tokens with special tokens for text,
                frames for audio and vision. 0 says that the sample lacks the modality. The masks are as wide as the
                longest.
            special: Boolean of shape (B, >= longest text), True on special tokens; needed when `lengths` has text.

        Raises:
            MsaError: If the arguments do not fit each other, or the protocol cannot serve these samples.
        """
        count = len(ids)
        for modality in lengths:
            if modality not in MODALITIES:
                raise unknown_name("modality", modality, MODALITIES)
        known = {m: np.asarray(lengths[m], dtype=np.int64) for m in MODALITIES if m in lengths}
        draw_keys = np.asarray(draws)
        for what, array in [("draws", draw_keys), *known.items()]:
            if array.shape != (count,):
                raise MsaError(
                    f"There are {count} ids, but {what} has shape {array.shape}; give one number per sample."
                )
        if count and draw_keys.min() < 0:
            raise MsaError(f"A draw is {draw_keys.min()}; draws are counted from 0.")
        maskable = maskable_positions(known, special)
        dropped, rates = self.drop(Samples(ids, split, draw_keys.astype(np.uint64), known, maskable))
        # Nothing gets past this line onto padding or special tokens, whatever a protocol does.
        masks = {m: dropped[m] & real if m in dropped else np.zeros_like(real) for m, real in maskable.items()}
        nominal = np.array(rates, dtype=np.float32)
        for column, modality in enumerate(MODALITIES):
            nominal[known[modality] == 0 if modality in known else slice(None), column] = np.nan
        return MissingMasks(masks, nominal, {m: real.sum(axis=1) for m, real in maskable.items()})

    def bind(self, ids: Iterable[str]) -> "MissingProtocol":
        """Return this protocol for a split with exactly these ids; most protocols need none and return themselves."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the protocol as JSON-ready values, `name` first; `protocol_from_dict` reads them back."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]
        return {"name": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


def build_protocol(kind: type[MissingProtocol], values: Mapping[str, Any]) -> MissingProtocol:
    """Build a protocol from the values of its fields.

    Args:
        kind: The protocol's class.
        values: By field; lists are taken for tuples.

    Raises:
        MsaError: For a field that there is not (the nearest one is named) or that is lacking, or a value that is refused.
    """
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise unknown_name(f"field of the missing protocol {kind.name!r}:", key, fields)
    for key, entry in fields.items():
        if key not in values and entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise MsaError(f"The missing protocol {kind.name!r} needs {key!r}; add it.")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


# Checks


def check_rate(rate: Any) -> float:
    """Return `rate`, refusing what is not a number in [0, 1]."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0.0 <= rate <= 1.0:
        raise MsaError(f"The missing rate is {rate!r}; give a number from 0 to 1.")
    return float(rate)


def check_seed(seed: Any) -> None:
    """Refuse a seed that is not a whole number."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise MsaError(f"The mask seed is {seed!r}; give a whole number.")


def check_range(values: Any) -> tuple[float, float]:
    """Return a range of rates, refusing what is not two rates in ascending order."""
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        raise MsaError(f"rate_range is {values!r}; give two numbers, the lowest and the highest rate.")
    low, high = check_rate(values[0]), check_rate(values[1])
    if low > high:
        raise MsaError(f"rate_range is {(low, high)}; give the lower rate first.")
    return low, high


def modality_names(what: str, names: Any) -> tuple[str, ...]:
    """Return the names in the order of `MODALITIES`, refusing none, unknown ones and repeats."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise MsaError(f"{what} is {names!r}; give a list of names out of {', '.join(MODALITIES)}.")
    given = list(names)
    for name in given:
        if name not in MODALITIES:
            raise unknown_name(f"modality in {what}:", str(name), MODALITIES)
    if not given or len(set(given)) != len(given):
        raise MsaError(f"{what} is {given}; name at least one modality, each once.")
    return tuple(m for m in MODALITIES if m in given)


def numbered(ids: Iterable[str]) -> dict[str, int]:
    """Number the ids in their order."""
    rows: dict[str, int] = {}
    for sample_id in ids:
        if sample_id in rows:
            raise MsaError(f"The id {sample_id!r} comes twice in the split; ids must be unique.")
        rows[sample_id] = len(rows)
    return rows


def bound_rows(protocol: MissingProtocol, rows: Mapping[str, int] | None, ids: Sequence[str]) -> IntArray:
    """The numbers of these samples in the split that the protocol is bound to, shape (B,)."""
    if rows is None:
        raise MsaError(
            f"The missing protocol {protocol.name!r} spreads its masks over a whole split; call protocol.bind(ids) "
            "with the split's ids first."
        )
    try:
        return np.array([rows[sample_id] for sample_id in ids], dtype=np.int64)
    except KeyError as error:
        raise MsaError(
            f"The sample {error.args[0]!r} is not in the split of {len(rows)} samples that the missing protocol "
            f"{protocol.name!r} is bound to; bind it to this split's ids."
        ) from error
