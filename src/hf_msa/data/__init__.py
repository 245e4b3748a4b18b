"""Data: one schema, safe reading, preparation, loading, rows, missing-modality protocols and batches."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_msa.data.loading import dataset_facts, load_msa
    from hf_msa.data.prepare import prepare_dataset
    from hf_msa.data.rows import DrawnRows, MsaRows
    from hf_msa.data.schema import DatasetFacts, msa_features

__all__ = ["DatasetFacts", "DrawnRows", "MsaRows", "dataset_facts", "load_msa", "msa_features", "prepare_dataset"]

# Names are looked up on first use, so that a module of this package that needs no `datasets` does not load it.
_HOME = {
    "DatasetFacts": "schema",
    "DrawnRows": "rows",
    "MsaRows": "rows",
    "dataset_facts": "loading",
    "load_msa": "loading",
    "msa_features": "schema",
    "prepare_dataset": "prepare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
