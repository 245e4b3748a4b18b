"""Batches of training: every row once, the same for any number of processes, phases never mixed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_msa.training.sampler import MsaBatchSampler


def batches(epoch: int = 0, **options: object) -> list[list[int]]:
    sampler = MsaBatchSampler(**options)
    sampler.set_epoch(epoch)
    return list(sampler)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 80),
    size=st.integers(1, 9),
    passes=st.integers(1, 2),
    grouped=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_pass_sees_every_row_once(rows: int, size: int, passes: int, grouped: bool, epoch: int) -> None:
    lengths = np.arange(rows) % 7 if grouped else None
    found = batches(epoch, lengths=lengths, rows=rows, batch_size=size, seed=3, passes=passes)
    assert len(found) == len(MsaBatchSampler(lengths, rows, size, 3, passes))
    draws = [{index // rows for index in batch} for batch in found]
    assert all(len(draw) == 1 for draw in draws), "a batch mixes two passes"
    for number in range(passes):
        seen = [index % rows for batch in found for index in batch if index // rows == epoch * passes + number]
        assert sorted(seen) == list(range(rows))


@settings(max_examples=30)
@given(world=st.integers(1, 4), accumulation=st.integers(1, 3), groups=st.integers(1, 5), passes=st.integers(1, 2))
def test_processes_and_accumulation_share_out_the_single_process_batches(
    world: int, accumulation: int, groups: int, passes: int
) -> None:
    size, rows = 2, 2 * 3 * 4 * groups
    alone = batches(
        lengths=np.arange(rows) % 5, rows=rows, batch_size=size * world * accumulation, seed=1, passes=passes
    )
    shares = [
        batches(
            lengths=np.arange(rows) % 5,
            rows=rows,
            batch_size=size,
            seed=1,
            passes=passes,
            rank=rank,
            world_size=world,
            accumulation=accumulation,
        )
        for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1
    for number, batch in enumerate(alone):
        steps = range(number * accumulation, (number + 1) * accumulation)
        together = {index for share in shares for step in steps for index in share[step]}
        assert together == set(batch)


def test_order_depends_on_seed_and_epoch_only() -> None:
    options = {"lengths": None, "rows": 20, "batch_size": 4}
    assert batches(2, seed=1, **options) == batches(2, seed=1, **options)
    assert batches(2, seed=1, **options) != batches(3, seed=1, **options)
    assert batches(2, seed=1, **options) != batches(2, seed=2, **options)


def test_length_groups_save_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, size=1284)

    def padded(grouping: np.ndarray | None) -> int:
        found = batches(lengths=grouping, rows=len(lengths), batch_size=64, seed=0)
        return sum(len(batch) * lengths[batch].max() for batch in found)

    assert padded(lengths) < 0.7 * padded(None)
    assert padded(lengths) < 1.35 * lengths.sum()


@pytest.mark.parametrize("world", [2, 3])
def test_no_process_is_left_without_rows(world: int) -> None:
    shares = [
        batches(lengths=None, rows=5, batch_size=4, seed=0, rank=rank, world_size=world) for rank in range(world)
    ]
    assert all(batch for share in shares for batch in share)
