"""Sound and pictures of recordings, by one decoder (PyAV) for every entrance: processor, pipelines, `extract`, `--media`.

A recording is read as a stream: of a long one only the part that is asked for is kept, and too long a part is refused before
it fills the memory. Formats that name other files or addresses (playlists, scripts) are never opened.
"""

import contextlib
import importlib
import io
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .msa_packages import optional_package

MAX_SECONDS = 600.0
"""Longest part of a recording that is read unless more is asked for; utterances of the field's data last seconds."""

# What FFmpeg may take a file for, whatever its name is.
_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,m4v,matroska,mov,mp3,mpeg,mpegts,nut,ogg,tta,w64,wav,webm,wv"
)
_MAX_PIXELS = 8192 * 8192
_MAX_CHANNELS = 64
_FRAMES_PER_SECOND = 2.0  # For language models that see.
_LEAST_SECONDS = 0.01
_CUT_EARLY = 5e-4  # Times are rounded.

Recording = str | os.PathLike[str] | bytes
"""The path of a file, or its content."""


def read_sound(
    recording: Recording,
    sampling_rate: int = 16_000,
    *,
    start: float = 0.0,
    end: float | None = None,
    max_seconds: float = MAX_SECONDS,
) -> np.ndarray | None:
    """Read the first sound track: the mean of its channels, at the wanted rate.

    Args:
        recording: A file of sound or video, or its content.
        sampling_rate: Samples per second of the result; resampled by soxr, as librosa does.
        start, end: The part to read, in seconds; by default all.
        max_seconds: Longest part.

    Returns:
        Float32 `(samples,)`, in [-1, 1] unless the file itself goes beyond; None where there is no sound track.

    Raises:
        ImportError: If PyAV is not installed, or soxr where another rate is needed.
        ValueError: In one sentence, if the file is not there, damaged, empty, of no known format, or too long.
    """
    _check_part(start, end)
    with _opened(recording) as container:
        if not container.streams.audio:
            return None
        track = container.streams.audio[0]
        rate = track.codec_context.sample_rate
        if not rate or rate < 0 or not 0 < track.codec_context.channels <= _MAX_CHANNELS:
            raise ValueError(f"its sound has {rate} samples per second in {track.codec_context.channels} channels")
        parts, kept = [], 0
        for first, block in _sound_blocks(container, rate):
            low = max(0, round(start * rate) - first)
            high = len(block) if end is None else min(len(block), round(end * rate) - first)
            if high <= 0 and end is not None:
                break
            if low < high:
                parts.append(block[low:high])
                kept += high - low
            if kept > max_seconds * rate:
                raise ValueError(
                    f"it has more than {max_seconds:g} s of sound; cut it into utterances, as by start and end of a manifest"
                )
        if end is None and start + kept / rate < _least(container):
            _refuse_cut_off(recording)
        if not kept:
            raise ValueError("it has no sound" + (f" from {start:g} s on" if start else ""))
        waveform = np.concatenate(parts)
        if not np.isfinite(waveform).all():
            raise ValueError("its sound holds values that are no numbers")
        if kept < _LEAST_SECONDS * rate:
            raise ValueError(f"its sound lasts {kept / rate:.4f} s, too little to hear anything")
    return resample(waveform, rate, sampling_rate)


def resample(waveform: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Resample a waveform by soxr's high quality setting, librosa's default.

    Args:
        waveform: Float32 `(samples,)`.
        rate, wanted: Samples per second that it has and shall have.

    Raises:
        ImportError: If soxr is needed and not installed.
    """
    if rate != wanted:
        waveform = optional_package("soxr", "hf-msa[audio]", "Resampling").resample(
            waveform, rate, wanted, quality="HQ"
        )
    return np.ascontiguousarray(waveform, dtype=np.float32)


def read_pictures(
    recording: Recording,
    frames_per_second: float | None = None,
    *,
    start: float = 0.0,
    end: float | None = None,
    max_seconds: float = MAX_SECONDS,
    max_side: int | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the pictures of the first video track, one at a time.

    Args:
        recording: A file of video, or its content.
        frames_per_second: At most how many, at even distances; by default all.
        start, end: The part to read, in seconds; by default all.
        max_seconds: Longest part.
        max_side: Longest side in pixels; larger pictures are made smaller.

    Yields:
        The time in seconds since `start`, and the picture, uint8 RGB `(height, width, 3)`. Nothing where there is no video.

    Raises:
        ImportError: If PyAV is not installed.
        ValueError: In one sentence, if the file is not there, damaged, of no known format, or too long.
    """
    _check_part(start, end)
    step = 0.0 if frames_per_second is None else 1 / frames_per_second
    with _opened(recording) as container:
        if not container.streams.video:
            return
        track = container.streams.video[0]
        track.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
        if start > 1:
            with contextlib.suppress(*_errors()):  # Of what cannot be sought in, all is read.
                container.seek(int((start - 1) * 1e6), backward=True)
        rate = float(track.average_rate or 25)
        due, place = 0.0, 0
        for frame in container.decode(track):
            time = (place / rate if frame.time is None else frame.time) - start
            place += 1
            if time < due - _CUT_EARLY:
                continue
            if end is not None and time >= end - start:
                return
            if time > max_seconds:
                raise ValueError(
                    f"it has more than {max_seconds:g} s of video; cut it into utterances, as by start and end of a manifest"
                )
            due = (math.floor((time + _CUT_EARLY) / step) + 1) * step if step else 0.0
            yield time, _rgb(frame, max_side)


def read_frames(
    recording: Recording,
    max_frames: int = 32,
    max_side: int = 448,
    *,
    start: float = 0.0,
    end: float | None = None,
) -> tuple[np.ndarray, float]:
    """Read pictures at even distances, about 2 per second or as many fewer as `max_frames` asks for.

    Args:
        recording: A file of video, or its content.
        max_frames: Most pictures.
        max_side: Longest side of a picture in pixels; larger ones are made smaller.
        start, end: The part to read, in seconds; by default all.

    Returns:
        Uint8 RGB `(frames, height, width, 3)`, and how many there are per second; no frames where there is no video.

    Raises:
        ImportError, ValueError: See `read_pictures`; and if the pictures are not all of one size.
    """
    with _opened(recording) as container:
        # In microseconds; recordings of something live do not say theirs.
        seconds = (container.duration or 0) / 1e6 if end is None else end
    wanted = min(_FRAMES_PER_SECOND, max_frames / (seconds - start)) if seconds - start > 0 else _FRAMES_PER_SECOND
    kept: list[tuple[float, np.ndarray]] = []
    stride = 1
    for place, found in enumerate(read_pictures(recording, wanted, start=start, end=end, max_side=max_side)):
        if place % stride == 0:
            kept.append(found)
        if len(kept) > 2 * max_frames:
            kept, stride = kept[::2], 2 * stride
    if not kept:
        return np.zeros((0, 0, 0, 3), np.uint8), _FRAMES_PER_SECOND
    chosen = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), max_frames)).round().astype(int))
    if len({picture.shape for _, picture in kept}) > 1:
        name = "The recording" if isinstance(recording, bytes) else os.fspath(recording)
        raise ValueError(f"{name} changes the size of its pictures on the way; convert it to one size.")
    seconds = kept[chosen[-1]][0] - kept[chosen[0]][0]
    rate = (len(chosen) - 1) / seconds if seconds > 0 else _FRAMES_PER_SECOND
    return np.stack([kept[index][1] for index in chosen]), rate


def _rgb(frame: Any, max_side: int | None) -> np.ndarray:
    scale = 1.0 if max_side is None else min(1.0, max_side / max(frame.width, frame.height))
    width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
    picture: np.ndarray = frame.to_ndarray(format="rgb24", width=width, height=height)
    return picture


def _sound_blocks(container: Any, rate: int) -> Iterator[tuple[int, np.ndarray]]:
    """The mean of all channels, block by block, each with the place of its first sample."""
    # At the same rate. Not one plane per channel: PyAV gives wrong addresses from the ninth on.
    resampler = importlib.import_module("av").AudioResampler(format="flt")
    place = 0
    for frame in container.decode(audio=0):
        if frame.sample_rate != rate:
            raise ValueError("its sound changes its sampling rate on the way; convert it to one rate")
        for part in resampler.resample(frame):
            block = part.to_ndarray().reshape(-1, len(part.layout.channels)).mean(axis=1, dtype=np.float32)
            yield place, block
            place += len(block)


def _least(container: Any) -> float:
    """Seconds that a whole recording has at least, by what it says itself; headers are rounded, and some exaggerate."""
    return 0.9 * (container.duration or 0) / 1e6 - 0.2


def _refuse_cut_off(recording: Recording) -> None:
    """Refuse a recording of which no track goes on to where its header says."""
    with _opened(recording) as container:
        last = max(
            (packet.pts * packet.time_base for packet in container.demux() if packet.pts is not None), default=0
        )
        if float(last) < _least(container):
            raise ValueError(
                f"it is cut off: its header says {container.duration / 1e6:.1f} s, but {float(last):.1f} s are there"
            )


def _check_size(raw: Any) -> None:
    """Check that a RIFF file (WAV, AVI) is as long as its header says, which FFmpeg does not; 0xFFFFFFFF is a stream's."""
    head = raw.read(12)
    size, there = int.from_bytes(head[4:8], "little"), raw.seek(0, os.SEEK_END)
    raw.seek(0)
    if head[:4] == b"RIFF" and len(head) == 12 and 0 < size < 0xFFFFFFFF and there < size + 8 - 1:
        raise ValueError(f"it is cut off: its header says {size + 8} bytes, but {there} are there")


def _check_part(start: float, end: float | None) -> None:
    if not (math.isfinite(start) and start >= 0) or (end is not None and not end > start):
        raise ValueError(f"The part from {start} s to {end} s of a recording cannot be; give 0 <= start < end.")


@contextlib.contextmanager
def _opened(recording: Recording) -> Iterator[Any]:
    """An open container, whose faults are told in one sentence that begins with its name."""
    av = optional_package("av", "hf-msa[video]", "Reading recordings")
    name = "The recording" if isinstance(recording, bytes) else os.fspath(recording)
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(recording, bytes):
                raw: Any = io.BytesIO(recording)
            else:
                path = Path(recording)
                # A pipe would be waited for, for ever.
                if not stat.S_ISREG(path.stat().st_mode):
                    raise ValueError("it is not a regular file")
                raw = stack.enter_context(path.open("rb"))
            _check_size(raw)
            # As an open file it cannot be taken for an address, nor open another one.
            options = {"format_whitelist": _FORMATS, "protocol_whitelist": ""}
            yield stack.enter_context(av.open(raw, "r", container_options=options))
    except _errors() as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be read as sound or video: {why.removesuffix('.')}.") from error


def _errors() -> tuple[type[Exception], ...]:
    found: tuple[type[Exception], ...] = (importlib.import_module("av").FFmpegError, OSError, ValueError)
    return found
