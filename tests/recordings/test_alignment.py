import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_msa.errors import MsaError
from hf_msa.recordings.alignment import align_to_words
from hf_msa.recordings.transcripts import Word

# Frames at 0, .1, ..., .9 s; frame i holds (i, 10 i).
FRAMES = np.stack([np.arange(10.0), 10 * np.arange(10.0)], axis=1)


def word(start: float, end: float) -> Word:
    return Word("x", start, end)


def test_a_word_is_the_mean_of_its_frames() -> None:
    aligned, has_frame = align_to_words(FRAMES, [word(0.0, 0.3), word(0.35, 0.75)], frames_per_second=10)
    # Frames 0, 1, 2; and 4, 5, 6, 7. The frame at .3 is no part of the first: it begins where the word ends.
    assert aligned.tolist() == [[1, 10], [5.5, 55]]
    assert has_frame.tolist() == [True, True]
    assert aligned.dtype == np.float32


def test_times_of_their_own() -> None:
    aligned, _ = align_to_words(FRAMES[:3], [word(0.0, 0.5), word(0.5, 2.0)], times=np.array([0.1, 0.4, 1.9]))
    assert aligned.tolist() == [[0.5, 5], [2, 20]]


@pytest.mark.parametrize(
    ("start", "end", "frame"), [(0.31, 0.33, 3), (0.37, 0.39, 4), (0.5, 0.5, 5), (0.98, 1.0, 9), (0.9, 1.09, 9)]
)
def test_a_word_shorter_than_a_frame_takes_the_nearest(start: float, end: float, frame: int) -> None:
    aligned, has_frame = align_to_words(FRAMES, [word(start, end)], frames_per_second=10)
    assert aligned.tolist() == [[frame, 10 * frame]] and has_frame.all()


def test_words_behind_the_last_frame_have_none() -> None:
    # The nearest frame, at .9, may be a tenth away.
    aligned, has_frame = align_to_words(FRAMES, [word(0.95, 1.04), word(1.0, 1.1), word(3, 4)], frames_per_second=10)
    assert has_frame.tolist() == [True, False, False]
    assert aligned[1:].tolist() == [[0, 0], [0, 0]]


def test_frames_without_a_face_count_for_nothing() -> None:
    present = np.array([False, True, True, False, False, False, True, True, True, True])
    values = np.where(present[:, None], FRAMES, np.nan)  # what is absent may hold anything
    words = [word(0.0, 0.3), word(0.3, 0.6), word(0.44, 0.46), word(0.5, 0.7)]
    aligned, has_frame = align_to_words(values, words, frames_per_second=10, present=present)
    assert aligned.tolist() == [[1.5, 15], [0, 0], [0, 0], [6, 60]]
    assert has_frame.tolist() == [True, False, False, True]


def test_nothing_gives_nothing() -> None:
    assert [part.shape for part in align_to_words(FRAMES, [], frames_per_second=10)] == [(0, 2), (0,)]
    aligned, has_frame = align_to_words(np.zeros((0, 2)), [word(0, 1)], frames_per_second=10)
    assert aligned.tolist() == [[0, 0]] and not has_frame.any()


def test_a_single_frame_stands_for_all() -> None:
    aligned, has_frame = align_to_words(FRAMES[3:4], [word(0, 0.1), word(5, 6)], times=np.array([1.0]))
    assert aligned.tolist() == [[3, 30], [3, 30]] and has_frame.all()


def test_a_mean_of_large_numbers_is_exact() -> None:
    # In single precision, 2**24 + 1 is 2**24.
    values = np.array([[2.0**24], [1.0], [1.0], [-(2.0**24)]])
    assert align_to_words(values, [word(0, 4)], frames_per_second=1)[0].tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": np.zeros(3), "frames_per_second": 1}, r"\(frames, width\)"),
        ({}, "either the times"),
        ({"times": np.arange(10), "frames_per_second": 1}, "either the times"),
        ({"frames_per_second": 0}, "cannot be 0 frames"),
        ({"frames_per_second": -1.0}, "cannot be -1.0 frames"),
        ({"frames_per_second": float("nan")}, "cannot be nan frames"),
        ({"times": np.arange(9)}, "one time each"),
        ({"times": np.arange(10)[::-1]}, "do not ascend"),
        ({"times": np.full(10, np.nan)}, "do not ascend"),
        ({"frames_per_second": 1, "present": np.ones(9, bool)}, "one flag each"),
        ({"values": np.full((10, 1), np.inf), "frames_per_second": 1}, "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(MsaError, match=message):
        align_to_words(**{"values": FRAMES, "words": [], **arguments})  # type: ignore[arg-type]


@given(
    frames=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30),
    cuts=st.lists(st.floats(0, 4), min_size=2, max_size=8).map(sorted),
    rate=st.sampled_from([3.0, 10.0, 29.97]),
)
def test_rows_lie_within_the_frames(frames: list[float], cuts: list[float], rate: float) -> None:
    values = np.array(frames)[:, None]
    words = [word(start, end) for start, end in zip(cuts, cuts[1:], strict=False)]
    aligned, has_frame = align_to_words(values, words, frames_per_second=rate)
    assert aligned.shape == (len(words), 1) and np.isfinite(aligned).all()
    slack = 1e-6 * max(1.0, float(np.abs(values).max()))
    assert ((aligned >= values.min() - slack) & (aligned <= values.max() + slack))[has_frame].all()
    assert not aligned[~has_frame].any()
    # Nothing hangs on the order of the words, nor on their neighbours.
    back, _ = align_to_words(values, words[::-1], frames_per_second=rate)
    assert (back[::-1] == aligned).all()
    alone, _ = align_to_words(values, words[:1], frames_per_second=rate)
    assert (alone == aligned[:1]).all()


@given(st.integers(1, 40), st.floats(0.5, 60))
def test_words_that_tile_the_recording_lose_no_frame(count: int, rate: float) -> None:
    values = np.arange(count, dtype=float)[:, None]
    # A word for every frame, a little wider than the frame's instant.
    words = [word(max(0.0, (index - 0.25) / rate), (index + 0.25) / rate) for index in range(count)]
    aligned, has_frame = align_to_words(values, words, frames_per_second=rate)
    assert has_frame.all() and (aligned == values).all()
