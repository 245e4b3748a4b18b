"""Knowledge bases of OMG-Agent on the command line: building one, and looking into one."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch.nn.functional import cosine_similarity

from .errors import MsaError, unknown_name
from .models.modeling_omg import KNOWLEDGE_BASE_FOLDER
from .models.omg_knowledge_base import DESCRIPTION_FILE, NO_ENTRY, KnowledgeBase


def build(*, output: str, **options: Any) -> None:
    """Build a knowledge base and describe it; see `build_knowledge_base` for the options."""
    from .training.omg.entries import build_knowledge_base

    _describe(build_knowledge_base(output=output, **options), Path(output))


def inspect(*, folder: str, id: str | None, neighbours: int) -> None:
    """Describe the knowledge bases that a folder stands for.

    Args:
        folder: See `knowledge_bases`.
        id: An entry, to show those whose observations are nearest to its own; None: none.
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
    shapes = {name: " x ".join(map(str, value.shape[1:])) for name, value in sorted(base.values.items())}
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    print(f"Knowledge base: {folder}")
    print(f"  entries:    {len(base):,}")
    print(f"  latents:    {', '.join(f'{name} {shape}' for name, shape in shapes.items())}")
    print(f"  vectors:    {base.plans.shape[1]}")
    print(f"  on disk:    {size:,.1f} MiB")


def _show_nearest(base: KnowledgeBase, entry: str, count: int) -> None:
    (own,) = base.rows_of([entry]).tolist()
    if own == NO_ENTRY:
        raise unknown_name("entry", entry, base.ids)
    cosines = [cosine_similarity(vectors[own : own + 1], vectors) for vectors in (base.observations, base.plans)]
    nearest = [row for row in cosines[0].argsort(descending=True).tolist() if row != own][:count]
    table = Table("entry", "cosine of observations", "cosine of plans", title=f"Nearest to {entry}")
    for row in nearest:
        table.add_row(base.ids[row], *(f"{values[row]:.3f}" for values in cosines))
    Console().print(table)
