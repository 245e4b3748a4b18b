"""The trivial guess of a sequence, by hand."""

import numpy as np

from hf_msa.analysis.common.position_means import PositionMeans


def test_enough_sequences_of_a_length_have_means_of_their_own() -> None:
    means = PositionMeans(fewest=2)
    assert means.is_empty
    for sequence in ([[0.0], [2.0]], [[2.0], [6.0]], [[7.0], [8.0], [9.0]], np.zeros((0, 1))):
        means.add(np.array(sequence, dtype=np.float32))
    assert not means.is_empty
    assert means(2).tolist() == [[1.0], [4.0]]
    # One sequence of three: positions 0 and 1 over all lengths, position 2 was seen once: the mean of all seven numbers.
    everything = (0 + 2 + 2 + 6 + 7 + 8 + 9) / 7
    assert np.allclose(means(3), [[3.0], [16 / 3], [everything]])
    # Longer than anything that was seen.
    assert np.allclose(means(4)[2:], everything) and np.allclose(means(1), [[3.0]])


def test_guesses_of_a_batch_end_with_their_sequences() -> None:
    means = PositionMeans(fewest=1)
    means.add(np.array([[1.0, 2.0], [3.0, 4.0]]))
    filled = means.padded([2, 1, 0], 3)
    assert filled.shape == (3, 3, 2)
    assert filled[0].tolist() == [[1, 2], [3, 4], [0, 0]] and not filled[2].any()
    assert filled[1].tolist() == [[1, 2], [0, 0], [0, 0]]
