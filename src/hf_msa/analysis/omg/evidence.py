"""Sentiment of what OMG-Agent retrieves: how much of the evidence is of the sample's own class.

For every set of observed modalities: which share of the retrieved weight, and of the retrieved entries, belongs to entries
of the knowledge base whose label is in the sample's class, by sign and in the classes of the classifier. Beside it stand
chance, the share of that class in the whole knowledge base, and content-only retrieval: the same number of entries out of
the same knowledge base, but those whose observation is nearest to the sample's, with neither the plan nor the learned
projection. A sample's own entry is never counted.

And how diverse it is over samples: evidence that is the same for all of them, as where one entry lies near to all queries,
tells nothing of any.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.estimates import Estimate, Floats, bars, format_spread
from hf_msa.analysis.omg.execution import OmgOnRows, joined, stacked
from hf_msa.analysis.tool_report import Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.missing import FixedPattern
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError, as_msa_errors
from hf_msa.evaluation.report import counted
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.omg_knowledge_base import NO_ENTRY, KnowledgeBase

KINDS = ("sign", "class")
"""How classes are made of labels: negative, neutral and positive, or those of the classifier."""

SOURCES = ("retrieved", "content-only", "chance")
MEASURES = ("weight", "entries")
_CHANCE = ("chance", "weight")

ALL = "mean over the patterns"

NUMBERS = ("cosine", "effective entries", "C_evi")
ROWS = "rows"

Column = tuple[str, str, str]
"""One of `KINDS`, of `SOURCES` and of `MEASURES`; or one of `NUMBERS`, and nothing; or `ROWS` and one of `SOURCES`."""


def required_base(model: OmgForSentimentAnalysis, where: str) -> KnowledgeBase:
    """The knowledge base of a model that retrieves.

    Raises:
        MsaError: If it has none, or does not retrieve.
    """
    with as_msa_errors():
        base = model.knowledge_base
    if base is None or model.config.retrieval_aggregation == "none" or not model.config.generation:
        raise MsaError(
            f"{where} retrieves nothing; give a run with a knowledge base, not of the ablations wo_retriever, wo_generation."
        )
    return base


def entry_labels(base: KnowledgeBase, train: MsaRows) -> Tensor:
    """Labels of the entries `(N,)`, which stand in the training rows alone.

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


def diversity(rows: Floats, entries: int) -> dict[str, float]:
    """How diverse is what was retrieved for n samples.

    Args:
        rows: Rows of the knowledge base `(n, K)`, each at most once for a sample; `NO_ENTRY` where there was no more.
        entries: N, how many there are.

    Returns:
        `ever used`, the share of the N that any sample retrieved; `most frequent`, the share of samples that retrieved the
        one that most did; and `effective number`, 1 over the sum of squared shares of all that was retrieved.
    """
    counts = np.bincount(rows[rows != NO_ENTRY].astype(np.int64), minlength=entries)
    shares = counts / max(counts.sum(), 1)
    return {
        "ever used": float((counts > 0).mean()),
        "most frequent": float(counts.max() / len(rows)),
        "effective number": float(1 / np.square(shares).sum()) if counts.any() else 0.0,
    }


@torch.inference_mode()
def evidence_columns(omg: OmgOnRows, labels: Tensor, pattern: FixedPattern) -> dict[Column, Floats]:
    """Retrieve for all rows as one pattern leaves them, out of entries with these labels.

    Returns:
        Per sample `(n,)` the shares, and the cosine of the best entry, the effective number of entries (1 over the sum of
        squared weights) and C_evi (eq. 9); and the retrieved rows `(n, K)`.
    """
    model, config = omg.model, omg.model.config
    kinds: dict[str, Callable[[Tensor], Tensor]] = {"sign": config.family.polarity, "class": model.label_classes}
    base = required_base(model, "The model")
    observations = base.observations.to(model.device)
    labels = labels.to(model.device)
    batches: list[dict[Column, Tensor]] = []
    for batch in omg.batches(pattern, f"evidence, {'+'.join(pattern.available)}"):
        _, conditioning = omg.plan_and_retrieve(batch)
        evidence, own = conditioning.evidence, model.own_entries(batch.members)
        assert evidence is not None and own is not None
        others = own.unsqueeze(1) != torch.arange(len(labels), device=own.device)
        content = nearest_by_content(
            conditioning.observation, observations, own, config.top_k, config.retrieval_temperature
        )
        effective = 1 / evidence.weights.square().sum(dim=1)
        numbers = (evidence.similarities[:, 0], effective, evidence.alignment_cost)
        found: dict[Column, Tensor] = {(name, "", ""): values for name, values in zip(NUMBERS, numbers, strict=True)}
        found |= {(ROWS, SOURCES[0], ""): evidence.entries, (ROWS, SOURCES[1], ""): content[0]}
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
        batches.append(found)
    return joined(batches)


@tool("evidence", "share of the retrieved evidence with the sample's sentiment, beside chance", methods=("omg",))
def analyze_evidence(runs: Sequence[str], report: Report, *, data: str, split: str = "validation") -> None:
    """Show how much of the retrieved evidence is of the sample's class, beside chance and content-only retrieval.

    Args:
        runs: Run folders of OMG-Agent.
        report: Takes what is found.
        data: Folder or Hub name of the data set whose training split the knowledge base was built from.
        split: The split to look at.
    """
    found = find_runs(runs, "omg")
    rows, train = found[0].rows(data, split), found[0].rows(data, "train")
    by_seed: dict[str, list[dict[Column, Floats]]] = {}
    for run in found:
        omg = OmgOnRows.load(run, rows)
        base = required_base(omg.model, str(run.folder))
        labels = entry_labels(base, train)
        for pattern in omg.incomplete_patterns():
            by_seed.setdefault("+".join(pattern.available), []).append(evidence_columns(omg, labels, pattern))
    patterns = {name: stacked(seeds) for name, seeds in by_seed.items()}
    mean = {
        key: np.mean([columns[key] for columns in patterns.values()], axis=0)
        for key in next(iter(patterns.values()))
        if key[0] != ROWS
    }
    tables = {**patterns, ALL: mean}
    seeds = [run.seed for run in found]
    report.csv("evidence.csv", share_rows(tables, seeds))
    diverse = diversity_rows(patterns, seeds, len(base))
    report.csv("diversity.csv", diverse)
    report.summary(
        "evidence.md",
        "What kind of evidence is retrieved",
        f"{found[0].name}; {len(rows)} samples ({split}), {counted(len(found), 'training seed')}; the best "
        f"{omg.model.config.top_k} of {len(base)} entries. Share of what is retrieved that has the sample's class. "
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
            {"observed": name} | {number: Estimate.mean_of(columns[number, "", ""]) for number in NUMBERS}
            for name, columns in patterns.items()
        ],
    )
    report.section(
        "How diverse it is",
        f"Ever used: share of the {len(base)} entries that any sample retrieved. Most frequent: share of samples that "
        "retrieved the entry that most did. Effective number of entries: 1 over the sum of squared shares of all that was "
        "retrieved; where it is near to the number that one sample retrieves, all samples retrieve the same.",
        diversity_summary(diverse),
    )
    report.figure("evidence", _draw, tables)


def share_rows(tables: Mapping[str, Mapping[Column, Floats]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One row per training seed, pattern and kind of classes, with the mean of every share."""
    return [
        {"training seed": seed, "observed": name, "classes": kind, "n": columns[kind, *_CHANCE].shape[1]}
        | {f"{what}, {how}": float(columns[kind, what, how][s].mean()) for what in SOURCES[:2] for how in MEASURES}
        | {"chance": float(columns[kind, *_CHANCE][s].mean())}
        for s, seed in enumerate(seeds)
        for name, columns in tables.items()
        for kind in KINDS
    ]


def diversity_rows(
    patterns: Mapping[str, Mapping[Column, Floats]], seeds: Sequence[int], entries: int
) -> list[dict[str, Any]]:
    """`diversity` of every pattern, source and training seed."""
    return [
        {"training seed": seed, "observed": name, "by": source, **diversity(columns[ROWS, source, ""][s], entries)}
        for s, seed in enumerate(seeds)
        for name, columns in patterns.items()
        for source in SOURCES[:2]
    ]


def diversity_summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table over all seeds, of `diversity_rows`."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["observed"], row["by"]), []).append(row)
    numbers = ("ever used", "most frequent", "effective number")
    return [
        {"observed": name, "by": source}
        | {
            number: format_spread([row[number] for row in group], 1 if number == numbers[-1] else 3)
            for number in numbers
        }
        for (name, source), group in groups.items()
    ]


def share_summary(tables: Mapping[str, Mapping[Column, Floats]], kind: str) -> list[dict[str, Any]]:
    """The table of one kind of classes, over all seeds; differences are those of the weight."""
    rows = []
    for name, columns in tables.items():
        found = {key[1:]: Estimate.mean_of(values) for key, values in columns.items() if key[0] == kind}
        own, content, chance = (found[source, "weight"] for source in SOURCES)
        rows.append(
            {
                "observed": name,
                "weight": own,
                "entries": found["retrieved", "entries"],
                "content-only, weight": content,
                "content-only, entries": found["content-only", "entries"],
                "chance": chance,
                "weight - chance": own - chance,
                "weight - content-only": own - content,
            }
        )
    return rows


def _draw(figure: Figure, tables: Mapping[str, Mapping[Column, Floats]]) -> None:
    width = 0.8 / len(SOURCES)
    figure.set_size_inches(7.6, 3.2)
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for panel, kind in zip(panels, KINDS, strict=True):
        for number, source in enumerate(SOURCES):
            shares = [columns[kind, source, "weight"] for columns in tables.values()]
            means, errors = bars([Estimate.mean_of(values) for values in shares])
            places = np.arange(len(tables)) + (number - 1) * width
            panel.barh(places, means, width, xerr=errors, error_kw={"linewidth": 0.7}, label=source)
        panel.set_yticks(range(len(tables)), list(tables))
        panel.set_title(f"share of the weight, by {kind}", fontsize=8)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
