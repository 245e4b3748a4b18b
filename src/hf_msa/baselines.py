"""The rows that give a method's numbers a meaning, made by one command: each is a folder that `hf-msa compare` reads.

`constant` (the best constant of the training split), `ridge`, `text` and `late_fusion` are runs like those of any method;
`ceiling` is there for sample corpora alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .data.loading import dataset_facts, load_split
from .data.missing import conditions
from .data.sample_corpus.corpus_files import is_sample_corpus
from .errors import MsaError
from .evaluation.ceiling import METHOD as CEILING
from .evaluation.ceiling import evaluate_ceiling
from .evaluation.evaluate import evaluate_runs
from .hub.cards import write_card
from .methods import METHODS
from .models.msa_schema import MODALITIES
from .training.recipes import load_recipe
from .training.stages import run_recipe

ROWS: dict[str, tuple[str, str | None]] = {
    "constant": ("ridge", "constant"),
    "ridge": ("ridge", None),
    "text": ("text", None),
    "late_fusion": ("late_fusion", None),
}
"""Folder -> method and ablation."""


def make_baselines(
    data: str,
    output: str,
    *,
    recipe: str | None = None,
    seeds: Sequence[int] = (1111,),
    text_model: str | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    protocol: str = "frame",
    rates: Sequence[float] | None = None,
    mask_seeds: Sequence[int] = (1111,),
    split: str = "test",
    protocol_fields: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Train the baselines, evaluate them under one protocol, and evaluate the ceiling where there is one.

    What is trained already is not trained again; the evaluation is made anew.

    Args:
        data: Folder or Hub name of a prepared data set.
        output: Folder of all rows.
        recipe: Which recipes, `<method>/<recipe>`; default: those named after the data set.
        seeds: Training seeds.
        text_model: Text encoder in place of the recipes'.
        assignments: Changes of all recipes, e.g. `missing.train.name=modality`.
        flags: Training arguments; the ridge probe takes no steps, and its epochs are mask draws.
        protocol: See `hf_msa.data.missing.conditions`.
        rates: Missing rates instead of the protocol's own.
        mask_seeds: Seeds of the masks.
        split: What to evaluate on.
        protocol_fields: The protocol's other fields.

    Returns:
        Folders with a `results.json`.

    Raises:
        MsaError: If there are no such recipes, or data, flags or protocol will not do.

    Example:
        ```python
        from hf_msa import compare, make_baselines

        rows = make_baselines("data/sample", "runs/baselines", seeds=[1], flags={"num_train_epochs": 1})
        compare(rows, allow_oracle=True)  # the ceiling is an oracle
        ```
    """
    name = recipe or dataset_facts(data).name
    known = [{found.partition("/")[2] for found in METHODS[method].recipe_names()} for method, _ in ROWS.values()]
    common = sorted(set.intersection(*known))
    if name not in common:
        raise MsaError(f"There are no recipes {name!r} of the baselines; give --recipe {' or '.join(common)}.")
    # Before anything is trained.
    conditions(protocol, MODALITIES, rates, mask_seeds, **(protocol_fields or {}))
    load_split(data, split)
    loaded = {
        row: load_recipe(f"{method}/{name}", ablation=ablation, assignments=assignments, text_model=text_model)
        for row, (method, ablation) in ROWS.items()
    }
    tested: dict[str, Any] = {
        "protocol": protocol,
        "rates": rates,
        "mask_seeds": mask_seeds,
        "split": split,
        "protocol_fields": protocol_fields,
    }
    folders = []
    rows = None
    for row, settings in loaded.items():
        folder = Path(output) / row
        for seed in seeds:
            rows = run_recipe(settings, data, folder, seed, flags, rows, seeds=seeds).rows
        for run in evaluate_runs(str(folder), data, **tested).runs:
            write_card(run)
        folders.append(folder)
    if is_sample_corpus(data):
        folders.append(Path(output) / CEILING)
        evaluate_ceiling(data, str(folders[-1]), **tested)
    return folders
