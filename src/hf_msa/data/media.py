"""Sound and pictures of the clips themselves, for methods that ask a multimodal language model."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_msa.data.cells import split_id
from hf_msa.data.schema import CLIP_ID, ID, VIDEO_ID
from hf_msa.data.sources import clip_file
from hf_msa.errors import MsaError, as_msa_errors, require_package
from hf_msa.models.msa_recordings import read_frames, read_sound

SAMPLING_RATE = 16_000
SOUND_SUFFIXES = (".wav", ".flac", ".mp3")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")


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
            clips += 1
            if any(self._files(row)):
                require_package("av", "video")
            else:
                absent += 1
            example = example or "/".join(part for part in _ids(row) if part)
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
        with as_msa_errors():
            if video is not None:
                frames, rate = read_frames(video, self.max_frames, self.max_side)
                if len(frames):
                    found |= {"frames": frames, "frames_per_second": rate}
            file = sound or video
            waveform = None if file is None else read_sound(file, SAMPLING_RATE)
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
