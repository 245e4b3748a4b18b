"""What must hold of every protocol, for any samples."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_msa.data.missing import (
    BlockMissing,
    CompleteProtocol,
    FixedPattern,
    FrameMissing,
    LegacyLnln,
    ModalityMissing,
    RandomPattern,
    UserMasks,
)
from nonempty import some

MODALITIES = ("text", "audio", "vision")


@dataclass
class Split:
    """A whole split as the engine sees it."""

    ids: list[str]
    draws: np.ndarray
    lengths: dict[str, np.ndarray]
    special: np.ndarray

    def masks(self, protocol, rows=None):
        """Masks of the chosen rows as one batch."""
        rows = np.arange(len(self.ids)) if rows is None else np.asarray(rows)
        lengths = {m: n[rows] for m, n in self.lengths.items()}
        ids = [self.ids[i] for i in rows]
        return protocol.bind(self.ids).masks(ids, "train", self.draws[rows], lengths, self.special[rows])


@st.composite
def splits(draw):
    count = draw(st.integers(1, 12))
    ids = draw(st.lists(st.text(max_size=6), min_size=count, max_size=count, unique=True))
    text = np.array(draw(st.lists(st.integers(2, 12), min_size=count, max_size=count)))
    lengths = {"text": text}
    for modality in draw(st.sets(st.sampled_from(("audio", "vision")))):
        lengths[modality] = np.array(draw(st.lists(st.integers(0, 25), min_size=count, max_size=count)))
    special = np.zeros((count, 12), dtype=bool)
    special[:, 0] = special[np.arange(count), text - 1] = True
    draws = np.array(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)))
    return Split(ids, draws, lengths, special)


rates = st.floats(0, 1)
tenths = st.integers(0, 7).map(lambda n: n / 10)
seeds = st.integers(0, 2**31)
frame = st.builds(FrameMissing, rate=rates, seed=seeds)
frame_range = st.builds(
    lambda a, b, sampler, seed: FrameMissing(
        rate_range=(min(a, b), max(a, b)),
        rate_sampler=sampler,
        seed=seed,
    ),
    rates,
    rates,
    st.sampled_from(("uniform", "lnln_half_clean")),
    seeds,
)
modality = st.builds(ModalityMissing, rate=tenths, seed=seeds)
block = st.builds(BlockMissing, rate=rates, blocks=st.integers(1, 4), seed=seeds)
fixed = st.sets(st.sampled_from(("audio", "vision"))).map(lambda names: FixedPattern(("text", *names)))
legacy = st.builds(LegacyLnln, rate=st.none() | rates, seed=seeds)
pattern = st.builds(RandomPattern, seed=seeds)
protocols = st.one_of(st.just(CompleteProtocol()), frame, frame_range, modality, block, fixed, pattern, legacy)


@given(splits(), protocols)
def test_never_on_padding_nor_on_special_tokens(split, protocol):
    found = split.masks(protocol)
    assert set(found.masks) == set(split.lengths)
    for name, mask in found.masks.items():
        padding = np.arange(mask.shape[1]) >= split.lengths[name][:, None]
        assert mask.shape == (len(split.ids), split.lengths[name].max()) and mask.dtype == bool
        assert not (mask & padding).any()
    text = found.masks["text"]
    assert not (text & split.special[:, : text.shape[1]]).any()
    absent = np.stack([split.lengths.get(m, np.zeros(len(split.ids))) == 0 for m in MODALITIES], axis=1)
    np.testing.assert_array_equal(np.isnan(found.rates), absent)


@given(splits(), protocols, st.randoms(use_true_random=False), st.integers(1, 5))
def test_independent_of_batch_size_order_and_neighbours(split, protocol, random, size):
    whole = split.masks(protocol)
    order = list(range(len(split.ids)))
    random.shuffle(order)
    for start in some(range(0, len(order), size)):
        rows = order[start : start + size]
        part = split.masks(protocol, rows)
        np.testing.assert_array_equal(part.rates, whole.rates[rows])
        for name, mask in part.masks.items():
            np.testing.assert_array_equal(mask, whole.masks[name][rows][:, : mask.shape[1]])


@given(splits(), st.one_of(frame, block, legacy), rates, rates)
def test_nested_in_the_rate(split, protocol, a, b):
    fewer, more = (split.masks(dataclasses.replace(protocol, rate=rate)).masks for rate in sorted((a, b)))
    assert all(not (fewer[name] & ~more[name]).any() for name in fewer)


@given(splits(), modality, tenths, tenths)
def test_whole_modalities_are_nested_in_the_rate(split, protocol, a, b):
    fewer, more = (split.masks(dataclasses.replace(protocol, rate=rate)).masks for rate in sorted((a, b)))
    assert all(not (fewer[name] & ~more[name]).any() for name in fewer)


@given(splits(), st.one_of(modality, pattern))
def test_a_sample_never_loses_its_last_modality(split, protocol):
    found = split.masks(protocol)
    present = np.stack([split.lengths.get(m, np.zeros(len(split.ids))) > 0 for m in MODALITIES], axis=1)
    kept = present & (np.nan_to_num(found.rates) == 0)
    assert kept.any(axis=1).all()


@given(st.integers(1, 60), tenths, seeds, st.integers(0, 9))
def test_modality_shares_hold_to_within_half_a_sample(count, rate, seed, draw):
    ids = [f"v{i}" for i in range(count)]
    lengths = {m: np.full(count, 3) for m in MODALITIES}
    protocol = ModalityMissing(rate, seed=seed).bind(reversed(ids))
    found = protocol.masks(ids, "test", np.full(count, draw), lengths, np.zeros((count, 3), dtype=bool))
    two, one = {1: (1, 1), 2: (2, 2), 3: (3, 3), 4: (5, 2), 5: (7, 1), 6: (9, 0), 7: (10, 0)}.get(
        round(rate * 10), (0, 0)
    )
    lost = found.rates.sum(axis=1)
    assert abs((lost == 2).sum() - count * two / 10) <= 0.5
    assert abs((lost >= 1).sum() - count * (two + one) / 10) <= 0.5
    for column, name in enumerate(MODALITIES):  # whole modalities, or nothing of them
        np.testing.assert_array_equal(found.masks[name], (found.rates[:, column] == 1)[:, None].repeat(3, axis=1))


@given(splits(), protocols)
def test_the_same_twice_and_realised_within_bounds(split, protocol):
    first, second = split.masks(protocol), split.masks(protocol)
    for name in first.masks:
        np.testing.assert_array_equal(first.masks[name], second.masks[name])
    assert all(0 <= share <= 1 for share in first.realised().values())


@given(splits(), frame)
def test_user_masks_give_any_mask_back(split, protocol):
    found = split.masks(protocol)
    table = {
        sample_id: {m: mask[row, : split.lengths[m][row]] for m, mask in found.masks.items()}
        for row, sample_id in enumerate(split.ids)
    }
    again = split.masks(UserMasks(table))
    for name, mask in some(found.masks.items()):
        np.testing.assert_array_equal(again.masks[name], mask)


@pytest.mark.parametrize("kind", [FrameMissing, BlockMissing])
@given(rate=rates, seed=seeds)
@settings(max_examples=25)
def test_the_realised_rate_is_close_to_the_nominal_one(kind, rate, seed):
    count = 400
    lengths = {m: np.full(count, n) for m, n in zip(MODALITIES, (20, 60, 61), strict=True)}
    special = np.zeros((count, 20), dtype=bool)
    special[:, [0, 19]] = True
    ids = [f"v{i}" for i in range(count)]
    found = kind(rate=rate, seed=seed).masks(ids, "test", np.zeros(count), lengths, special)
    for name, share in some(found.realised().items()):
        # Five standard deviations of a mean over this many independent positions.
        positions = count * (18 if name == "text" else lengths[name][0])
        assert abs(share - rate) <= 5 * np.sqrt(rate * (1 - rate) / positions) + 1e-3
