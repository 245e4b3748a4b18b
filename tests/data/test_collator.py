"""Batches: shapes, padding, replaced values, and the same masks by three ways."""

import numpy as np
import pytest
import torch

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import (
    BlockMissing,
    CompleteProtocol,
    FixedPattern,
    FrameMissing,
    LegacyLnln,
    MissingModality,
    ModalityMissing,
    UserMasks,
)
from hf_msa.data.rows import DrawnRows, MsaRows
from hf_msa.data.schema import msa_features
from hf_msa.errors import MsaError
from hf_msa.models.feature_extraction_msa import MsaFeatureExtractor
from hf_msa.models.processing_msa import MsaProcessor
from nonempty import some
from tiny_tokenizer import CLS, PAD, SEP, UNK, tiny_tokenizer

TEXTS = ["this is a good film", "bad", "the plot was very very weak", "not good zzz", "a film", "is the film good"]


def make_processor(audio_dim=2, vision_dim=3, **kwargs):
    return MsaProcessor(
        MsaFeatureExtractor(audio_dim=audio_dim, vision_dim=vision_dim, **kwargs),
        tiny_tokenizer(),
        text_max_length=12,
        missing_lengths={"text": 5, "audio": 2, "vision": 4},
    )


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def example_rows(count=6):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        rows.append(
            {
                "id": f"v{i}$_$0",
                "video_id": f"v{i}",
                "clip_id": "0",
                "text": TEXTS[i % len(TEXTS)],
                "audio": rng.uniform(1, 2, (int(rng.integers(2, 9)), 2)).astype(np.float32),
                "vision": rng.uniform(1, 2, (int(rng.integers(2, 9)), 3)).astype(np.float32),
                "audio_present": True,
                "vision_present": True,
                "label": float(i) - 2.0,
                "label_text": 0.5 * i,
            }
        )
    rows[2].update(vision=np.zeros((1, 3), dtype=np.float32), vision_present=False)
    return rows


def example_dataset(rows):
    import datasets

    features = msa_features(audio_dim=2, vision_dim=3, presence=True)
    features["label_text"] = datasets.Value("float32")
    return datasets.Dataset.from_list([{k: row[k] for k in features} for row in rows], features=features)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype, key
        torch.testing.assert_close(value, second[key], rtol=0, atol=0, equal_nan=True, msg=key)


def protocols(rows):
    ids = [row["id"] for row in rows]
    tokens = [len(tiny_tokenizer()(row["text"])["input_ids"]) for row in rows]
    user = {
        i: {"text": [1] * n, "audio": [1, 0] + [1] * (len(r["audio"]) - 2)}
        for i, n, r in zip(ids, tokens, rows, strict=True)
    }
    return {
        "complete": CompleteProtocol(),
        "frame": FrameMissing(rate=0.5),
        "range": FrameMissing(rate_range=(0.0, 1.0), rate_sampler="lnln_half_clean"),
        "modality": ModalityMissing(0.4).bind(ids),
        "fixed": FixedPattern(("audio",)),
        "block": BlockMissing(0.5),
        "user": UserMasks(user),
        "legacy": LegacyLnln(0.5).bind(ids),
    }


NAMES = list(protocols(example_rows()))


def test_a_hand_worked_batch(processor):
    rows = [
        {"id": "a", "text": "bad film", "audio": np.ones((3, 2), np.float32), "vision": np.ones((1, 3)), "label": 1.0},
        {"id": "b", "text": "good", "audio": np.ones((2, 2), np.float32), "vision": np.ones((2, 3)), "label": -2.0},
    ]
    masks = UserMasks({"a": {"text": [0, 1, 0, 0], "audio": [0, 0, 1]}, "b": {"vision": [1, 0]}})
    batch = MsaCollator(processor, masks, "test", return_complete=True)(rows)
    assert batch["input_ids"].tolist() == [[CLS, UNK, 7, SEP], [CLS, 5, SEP, PAD]]
    assert batch["complete_input_ids"].tolist() == [[CLS, 6, 7, SEP], [CLS, 5, SEP, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["text_missing_mask"].tolist() == [[False, True, False, False], [False] * 4]
    assert batch["audio_values"][:, :, 0].tolist() == [[1, 1, 0], [1, 1, 0]]
    assert batch["complete_audio_values"][:, :, 0].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["audio_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["audio_missing_mask"].tolist() == [[False, False, True], [False] * 3]
    assert batch["vision_values"][:, :, 2].tolist() == [[1, 0], [0, 1]]
    assert batch["vision_missing_mask"].tolist() == [[False, False], [True, False]]
    assert batch["labels"].tolist() == [1.0, -2.0]
    assert batch["sample_index"].tolist() == [-1, -1] and batch["draw"].tolist() == [0, 0]
    np.testing.assert_allclose(batch["missing_rates"], [[0.5, 1 / 3, 0], [0, 0, 0.5]])


def test_dtypes_and_optional_keys(processor):
    batch = MsaCollator(processor, FrameMissing(rate=0.3))(example_rows())
    kinds = {key: value.dtype for key, value in batch.items()}
    longs = ("input_ids", "attention_mask", "audio_attention_mask", "vision_attention_mask", "sample_index", "draw")
    bools = ("text_missing_mask", "audio_missing_mask", "vision_missing_mask")
    floats = ("audio_values", "vision_values", "labels", "label_text", "missing_rates")
    assert kinds == {
        **dict.fromkeys(longs, torch.int64),
        **dict.fromkeys(bools, torch.bool),
        **dict.fromkeys(floats, torch.float32),
    }
    unlabelled = [{k: v for k, v in row.items() if not k.startswith("label")} for row in example_rows()]
    assert not {"labels", "label_text"} & MsaCollator(processor)(unlabelled).keys()


@pytest.mark.parametrize("fixed", [False, True])
def test_complete_batches_are_what_the_processor_makes(processor, fixed):
    rows = example_rows()
    batch = MsaCollator(processor, pad_to_fixed=fixed)(rows)
    for key, value in some(processor.from_rows(rows, pad_to_fixed=fixed).items()):
        torch.testing.assert_close(batch[key], value, rtol=0, atol=0, msg=key)
        assert batch[key].dtype == value.dtype


@pytest.mark.parametrize("protocol", [FrameMissing(rate=0.0), BlockMissing(0.0)])
def test_rate_zero_leaves_the_batch_unchanged(processor, protocol):
    rows = example_rows()
    assert_same(MsaCollator(processor, protocol)(rows), MsaCollator(processor)(rows))


def test_at_rate_one_all_have_the_form_of_what_is_missing(processor):
    batch = MsaCollator(processor, FrameMissing(rate=1.0), return_complete=True)(example_rows())
    width = batch["input_ids"].shape[1]
    assert batch["input_ids"].tolist() == [[CLS, UNK, UNK, UNK, SEP, *[PAD] * (width - 5)]] * 6
    assert not batch["audio_values"].any() and not batch["vision_values"].any()
    assert (batch["audio_attention_mask"].sum(1) == 2).all() and (batch["vision_missing_mask"].sum(1) == 4).all()
    assert batch["complete_audio_values"].any()
    assert (batch["complete_attention_mask"].sum(1) != 5).any()


@pytest.mark.parametrize("name", NAMES)
def test_dropped_is_replaced_and_the_rest_is_not(processor, name):
    rows = example_rows()
    batch = MsaCollator(processor, protocols(rows)[name], return_complete=True, pad_to_fixed=True)(rows)
    text, audio = batch["text_missing_mask"], batch["audio_missing_mask"]
    assert (batch["input_ids"][text] == UNK).all()
    lost = batch["missing_rates"].isnan() | (batch["missing_rates"] == 1)
    same_text, same_audio = ~text & ~lost[:, :1], ~audio & ~lost[:, 1:2]
    assert torch.equal(batch["input_ids"][same_text], batch["complete_input_ids"][same_text])
    assert not (text & (batch["attention_mask"] == 0)).any()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == PAD).all()
    assert not batch["audio_values"][audio].any()
    assert torch.equal(batch["audio_values"][same_audio], batch["complete_audio_values"][same_audio])
    assert not (audio & (batch["audio_attention_mask"] == 0)).any()
    assert torch.equal(batch["labels"], torch.tensor([row["label"] for row in rows]))


def test_a_sample_without_a_modality(processor):
    batch = MsaCollator(processor, FrameMissing(rate=0.5), return_complete=True)(example_rows())
    assert batch["vision_attention_mask"][2].sum() == batch["vision_missing_mask"][2].sum() == 4
    assert not batch["complete_vision_attention_mask"][2].any()
    assert torch.nonzero(batch["missing_rates"].isnan()).tolist() == [[2, 2]]


@pytest.mark.parametrize("name", NAMES)
def test_map_set_transform_and_collator_give_the_same_batch(processor, name):
    rows = example_rows()
    protocol = protocols(rows)[name]
    dataset = example_dataset(rows)
    adds = MissingModality(protocol, processor.tokenizer, "test", max_length=12)
    expected = MsaCollator(processor, protocol, "test")([dataset[i] for i in range(6)])

    mapped = dataset.map(adds, batched=True, batch_size=4)
    assert_same(MsaCollator(processor, split="test")([mapped[i] for i in range(6)]), expected)

    transformed = dataset.with_transform(adds)
    assert_same(MsaCollator(processor, split="test")([transformed[i] for i in range(6)]), expected)

    for source, collator in ((dataset, MsaCollator(processor, protocol, "test")), (mapped, MsaCollator(processor))):
        rows_of = MsaRows(source, "test", processor.tokenizer, max_length=12)
        batch = collator([rows_of[i] for i in range(6)])
        assert batch.pop("sample_index").tolist() == list(range(6))
        assert_same(batch, {k: v for k, v in expected.items() if k != "sample_index"})


def test_map_finds_its_cache_again(processor):
    dataset = example_dataset(example_rows())
    prints = set()
    for _ in range(2):
        adds = MissingModality(FrameMissing(rate=0.5), tiny_tokenizer(), "test", max_length=12)
        prints.add(dataset.map(adds, batched=True)._fingerprint)
        prints.add(dataset.map(adds, batched=True)._fingerprint)
    assert len(prints) == 1


def test_masks_do_not_depend_on_what_the_model_reads_or_cuts(processor):
    rows = example_rows()
    small = make_processor(vision_dim=None, audio_max_length=3)
    for protocol in (ModalityMissing(0.4).bind([row["id"] for row in rows]), BlockMissing(0.5)):
        full, part = MsaCollator(processor, protocol)(rows), MsaCollator(small, protocol)(rows)
        assert "vision_values" not in part and "vision_missing_mask" not in part
        assert torch.equal(part["text_missing_mask"], full["text_missing_mask"])
        assert torch.equal(part["audio_missing_mask"], full["audio_missing_mask"][:, :3])
        torch.testing.assert_close(part["missing_rates"], full["missing_rates"], rtol=0, atol=0, equal_nan=True)


def test_a_modality_that_the_data_lacks_altogether(processor):
    rows = [{k: v for k, v in row.items() if not k.startswith("vision")} for row in example_rows()]
    batch = MsaCollator(processor, FrameMissing(rate=0.5))(rows)
    assert batch["vision_values"].shape == (6, 4, 3) and batch["vision_attention_mask"].all()
    assert batch["vision_missing_mask"].all() and batch["missing_rates"][:, 2].isnan().all()


def test_standardised_features_are_dropped_to_the_mean():
    statistics = {"audio_mean": [1.0, 2.0], "audio_std": [2.0, 0.5]}
    rows = [{"id": "a", "text": "bad", "audio": np.array([[3.0, 1.0], [9.0, 9.0]], np.float32), "label": 0.0}]
    masks = UserMasks({"a": {"audio": [0, 1]}})
    batch = MsaCollator(make_processor(vision_dim=None, **statistics), masks)(rows)
    assert batch["audio_values"].tolist() == [[[1.0, -2.0], [0.0, 0.0]]]


def test_draws_come_from_drawn_rows(processor):
    rows = DrawnRows(MsaRows(example_dataset(example_rows()), "train", processor.tokenizer, 12), draws=2)
    collator = MsaCollator(processor, FrameMissing(rate=0.5))
    batch = collator([rows[1], rows[7]])
    assert batch["draw"].tolist() == [0, 1] and batch["sample_index"].tolist() == [1, 1]
    assert not torch.equal(batch["audio_missing_mask"][0], batch["audio_missing_mask"][1])
    alone = collator([rows[7]])
    assert torch.equal(alone["audio_missing_mask"][0], batch["audio_missing_mask"][1])


def test_workers_make_the_same_batches(processor):
    rows = MsaRows(example_dataset(example_rows()), "train", processor.tokenizer, 12)
    collator = MsaCollator(processor, FrameMissing(rate_range=(0.0, 1.0)))

    def batches(workers):
        return list(torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collator, num_workers=workers))

    for here, there in some(zip(batches(0), batches(2), strict=True)):
        assert_same(here, there)


def test_realised_rates_of_a_pass(processor):
    rows = example_rows()
    collator = MsaCollator(processor, FrameMissing(rate=0.5))
    batches = [collator(rows[:4]), collator(rows[4:])]
    shares = collator.realised(rows).shares()
    frames = sum(len(row["audio"]) for row in rows)
    dropped = sum(int(batch["audio_missing_mask"].sum()) for batch in batches)
    assert shares["audio"] == dropped / frames
    words = sum(int(batch["attention_mask"].sum()) - 2 * len(batch["labels"]) for batch in batches)
    assert shares["text"] == sum(int(batch["text_missing_mask"].sum()) for batch in batches) / words


def test_wrong_rows_get_one_clear_sentence(processor):
    rows = example_rows()
    wide = [{**rows[0], "audio": np.ones((3, 7), np.float32)}]
    short = [{**rows[0], "audio_missing_mask": [True]}]
    long = [{**rows[0], "input_ids": np.ones(13, int), "special_tokens_mask": np.zeros(13, bool)}]
    for bad, message in ((wide, r"\(frames, 2\)"), (short, "1 entries"), (long, "max_length=12")):
        with pytest.raises(MsaError, match=message):
            MsaCollator(processor)(bad)
