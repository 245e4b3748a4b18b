"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real benchmark rows, or a skip that says why."""
    folder = os.environ.get("HF_MSA_REAL_DATA")
    if not folder:
        pytest.skip("HF_MSA_REAL_DATA is not set: it names the folder with real benchmark rows")
    return Path(folder)
