"""Fingerprints of all that a run is made from: by them one that is given again is known to be of the same things."""

import hashlib
import importlib.metadata
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedTokenizerBase

from hf_msa._version import __version__
from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import ID, LABEL, TEXT
from hf_msa.methods import Method
from hf_msa.models.msa_schema import FEATURE_MODALITIES

_WEIGHTS = ("*.safetensors", "*.bin", "config.json")
# In words, for messages.
WHAT = {
    "ids": "the sample ids",
    "texts": "the texts",
    "labels": "the labels",
    "audio": "the audio features",
    "vision": "the vision features",
    "other columns": "the other columns of the data",
    "tokenizer": "the tokenizer",
    "text encoder": "the text encoder",
    "code": "the version of the code",
}
_TOKENS = ("input_ids", "special_tokens_mask")

# Of rows that several runs of one command share.
_known: "weakref.WeakKeyDictionary[MsaRows, dict[str, bytes]]" = weakref.WeakKeyDictionary()


def _part_of(column: str) -> str:
    named = {ID: "ids", TEXT: "texts", LABEL: "labels", **{name: name for name in FEATURE_MODALITIES}}
    return named.get(column, "tokenizer" if column in _TOKENS else "other columns")


def _row_parts(rows: MsaRows) -> dict[str, bytes]:
    """Hash of every number and letter of some rows by part, in one pass, at about a gigabyte per second."""
    if rows not in _known:
        digests: dict[str, Any] = {}
        for index in range(len(rows)):
            row = rows[index]
            del row["index"]
            for column in sorted(row):
                digest = digests.setdefault(_part_of(column), hashlib.sha256())
                value = row[column]
                if isinstance(value, np.ndarray):
                    digest.update(f"{column} {value.dtype} {value.shape} ".encode())
                    digest.update(np.ascontiguousarray(value).data)
                else:
                    digest.update(f"{column} {value!r}\n".encode())
        _known[rows] = {part: digest.digest() for part, digest in digests.items()}
    return _known[rows]


def data_fingerprints(rows: Mapping[str, MsaRows], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Fingerprints of a data set by its parts, see `WHAT`; that of the tokenizer is of the ids that it gives.

    Args:
        rows: Tokenised rows by split.
        tokenizer: What they are tokenised with.
    """
    parts = {split: _row_parts(rows[split]) for split in sorted(rows)}
    names = sorted({name for found in parts.values() for name in found})
    special = (tokenizer.unk_token_id, tokenizer.pad_token_id, len(tokenizer))
    return {
        name: _short(
            [(split, found.get(name)) for split, found in parts.items()], special if name == "tokenizer" else ()
        )
        for name in names
    }


def _short(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def encoder_fingerprint(text_model: str) -> str:
    """Fingerprint of a text encoder: of the files in its folder, or the commit of its repository on the Hub."""
    folder = Path(text_model)
    if not folder.is_dir():
        return f"{text_model}@{getattr(AutoConfig.from_pretrained(text_model), '_commit_hash', None)}"
    digest = hashlib.sha256()
    for file in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        with file.open("rb") as content:
            digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def code_version(method: Method) -> str:
    """Version of hf_msa, and of the package that brings the method where that is another one."""
    package = method.model_class.__module__.partition(".")[0]
    if package == "hf_msa":
        return f"hf_msa {__version__}"
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "of no version"
    return f"hf_msa {__version__}, {package} {version}"
