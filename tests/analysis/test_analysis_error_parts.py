"""The parts of an error, by hand: shift, spread, and what is left."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hf_msa.analysis import run_tool
from hf_msa.analysis.common.error_parts import error_parts, part_rows
from hf_msa.errors import MsaError
from hf_msa.evaluation.results import Predictions
from made_results import make_table


def test_parts_of_a_shifted_and_stretched_prediction() -> None:
    labels = np.array([-1.0, 0.0, 1.0, 2.0], dtype=np.float32)
    found = error_parts(2 * labels + 1, labels)
    # Errors 0, 1, 2, 3: mean 1.5; without it 1.5, 0.5, 0.5, 1.5. The line gives every label.
    assert found == pytest.approx(
        {
            "mae": 1.5,
            "bias": 1.5,
            "spread": 2 * np.sqrt(1.25),
            "mae without bias": 1.0,
            "mae on the best line": 0.0,
        }
    )


def test_a_constant_has_no_line_but_the_mean_label() -> None:
    labels = np.array([-1.0, 3.0], dtype=np.float32)
    found = error_parts(np.zeros(2, dtype=np.float32), labels)
    assert found["spread"] == 0 and found["bias"] == -1
    assert found["mae on the best line"] == found["mae without bias"] == 2


def test_rows_average_over_masks_and_keep_seeds_and_rates_apart() -> None:
    grid = Predictions.from_table(make_table(n=20, training_seeds=(1, 2), mask_seeds=(5, 6), rates=(0.0, 0.5)))
    rows = part_rows(grid)
    assert [(row["training seed"], row["rate"]) for row in rows] == [(1, 0.0), (1, 0.5), (2, 0.0), (2, 0.5)]
    both = [np.abs(grid.scores[1, mask, 0] - grid.labels).mean() for mask in (0, 1)]
    assert rows[2]["mae"] == pytest.approx(np.mean(both), rel=1e-6)


def test_the_tool_puts_runs_side_by_side(write_run: Callable[..., Path], tmp_path: Path) -> None:
    first, second = (write_run(name, noise=noise) for name, noise in (("a", 0.2), ("b", 0.9)))
    files = run_tool("error-parts", [str(first), str(second)], output=str(tmp_path / "out"))
    assert {path.name for path in files} == {f"error_parts.{end}" for end in ("csv", "md", "png", "svg")}
    summary = (tmp_path / "out" / "error_parts.md").read_text()
    assert len([line for line in summary.splitlines() if line.startswith("|")]) == 2 + 2
    alone = write_run("c", predictions=False)
    with pytest.raises(MsaError, match="predictions.parquet"):
        run_tool("error-parts", [str(alone)], output=str(tmp_path / "out"))
