"""Encoding complete samples into a knowledge base of OMG-Agent: in training, or of other data for a trained model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_msa.data.loading import load_split
from hf_msa.data.missing import CompleteProtocol
from hf_msa.data.prepare import check_output
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError, as_msa_errors
from hf_msa.evaluation.checkpoints import checkpoint_rows, find_model, load_checkpoint, method_of
from hf_msa.evaluation.sweep import masked_batches
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.omg_knowledge_base import KnowledgeBase


@torch.no_grad()
def encode_rows(model: OmgForSentimentAnalysis, processor: Any, rows: MsaRows, batch_size: int = 64) -> KnowledgeBase:
    """Encode those rows that have all modalities of a model.

    Plans and observations are rounded to half precision, as planners keep them, so that entries do not depend on where they
    were looked up.

    Raises:
        MsaError: If there is no such row, a number is not finite, or there is no planner.
    """
    ids: list[str] = []
    parts: dict[str, list[Tensor]] = {}
    protocols, order = [CompleteProtocol()], range(len(rows))
    for batch in masked_batches(model, processor, rows, protocols, "entries", places=order, batch_size=batch_size):
        perception = model.perceive(batch.complete)
        complete = ~perception.lacking
        chosen = [member for member, there in zip(batch.members, complete.tolist(), strict=True) if there]
        if not chosen:
            continue
        ids += [str(member["id"]) for member in chosen]
        with as_msa_errors():
            _, vectors = model.plan_observations(model.observations({}, chosen, processor), processor, always=True)
        vectors["observation_vectors"] = model.observation_vectors(
            vectors["observation_vectors"], {name: values[complete] for name, values in perception.pooled.items()}
        )
        found = {name: values.half() for name, values in vectors.items()}
        found |= {name: values[complete] for name, values in model.encode_observed(perception).items()}
        for name, values in found.items():
            parts.setdefault(name, []).append(values.float().cpu())
    if not ids:
        raise MsaError(
            f"No sample has all of {', '.join(model.config.modalities)}, so there is nothing to retrieve evidence from; "
            "take data with complete rows."
        )
    tables = {name: torch.cat(values) for name, values in parts.items()}
    infinite = next((name for name, table in tables.items() if not table.isfinite().all()), None)
    if infinite is not None:
        raise MsaError(
            f"The {infinite} of the knowledge base hold numbers that are not finite; check data and training."
        )
    latents = {name: tables[name] for name in model.config.modalities}
    with as_msa_errors():
        return KnowledgeBase(ids, tables["plan_vectors"], tables["observation_vectors"], latents)


def build_knowledge_base(
    model: str, data: str, output: str, *, split: str = "train", batch_size: int = 64, media: str | None = None
) -> KnowledgeBase:
    """Make a knowledge base of other data for a trained OMG-Agent, and write it.

    Args:
        model: A run folder (of one seed), a saved model or a Hub name.
        data: Folder or Hub name of a prepared data set with features as in training.
        output: Folder to write to.
        split: What to encode; never one that the model is then tested on.
        batch_size: Samples that are encoded together.
        media: Folder with the clips' recordings, see `MediaFolder`; for a language model that plans.

    Raises:
        MsaError: If one of these will not do; nothing is written then.

    Example:
        ```python
        from hf_msa import build_knowledge_base

        base = build_knowledge_base("runs/omg", "data/sample", "kb")
        ```
    """
    check_output(Path(output), overwrite=False)
    if batch_size < 1:
        raise MsaError(f"--batch-size is {batch_size}; give at least 1.")
    name = find_model(model)
    network, processor = load_checkpoint(name)
    if not isinstance(network, OmgForSentimentAnalysis):
        raise MsaError(
            f"{model!r} is a model of the method {method_of(network)!r}, which has no knowledge base; give one of 'omg'."
        )
    rows = checkpoint_rows(network, processor, name, load_split(data, split), split, media)
    base = encode_rows(network, processor, rows, batch_size)
    base.save(output)
    return base
