"""Sound and pictures of the clips themselves, for methods that ask a multimodal language model."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_msa.data.cells import split_id
from hf_msa.data.schema import CLIP_ID, ID, VIDEO_ID
from hf_msa.data.sources import clip_file
from hf_msa.errors import MsaError, reason, require_package

if TYPE_CHECKING:
    import av.container

SAMPLING_RATE = 16_000
SOUND_SUFFIXES = (".wav", ".flac", ".mp3")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")

_FRAMES_PER_SECOND = 2.0
# What FFmpeg may take a file for, whatever its name: among its other formats are playlists, which open further files.
_CONTAINERS = {"format_whitelist": "mov,matroska,avi"}


@dataclass(frozen=True)
class MediaFolder:
    """A folder with the recordings of clips: ``<video_id>/<clip_id>.<suffix>`` or ``<video_id>$_$<clip_id>.<suffix>``.

    Where a clip has a file of sound and one with pictures, the sound of the former is taken. Nothing is kept: a file is
    read each time that it is asked for.

    Args:
        folder: The folder; files outside of it are refused.
        max_frames: Most pictures of a clip.
        max_side: Longest side of a picture in pixels; larger ones are made smaller.

    Raises:
        MsaError: If there is no such folder.
    """

    folder: Path
    max_frames: int = 32
    max_side: int = 448

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise MsaError(
                f"There is no folder {str(self.folder)!r}; --media takes one with <video_id>/<clip_id>.wav or .mp4."
            )

    def check(self, rows: Iterable[Mapping[str, Any]], split: str) -> dict[str, int]:
        """Count the clips that have a file, without opening any, and warn in one sentence if some have none.

        Args:
            rows: Rows of a data set.
            split: What the sentences call them.

        Returns:
            ``clips``, and how many of them are ``without_file``.

        Raises:
            MsaError: If none has a file, an id cannot be part of a file name, or a package that reads the files is absent.
        """
        absent, clips, example = 0, 0, ""
        for row in rows:
            sound, video = self._files(row)
            clips += 1
            absent += sound is None and video is None
            example = example or "/".join(part for part in _ids(row) if part)
            if sound is not None:
                require_package("librosa", "audio")
            if video is not None:
                require_package("av", "video")
        if absent == clips > 0:
            raise MsaError(
                f"No clip of the split {split!r} has a file in {str(self.folder)!r}; {example}{VIDEO_SUFFIXES[0]}, for "
                "example, was looked for."
            )
        if absent:
            logging.getLogger(__name__).warning(
                "%d of %d clips of the split %r have no file in %r; of those the expert gets what it would without media.",
                absent,
                clips,
                split,
                str(self.folder),
            )
        return {"clips": clips, "without_file": absent}

    def load(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Read what there is of a clip.

        Args:
            row: With `video_id` and `clip_id`, or `id`.

        Returns:
            `waveform` float32 `(samples,)`, mono at 16 kHz, and `frames` uint8 `(frames, height, width, 3)`, at even
            distances, with their `frames_per_second`: about 2, or fewer where a clip is long. What a clip lacks is no key.

        Raises:
            MsaError: If a file is damaged, or an id or a link leads out of the folder.
        """
        sound, video = self._files(row)
        found: dict[str, Any] = {}
        if video is not None:
            frames, rate = read_frames(video, self.max_frames, self.max_side)
            if len(frames):
                found |= {"frames": frames, "frames_per_second": rate}
        waveform = None
        if sound is not None:
            waveform = read_sound(sound)
        elif video is not None:
            waveform = read_sound_of_video(video)
        if waveform is not None:
            found["waveform"] = waveform
        if video is not None and not found:
            raise MsaError(f"{video} holds neither sound nor pictures; remove it, or record it again.")
        return found

    def _files(self, row: Mapping[str, Any]) -> tuple[Path | None, Path | None]:
        """The file of sound alone and the one with pictures."""
        video, clip = _ids(row)
        sound, pictures = (
            clip_file(self.folder, video, clip or None, suffixes, root=self.folder, origin="the data")
            for suffixes in (SOUND_SUFFIXES, VIDEO_SUFFIXES)
        )
        return sound, pictures


def _ids(row: Mapping[str, Any]) -> tuple[str, str]:
    if row.get(VIDEO_ID) is not None and row.get(CLIP_ID) is not None:
        return str(row[VIDEO_ID]), str(row[CLIP_ID])
    _, video, clip = split_id(row[ID])
    return video, clip


def read_sound(file: Path) -> np.ndarray:
    """Read a file of sound: float32 `(samples,)`, mono at 16 kHz.

    Args:
        file: WAV, FLAC or MP3.

    Raises:
        MsaError: If it is damaged or empty, or librosa is not installed.
    """
    require_package("librosa", "audio")
    import librosa
    import soundfile

    try:
        values, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise MsaError(f"{file} cannot be read as sound: {reason(error)}.") from error
    waveform = _checked(values.mean(axis=1), file)
    if rate != SAMPLING_RATE:
        waveform = librosa.resample(waveform, orig_sr=rate, target_sr=SAMPLING_RATE)
    return _checked(waveform, file)


def read_sound_of_video(file: Path) -> np.ndarray | None:
    """Read the first sound track of a video file; None where it has none.

    Args:
        file: MP4, Matroska, WebM or AVI.

    Returns:
        Float32 `(samples,)`, mono at 16 kHz.

    Raises:
        MsaError: If it is damaged or empty, or PyAV is not installed.
    """
    with _opened(file) as container:
        if not container.streams.audio:
            return None
        from av import AudioResampler

        # FFmpeg's own way from stereo to mono is louder than the mean and may go beyond 1.
        resampler = AudioResampler(format="fltp", rate=SAMPLING_RATE)
        parts = [
            part.to_ndarray().mean(axis=0) for frame in container.decode(audio=0) for part in resampler.resample(frame)
        ]
        parts += [part.to_ndarray().mean(axis=0) for part in resampler.resample(None)]
    return _checked(np.concatenate([np.zeros(0, np.float32), *parts]), file)


def read_frames(file: Path, max_frames: int = 32, max_side: int = 448) -> tuple[np.ndarray, float]:
    """Read pictures of a video file at even distances, about 2 per second or as many fewer as `max_frames` asks for.

    Args:
        file: MP4, Matroska, WebM or AVI.
        max_frames: Most pictures.
        max_side: Longest side of a picture in pixels; larger ones are made smaller.

    Returns:
        Uint8 RGB `(frames, height, width, 3)`, and how many there are per second; no frames where the file has none.

    Raises:
        MsaError: If it is damaged, or PyAV is not installed.
    """
    pictures: list[np.ndarray] = []
    times: list[float] = []
    with _opened(file) as container:
        if container.streams.video:
            # A duration in microseconds; streams that were recorded live do not say theirs.
            step = max(1 / _FRAMES_PER_SECOND, (container.duration or 0) / 1e6 / max_frames)
            for frame in container.decode(video=0):
                time = len(times) * step if frame.time is None else frame.time
                # Timestamps are rounded: half a millisecond early is in time.
                if times and time < times[0] + len(times) * step - 5e-4:
                    continue
                scale = min(1.0, max_side / max(frame.width, frame.height))
                width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
                pictures.append(frame.to_ndarray(format="rgb24", width=width, height=height))
                times.append(time)
    if not pictures:
        return np.zeros((0, 0, 0, 3), np.uint8), _FRAMES_PER_SECOND
    chosen = np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), max_frames)).round().astype(int))
    if len({picture.shape for picture in pictures}) > 1:
        raise MsaError(f"{file} changes the size of its pictures on the way; convert it to one size.")
    seconds = times[chosen[-1]] - times[chosen[0]]
    rate = (len(chosen) - 1) / seconds if seconds > 0 else _FRAMES_PER_SECOND
    return np.stack([pictures[index] for index in chosen]), rate


@contextmanager
def _opened(file: Path) -> "Iterator[av.container.InputContainer]":
    """A video file, whose damage is told in one sentence."""
    require_package("av", "video")
    import av

    try:
        # As an open file it cannot be taken for an address.
        with file.open("rb") as raw, av.open(raw, "r", container_options=_CONTAINERS) as container:
            yield container
    except MsaError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MsaError(
            f"{file} cannot be read as a video: {getattr(error, 'strerror', None) or reason(error)}."
        ) from error


def _checked(waveform: np.ndarray, file: Path) -> np.ndarray:
    if not len(waveform) or not np.isfinite(waveform).all():
        raise MsaError(f"The sound of {file} is empty or holds no numbers; record it again, or remove the file.")
    return np.ascontiguousarray(waveform, dtype=np.float32)
