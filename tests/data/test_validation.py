import numpy as np
import pytest
from rich.console import Console

from hf_msa.data.schema import DATASETS, facts_for
from hf_msa.data.validation import Validator
from hf_msa.errors import MsaError


def row(identifier="v$_$1", label=0.5, **columns):
    video, _, clip = identifier.partition("$_$")
    return {"id": identifier, "video_id": video, "clip_id": clip, "text": "so good", "label": label, **columns}


def check(rows, widths=None, split="train", validator=None, family="mosi"):
    validator = validator or Validator(facts_for("custom", family), "file.pkl", widths or {})
    return validator, list(validator.check(split, rows))


def test_bad_values_are_counted_by_kind_and_become_zero():
    audio = np.array([[np.nan, 1], [np.inf, -np.inf], [-np.inf, 2]])
    validator, rows = check([row(audio=audio)], {"audio": 2})
    np.testing.assert_array_equal(rows[0]["audio"], np.array([[0, 1], [0, 0], [0, 2]], dtype=np.float32))
    assert rows[0]["audio"].dtype == np.float32
    found = validator.report().splits["train"].modalities["audio"]
    assert (found.nan, found.positive_infinite, found.negative_infinite) == (1, 1, 2)
    assert (found.width, found.frames, found.shortest, found.longest, found.dtype) == (2, 3, 3, 3, "float64")
    assert np.isnan(audio[0, 0]), "the source must not be written to"


def test_a_double_beyond_float32_counts_as_infinite():
    validator, rows = check([row(audio=np.array([[1e300, -1e300]]))], {"audio": 2})
    assert rows[0]["audio"].tolist() == [[0, 0]]
    found = validator.report().splits["train"].modalities["audio"]
    assert (found.positive_infinite, found.negative_infinite) == (1, 1)


def test_clean_float32_is_not_copied():
    audio = np.ones((4, 2), dtype=np.float32)
    _, rows = check([row(audio=audio)], {"audio": 2})
    assert np.shares_memory(rows[0]["audio"], audio)


def test_lengths_and_silence_are_counted():
    arrays = [np.zeros((3, 1)), np.ones((7, 1)), np.ones((2, 1))]
    validator, _ = check([row(f"v$_${i}", vision=a) for i, a in enumerate(arrays)], {"vision": 1})
    found = validator.report().splits["train"].modalities["vision"]
    assert (found.shortest, found.longest, found.frames, found.silent) == (2, 7, 12, 1)


def test_an_absent_modality_is_one_zero_frame_and_counted():
    rows = [
        row("v$_$1", audio=np.ones((3, 2)), audio_present=False),
        row("v$_$2", audio=np.ones((5, 2)), audio_present=True),
    ]
    validator, clean = check(rows, {"audio": 2})
    assert clean[0]["audio"].tolist() == [[0, 0]]
    assert clean[0]["audio_present"] is False
    found = validator.report().splits["train"].modalities["audio"]
    assert (found.absent, found.silent, found.shortest, found.longest) == (1, 0, 5, 5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("a$_$1"), row("a$_$1")], "'a\\$_\\$1' occurs twice in 'train'"),
        ([row("a$_$1", label=3.2)], "'a\\$_\\$1' has label 3.2, outside \\[-3, 3\\]"),
        ([row("a$_$1", label=float("nan"))], "has no label"),
        ([row("a$_$1", label=None)], "has no label"),
        ([row("a$_$1", label="1_0")], "not a number"),
        ([row("a$_$1", label="much")], "'much', which is not a number"),
        ([row("a$_$1", label_text=-4.0)], "label_text -4"),
        ([row("a$_$1", audio=np.ones((3, 4)))], "'a\\$_\\$1' has shape \\(3, 4\\); \\(frames, 2\\)"),
        ([row("a$_$1", audio=np.ones((0, 2)))], "at least one frame"),
        ([row("a$_$1", audio=np.ones(2))], "shape \\(2,\\)"),
        ([row("a$_$1", audio=np.array([["x", "y"]]))], "not numbers"),
        ([], "'train' of file.pkl has no samples"),
    ],
)
def test_what_cannot_be_used_names_the_sample(rows, message):
    rows = [{"audio": np.ones((1, 2)), **each} for each in rows]
    with pytest.raises(MsaError, match=message):
        check(rows, {"audio": 2})


def test_a_sample_in_two_splits_is_an_error_and_a_video_a_warning():
    validator, _ = check([row("a$_$1")])
    check([row("a$_$2"), row("b$_$1")], split="test", validator=validator)
    assert "1 videos (such as 'a')" in validator.report().warnings[0]
    with pytest.raises(MsaError, match="both 'train' and 'validation'"):
        check([row("a$_$1")], split="validation", validator=validator)


def test_the_edge_of_the_range_is_inside_after_float32_rounding():
    check(
        [row("a$_$1", label=np.float32(-1.0)), row("a$_$2", label=np.float32(1) * np.float32(1.000001))], family="sims"
    )


def test_a_file_unlike_the_benchmark_is_a_warning_not_an_error():
    validator = Validator(facts_for("mosi"), "x", {"audio": 73}, DATASETS["mosi"])
    check([row(audio=np.ones((1, 73)))], validator=validator)
    warnings = " ".join(validator.report().warnings)
    assert "'train' has 1 samples; the official one has 1284" in warnings
    assert "'test' is absent" in warnings
    assert "73 features per frame; published files have 5" in warnings
    assert "no vision" in warnings


def test_missing_texts_and_annotations_are_missing_and_counted():
    texts = [None, float("nan"), "", "good", "nan", "None"]
    rows = [row(f"v$_${i}") | {"text": text, "annotation": "A" if i else None} for i, text in enumerate(texts)]
    validator, clean = check(rows)
    assert [each["text"] for each in clean] == ["", "", "", "good", "nan", "None"]
    assert [each["annotation"] for each in clean] == [None, "A", "A", "A", "A", "A"]
    report = validator.report()
    assert report.split_rows()[1][-1] == "3"
    assert report.splits["train"].annotations == {"A": 5}
    assert report.warnings == [
        "3 samples of 'train' have an empty transcript.",
        "2 samples of 'train' have a transcript such as 'nan' or 'None'; if it stands for none, leave it empty.",
        "1 samples of 'train' have no annotation.",
    ]


@pytest.mark.parametrize("column", ["id", "video_id", "clip_id"])
def test_an_id_is_never_the_word_none(column):
    with pytest.raises(MsaError, match=f"Sample 0 of 'train' has no {column}"):
        check([row() | {column: None}])


def test_ids_that_say_nothing_about_their_video_are_counted():
    plain = [row(name) | {"video_id": name, "clip_id": ""} for name in ("a", "b")]
    validator, _ = check([*plain, row("c_3") | {"video_id": "c", "clip_id": "3"}])
    assert validator.report().warnings == [
        "2 ids say nothing about the video that their clip is of, so that clips of one video in several splits go unseen: "
        "give ids such as VIDEO$_$CLIP, VIDEO[CLIP] or VIDEO_12, or the columns video_id and clip_id.",
        "Ids such as 'c_3' were read as the clip '3' of the video 'c'.",
    ]


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (np.linspace(0, 1, 12), "none is below the neutral 0"),
        (np.linspace(1, 3, 12), "none is below the neutral 0"),
        (np.linspace(-3, 0, 12), "none is above the neutral 0"),
        (np.linspace(-1, 1, 12), "they fill less than half of it"),
        (np.linspace(-1, 2, 12), None),
        (np.linspace(0, 1, 9), None),
    ],
)
def test_labels_that_look_as_if_on_another_scale_are_a_warning(labels, fault):
    validator, _ = check([row(f"v$_${i}", label=label) for i, label in enumerate(labels)])
    warnings = validator.report().warnings
    assert len(warnings) == (fault is not None)
    if fault:
        assert fault in warnings[0] and "--label-family" in warnings[0]


def test_report_tables_hold_the_numbers():
    rows = [row(f"v$_${i}", label=label, audio=np.ones((2, 1))) for i, label in enumerate((-1.0, 0.0, 2.0))]
    validator, _ = check([*rows, {**row("w$_$1", label=3.0, audio=np.array([[np.nan]])), "text": " "}], {"audio": 1})
    report = validator.report(["Read in some way."])
    assert report.split_rows()[1] == ["train", "4", "2", "1.000", "1.826", "-1 to 3", "1/1/2", "1"]
    assert report.modality_rows()[1] == ["train", "audio", "1", "float64", "1-2", "1.8", "1/0/0", "0", "1"]
    markdown = report.markdown()
    assert "| train | 4 | 2 | 1.000 |" in markdown
    assert "- Note: 1 values that were NaN or infinite are now 0.\n- Note: Read in some way." in markdown
    assert "have an empty transcript" in markdown
    console = Console(record=True, width=100)
    console.print(report)
    assert "1/1/2" in console.export_text()


def test_a_text_only_report_has_one_table():
    validator, _ = check([row()])
    assert len(validator.report().modality_rows()) == 1
    assert validator.report().markdown().count("| split |") == 1


def test_sums_of_labels_by_hand():
    labels = [1.0, -2.0, 0.0, 3.0]
    validator, _ = check([row(f"v{i // 2}$_${i}", label=label) for i, label in enumerate(labels)])
    found = validator.report().splits["train"]
    # Distances from the mean of .5 are .5, -2.5, -.5 and 2.5.
    assert (found.count, found.mean, found.squares, found.polarity()) == (4, 0.5, pytest.approx(13), (1, 1, 2))
    assert validator.report().split_rows()[1] == ["train", "4", "2", "0.500", "2.082", "-2 to 3", "1/1/2", "0"]


def test_what_a_source_promises_is_not_remembered():
    rows = [row(f"v{i // 2}$_${i}") for i in range(6)]
    validator = Validator(facts_for("custom", "mosi"), "x", {}, remember=False)
    for split in ("train", "test"):
        check(rows, split=split, validator=validator)
        found = validator.report().splits[split]
        assert (found.count, found.video_count, len(found.videos)) == (6, 3, 0)
    assert not validator._split_of_id
