"""Batches for training: grouped by length, a pure function of (seed, epoch), the same for any number of processes."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# Batches are cut out of a shuffled window of this many batches, sorted by length inside the window: large enough to save
# most padding, small enough that batches stay random.
_WINDOW_BATCHES = 8


class MsaBatchSampler(Sampler[list[int]]):
    """Yields lists of `DrawnRows` indices, one list per batch of this process.

    One epoch makes `passes` passes over the data; the draw (what re-draws the missing pattern) is ``epoch * passes + pass``,
    so every pass sees masks of its own and no state has to travel to the worker processes. A global batch is cut into
    ``world_size * accumulation`` equal parts, so that processes and accumulation steps together see exactly the batch
    that one process would see, and no part mixes two passes.

    Args:
        lengths: Cost of each row `(rows,)`, e.g. its number of positions; ``None`` for plain random batches.
        rows: Number of rows.
        batch_size: Rows per process and accumulation step.
        seed: Seed of the order.
        passes: Passes over the data per epoch.
        rank: This process.
        world_size: Number of processes.
        accumulation: Gradient accumulation steps.
    """

    def __init__(
        self,
        lengths: np.ndarray | None,
        rows: int,
        batch_size: int,
        seed: int,
        passes: int = 1,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
    ) -> None:
        self.lengths = lengths
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.passes = passes
        self.rank = rank
        self.world_size = world_size
        self.accumulation = accumulation
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and draws the next iteration yields."""
        self.epoch = epoch

    @property
    def _global_size(self) -> int:
        return self.batch_size * self.world_size * self.accumulation

    def __len__(self) -> int:
        return self.passes * -(-self.rows // self._global_size) * self.accumulation

    def _global_batches(self, draw: int) -> list[np.ndarray]:
        """All rows once, cut into global batches."""
        generator = np.random.default_rng([self.seed, draw])
        order = generator.permutation(self.rows)
        if self.lengths is not None:
            window = _WINDOW_BATCHES * self._global_size
            order = np.concatenate(
                [
                    part[np.argsort(-self.lengths[part], kind="stable")]
                    for part in np.split(order, range(window, self.rows, window))
                ]
            )
        batches = np.split(order, range(self._global_size, self.rows, self._global_size))
        return [batches[index] for index in generator.permutation(len(batches))]

    def __iter__(self) -> Iterator[list[int]]:
        parts = self.world_size * self.accumulation
        for number in range(self.passes):
            draw = self.epoch * self.passes + number
            for batch in self._global_batches(draw):
                # A last batch with fewer rows than parts repeats rows, so that no process is left without one.
                filled = np.resize(batch, max(len(batch), parts))
                for part in np.array_split(filled, parts)[self.rank :: self.world_size]:
                    yield [int(row) + draw * self.rows for row in part]
