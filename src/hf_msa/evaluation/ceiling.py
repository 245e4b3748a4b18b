"""The sample corpus' ceiling as a result like any other: the best prediction that what survives a mask allows.

It knows what was planted, which nothing that is trained can, so it is marked as an oracle.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from hf_msa.data.collator import MsaCollator
from hf_msa.data.loading import dataset_facts, load_split
from hf_msa.data.missing import RealisedRates, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.data.sample_corpus import PlantedSplit, ceiling_predictions, kept_masks
from hf_msa.data.sample_corpus.corpus_files import TEXT_MODEL_FOLDER, read_config, stream_planted
from hf_msa.errors import MsaError
from hf_msa.models.feature_extraction_msa import MsaFeatureExtractor
from hf_msa.models.processing_msa import MsaProcessor

from .evaluate import Evaluation, write_evaluation
from .results import EvaluationFacts, predictions_table, protocol_facts

METHOD = "ceiling"

_BATCH = 256


def evaluate_ceiling(
    data: str,
    output: str,
    *,
    protocol: str = "frame",
    rates: Sequence[float] | None = None,
    mask_seeds: Sequence[int] = (1111,),
    split: str = "test",
    protocol_fields: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Predict a sample corpus by its own story, under the masks that a model with the corpus' tokenizer meets.

    Args:
        data: Folder of a sample corpus.
        output: Folder of the results.
        protocol: See `hf_msa.data.missing.conditions`.
        rates: Missing rates instead of the protocol's own.
        mask_seeds: Seeds of the masks.
        split: What to evaluate on.
        protocol_fields: The protocol's other fields.

    Raises:
        MsaError: If the data is no sample corpus, its rows are not those that were planted, or the protocol will not do.
    """
    started = time.perf_counter()
    config = read_config(data)
    tokenizer = AutoTokenizer.from_pretrained(Path(data) / TEXT_MODEL_FOLDER)
    rows = MsaRows(load_split(data, split), split, tokenizer)
    if [facts["id"] for facts in stream_planted(data, split, ["id"])] != rows.ids:
        raise MsaError(f"The rows of {split!r} in {data!r} are not those that were planted; generate the corpus anew.")
    processor = MsaProcessor(MsaFeatureExtractor(None, None), tokenizer, text_max_length=tokenizer.model_max_length)
    tested = conditions(protocol, tuple(rows.lengths), rates, mask_seeds, **(protocol_fields or {}))
    known = dataset_facts(data)
    facts = EvaluationFacts(
        method=METHOD,
        dataset={"name": known.name, "split": split, "label_family": known.family.to_value()},
        protocol=protocol_facts(tested),
        trained_on=known.name,
        oracle=True,
    )
    parts = []
    for seed, rate, drops in tested:
        collator, realised, predicted = MsaCollator(processor, drops.bind(rows.ids), split), RealisedRates(), []
        planted = stream_planted(data, split)
        for begin in range(0, len(rows), _BATCH):
            members = [rows[index] for index in range(begin, min(begin + _BATCH, len(rows)))]
            masks = collator.masks(members)
            realised.add(masks)
            some = PlantedSplit(config, list(itertools.islice(planted, len(members))))
            predicted.append(ceiling_predictions(some, kept_masks(some, masks.masks)))
        parts.append(
            {
                "id": rows.ids,
                "training_seed": None,
                "mask_seed": seed,
                "rate": rate,
                "prediction": np.concatenate(predicted),
                "label": rows.labels,
            }
        )
        facts.realised[seed, rate] = realised.shares()
    facts.seconds = round(time.perf_counter() - started, 2)
    content, files = write_evaluation(Path(output), predictions_table(parts), facts)
    return Evaluation(content, files, [])
