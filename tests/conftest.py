"""Fixtures that every test may use."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from hf_msa.evaluation.results import write_results
from made_results import make_results, make_table

# How long an example takes says what else the machine does.
settings.register_profile("hf_msa", deadline=None)
settings.load_profile("hf_msa")


def pytest_collection_finish() -> None:
    """Leave all that is imported by now out of garbage collections: each stage of a training asks for two whole ones."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real benchmark rows, or a skip that says why."""
    folder = os.environ.get("HF_MSA_REAL_DATA")
    if not folder:
        pytest.skip("HF_MSA_REAL_DATA is not set: it names the folder with real benchmark rows")
    return Path(folder)


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run's folder: ``write_run("a", noise=0.3, method="text")``."""

    def write(name: str, *, predictions: bool = True, facts: dict[str, Any] | None = None, **table: Any) -> Path:
        made = make_table(**table)
        results = make_results(made, family=table.get("family", "mosi"), **(facts or {}))
        write_results(tmp_path / name, results, made if predictions else None)
        return tmp_path / name

    return write
