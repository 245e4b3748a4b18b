"""Fixtures for the tests of results on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_msa.evaluation.results import write_results
from made_results import make_results, make_table


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run's folder: ``write_run("a", noise=0.3, method="text")``."""

    def write(name: str, *, predictions: bool = True, facts: dict[str, Any] | None = None, **table: Any) -> Path:
        made = make_table(**table)
        results = make_results(made, family=table.get("family", "mosi"), **(facts or {}))
        write_results(tmp_path / name, results, made if predictions else None)
        return tmp_path / name

    return write
