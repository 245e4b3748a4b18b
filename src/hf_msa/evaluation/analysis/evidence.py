"""Does OMG-Agent retrieve evidence of the sample's own sentiment?

For every set of observed modalities: which share of the retrieved weight, and of the retrieved entries, belongs to entries
of the knowledge base whose label is in the sample's class, by sign and in the classes of the classifier. Beside it stand
chance, the share of that class in the whole knowledge base, and content-only retrieval: the same number of entries out of
the same knowledge base, but those whose observation is nearest to the sample's, with neither the plan nor the learned
projection. A sample's own entry is never counted.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_msa.data.missing import FixedPattern
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError, as_msa_errors
from hf_msa.evaluation.statistics import confidence_interval
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.omg_knowledge_base import NO_ENTRY, KnowledgeBase
from hf_msa.models.processing_msa import MsaProcessor

from .executing import (
    Floats,
    incomplete_patterns,
    load_omg,
    pooled,
    row_batches,
    tell,
    with_interval,
)
from .runs import find_runs, load_split
from .writing import counted, drawn_figure, rows_table, write_csv, write_markdown

KINDS = ("sign", "class")
"""How classes are made of labels: negative, neutral and positive, or those of the classifier."""

SOURCES = ("retrieved", "content-only", "chance")
MEASURES = ("weight", "entries")

ALL = "mean over the patterns"

Column = tuple[str, str, str]
"""One of `KINDS`, of `SOURCES` and of `MEASURES`."""


def required_base(model: OmgForSentimentAnalysis, where: str) -> KnowledgeBase:
    """The knowledge base of a model that retrieves.

    Raises:
        MsaError: If it has none, or does not retrieve.
    """
    with as_msa_errors():
        base = model.knowledge_base
    if base is None or model.config.retrieval_aggregation == "none":
        raise MsaError(
            f"{where} retrieves nothing; give a run with a knowledge base, not of the ablation wo_retriever."
        )
    return base


def entry_labels(base: KnowledgeBase, train: MsaRows) -> Tensor:
    """Labels of the entries `(N,)`, which the knowledge base itself does not hold.

    Args:
        base: The knowledge base.
        train: The rows that it was built from.

    Raises:
        MsaError: If it has an entry that is none of these rows.
    """
    labels = dict(zip(train.ids, train.labels.tolist(), strict=True))
    foreign = next((entry for entry in base.ids if entry not in labels), None)
    if foreign is not None:
        raise MsaError(
            f"The entry {foreign!r} of the knowledge base is no row of the training split; give the data set that it was "
            "built from with --data."
        )
    return torch.tensor([labels[entry] for entry in base.ids])


def class_shares(same: Tensor, rows: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """How much of what was retrieved is of the sample's class.

    Args:
        same (`torch.BoolTensor` of shape `(batch, N)`): Whether sample and entry are of one class.
        rows (`torch.LongTensor` of shape `(batch, K)`): What was retrieved, `NO_ENTRY` where there was no more.
        weights (`torch.FloatTensor` of shape `(batch, K)`): Its weights; they sum to 1.

    Returns:
        By `MEASURES` the share of the weight and of the entries, each `(batch,)`.
    """
    there = rows != NO_ENTRY
    matches = same.gather(1, rows.clamp(min=0)) & there
    return {
        "weight": (matches * weights).sum(dim=1),
        "entries": matches.sum(dim=1) / there.sum(dim=1).clamp(min=1),
    }


def nearest_by_content(
    observation: Tensor, observations: Tensor, own: Tensor, top_k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """The entries whose observations are nearest, and their weights by the same softmax as the retriever's.

    Args:
        observation: u_X `(batch, width)`.
        observations: Those of the entries `(N, width)`.
        own: The samples' own entries `(batch,)`, left out; `NO_ENTRY` for samples that have none.
        top_k: How many.
        temperature: Of the softmax.

    Returns:
        Rows and weights `(batch, K)`; the sample's own entry is `NO_ENTRY` with weight 0 where there are no K others.
    """
    cosines = F.normalize(observation, dim=-1) @ F.normalize(observations, dim=-1).T
    cosines = cosines.masked_fill(own.unsqueeze(1) == torch.arange(len(observations), device=own.device), -torch.inf)
    ranked, rows = cosines.topk(min(top_k, len(observations)), dim=1)
    return rows.masked_fill(ranked.isinf(), NO_ENTRY), (ranked / temperature).softmax(dim=1)


@torch.inference_mode()
def evidence_columns(
    model: OmgForSentimentAnalysis,
    processor: MsaProcessor,
    rows: MsaRows,
    labels: Tensor,
    pattern: FixedPattern,
) -> tuple[dict[Column, Floats], dict[str, Floats]]:
    """Retrieve for all rows under one pattern.

    Args:
        model: In eval mode, with a knowledge base.
        processor: The model's.
        rows: Tokenised rows.
        labels: Of the entries of the knowledge base.
        pattern: What is left of each sample.

    Returns:
        Shares per sample `(n,)`; and per sample `cosine` of the best entry, `effective entries` (1 over the sum of squared
        weights) and `C_evi` (eq. 9).
    """
    base = required_base(model, "The model")
    kinds: dict[str, Callable[[Tensor], Tensor]] = {"sign": model.config.family.polarity, "class": model.label_classes}
    observations = base.observations.to(model.device)
    labels = labels.to(model.device)
    shares: dict[Column, list[Tensor]] = {}
    numbers: dict[str, list[Tensor]] = {}
    for batch in row_batches(model, processor, rows, pattern, f"evidence, {'+'.join(pattern.available)}"):
        told = tell(model, processor, batch)
        evidence = told.conditions.evidence
        assert evidence is not None
        own = model.own_entries(batch.members)
        assert own is not None
        others = own.unsqueeze(1) != torch.arange(len(labels), device=own.device)
        content = nearest_by_content(
            told.conditions.observation, observations, own, model.config.top_k, model.config.retrieval_temperature
        )
        for kind, classes in kinds.items():
            same = (classes(batch.labels).unsqueeze(1) == classes(labels)) & others
            found = {
                "retrieved": class_shares(same, evidence.entries, evidence.weights),
                "content-only": class_shares(same, *content),
                "chance": dict.fromkeys(MEASURES, same.sum(dim=1) / others.sum(dim=1).clamp(min=1)),
            }
            for source, measures in found.items():
                for measure, values in measures.items():
                    shares.setdefault((kind, source, measure), []).append(values)
        for name, values in (
            ("cosine", evidence.similarities[:, 0]),
            ("effective entries", 1 / evidence.weights.square().sum(dim=1)),
            ("C_evi", evidence.alignment_cost),
        ):
            numbers.setdefault(name, []).append(values)
    return {key: _joined(parts) for key, parts in shares.items()}, {key: _joined(p) for key, p in numbers.items()}


def _joined(parts: Sequence[Tensor]) -> Floats:
    values: Floats = torch.cat(list(parts)).double().cpu().numpy()
    return values


def analyze_evidence(runs: Sequence[str], *, data: str, output: Path, split: str = "validation") -> list[Path]:
    """Write how much of the retrieved evidence is of the sample's class, beside chance and content-only retrieval.

    Args:
        runs: Run folders of OMG-Agent.
        data: Folder or Hub name of the data set whose training split the knowledge base was built from.
        output: The folder to write to.
        split: The split to look at.

    Raises:
        MsaError: If a run or the data will not do, or a run retrieves nothing.
    """
    found = find_runs(runs, "omg")
    rows, train = load_split(data, split, found[0]), load_split(data, "train", found[0])
    # By pattern and column, one row per training seed.
    shares: dict[str, dict[Column, list[Floats]]] = {}
    numbers: dict[str, dict[str, list[Floats]]] = {}
    top_k, entries = 0, 0
    for run in found:
        model, processor = load_omg(run, data, rows)
        base = required_base(model, str(run.folder))
        labels = entry_labels(base, train)
        top_k, entries = model.config.top_k, len(base)
        for pattern in incomplete_patterns(model.config):
            name = "+".join(pattern.available)
            per_sample, others = evidence_columns(model, processor, rows, labels, pattern)
            for column, values in per_sample.items():
                shares.setdefault(name, {}).setdefault(column, []).append(values)
            for measure, values in others.items():
                numbers.setdefault(name, {}).setdefault(measure, []).append(values)
    tables = {name: {key: np.stack(values) for key, values in columns.items()} for name, columns in shares.items()}
    tables[ALL] = {
        key: np.mean([table[key] for table in tables.values()], axis=0) for key in next(iter(tables.values()))
    }
    rest = {name: {key: np.stack(values) for key, values in columns.items()} for name, columns in numbers.items()}
    written = [
        write_csv(output / "evidence.csv", share_rows(tables, [run.seed for run in found])),
        write_markdown(
            output / "evidence.md",
            "# What kind of evidence is retrieved",
            f"{found[0].name}; {len(rows)} samples ({split}), {counted(len(found), 'training seed')}; the best {top_k} of "
            f"{entries} entries. Share of what is retrieved that has the sample's class. Content-only: the entries with the "
            "nearest observation, without plan and learned projection. Chance: the class's share of the knowledge base. ± "
            "is the standard deviation over training seeds, brackets are 95 % bootstrap intervals over samples, those of "
            "differences paired.",
            "## By sign\n\n" + rows_table(share_summary(tables, "sign")),
            "## By the classes of the classifier\n\n" + rows_table(share_summary(tables, "class")),
            "## How it is weighted\n\nCosine of query and best entry; 1 over the sum of squared weights, which is the "
            "number of entries where all weigh the same; and how far the entries' plans are from the sample's own "
            "(eq. 9).\n\n"
            + rows_table(
                [
                    {"observed": name} | {key: with_interval(*pooled(values)) for key, values in columns.items()}
                    for name, columns in rest.items()
                ]
            ),
        ),
    ]
    _draw(output / "evidence", tables, written)
    return written


def share_rows(tables: Mapping[str, Mapping[Column, Floats]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One row per training seed, pattern and kind of classes, with the mean of every share."""
    return [
        {
            "training seed": seed,
            "observed": name,
            "classes": kind,
            "n": columns[kind, SOURCES[0], MEASURES[0]].shape[1],
        }
        | {
            f"{source}, {measure}": float(columns[kind, source, measure][s].mean())
            for source in SOURCES[:2]
            for measure in MEASURES
        }
        | {"chance": float(columns[kind, "chance", MEASURES[0]][s].mean())}
        for s, seed in enumerate(seeds)
        for name, columns in tables.items()
        for kind in KINDS
    ]


def share_summary(tables: Mapping[str, Mapping[Column, Floats]], kind: str) -> list[dict[str, Any]]:
    """The table of one kind of classes, over all seeds; differences are those of the weight."""
    rows = []
    for name, columns in tables.items():
        own, content, chance = (columns[kind, source, "weight"] for source in SOURCES)
        rows.append(
            {
                "observed": name,
                "weight": with_interval(*pooled(own)),
                "entries": with_interval(*pooled(columns[kind, "retrieved", "entries"])),
                "content-only, weight": with_interval(*pooled(content)),
                "content-only, entries": with_interval(*pooled(columns[kind, "content-only", "entries"])),
                "chance": with_interval(*pooled(chance)),
                "weight - chance": with_interval(*pooled(own - chance)),
                "weight - content-only": with_interval(*pooled(own - content)),
            }
        )
    return rows


def _draw(stem: Path, tables: Mapping[str, Mapping[Column, Floats]], written: list[Path]) -> None:
    names = list(tables)
    width = 0.8 / len(SOURCES)
    with drawn_figure(stem, 7.6, 3.2, written) as figure:
        panels = figure.subplots(1, len(KINDS), sharey=True)
        for panel, kind in zip(panels, KINDS, strict=True):
            for number, source in enumerate(SOURCES):
                shown = [pooled(tables[name][kind, source, "weight"]) for name in names]
                means = np.array([np.mean(values) for values, _ in shown])
                ends = np.array([confidence_interval(drawn) for _, drawn in shown])
                panel.barh(
                    np.arange(len(names)) + (number - 1) * width,
                    means,
                    width,
                    xerr=np.maximum(np.stack([means - ends[:, 0], ends[:, 1] - means]), 0),
                    error_kw={"linewidth": 0.7},
                    label=source,
                )
            panel.set_yticks(range(len(names)), names)
            panel.set_title(f"share of the weight, by {kind}", fontsize=8)
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
