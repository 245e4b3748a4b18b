"""Alignment of feature sequences to intervals of time, of words for example: one frame per interval."""

import numpy as np

from hf_msa.errors import MsaError


def align_to_intervals(
    values: np.ndarray,
    intervals: np.ndarray,
    *,
    times: np.ndarray | None = None,
    frames_per_second: float | None = None,
    present: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Give each interval the mean of the frames within it.

    An interval without a frame, shorter than one for example, takes the nearest one to its middle, unless that is more than
    one frame away: the sequence does not reach as far. Absent frames count for nothing: an interval with nothing else has no
    frame.

    Args:
        values: `(frames, width)`.
        intervals: `(n, 2)`, start and end in seconds, in any order; they may overlap.
        times: `(frames,)`, the instant in seconds that each frame stands for, ascending. A frame lies within an interval if
            `start <= time < end`.
        frames_per_second: In place of `times`: frame i stands for the instant i / frames_per_second.
        present: `(frames,)` bool, True where the frame is real: False for a picture without a face. By default all are.

    Returns:
        The aligned features, float32 `(n, width)`, and bool `(n,)`, True where an interval has a frame; where it has none,
        its row is zero.

    Raises:
        MsaError: If shapes do not fit, times do not ascend, an interval ends before it starts, or a frame that is present
            holds NaN or infinity.
    """
    frames, spans = np.asarray(values), np.asarray(intervals, np.float64)
    if frames.ndim != 2:
        raise MsaError(f"Features to align are of shape (frames, width), and these are {frames.shape}.")
    if spans.ndim != 2 or spans.shape[1] != 2 or not np.isfinite(spans).all() or (spans[:, 0] > spans[:, 1]).any():
        raise MsaError(
            f"Intervals to align to are start and end in seconds, start first, and not these: {spans!r:.100}."
        )
    instants = _instants(len(frames), times, frames_per_second)
    is_real = np.ones(len(frames), bool) if present is None else np.asarray(present, bool)
    if is_real.shape != (len(frames),):
        raise MsaError(
            f"There are {len(frames)} frames, and `present` has the shape {is_real.shape}; give one flag each."
        )
    # In double precision: a mean of many frames in single precision would depend on how many.
    frames = frames.astype(np.float64)
    if not np.isfinite(frames[is_real]).all():
        raise MsaError("A frame to align holds NaN or infinity; clean the features, or mark the frame as absent.")
    reach = _spacing(instants)
    aligned = np.zeros((len(spans), frames.shape[1]), np.float32)
    has_frame = np.zeros(len(spans), bool)
    for row, (start, end) in enumerate(spans):
        first, last = np.searchsorted(instants, (start, end), side="left")
        if first == last and len(instants):
            middle = (start + end) / 2
            nearest = int(np.argmin(np.abs(instants - middle)))
            if abs(instants[nearest] - middle) <= reach:
                first, last = nearest, nearest + 1
        its_frames = frames[first:last][is_real[first:last]]
        if len(its_frames):
            aligned[row] = its_frames.mean(axis=0)
            has_frame[row] = True
    return aligned, has_frame


def _instants(count: int, times: np.ndarray | None, frames_per_second: float | None) -> np.ndarray:
    if (times is None) == (frames_per_second is None):
        raise MsaError("Give either the times of the frames or how many there are in a second.")
    if times is None:
        if not frames_per_second or not 0 < frames_per_second < np.inf:
            raise MsaError(f"There cannot be {frames_per_second} frames in a second; give a number above 0.")
        return np.arange(count) / frames_per_second
    instants = np.asarray(times, np.float64)
    if instants.shape != (count,):
        raise MsaError(f"There are {count} frames, and times of shape {instants.shape}; give one time each.")
    if not np.isfinite(instants).all() or (np.diff(instants) < 0).any():
        raise MsaError("The times of the frames do not ascend; sort the frames, and leave out those without a time.")
    return instants


def _spacing(instants: np.ndarray) -> float:
    """Seconds from one frame to the next, typically; a single frame stands for all that there is."""
    return float(np.median(np.diff(instants))) if len(instants) > 1 else np.inf
