"""Splitting data without official splits by video, so that no speaker is in two splits."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_msa.data.cells import names_no_video
from hf_msa.data.schema import ID, SPLITS, VIDEO_ID
from hf_msa.data.sources import ParquetSource
from hf_msa.errors import MsaError


def assign_videos(rows_per_video: dict[str, int], shares: Sequence[float], seed: int = 1111) -> dict[str, str]:
    """Deal videos out to the splits so that each comes near its share of the rows.

    Videos are taken in an order drawn from the seed, and each goes to the split that lacks most rows.

    Args:
        rows_per_video: Rows of each video.
        shares: Shares of train, validation and test, each above 0, together 1.
        seed: Seed of the order.

    Returns:
        The split of each video.

    Raises:
        MsaError: If the shares are no shares, or there are fewer videos than splits.
    """
    if len(shares) != len(SPLITS) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise MsaError(
            f"The shares of {', '.join(SPLITS)} are {' '.join(map(str, shares))}; give three above 0 that add up to 1, "
            "e.g. 0.6 0.2 0.2."
        )
    if len(rows_per_video) < len(SPLITS):
        raise MsaError(f"The data has {len(rows_per_video)} videos, but each of {len(SPLITS)} splits needs one.")
    videos = sorted(rows_per_video)
    lacking = np.array(shares) * sum(rows_per_video.values())
    assigned = {}
    for place, index in enumerate(np.random.default_rng(seed).permutation(len(videos))):
        # The first videos go to one split each: however long they are, none stays empty.
        split = place if place < len(SPLITS) else int(lacking.argmax())
        assigned[videos[index]] = SPLITS[split]
        lacking[split] -= rows_per_video[videos[index]]
    return assigned


class VideoSplitSource(ParquetSource):
    """The rows of a prepared folder under new splits; the splits that they had are forgotten.

    Args:
        folder: See `ParquetSource`.
        shares, seed: See `assign_videos`.

    Raises:
        MsaError: As `ParquetSource` and `assign_videos`, or if an id does not tell the video.
    """

    def __init__(self, folder: Path, shares: Sequence[float], seed: int = 1111) -> None:
        super().__init__(folder)
        self.old_splits = self.splits
        rows: Counter[str] = Counter()
        for row in (row for split in self.old_splits for row in super(VideoSplitSource, self).rows(split)):
            if names_no_video(row):
                raise MsaError(
                    f"The id {row[ID]!r} says nothing about the video that the clip is of, so the data cannot be split by "
                    "video: give ids such as VIDEO$_$CLIP, VIDEO[CLIP] or VIDEO_12, or the columns video_id and clip_id."
                )
            rows[row[VIDEO_ID]] += 1
        self.assigned = assign_videos(dict(rows), shares, seed)
        self._counts = Counter(dict.fromkeys(SPLITS, 0))
        for video, count in rows.items():
            self._counts[self.assigned[video]] += count
        self.splits = list(SPLITS)
        self.notes = [f"The rows were split anew by video (seed {seed}); official splits, if any, were given up."]

    def count(self, split: str) -> int:
        """Return the number of samples of a new split."""
        return self._counts[split]

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a new split."""
        for old in self.old_splits:
            for row in super().rows(old):
                if self.assigned[row[VIDEO_ID]] == split:
                    yield row
