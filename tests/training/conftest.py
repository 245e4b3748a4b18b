"""A tiny corpus and quick runs on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_msa.data.sample_corpus import write_sample_corpus


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample corpus in its smallest size."""
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7, version=1)


@pytest.fixture(scope="module", autouse=True)
def untidied_runs() -> Iterator[None]:
    """Keep everything that stages write: the tests here look at it. That it is deleted, test_run_folder.py tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tidy_stage", "tidy_run"):
            patch.setattr(f"hf_msa.training.stages.{name}", lambda *_: None)
        yield
