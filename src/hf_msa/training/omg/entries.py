"""Encoding complete samples into a knowledge base of OMG-Agent: in training, or of other data for a trained model."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_msa.data.collator import MsaCollator
from hf_msa.data.loading import load_split
from hf_msa.data.prepare import check_output
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError, as_msa_errors
from hf_msa.evaluation.checkpoints import attach_answers, attach_media, check_widths, find_model, load_checkpoint
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis, Perception
from hf_msa.models.omg_knowledge_base import KnowledgeBase

Told = Callable[[Sequence[int]], Mapping[str, Tensor]]
"""Takes places in a batch and gives `plan_vectors` and `observation_vectors` of the samples there."""


@torch.no_grad()
def knowledge_base_of(
    model: OmgForSentimentAnalysis, batches: Iterable[tuple[Sequence[str], Perception, Told]]
) -> KnowledgeBase:
    """Encode those samples that have all modalities of a model.

    Plans and observations are rounded to half precision, as planners keep them, so that entries do not depend on where they
    were looked up.

    Args:
        model: Its autoencoders are used as they are.
        batches: Of each the samples' ids, what the model perceives of them, and how to have them planned for.

    Raises:
        MsaError: If there is no such sample, or a number is not finite.
    """
    ids: list[str] = []
    columns: dict[str, list[Tensor]] = {}
    for names, perception, told in batches:
        complete = ~perception.lacking
        places = complete.nonzero().squeeze(1).tolist()
        if not places:
            continue
        ids += [names[place] for place in places]
        vectors = {name: values.half() for name, values in told(places).items()}
        vectors |= {name: values[complete] for name, values in model.encode_observed(perception).items()}
        for name, values in vectors.items():
            columns.setdefault(name, []).append(values.float().cpu())
    if not ids:
        raise MsaError(
            f"No sample has all of {', '.join(model.config.modalities)}, so there is nothing to retrieve evidence from; "
            "take data with complete rows."
        )
    tables = {name: torch.cat(values) for name, values in columns.items()}
    infinite = next((name for name, table in tables.items() if not table.isfinite().all()), None)
    if infinite is not None:
        raise MsaError(
            f"The {infinite} of the knowledge base hold numbers that are not finite; check data and training."
        )
    latents = {name: tables[name] for name in model.config.modalities}
    with as_msa_errors():
        return KnowledgeBase(ids, tables["plan_vectors"], tables["observation_vectors"], latents)


def build_knowledge_base(
    model: str,
    data: str,
    output: str,
    *,
    split: str = "train",
    batch_size: int = 64,
    media: str | None = None,
) -> KnowledgeBase:
    """Make a knowledge base of other data for a trained OMG-Agent, and write it.

    Args:
        model: A run folder (of one seed), a saved model or a Hub name.
        data: Folder or Hub name of a prepared data set with features as in training.
        output: Folder to write to.
        split: What to encode; never one that the model is then tested on.
        batch_size: Samples that are encoded together.
        media: Folder with the clips' recordings, see `MediaFolder`; for a language model that plans.

    Returns:
        The knowledge base, as it was written.

    Raises:
        MsaError: If one of these will not do; nothing is written then.
    """
    check_output(Path(output), overwrite=False)
    if batch_size < 1:
        raise MsaError(f"--batch-size is {batch_size}; give at least 1.")
    name = find_model(model)
    network, processor = load_checkpoint(name)
    if not isinstance(network, OmgForSentimentAnalysis):
        method = network.config.model_type.removeprefix("hf_msa_")
        raise MsaError(
            f"{model!r} is a model of the method {method!r}, which has no knowledge base; give one of 'omg'."
        )
    rows = MsaRows(load_split(data, split), split, processor.tokenizer, processor.text_max_length)
    check_widths(network, rows, name)
    attach_media(network, media, rows, name)
    attach_answers(network, name)
    collator = MsaCollator(processor, None, split=split)

    def batches() -> Iterator[tuple[Sequence[str], Perception, Told]]:
        for start in tqdm(range(0, len(rows), batch_size), desc=f"{split} rows", leave=False, disable=None):
            members = [rows[index] for index in range(start, min(start + batch_size, len(rows)))]
            batch = {key: value.to(network.device) for key, value in collator(members).items()}
            told = functools.partial(_told, network, processor, members)
            yield [member["id"] for member in members], network.perceive(batch), told

    with as_msa_errors():
        base = knowledge_base_of(network, batches())
    base.save(output)
    return base


def _told(
    model: OmgForSentimentAnalysis, processor: Any, members: Sequence[Mapping[str, Any]], places: Sequence[int]
) -> Mapping[str, Tensor]:
    observations = model.observations({}, [members[place] for place in places], processor)
    return model.told_of(observations, processor, always=True)[1]
