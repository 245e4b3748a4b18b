import pickle
import time
import warnings

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_msa.data import load_msa, prepare_dataset
from hf_msa.data.collator import MsaCollator
from hf_msa.data.rows import DrawnRows, ListColumn, MsaRows
from hf_msa.data.schema import msa_features
from hf_msa.errors import MsaError
from hf_msa.models.feature_extraction_msa import MsaFeatureExtractor
from hf_msa.models.processing_msa import MsaProcessor
from pickle_factory import mmsa_split, write
from tiny_tokenizer import tiny_tokenizer

RNG = np.random.default_rng(0)


def raw(count, audio=(1, 9, 3), vision=(1, 5, 2)):
    rows = []
    for index in range(count):
        row = {"id": f"v$_${index}", "video_id": "v", "clip_id": str(index), "text": "a b", "label": index / 10}
        for name, (low, high, width) in (("audio", audio), ("vision", vision)):
            row[name] = RNG.normal(size=(RNG.integers(low, high + 1), width)).astype(np.float32)
        rows.append(row)
    return rows


def dataset_of(rows, width_audio=3, width_vision=2, **kwargs):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return datasets.Dataset.from_dict(columns, features=msa_features(width_audio, width_vision, **kwargs))


def same(view, rows, order):
    assert view.ids == [rows[index]["id"] for index in order]
    for position, index in enumerate(order):
        got = view[position]
        np.testing.assert_array_equal(got["audio"], rows[index]["audio"])
        np.testing.assert_array_equal(got["vision"], rows[index]["vision"])
        assert got["label"] == pytest.approx(rows[index]["label"])
        assert got["index"] == position
    assert view.lengths["audio"].tolist() == [len(rows[index]["audio"]) for index in order]


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), count=st.integers(1, 12))
def test_any_selection_order_and_chunking_gives_the_same_arrays(data, count):
    rows = raw(count)
    parts = data.draw(st.integers(1, count))
    cuts = np.array_split(np.arange(count), parts)
    dataset = datasets.concatenate_datasets([dataset_of([rows[i] for i in cut]) for cut in cuts])
    same(MsaRows(dataset, "train"), rows, range(count))
    order = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20))
    same(MsaRows(dataset.select(order), "train"), rows, order)
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    same(MsaRows(dataset.select(range(start, stop)), "train"), rows, range(start, stop))


def test_views_share_arrows_memory_and_are_read_only():
    view = MsaRows(dataset_of(raw(4)), "train")
    first, again = view[2]["audio"], view[2]["audio"]
    assert np.shares_memory(first, again)
    assert not first.flags.writeable
    assert first.dtype == np.float32


def test_rows_from_a_file_that_is_mapped(tmp_path):
    rows = raw(7)
    dataset_of(rows).save_to_disk(str(tmp_path / "d"))
    dataset = datasets.load_from_disk(str(tmp_path / "d"))
    same(MsaRows(dataset, "test"), rows, range(7))
    dataset_of(rows).to_parquet(tmp_path / "x.parquet", batch_size=2)
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "c"))
    same(MsaRows(loaded["train"], "test"), rows, range(7))


def test_pickling_for_a_new_process_sends_no_arrays(tmp_path):
    rows = raw(50, audio=(200, 200, 30))
    dataset_of(rows, width_audio=30).save_to_disk(str(tmp_path / "d"))
    view = MsaRows(datasets.load_from_disk(str(tmp_path / "d")), "train")
    sent = pickle.dumps(view)
    assert len(sent) < 50 * 200 * 30 * 4 / 10
    same(pickle.loads(sent), rows, range(50))


class Tokenizer:
    """Two special tokens around one token per word; cuts as real ones do."""

    unk_token_id = None

    def __call__(self, texts, truncation, max_length, return_special_tokens_mask, **_):
        ids = []
        for text in texts:
            words = [10 + len(word) for word in text.split()]
            ids.append([101, *(words if max_length is None else words[: max_length - 2]), 102])
        special = [[1, *[0] * (len(item) - 2), 1] for item in ids]
        return {"input_ids": ids, "special_tokens_mask": special}


def test_texts_are_tokenized_once_and_cut():
    rows = raw(3)
    for row, text in zip(rows, ("a bb", "", "a bb ccc dddd"), strict=True):
        row["text"] = text
    view = MsaRows(dataset_of(rows), "train", Tokenizer(), max_length=5)
    assert view.lengths["text"].tolist() == [4, 2, 5]
    assert view[0]["input_ids"].tolist() == [101, 11, 12, 102]
    assert view[2]["special_tokens_mask"].tolist() == [True, False, False, False, True]
    assert view[0]["input_ids"].dtype == np.int64
    assert view[0]["special_tokens_mask"].dtype == np.bool_
    assert list(view.lengths) == ["text", "audio", "vision"]
    assert "text" not in MsaRows(dataset_of(rows), "train").lengths


def test_optional_columns_and_mask_columns_come_along():
    rows = raw(3)
    for index, row in enumerate(rows):
        row |= {"label_text": 0.1, "label_audio": 0.2, "label_vision": 0.3, "annotation": "Positive"}
        row |= {"audio_present": index != 1, "vision_present": True}
    features = {"unimodal_labels": True, "annotation": True, "presence": True}
    dataset = dataset_of(rows, **features).map(
        lambda row: {"audio_missing_mask": [position % 2 == 0 for position in range(len(row["audio"]))]}
    )
    view = MsaRows(dataset.select([2, 1]), "train")
    assert view[1]["audio_present"] is False
    assert view[0]["label_vision"] == pytest.approx(0.3)
    assert view[0]["annotation"] == "Positive"
    mask = view[0]["audio_missing_mask"]
    assert mask.dtype == np.bool_
    assert mask.tolist() == [position % 2 == 0 for position in range(len(rows[2]["audio"]))]
    same(view, rows, [2, 1])


def test_a_data_set_without_a_modality_has_no_such_key():
    dataset = datasets.Dataset.from_dict(
        {"id": ["a"], "video_id": ["a"], "clip_id": [""], "text": ["t"], "label": [1.0]}, features=msa_features()
    )
    view = MsaRows(dataset, "train")
    assert view.lengths == {}
    assert "audio" not in view[0]
    assert view.labels.dtype == np.float32


def test_positions_beyond_the_end_are_index_errors():
    view = MsaRows(dataset_of(raw(3)), "train")
    assert view[-1]["index"] == 2
    with pytest.raises(IndexError):
        view[3]
    with pytest.raises(IndexError):
        DrawnRows(view, 2)[6]


def test_foreign_columns_are_named():
    with pytest.raises(MsaError, match="no column 'label'"):
        MsaRows(datasets.Dataset.from_dict({"id": ["a"], "text": ["b"]}), "train")


@pytest.mark.parametrize("column", ["id", "text", "label"])
def test_an_empty_cell_is_named(column):
    rows = raw(3)
    rows[1][column] = None
    with pytest.raises(MsaError, match=f"column '{column}' is empty in row 1 of the split 'train'"):
        MsaRows(dataset_of(rows), "train")


def test_frames_of_different_widths_are_refused():
    import pyarrow as pa

    with pytest.raises(MsaError, match="different widths"):
        ListColumn([pa.array([[[1.0, 2.0], [3.0]]])])
    with pytest.raises(MsaError, match="empty cells"):
        ListColumn([pa.array([[[1.0]], None])])


def test_a_draw_is_the_number_of_the_pass():
    view = MsaRows(dataset_of(raw(3)), "train")
    drawn = DrawnRows(view, 2)
    assert len(drawn) == 6
    assert [drawn[position]["index"] for position in range(6)] == [0, 1, 2, 0, 1, 2]
    assert [drawn[position]["draw"] for position in range(6)] == [0, 0, 0, 1, 1, 1]
    with pytest.raises(MsaError, match="at least 1"):
        DrawnRows(view, 0)


def pad(batch):
    padded = {}
    for name in ("audio", "vision"):
        longest = max(len(row[name]) for row in batch)
        array = np.zeros((len(batch), longest, batch[0][name].shape[1]), dtype=np.float32)
        for position, row in enumerate(batch):
            array[position, : len(row[name])] = row[name]
        padded[name] = torch.from_numpy(array)
    return padded


def test_a_pass_over_mosi_unaligned_shapes_is_fast(tmp_path):
    """1284 rows of audio 375 x 5 and vision 500 x 20 through a DataLoader; about 0.02-0.1 s on one core."""
    one = raw(32, audio=(375, 375, 5), vision=(500, 500, 20))
    rows = [{**one[index % 32], "id": str(index)} for index in range(1284)]
    dataset_of(rows, 5, 20).save_to_disk(str(tmp_path / "d"))
    dataset = datasets.load_from_disk(str(tmp_path / "d"))
    start = time.perf_counter()
    view = MsaRows(dataset, "train")
    count = sum(
        len(batch["audio"]) for batch in torch.utils.data.DataLoader(view, batch_size=32, shuffle=True, collate_fn=pad)
    )
    assert count == 1284
    assert time.perf_counter() - start < 2.0


def test_rows_of_a_prepared_file_become_batches(tmp_path):
    """The whole way: pickle, Parquet, views, collator; one sample lacks its audio."""
    content = {"train": mmsa_split("train", 6)}
    content["train"]["audio_lengths"][2] = 0
    prepare_dataset("mosi", write(tmp_path / "x.pkl", content), tmp_path / "mosi")
    tokenizer = tiny_tokenizer()
    rows = MsaRows(load_msa(tmp_path / "mosi", "train", cache_dir=tmp_path / "c"), "train", tokenizer, max_length=6)
    lengths = rows.median_lengths()
    processor = MsaProcessor(MsaFeatureExtractor(audio_dim=5, vision_dim=4), tokenizer, missing_lengths=lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = torch.utils.data.DataLoader(DrawnRows(rows, 2), batch_size=6, collate_fn=MsaCollator(processor))
        first, second = loader
    assert first["audio_values"].shape == (6, max(rows.lengths["audio"]), 5)
    assert first["audio_attention_mask"].sum(1).tolist() == [
        lengths["audio"] if index == 2 else length for index, length in enumerate(content["train"]["audio_lengths"])
    ]
    assert first["vision_attention_mask"].sum(1).tolist() == content["train"]["vision_lengths"]
    np.testing.assert_allclose(first["labels"], content["train"]["regression_labels"])
    assert first["draw"].tolist() == [0] * 6
    assert second["draw"].tolist() == [1] * 6
    assert second["sample_index"].tolist() == list(range(6))


def test_batches_of_some_rows_in_an_order():
    rows = MsaRows(dataset_of(raw(5)), "train")
    assert [[row["index"] for row in members] for members in rows.batches(2)] == [[0, 1], [2, 3], [4]]
    assert [[row["index"] for row in members] for members in rows.batches(2, [3, 1, 0])] == [[3, 1], [0]]
    assert list(rows.batches(2, [])) == []


def test_order_by_length_sums_the_modalities_and_keeps_ties():
    lengths = [(4, 1), (1, 1), (2, 3), (1, 2)]
    rows = raw(4)
    for row, (audio, vision) in zip(rows, lengths, strict=True):
        row["audio"], row["vision"] = np.zeros((audio, 3), np.float32), np.zeros((vision, 2), np.float32)
    assert MsaRows(dataset_of(rows), "train").by_length().tolist() == [1, 3, 0, 2]


def test_rows_of_another_draw():
    rows = MsaRows(dataset_of(raw(3)), "validation", tiny_tokenizer())
    drawn = rows.in_draw(4)
    assert [drawn[index]["draw"] for index in range(3)] == [4, 4, 4] and "draw" not in rows[0]
    assert drawn.ids == rows.ids and drawn.split == "validation" and list(drawn.lengths) == list(rows.lengths)
    np.testing.assert_array_equal(drawn[1]["audio"], rows[1]["audio"])
    np.testing.assert_array_equal(drawn[1]["input_ids"], rows[1]["input_ids"])
    assert rows.in_draw(4).in_draw(5)[0]["draw"] == 5


@pytest.mark.parametrize(
    ("text", "share"), [("this film is good", None), ("der Film good", 33), ("ein Kuchen", 100), ("", None)]
)
def test_words_that_the_tokenizer_does_not_know_are_warned_of(text, share, recwarn):
    data = datasets.Dataset.from_dict({"id": ["a"], "text": [text], "label": [1.0]})
    MsaRows(data, "train", tiny_tokenizer(), 8)
    messages = [str(warning.message) for warning in recwarn if "tokenizer" in str(warning.message)]
    if share is None:
        assert not messages
    else:
        assert f"does not know {share} % of the tokens of the split 'train'" in messages[0]
