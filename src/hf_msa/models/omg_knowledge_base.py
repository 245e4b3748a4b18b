"""The knowledge base of OMG-Agent: complete training samples that evidence is retrieved from.

It lies in a folder beside a checkpoint: a safetensors file with its numbers, which is mapped and not read into memory, and a
JSON file with the ids. Keys are not in it, as the retriever makes them of plans and observations. The folder may come from a
stranger: files are found under plain names only, and their readers check all lengths.
"""

import importlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .msa_packages import optional_package

ENTRIES_FILE = "entries.safetensors"
DESCRIPTION_FILE = "knowledge_base.json"
FORMAT = 2
NO_ENTRY = -1
"""Stands where an index has found no entry, and for a sample that is not in the knowledge base."""
_PLAN, _OBSERVATION, _VALUE = "plan", "observation", "value_"
# Of the format before, beside its Arrow files.
_OLDER_FILES = ("keys.faiss", "state.json", "dataset_info.json")


class KnowledgeBase:
    """Complete samples, with what was planned and observed of them.

    Args:
        ids: Their ids, N different ones, by which a sample is kept from its own entry.
        plans (`torch.FloatTensor` of shape `(N, plan_width)`): Vectors c_S of their plans.
        observations (`torch.FloatTensor` of shape `(N, observation_width)`): Vectors u_X.
        values: Modality -> latents, `torch.FloatTensor` of shape `(N, latents, latent_dim)`.

    Raises:
        ValueError: If there is no entry or no modality, an id occurs twice, or numbers have another shape or type.
    """

    def __init__(self, ids: Sequence[str], plans: Tensor, observations: Tensor, values: Mapping[str, Tensor]) -> None:
        self.ids, self.values = [str(entry) for entry in ids], dict(values)
        self.plans, self.observations = plans, observations
        self._row_of = {entry: row for row, entry in enumerate(self.ids)}
        if not self.ids or not values:
            raise ValueError(f"{len(self.ids)} entries of {len(self.values)} modalities hold nothing to retrieve.")
        if len(self._row_of) != len(self.ids):
            twice = next(entry for row, entry in enumerate(self.ids) if self._row_of[entry] != row)
            raise ValueError(f"The id {twice!r} occurs twice in the knowledge base; give each entry an id of its own.")
        for name, table in self._tables().items():
            dims = 3 if name.startswith(_VALUE) else 2
            if table.dtype != torch.float32 or table.ndim != dims or len(table) != len(self) or 0 in table.shape:
                raise ValueError(
                    f"The column {name!r} is {table.dtype} of the shape {tuple(table.shape)}; it needs float32 in {dims} "
                    f"dimensions, none of them 0, the first of {len(self)} entries."
                )

    def _tables(self) -> dict[str, Tensor]:
        values = {_VALUE + name: self.values[name] for name in sorted(self.values)}
        return {_PLAN: self.plans, _OBSERVATION: self.observations, **values}

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, ids: Sequence[str]) -> Tensor:
        """Rows of the samples' own entries `(len(ids),)`, `NO_ENTRY` for those that have none."""
        return torch.tensor([self._row_of.get(entry, NO_ENTRY) for entry in ids], dtype=torch.long)

    def to(self, device: torch.device) -> "KnowledgeBase":
        """The same entries on a device; itself where they are there."""
        if self.plans.device == device:
            return self
        values = {name: value.to(device) for name, value in self.values.items()}
        return KnowledgeBase(self.ids, self.plans.to(device), self.observations.to(device), values)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the entries to a folder; a knowledge base there, even the one that this was loaded from, is replaced."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new.", dir=place) as name:
            tables = {name: table.cpu().contiguous().numpy() for name, table in self._tables().items()}
            importlib.import_module("safetensors.numpy").save_file(tables, str(Path(name, ENTRIES_FILE)))
            description = json.dumps({"format": FORMAT, "ids": self.ids}, ensure_ascii=False)
            Path(name, DESCRIPTION_FILE).write_text(description + "\n", encoding="utf-8")
            for file in (ENTRIES_FILE, DESCRIPTION_FILE):
                Path(name, file).replace(place / file)
        for old in [*place.glob("*.arrow"), *map(place.joinpath, _OLDER_FILES)]:
            old.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "KnowledgeBase":
        """Map what `save` has written into memory; see `fetch`."""
        path = Path(folder)
        return cls.fetch(lambda name: path / name if (path / name).is_file() else None)

    @classmethod
    def fetch(cls, get: Callable[[str], Path | None]) -> "KnowledgeBase":
        """Map a saved knowledge base into memory whose files are fetched one by one, e.g. from the Hub.

        Args:
            get: Gives the place of a file by its plain name, or None where there is no such file.

        Raises:
            ValueError: If a file is absent, of another format, or cannot be read.
            ImportError: If it is of the format before this one, and `datasets` is not installed.
        """

        def place(name: str) -> Path:
            found = get(name)
            if found is None:
                raise ValueError(f"the file {name!r} is not there")
            return found

        load_file = importlib.import_module("safetensors.torch").load_file
        unreadable = importlib.import_module("safetensors").SafetensorError
        try:
            about = json.loads(place(DESCRIPTION_FILE).read_text(encoding="utf-8"))
            if about["format"] == FORMAT:
                ids, tables = about["ids"], load_file(place(ENTRIES_FILE))
            elif about["format"] == 1:
                ids, tables = _read_arrow(about, place)
            else:
                raise ValueError(f"it has the format {about['format']!r}, this version of hf_msa reads {FORMAT}")
            values = {name.removeprefix(_VALUE): tables[name] for name in sorted(tables) if name.startswith(_VALUE)}
            return cls(ids, tables[_PLAN], tables[_OBSERVATION], values)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, unreadable) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
            raise ValueError(f"The knowledge base cannot be read ({reason}); build it again.") from error


def _read_arrow(about: Mapping[str, Any], place: Callable[[str], Path]) -> tuple[list[str], dict[str, Tensor]]:
    """Ids and columns of the format before: Arrow files, whose readers take lengths for granted unless they are asked."""
    datasets = optional_package("datasets", "datasets", "This older knowledge base")
    strange = [name for name in about["files"] if not re.fullmatch(r"\w[\w-]*\.arrow", name, re.ASCII)]
    if strange:
        raise ValueError(f"{strange[0]!r} is not the plain name of an Arrow file")
    parts = [datasets.Dataset.from_file(str(place(name))) for name in about["files"]]
    table = datasets.concatenate_datasets(parts).data.table
    table.validate(full=True)
    if len(table) != about["entries"]:
        raise ValueError(f"it has {len(table)} of {about['entries']} entries")
    columns = {}
    for name in table.column_names:
        column, widths = table.column(name).combine_chunks(), []
        while hasattr(column.type, "list_size"):
            widths.append(column.type.list_size)
            column = column.flatten()
        if widths:
            columns[name] = torch.tensor(column.to_numpy(zero_copy_only=True)).reshape(len(table), *widths)
    return table.column("id").to_pylist(), columns
