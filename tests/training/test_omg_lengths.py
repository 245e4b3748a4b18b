"""Expected lengths of missing modalities: lines by hand."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from hf_msa.data.rows import MsaRows
from hf_msa.training.omg.lengths import fit_lengths
from tiny import tiny_omg_config


def rows(text: list[int], audio: list[int], vision: list[int], absent: Sequence[int] = ()) -> MsaRows:
    """Rows of such lengths; of those that are `absent` there is neither text nor sound."""

    def batches() -> Iterator[list[dict[str, Any]]]:
        yield [
            {
                "text": " " if place in absent else "words",
                "audio_present": place not in absent,
            }
            for place in range(len(text))
        ]

    lengths = {"text": np.array(text), "audio": np.array(audio), "vision": np.array(vision)}
    return cast(MsaRows, SimpleNamespace(lengths=lengths, batches=batches))


def test_one_rate_each_is_a_line() -> None:
    """Sound has two frames for one of pictures, and texts nothing to do with either."""
    vision = [1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1, 6]
    found = fit_lengths(rows([5] * 12, [2 * one for one in vision], vision), tiny_omg_config())
    assert list(found) == ["audio", "vision"]
    assert found["audio"] == [["vision", pytest.approx(2.0), pytest.approx(0.0, abs=1e-9)]]
    assert found["vision"] == [["audio", pytest.approx(0.5), pytest.approx(0.0, abs=1e-9)]]


def test_the_closest_comes_first_and_absent_ones_and_cut_lengths_count_as_such() -> None:
    vision = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 99, 1]
    text = [one + 2 for one in vision[:10]] + [99, 3]
    audio = [one + (1 if place % 2 else -1) + 1 for place, one in enumerate(vision)]
    # Row 10 has neither text nor sound; its 99 frames are cut to 12.
    found = fit_lengths(rows(text, audio, vision, absent=[10]), tiny_omg_config())
    assert [fit[0] for fit in found["vision"]] == ["text", "audio"]
    assert found["vision"][0][1:] == [pytest.approx(1.0), pytest.approx(-2.0)]


def test_few_rows_and_constant_lengths_give_none() -> None:
    assert fit_lengths(rows([4] * 12, [3] * 12, list(range(1, 13))), tiny_omg_config()) == {}
    assert fit_lengths(rows([1, 2, 3], [1, 2, 3], [1, 2, 3]), tiny_omg_config()) == {}
