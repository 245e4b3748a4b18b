"""Knowledge bases of OMG-Agent on the command line: building one, and looking into one."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cosine_similarity

from .errors import MsaError, unknown_name
from .models.modeling_omg import KNOWLEDGE_BASE_FOLDER
from .models.omg_knowledge_base import (
    DESCRIPTION_FILE,
    INDEX_FILE,
    KEY,
    OBSERVATION,
    PLAN,
    VALUE_PREFIX,
    KnowledgeBase,
)
from .models.omg_retriever import NO_ENTRY


def build(*, output: str, **options: Any) -> None:
    """Build a knowledge base and describe it; see `build_knowledge_base` for the options."""
    from .training.omg.entries import build_knowledge_base

    _describe(build_knowledge_base(output=output, **options), Path(output))


def inspect(*, folder: str, id: str | None, neighbours: int) -> None:
    """Describe the knowledge bases that a folder stands for.

    Args:
        folder: See `knowledge_bases`.
        id: An entry, to show those whose keys are nearest to its own; None: none.
        neighbours: How many of them.

    Raises:
        MsaError: If there is no knowledge base or entry, or it cannot be read.
    """
    if neighbours < 1:
        raise MsaError(f"--neighbours is {neighbours}; give at least 1.")
    for place in knowledge_bases(folder):
        try:
            base = KnowledgeBase.load(place)
        except (ImportError, ValueError) as error:
            raise MsaError(f"{place}: {error}") from error
        _describe(base, place)
        if id is not None:
            _show_nearest(base, id, neighbours)


def knowledge_bases(folder: str) -> list[Path]:
    """The knowledge bases that a folder stands for: itself, that of a run, or those of all its seeds.

    Args:
        folder: The folder.

    Raises:
        MsaError: If there is none.
    """
    places = [
        str(Path(place, DESCRIPTION_FILE)) for place in ("", KNOWLEDGE_BASE_FOLDER, f"seed-*/{KNOWLEDGE_BASE_FOLDER}")
    ]
    found = (sorted(path.parent for path in Path(folder).glob(place)) for place in places)
    bases = next(filter(None, found), None)
    if bases is None:
        raise MsaError(
            f"{folder!r} holds no knowledge base (no {', no '.join(places)}); give the folder of one, or a run of omg."
        )
    return bases


def _describe(base: KnowledgeBase, folder: Path) -> None:
    shapes = {name: " x ".join(map(str, shape)) for name, shape in base.shapes.items()}
    sizes = {path.name: path.stat().st_size / 2**20 for path in folder.iterdir()}
    efforts = {"nprobe": base.nprobe, "ef_search": base.ef_search}
    effort = [f"{name} {number}" for name, number in efforts.items() if number is not None]
    lines = {
        "entries": f"{len(base):,}",
        "modalities": ", ".join(f"{name} {shapes[VALUE_PREFIX + name]}" for name in base.modalities),
        "widths": ", ".join(f"{name} {shapes[name]}" for name in (KEY, PLAN, OBSERVATION)),
        "index": ", ".join([base.factory, *effort]),
        "on disk": f"{sum(sizes.values()):,.1f} MiB, of which {sizes.get(INDEX_FILE, 0):,.1f} MiB index",
    }
    print(f"Knowledge base: {folder}")
    for name, value in lines.items():
        print(f"  {name + ':':<12}{value}")


def _show_nearest(base: KnowledgeBase, entry: str, count: int) -> None:
    own = base.rows_of([entry])
    if own[0] == NO_ENTRY:
        raise unknown_name("entry", entry, base.ids)
    # One more than asked for, as the entry itself is found as well.
    rows = base.search(base.numbers(KEY)[own], min(count + 1, len(base)))[1]
    rows = rows[(rows != own) & (rows != NO_ENTRY)][:count]
    read = base.candidates(np.concatenate([own, rows]))
    table = Table("entry", "cosine of keys", "cosine of plans", title=f"Nearest to {entry}")
    cosines = [cosine_similarity(vectors[:1], vectors[1:]).tolist() for vectors in (read.keys, read.plans)]
    for row, key, plan in zip(rows, *cosines, strict=True):
        table.add_row(base.ids[row], f"{key:.3f}", f"{plan:.3f}")
    Console().print(table)
