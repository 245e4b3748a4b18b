"""Sentiment of what OMG-Agent retrieves: is the evidence of the sample's own class?

For every set of observed modalities: which share of the retrieved weight, and of the retrieved entries, belongs to entries
of the knowledge base whose label is in the sample's class, by sign and in the classes of the classifier. Beside it stand
chance, the share of that class in the whole knowledge base, and content-only retrieval: the same number of entries out of
the same knowledge base, but those whose observation is nearest to the sample's, with neither the plan nor the learned
projection. A sample's own entry is never counted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_msa.analysis.common.prediction_columns import Floats
from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.omg.execution import (
    bars,
    incomplete_patterns,
    joined,
    load_omg,
    plan_and_retrieve,
    pooled,
    row_batches,
    stacked,
)
from hf_msa.analysis.tool_report import Report, format_estimate
from hf_msa.analysis.tools import tool
from hf_msa.data.missing import FixedPattern
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError, as_msa_errors
from hf_msa.evaluation.report import counted
from hf_msa.models.modeling_msa import sentiment_classes
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.omg_knowledge_base import OBSERVATION, KnowledgeBase
from hf_msa.models.omg_retriever import NO_ENTRY
from hf_msa.models.processing_msa import MsaProcessor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    base, config = required_base(model, "The model"), model.config
    kinds: dict[str, Callable[[Tensor], Tensor]] = {"sign": sentiment_classes, "class": model.label_classes}
    observations = torch.from_numpy(np.array(base.numbers(OBSERVATION))).to(model.device)
    labels = labels.to(model.device)
    shares: list[dict[Column, Tensor]] = []
    numbers: list[dict[str, Tensor]] = []
    for batch in row_batches(model, processor, rows, pattern, f"evidence, {'+'.join(pattern.available)}"):
        _, conditions = plan_and_retrieve(model, processor, batch)
        evidence, own = conditions.evidence, model.own_entries(batch.members)
        assert evidence is not None and own is not None
        others = own.unsqueeze(1) != torch.arange(len(labels), device=own.device)
        content = nearest_by_content(
            conditions.observation, observations, own, config.top_k, config.retrieval_temperature
        )
        found: dict[Column, Tensor] = {}
        for kind, classes in kinds.items():
            same = (classes(batch.complete["labels"]).unsqueeze(1) == classes(labels)) & others
            chance = same.sum(dim=1) / others.sum(dim=1).clamp(min=1)
            sources = (
                class_shares(same, evidence.entries, evidence.weights),
                class_shares(same, *content),
                dict.fromkeys(MEASURES, chance),
            )
            for source, measures in zip(SOURCES, sources, strict=True):
                found |= {(kind, source, measure): values for measure, values in measures.items()}
        shares.append(found)
        effective = 1 / evidence.weights.square().sum(dim=1)
        cosine = evidence.similarities[:, 0]
        numbers.append({"cosine": cosine, "effective entries": effective, "C_evi": evidence.alignment_cost})
    return joined(shares), joined(numbers)


@tool("evidence", "share of the retrieved evidence with the sample's sentiment, beside chance", methods=("omg",))
def analyze_evidence(runs: Sequence[str], report: Report, *, data: str, split: str = "validation") -> None:
    """Show how much of the retrieved evidence is of the sample's class, beside chance and content-only retrieval.

    Args:
        runs: Run folders of OMG-Agent.
        report: Takes what is found.
        data: Folder or Hub name of the data set whose training split the knowledge base was built from.
        split: The split to look at.

    Raises:
        MsaError: If a run or the data will not do, or a run retrieves nothing.
    """
    found = find_runs(runs, "omg")
    rows, train = found[0].rows(data, split), found[0].rows(data, "train")
    # By pattern, one entry per training seed.
    shares: dict[str, list[dict[Column, Floats]]] = {}
    numbers: dict[str, list[dict[str, Floats]]] = {}
    for run in found:
        model, processor = load_omg(run, rows)
        base = required_base(model, str(run.folder))
        labels = entry_labels(base, train)
        for pattern in incomplete_patterns(model.config):
            name = "+".join(pattern.available)
            per_sample, others = evidence_columns(model, processor, rows, labels, pattern)
            shares.setdefault(name, []).append(per_sample)
            numbers.setdefault(name, []).append(others)
    tables = {name: stacked(seeds) for name, seeds in shares.items()}
    tables[ALL] = {
        key: np.mean([table[key] for table in tables.values()], axis=0) for key in next(iter(tables.values()))
    }
    report.csv("evidence.csv", share_rows(tables, [run.seed for run in found]))
    report.summary(
        "evidence.md",
        "What kind of evidence is retrieved",
        f"{found[0].name}; {len(rows)} samples ({split}), {counted(len(found), 'training seed')}; the best "
        f"{model.config.top_k} of {len(base)} entries. Share of what is retrieved that has the sample's class. "
        "Content-only: the entries with the nearest observation, without plan and learned projection. Chance: the class's "
        "share of the knowledge base. ± is the standard deviation over training seeds, brackets are 95 % bootstrap "
        "intervals over samples, those of differences paired.",
    )
    report.section("By sign", share_summary(tables, "sign"))
    report.section("By the classes of the classifier", share_summary(tables, "class"))
    report.section(
        "How it is weighted",
        "Cosine of query and best entry; 1 over the sum of squared weights, which is the number of entries where all weigh "
        "the same; and how far the entries' plans are from the sample's own (eq. 9).",
        [
            {"observed": name} | {key: format_estimate(*pooled(values)) for key, values in stacked(seeds).items()}
            for name, seeds in numbers.items()
        ],
    )
    report.figure("evidence", _draw, tables)


def share_rows(tables: Mapping[str, Mapping[Column, Floats]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One row per training seed, pattern and kind of classes, with the mean of every share."""
    rows = []
    for s, seed in enumerate(seeds):
        for name, columns in tables.items():
            for kind in KINDS:
                means = {key[1:]: values[s].mean() for key, values in columns.items() if key[0] == kind}
                row = {"training seed": seed, "observed": name, "classes": kind}
                row["n"] = columns[kind, "chance", "weight"].shape[1]
                row |= {f"{what}, {how}": float(means[what, how]) for what in SOURCES[:2] for how in MEASURES}
                rows.append(row | {"chance": float(means["chance", "weight"])})
    return rows


def share_summary(tables: Mapping[str, Mapping[Column, Floats]], kind: str) -> list[dict[str, str]]:
    """The table of one kind of classes, over all seeds; differences are those of the weight."""
    rows = []
    for name, columns in tables.items():
        own, content, chance = (columns[kind, source, "weight"] for source in SOURCES)
        cells = {
            "weight": own,
            "entries": columns[kind, "retrieved", "entries"],
            "content-only, weight": content,
            "content-only, entries": columns[kind, "content-only", "entries"],
            "chance": chance,
            "weight - chance": own - chance,
            "weight - content-only": own - content,
        }
        rows.append({"observed": name} | {key: format_estimate(*pooled(values)) for key, values in cells.items()})
    return rows


def _draw(figure: "Figure", tables: Mapping[str, Mapping[Column, Floats]]) -> None:
    width = 0.8 / len(SOURCES)
    figure.set_size_inches(7.6, 3.2)
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for panel, kind in zip(panels, KINDS, strict=True):
        for number, source in enumerate(SOURCES):
            means, errors = bars([pooled(columns[kind, source, "weight"]) for columns in tables.values()])
            places = np.arange(len(tables)) + (number - 1) * width
            panel.barh(places, means, width, xerr=errors, error_kw={"linewidth": 0.7}, label=source)
        panel.set_yticks(range(len(tables)), list(tables))
        panel.set_title(f"share of the weight, by {kind}", fontsize=8)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
