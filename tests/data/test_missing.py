"""Hand-worked examples, fixed bits, checks and the three ways to apply masks."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from hf_msa.data.missing import (
    PROTOCOLS,
    BlockMissing,
    CompleteProtocol,
    FixedPattern,
    FrameMissing,
    LegacyLnln,
    MissingModality,
    ModalityMissing,
    RandomPattern,
    RealisedRates,
    UserMasks,
    apply_missing,
    conditions,
    protocol_from_dict,
)
from hf_msa.data.missing_base import _mix
from hf_msa.errors import MsaError
from nonempty import some
from tiny_tokenizer import CLS, SEP, UNK, tiny_tokenizer

IDS = ["a$_$1", "b$_$2"]
LENGTHS = {"text": np.array([6, 4]), "audio": np.array([8, 5]), "vision": np.array([3, 8])}
SPECIAL = np.array([[1, 0, 0, 0, 0, 1], [1, 0, 0, 1, 0, 0]], dtype=bool)
DRAWS = np.array([0, 3])


def masks(protocol, ids=IDS, split="test", draws=DRAWS, lengths=LENGTHS, special=SPECIAL):
    return protocol.masks(ids, split, np.asarray(draws), lengths, special)


def bits(array):
    return ["".join(str(int(value)) for value in row) for row in array]


def population(count, frames=40):
    """Samples of equal length: ids, draws, lengths, special."""
    lengths = {m: np.full(count, frames) for m in ("text", "audio", "vision")}
    special = np.zeros((count, frames), dtype=bool)
    special[:, [0, -1]] = True
    return [f"v{i}" for i in range(count)], np.zeros(count, dtype=int), lengths, special


# Fixed bits: a change in the hash changes every published number


def test_the_generator_is_splitmix64():
    # The first outputs for the seed 1234567, as published with the reference implementation.
    counters = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert _mix(counters).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_golden_frame_masks():
    found = masks(FrameMissing(rate=0.5))
    assert bits(found.masks["text"]) == ["011100", "001000"]
    assert bits(found.masks["audio"]) == ["10100001", "10111000"]
    assert bits(found.masks["vision"]) == ["01000000", "11100000"]


def test_golden_drawn_rates():
    found = masks(FrameMissing(rate_range=(0.0, 1.0)))
    np.testing.assert_allclose(found.rates[0], [0.28049394, 0.54765469, 0.83459848], rtol=1e-6)
    np.testing.assert_allclose(found.rates[1], [0.62856007, 0.22141324, 0.58250511], rtol=1e-6)


def test_golden_modality_and_block_masks():
    whole = masks(ModalityMissing(0.4).bind([*IDS, "c", "d"]))
    assert whole.rates.tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    block = masks(BlockMissing(0.5, blocks=2))
    assert bits(block.masks["audio"]) == ["01101100", "01100000"]


def test_another_process_with_another_hash_seed_agrees():
    code = (
        "import numpy as np, json; from hf_msa.data.missing import FrameMissing, ModalityMissing\n"
        f"ids = {IDS!r}; lengths = {{'audio': np.array([8, 5])}}; draws = np.array([0, 3])\n"
        "out = [p.masks(ids, 'test', draws, lengths).masks['audio'].tolist()"
        " for p in (FrameMissing(rate=0.5), ModalityMissing(0.5).bind(ids))]\n"
        "print(json.dumps(out))"
    )
    lengths = {"audio": LENGTHS["audio"]}
    here = [
        masks(p, lengths=lengths, special=None).masks["audio"].tolist()
        for p in (FrameMissing(rate=0.5), ModalityMissing(0.5).bind(IDS))
    ]
    environment = {"PYTHONHASHSEED": "4242", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(there.stdout) == here


# Frame missing


@pytest.mark.parametrize("protocol", [FrameMissing(rate=1.0), BlockMissing(1.0), BlockMissing(1.0, blocks=3)])
def test_rate_one_keeps_only_special_tokens(protocol):
    found = masks(protocol)
    assert bits(found.masks["text"]) == ["011110", "011000"]
    assert bits(found.masks["audio"]) == ["11111111", "11111000"]
    assert bits(found.masks["vision"]) == ["11100000", "11111111"]
    assert found.realised() == {"text": 1.0, "audio": 1.0, "vision": 1.0}


@pytest.mark.parametrize(
    "protocol", [CompleteProtocol(), FrameMissing(rate=0), BlockMissing(0.0), ModalityMissing(0.0).bind(IDS)]
)
def test_rate_zero_drops_nothing(protocol):
    found = masks(protocol)
    assert not any(mask.any() for mask in found.masks.values())
    assert found.rates.tolist() == [[0.0] * 3] * 2


def test_seed_split_id_draw_and_modality_each_matter():
    lengths = {m: np.full(2, 64) for m in ("text", "audio", "vision")}
    base = {"lengths": lengths, "special": np.zeros((2, 64), dtype=bool), "draws": [0, 0]}
    mask = masks(FrameMissing(rate=0.5), **base).masks
    others = [
        masks(FrameMissing(rate=0.5, seed=1112), **base).masks["audio"],
        masks(FrameMissing(rate=0.5), split="train", **base).masks["audio"],
        masks(FrameMissing(rate=0.5), ids=["c", "d"], **base).masks["audio"],
        masks(FrameMissing(rate=0.5), **{**base, "draws": [1, 1]}).masks["audio"],
        mask["vision"],
        mask["text"],
        mask["audio"][::-1],
    ]
    for other in some(others):  # independent fair bits agree in about half of 128 places
        assert 0.3 < (mask["audio"] == other).mean() < 0.7


def test_modalities_that_are_not_named_stay_complete():
    found = masks(FrameMissing(rate=1.0, modalities=("vision",)))
    assert not found.masks["text"].any() and not found.masks["audio"].any()
    assert found.rates.tolist() == [[0.0, 0.0, 1.0]] * 2


def test_rate_range_is_uniform_and_independent():
    ids, draws, lengths, special = population(4000, frames=3)
    rates = FrameMissing(rate_range=(0.2, 0.8)).masks(ids, "train", draws, lengths, special).rates
    assert rates.min() >= 0.2 and rates.max() < 0.8
    np.testing.assert_allclose(rates.mean(axis=0), 0.5, atol=0.015)
    np.testing.assert_allclose(rates.std(axis=0), 0.6 / 12**0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(rates.T), np.eye(3), atol=0.05)


def test_half_clean_sets_half_of_the_rates_to_zero_per_modality():
    ids, draws, lengths, special = population(4000, frames=3)
    rates = (
        FrameMissing(rate_range=(0.0, 1.0), rate_sampler="lnln_half_clean")
        .masks(ids, "train", draws, lengths, special)
        .rates
    )
    clean = rates == 0
    np.testing.assert_allclose(clean.mean(axis=0), 0.5, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(clean.T), np.eye(3), atol=0.05)
    np.testing.assert_allclose(rates[~clean].mean(), 0.5, atol=0.02)


# Absent modalities


def test_an_absent_modality_has_no_mask_and_no_rate():
    lengths = {"text": LENGTHS["text"], "audio": np.array([0, 5])}
    found = masks(FrameMissing(rate=0.9), lengths=lengths)
    assert set(found.masks) == {"text", "audio"}
    assert not found.masks["audio"][0].any()
    np.testing.assert_array_equal(np.isnan(found.rates), [[False, True, True], [False, False, True]])


# Whole modalities


@pytest.mark.parametrize(
    ("rate", "two", "one"),
    [(0.0, 0, 0), (0.1, 10, 10), (0.3, 30, 30), (0.4, 50, 20), (0.5, 70, 10), (0.6, 90, 0), (0.7, 100, 0)],
)
def test_modality_missing_meets_the_table_exactly(rate, two, one):
    ids, draws, lengths, special = population(100, frames=5)
    found = ModalityMissing(rate).bind(ids).masks(ids, "test", draws, lengths, special)
    lost = found.rates.sum(axis=1)
    assert ((lost == 2).sum(), (lost == 1).sum(), (lost == 3).sum()) == (two, one, 0)
    total = RealisedRates()
    total.add(found)
    assert total.modality_rate() == pytest.approx((2 * two + one) / 300)


def test_modality_missing_chooses_modalities_evenly():
    ids, draws, lengths, special = population(3000, frames=3)
    rates = ModalityMissing(0.7).bind(ids).masks(ids, "test", draws, lengths, special).rates
    np.testing.assert_allclose(rates.mean(axis=0), 2 / 3, atol=0.03)


def test_modality_missing_leaves_the_last_modality():
    ids = ["a", "b", "c"]
    lengths = {"text": np.array([4, 4, 4]), "audio": np.array([0, 2, 2])}
    special = np.zeros((3, 4), dtype=bool)
    found = ModalityMissing(0.7).bind(ids).masks(ids, "test", np.zeros(3), lengths, special)
    assert not found.masks["text"][0].any()  # it has text alone
    assert found.rates[1:, :2].sum(axis=1).tolist() == [1.0, 1.0]


def test_modality_missing_redraws_with_the_draw():
    ids, _, lengths, special = population(200, frames=3)
    protocol = ModalityMissing(0.4).bind(ids)
    first = protocol.masks(ids, "test", np.zeros(200), lengths, special).rates
    second = protocol.masks(ids, "test", np.ones(200), lengths, special).rates
    assert (first != second).any()
    for rates in (first, second):
        assert ((rates.sum(axis=1) == 2).sum(), (rates.sum(axis=1) == 1).sum()) == (100, 40)


def test_fixed_pattern():
    found = masks(FixedPattern(available=("vision", "audio")))
    assert bits(found.masks["text"]) == ["011110", "011000"]
    assert not found.masks["audio"].any() and not found.masks["vision"].any()
    assert found.rates.tolist() == [[1.0, 0.0, 0.0]] * 2
    assert FixedPattern(("vision", "audio")) == FixedPattern(("audio", "vision"))
    assert FixedPattern(("vision", "audio")).modalities == ("text",)


def test_random_patterns_are_uniform_over_the_seven():
    ids, draws, lengths, special = population(7000, frames=3)
    found = RandomPattern(seed=5).masks(ids, "train", draws, lengths, special)
    patterns, counts = np.unique(found.rates, axis=0, return_counts=True)
    assert len(patterns) == 7 and [1.0, 1.0, 1.0] not in patterns.tolist()
    # Five standard deviations of a binomial count of 7000 draws at 1/7.
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(7000 * 6 / 49)
    total = RealisedRates()
    total.add(found)
    assert total.modality_rate() == pytest.approx(3 / 7, abs=0.02)


def test_random_patterns_are_uniform_over_what_a_sample_has():
    ids, draws, lengths, special = population(3000, frames=3)
    lengths["audio"] = np.repeat([0, 3], 1500)
    lengths["vision"] = np.repeat([0, 3, 3], 1000)
    rates = RandomPattern().masks(ids, "train", draws, lengths, special).rates
    assert not rates[:1000, 0].any()  # text alone stays
    two = rates[1000:1500]
    assert np.isnan(two[:, 1]).all()
    counts = np.unique(two[:, [0, 2]], axis=0, return_counts=True)[1]
    assert len(counts) == 3 and np.abs(counts - 500 / 3).max() < 5 * np.sqrt(500 * 2 / 9)


def test_a_random_pattern_is_another_in_the_next_draw_and_with_another_seed():
    ids, draws, lengths, special = population(200, frames=3)
    first = RandomPattern(seed=1).masks(ids, "train", draws, lengths, special).rates
    for other in (
        RandomPattern(seed=1).masks(ids, "train", draws + 1, lengths, special),
        RandomPattern(seed=2).masks(ids, "train", draws, lengths, special),
    ):
        # One in seven is the same by chance.
        assert 0.75 < (first != other.rates).any(axis=1).mean() < 0.95


# Blocks


def test_blocks_are_contiguous_and_exact():
    ids, draws, lengths, special = population(200, frames=42)
    found = BlockMissing(0.25).masks(ids, "test", draws, lengths, special)
    assert set(found.masks["text"].sum(axis=1)) == {10}  # 40 droppable tokens
    assert set(found.masks["audio"].sum(axis=1)) <= {10, 11}  # 10.5 on average
    edges = np.diff(np.pad(found.masks["audio"], ((0, 0), (1, 1))).astype(int), axis=1)
    assert set((edges == 1).sum(axis=1)) == {1}
    starts = np.argmax(found.masks["audio"], axis=1)
    assert starts.min() < 4 and starts.max() > 26  # anywhere


def test_several_blocks_lie_in_equal_parts():
    ids, draws, lengths, special = population(100, frames=40)
    found = BlockMissing(0.5, blocks=4).masks(ids, "test", draws, lengths, special).masks["vision"]
    assert {int(n) for n in found.reshape(100, 4, 10).sum(axis=2).ravel()} == {5}


# User masks


def test_user_masks_from_a_mapping_a_json_and_a_parquet_file(tmp_path):
    table = {"a$_$1": {"text": [1, 1, 0, 0, 1, 1], "audio": [1, 0, 0, 0, 0, 0, 0, 1]}, "b$_$2": {"vision": [1] * 8}}
    records = [{"id": key, **{m: row.get(m) for m in ("text", "audio", "vision")}} for key, row in table.items()]
    (tmp_path / "masks.json").write_text(json.dumps(records))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(records), tmp_path / "masks.parquet")
    for source in (table, str(tmp_path / "masks.json"), tmp_path / "masks.parquet"):
        protocol = UserMasks(source)
        found = masks(protocol)
        assert bits(found.masks["text"]) == ["010010", "000000"]  # special tokens stay
        assert bits(found.masks["audio"]) == ["10000001", "00000000"]
        assert bits(found.masks["vision"]) == ["00000000", "11111111"]
        assert found.rates.tolist() == [[0.5, 0.25, 0.0], [0.0, 0.0, 1.0]]
        assert protocol.modalities == ("text", "audio", "vision")
        assert protocol_from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol


def test_user_masks_refuse_what_does_not_fit(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "twice.json").write_text('[{"id": "a"}, {"id": "a"}]')
    cases = [
        (lambda: UserMasks({"a$_$1": {"adio": [1]}}), "Did you mean 'audio'"),
        (lambda: UserMasks({"a$_$1": {"audio": [2]}}), "0 and 1"),
        (lambda: UserMasks(3), "path or a mapping"),
        (lambda: UserMasks(tmp_path / "none.json"), "no file"),
        (lambda: UserMasks(tmp_path / "masks.txt"), ".parquet"),
        (lambda: UserMasks(tmp_path / "broken.json"), "not JSON"),
        (lambda: UserMasks(tmp_path / "twice.json"), "once"),
        (lambda: masks(UserMasks({"a$_$1": {"audio": [1] * 7}, "b$_$2": {}})), "7 entries"),
        (lambda: masks(UserMasks({"a$_$1": {}})), "no record for the sample 'b"),
    ]
    for make, message in some(cases):
        with pytest.raises(MsaError, match=message):
            make()


# Legacy LNLN


def lnln(lengths, widths, rates, seed):
    """The reference's rule: one field over the padded split, seeded anew per modality; kept where above the rate."""
    dropped = {}
    for column, (modality, width) in enumerate(widths.items()):
        np.random.seed(seed)
        field = np.random.uniform(size=(len(rates), width))
        kept = field > rates[:, column : column + 1]
        if modality == "text":
            kept[:, 0] = True
            kept[np.arange(len(rates)), lengths["text"] - 1] = True
        dropped[modality] = ~kept & (np.arange(width) < lengths[modality][:, None])
    return dropped


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.9, 1.0, None])
def test_legacy_masks_are_those_of_the_reference(rate):
    widths = {"text": 12, "audio": 20, "vision": 25}
    rng = np.random.default_rng(0)
    ids = [f"v{i}" for i in range(30)]
    lengths = {m: rng.integers(3, width + 1, 30) for m, width in widths.items()}
    special = np.zeros((30, 12), dtype=bool)
    special[:, 0] = special[np.arange(30), lengths["text"] - 1] = True
    protocol = LegacyLnln(rate, seed=7, text_width=12, audio_width=20, vision_width=25).bind(ids)
    order = rng.permutation(30)[:11]  # any batch, in any order
    found = protocol.masks(
        [ids[i] for i in order], "train", np.zeros(11), {m: n[order] for m, n in lengths.items()}, special[order]
    )
    rates = np.full((30, 3), rate, dtype=float) if rate is not None else np.zeros((30, 3))
    rates[order] = found.rates if rate is None else rate
    for modality, expected in some(lnln(lengths, widths, rates, seed=7).items()):
        mask = found.masks[modality]
        np.testing.assert_array_equal(mask, expected[order][:, : mask.shape[1]])


def test_legacy_training_rates():
    ids = [f"v{i}" for i in range(21)]
    lengths = {"audio": np.full(21, 4)}
    protocol = LegacyLnln(seed=7, audio_width=4, vision_width=25).bind(ids)
    np.random.seed(7)
    np.random.uniform(size=(21, 25))
    np.random.uniform(size=(21, 1))  # text comes first
    audio = np.random.uniform(size=21)
    kept_clean = set()
    for draw in range(3):
        rates = protocol.masks(ids, "train", np.full(21, draw), lengths).rates[:, 1]
        assert (rates == 0).sum() == 10  # the smaller half
        np.testing.assert_allclose(rates[rates > 0], audio[rates > 0], rtol=1e-6)
        kept_clean.add(tuple(np.flatnonzero(rates == 0)))
    assert len(kept_clean) == 3


def test_legacy_does_not_touch_the_global_generator():
    np.random.seed(0)
    expected = np.random.uniform()
    np.random.seed(0)
    masks(LegacyLnln(0.5, seed=99).bind(IDS))
    assert np.random.uniform() == expected


def test_legacy_refuses_a_sample_that_is_longer_than_the_padded_split():
    with pytest.raises(MsaError, match="audio_width"):
        masks(LegacyLnln(0.5, audio_width=7).bind(IDS))


# Names, values, round trips

EXAMPLES = [
    CompleteProtocol(),
    FrameMissing(rate=0.3),
    FrameMissing(rate_range=(0.0, 0.9), rate_sampler="lnln_half_clean", seed=5, modalities=("text", "vision")),
    ModalityMissing(0.4, seed=3),
    FixedPattern(("text",)),
    RandomPattern(seed=3),
    BlockMissing(0.2, blocks=2),
    UserMasks({"a": {"audio": [True, False]}}),
    LegacyLnln(0.5, audio_width=400),
    LegacyLnln(),
]


@pytest.mark.parametrize("protocol", EXAMPLES, ids=lambda p: p.name)
def test_json_round_trip(protocol):
    values = json.loads(json.dumps(protocol.to_dict()))
    again = protocol_from_dict(values)
    assert again == protocol and type(again) is type(protocol)
    assert again.to_dict() == protocol.to_dict()


def test_every_protocol_has_a_round_trip_example():
    assert {protocol.name for protocol in EXAMPLES} == set(PROTOCOLS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: protocol_from_dict({"name": "frames", "rate": 0.1}), "Did you mean 'frame'"),
        (lambda: protocol_from_dict({"rate": 0.1}), "Known: block"),
        (lambda: protocol_from_dict({"name": "frame", "rte": 0.1}), "Did you mean 'rate'"),
        (lambda: protocol_from_dict({"name": "block"}), "needs 'rate'"),
        (lambda: protocol_from_dict({"name": "modality", "rate": 0.1, "_rows": {}}), "_rows"),
        (lambda: FrameMissing(), "exactly one"),
        (lambda: FrameMissing(rate=0.1, rate_range=(0, 1)), "exactly one"),
        (lambda: FrameMissing(rate=1.5), "from 0 to 1"),
        (lambda: FrameMissing(rate=float("nan")), "from 0 to 1"),
        (lambda: FrameMissing(rate="0.5"), "from 0 to 1"),
        (lambda: FrameMissing(rate_range=(0.9, 0.1)), "lower rate first"),
        (lambda: FrameMissing(rate_range=0.5), "two numbers"),
        (lambda: FrameMissing(rate_range=(0, 1), rate_sampler="half_clean"), "Did you mean 'lnln_half_clean'"),
        (lambda: FrameMissing(rate=0.3, rate_sampler="lnln_half_clean"), "rate_range"),
        (lambda: FrameMissing(rate=0.3, seed=1.5), "whole number"),
        (lambda: RandomPattern(seed="1"), "whole number"),
        (lambda: FrameMissing(rate=0.3, modalities=("visoin",)), "Did you mean 'vision'"),
        (lambda: FrameMissing(rate=0.3, modalities="text"), "list of names"),
        (lambda: ModalityMissing(0.8), "nearest is 0.7"),
        (lambda: ModalityMissing(0.26), "nearest is 0.3"),
        (lambda: FixedPattern(()), "at least one"),
        (lambda: FixedPattern(("text", "text")), "each once"),
        (lambda: BlockMissing(0.1, blocks=0), "at least 1"),
        (lambda: LegacyLnln(0.5, seed=-1), "RandomState"),
        (lambda: ModalityMissing(0.3).bind(["a", "a"]), "comes twice"),
        (lambda: masks(ModalityMissing(0.3)), "bind"),
        (lambda: masks(ModalityMissing(0.3).bind(["a$_$1"])), "not in the split of 1"),
        (lambda: masks(FixedPattern(("vision",)), lengths={"audio": np.array([1, 2])}, special=None), "keeps vision"),
        (lambda: masks(CompleteProtocol(), draws=[0]), "shape"),
        (lambda: masks(CompleteProtocol(), draws=[0, -1]), "counted from 0"),
        (lambda: masks(CompleteProtocol(), special=None), "special tokens"),
        (lambda: masks(CompleteProtocol(), lengths={"video": np.array([1, 2])}), "Did you mean 'vision'"),
    ],
)
def test_wrong_input_gets_one_clear_sentence(make, message):
    with pytest.raises(MsaError, match=message):
        make()


# Realised rates


def test_realised_rates_sum_over_batches():
    table = {"a$_$1": {"text": [0, 1, 0, 0, 0, 0]}, "b$_$2": {"text": [0, 1, 1, 0], "audio": [1, 1, 1, 1, 1]}}
    protocol = UserMasks(table)
    total = RealisedRates()
    for i in range(2):
        lengths = {"text": LENGTHS["text"][i : i + 1], "audio": LENGTHS["audio"][i : i + 1]}
        total.add(masks(protocol, ids=IDS[i : i + 1], draws=[0], lengths=lengths, special=SPECIAL[i : i + 1]))
    assert total.shares() == {"text": 3 / 6, "audio": 5 / 13}
    assert total.modality_rate() == 2 / 4


# Applying


def example_batch():
    return {
        "input_ids": torch.tensor([[CLS, 5, 6, 7, 8, SEP], [CLS, 5, 6, SEP, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]),
        "audio_values": torch.arange(1.0, 33.0).reshape(2, 8, 2),
        "labels": torch.tensor([1.0, -1.0]),
    }


def test_apply_missing_replaces_tokens_and_frames_and_leaves_the_rest():
    batch = example_batch()
    before = {key: value.clone() for key, value in batch.items()}
    found = masks(FrameMissing(rate=0.5))
    after = apply_missing(batch, found, UNK)
    assert after["input_ids"].tolist() == [[CLS, UNK, UNK, UNK, 8, SEP], [CLS, 5, UNK, SEP, 0, 0]]
    dropped = torch.from_numpy(found.masks["audio"])
    assert (after["audio_values"][dropped] == 0).all()
    assert torch.equal(after["audio_values"][~dropped], before["audio_values"][~dropped])
    assert torch.equal(after["audio_missing_mask"], dropped) and after["text_missing_mask"].dtype == torch.bool
    assert after["attention_mask"] is batch["attention_mask"] and "vision_missing_mask" not in after
    assert all(torch.equal(batch[key], before[key]) for key in before)


def test_apply_missing_gives_the_same_in_numpy():
    batch = example_batch()
    found = masks(FrameMissing(rate=0.5))
    in_torch = apply_missing(batch, found, UNK)
    in_numpy = apply_missing({key: value.numpy() for key, value in batch.items()}, found.masks, UNK)
    for key, value in some(in_torch.items()):
        np.testing.assert_array_equal(value.numpy(), in_numpy[key])
        assert in_numpy[key].dtype == value.numpy().dtype


def test_apply_missing_fits_masks_to_wider_and_narrower_values():
    batch = {"audio_values": torch.ones(1, 3, 2)}
    assert apply_missing(batch, {"audio": np.array([[True]])}, UNK)["audio_missing_mask"].tolist() == [[1, 0, 0]]
    wide = np.array([[True, False, True, True]])
    assert apply_missing(batch, {"audio": wide}, UNK)["audio_missing_mask"].tolist() == [[1, 0, 1]]


def test_missing_modality_adds_columns_per_true_position():
    rows = {
        "id": IDS,
        "text": ["this film", "bad"],
        "audio": [np.ones((8, 2)), np.zeros((1, 2))],
        "audio_present": [True, False],
    }
    added = MissingModality(FrameMissing(rate=1.0), tiny_tokenizer(), "test", draw=2)(rows)
    assert [row.tolist() for row in added["text_missing_mask"]] == [[0, 1, 1, 0], [0, 1, 0]]
    assert [row.tolist() for row in added["audio_missing_mask"]] == [[1] * 8, [0]]
    assert added["draw"] == [2, 2] and added["text"] is rows["text"]
    np.testing.assert_array_equal(np.array(added["missing_rates"]), np.float32([[1, 1, np.nan], [1, np.nan, np.nan]]))


def test_missing_modality_cuts_texts_as_the_processor_does():
    rows = {"id": ["a"], "text": ["this film is very very bad"]}
    added = MissingModality(FrameMissing(rate=1.0), tiny_tokenizer(), "test", max_length=4)(rows)
    assert added["text_missing_mask"][0].tolist() == [False, True, True, False]


def test_whole_numbers_among_tested_rates_become_floats():
    found = conditions("frame", ("text",), [0, 0.5, 1], (7,))
    assert [repr(condition.rate) for condition in found] == ["0.0", "0.5", "1.0"]
    assert [repr(condition.protocol.rate) for condition in found] == ["0.0", "0.5", "1.0"]
    assert [condition.rate for condition in conditions("modality", ("text",), np.array([0.0, 0.5]))] == [0.0, 0.5]
    for rate in (True, "0.5", 2):
        with pytest.raises(MsaError, match="give a number from 0 to 1"):
            conditions("frame", ("text",), [rate])
