"""A tiny corpus and quick runs on it."""

from pathlib import Path

import pytest

from hf_msa.data.sample_corpus import write_sample_corpus


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample corpus in its smallest size."""
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7)
