"""Word alignment of feature sequences: one frame per word, the aligned format of the field."""

from collections.abc import Sequence

import numpy as np

from hf_msa.data.alignment import align_to_intervals

from .transcripts import Word


def align_to_words(
    values: np.ndarray,
    words: Sequence[Word],
    *,
    times: np.ndarray | None = None,
    frames_per_second: float | None = None,
    present: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Give each word the mean of the frames within its time, see `align_to_intervals`.

    Args:
        values: `(frames, width)`.
        words: The words, in any order; they may overlap.
        times, frames_per_second: When each frame is; give one of them.
        present: `(frames,)` bool, True where the frame is real: False for a picture without a face. By default all are.

    Returns:
        The aligned features, float32 `(words, width)`, and bool `(words,)`, True where a word has a frame; where it has
        none, its row is zero.

    Raises:
        MsaError: As `align_to_intervals`.
    """
    intervals = np.array([(word.start, word.end) for word in words], np.float64).reshape(-1, 2)
    return align_to_intervals(values, intervals, times=times, frames_per_second=frames_per_second, present=present)
