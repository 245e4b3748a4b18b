"""Error of what OMG-Agent generates against what was hidden, beside that of stand-ins that need no generator.

One modality of complete samples is hidden, the others stay, and what takes its place is compared with what was hidden:
frame by frame in the features, as latents, and as the mean latent, which is all that the classifier reads of a modality.
Beside what is generated stand the retrieved evidence itself, the training mean per position (and length), and that of the
sample's own class, which is an oracle: it is told the label. The truth through the autoencoder is the best that any latents
can give.

A ratio of 1 is the error of the training mean. Something that is *drawn* may be right and still have a ratio of 2: a draw
from the true distribution that has nothing to do with the sample misses it by the spread of both. Read the ratio beside the
spread (squared distance from the training mean, as a share of the truth's), and the classifier's errors beside both.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_msa.analysis.common.position_means import PositionMeans
from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.estimates import Estimate, Floats, bars
from hf_msa.analysis.omg.execution import OmgOnRows, joined, stacked
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.missing import FixedPattern
from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS, regression_metrics, resampled_metrics
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.statistics import all_and_resampled
from hf_msa.evaluation.sweep import MaskedBatch
from hf_msa.figures import label_lines
from hf_msa.models.modeling_msa import masked_mean
from hf_msa.models.msa_label_families import LabelFamily
from hf_msa.models.omg_executor import LatentVae

GENERATED, EVIDENCE, MEAN, CLASS_MEAN, TRUTH = "generated", "evidence", "training mean", "class mean (oracle)", "truth"
"""What takes the place of a hidden modality. `TRUTH` is the truth's latents, and their features those of the autoencoder."""

SPACES = ("features", "latents", "mean latent")
"""What is compared, in the units of the model: standardised features and text states, scaled latents."""


Imputations = Mapping[tuple[str, str, str], Floats]
"""What was found of a hidden modality, of each sample (n,) or of S training seeds (S, n): by ``error`` (squared), ``spread``
(squared distance from the training mean) or ``score`` (of the classifier); what took its place; and one of `SPACES`, empty
for a score."""


@dataclass(frozen=True)
class Means:
    """Training means of one modality per position, of all samples (first) and of each class.

    Attributes:
        features: `1 + classes`, of width `width`.
        latents: `1 + classes`, of width `latent_dim`.
    """

    features: Sequence[PositionMeans]
    latents: Sequence[PositionMeans]

    @staticmethod
    def fill(means: Sequence[PositionMeans], groups: Tensor, mask: Tensor) -> Tensor:
        """Means of some samples `(batch, length, width)`, zeros behind their ends; a class without any row has that of all.

        Args:
            means: `features` or `latents`.
            groups (`torch.LongTensor` of shape `(batch,)`): 0 for all samples, else 1 + the class.
            mask (`torch.BoolTensor` of shape `(batch, length)`): True = a real position.
        """
        lengths = mask.sum(dim=1).tolist()
        rows = [
            (means[0] if means[group].is_empty else means[group]).padded([length], mask.shape[1])[0]
            for group, length in zip(groups.tolist(), lengths, strict=True)
        ]
        return torch.from_numpy(np.stack(rows)).float().to(mask.device)


@torch.inference_mode()
def training_means(omg: OmgOnRows) -> dict[str, Means]:
    """Means over training rows, by modality."""
    model = omg.model
    groups = 1 + len(model.config.class_names)
    found = {
        name: Means([PositionMeans() for _ in range(groups)], [PositionMeans() for _ in range(groups)])
        for name in model.config.modalities
    }
    for batch in omg.batches(None, "training means"):
        perception = model.perceive(batch.complete)
        latents = model.encode_observed(perception)
        classes = model.label_classes(batch.complete["labels"]).tolist()
        for name, values in perception.values.items():
            mask = perception.masks[name]
            for means, numbers, real in (
                (found[name].features, values, mask),
                (found[name].latents, latents[name], LatentVae.latent_mask(mask)),
            ):
                for row, counts, number in zip(numbers.cpu().numpy(), real.bool().cpu().numpy(), classes, strict=True):
                    for group in (0, 1 + number):
                        means[group].add(row[counts])
    return found


def squared_errors(made: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference over the real positions and the width of each sample `(batch,)`.

    Args:
        made (`torch.FloatTensor` of shape `(batch, length, width)`): What is compared.
        truth (`torch.FloatTensor` of the same shape): With what.
        mask (`torch.BoolTensor` of shape `(batch, length)`): True = counts.
    """
    return masked_mean((made - truth) ** 2, mask).mean(dim=-1)


@torch.inference_mode()
def impute_rows(omg: OmgOnRows, chosen: Sequence[int], name: str, means: Means) -> Imputations:
    """Hide one modality of the complete rows at some places, and compare all that can take its place with it."""
    protocol = FixedPattern(available=tuple(other for other in omg.model.config.modalities if other != name))
    batches = omg.batches(protocol, f"without {name}", chosen)
    return joined([_impute_batch(omg, batch, name, means) for batch in batches])


def _impute_batch(omg: OmgOnRows, batch: MaskedBatch, name: str, means: Means) -> dict[tuple[str, str, str], Tensor]:
    model = omg.model
    perception, conditioning = omg.plan_and_retrieve(batch)
    observed, whole = model.encode_observed(perception), model.perceive(batch.complete)
    mask, truth, vae = whole.masks[name], model.encode_observed(whole)[name], model.executors_by_name[name].vae
    # To be compared position by position, it is generated at the truth's length, which a user would not have.
    perception = dataclasses.replace(perception, wanted={**perception.wanted, name: mask})
    classes = model.label_classes(batch.complete["labels"])
    latents, values, _ = model.execute(perception, conditioning, observed)

    coarse = LatentVae.latent_mask(mask)

    def mean_of(groups: Tensor) -> tuple[Tensor, Tensor]:
        return Means.fill(means.features, groups, mask), Means.fill(means.latents, groups, coarse)

    # What takes the place of the modality: features (batch, positions, width), and latents.
    options = {GENERATED: (values[name], latents[name])}
    if conditioning.evidence is not None:
        evidence = conditioning.evidence.values[name].to(truth)
        options[EVIDENCE] = (vae.decode(evidence, mask), evidence)
    options[MEAN] = mean_of(torch.zeros_like(classes))
    options[CLASS_MEAN] = mean_of(classes + 1)
    options[TRUTH] = (vae.decode(truth, mask), truth)

    masks = (mask, coarse, coarse[:, :1])

    def in_spaces(features: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return features, latents, masked_mean(latents, coarse).unsqueeze(1)

    # Features are compared with the truth itself, not with what the autoencoder makes of it.
    hidden, mean = in_spaces(whole.values[name], truth), in_spaces(*options[MEAN])
    found = {}
    for what, option in options.items():
        for space, made, real, centre, counts in zip(SPACES, in_spaces(*option), hidden, mean, masks, strict=True):
            found["error", what, space] = squared_errors(made, real, counts)
            found["spread", what, space] = squared_errors(made, centre, counts)
        logits = model.classify(perception, conditioning, {**observed, name: option[1]})
        found["score", what, ""] = model.score(logits)[:, 0]
    return found


@torch.inference_mode()
def complete_rows(omg: OmgOnRows) -> list[int]:
    """Places of the rows that have something of every modality.

    Raises:
        MsaError: If there is none.
    """
    found: list[int] = []
    for batch in omg.batches(None, "rows"):
        there = torch.stack(list(omg.model.available(batch.complete).values())).all(dim=0)
        found += batch.places[there.cpu().numpy()].tolist()
    if not found:
        raise MsaError(
            f"No row of the split {omg.rows.split!r} has all of {', '.join(omg.model.config.modalities)}, so there is no "
            "truth to compare with; give another split."
        )
    return found


@tool("imputation", "error of what is generated, beside the mean, the evidence and the truth", methods=("omg",))
def analyze_imputation(runs: Sequence[str], report: Report, *, data: str, split: str = "validation") -> None:
    """Show the errors of what is generated, and what the classifier makes of it, beside those of simpler stand-ins.

    Args:
        runs: Run folders of OMG-Agent.
        report: Takes what is found.
        data: Folder or Hub name of the data set that they were trained on: its training split gives the means.
        split: The split to look at.
    """
    found = find_runs(runs, "omg")
    rows, train = found[0].rows(data, split), found[0].rows(data, "train")
    by_seed: dict[str, list[Imputations]] = {}
    for run in found:
        omg = OmgOnRows.load(run, rows)
        if not omg.model.config.generation:
            raise MsaError(f"{run.folder} generates nothing; give a run that does, not of the ablation wo_generation.")
        chosen = complete_rows(omg)
        for name, means in training_means(dataclasses.replace(omg, rows=train)).items():
            by_seed.setdefault(name, []).append(impute_rows(omg, chosen, name, means))
    collected = {name: stacked(made) for name, made in by_seed.items()}
    labels, family = rows.labels[chosen], omg.model.config.family
    seeds = [run.seed for run in found]
    report.csv("imputation.csv", error_rows(collected, seeds))
    report.csv("imputation_scores.csv", score_rows(collected, seeds, labels, family))
    report.summary(
        "imputation.md",
        "What is generated, beside what was hidden",
        f"{found[0].name}; {len(chosen)} complete samples of {len(rows)} ({split}), "
        f"{counted(len(found), 'training seed')}; one modality is hidden, all others are observed. Errors are squared, "
        "mean over a sample's positions and width, then over samples. Ratio: to the error of the training mean per "
        "position (and length); spread: squared distance from it, as a share of the truth's. What is drawn at random "
        "from the right distribution has spread 1 and ratio 2; what says nothing has spread 0 and ratio 1. ± is the "
        "standard deviation over training seeds, brackets are 95 % bootstrap intervals over samples.",
        "The class mean is an **oracle**: it is told the class of the label. As features, the truth has gone through "
        "the autoencoder: no latents can do better.",
    )
    for space in SPACES:
        report.section(space.capitalize(), error_summary(collected, space))
    report.section(
        "The classifier",
        "What it scores with these latents in the place of the hidden modality; the observation "
        "that it also reads is that of the incomplete sample. Differences are to the training mean, and their intervals "
        "paired.",
        score_summary(collected, labels, family),
    )
    report.figure("imputation", _draw, collected)


def error_rows(collected: Mapping[str, Imputations], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One row per modality, stand-in, space and training seed: error, ratio to the training mean's, and spread."""
    rows = []
    for name, made in collected.items():
        for what, space in (key[1:] for key in made if key[0] == "error"):
            columns = [made[key].mean(axis=1) for key in _keys(what, space)]
            for seed, error, spread, scale in zip(seeds, *columns, strict=True):
                row = {"training seed": seed, "modality": name, "space": space, "imputed": what}
                row["n"] = made["error", what, space].shape[1]
                rows.append(
                    row | {"mse": float(error), "ratio": float(error / scale), "spread": float(spread / scale)}
                )
    return rows


def error_summary(collected: Mapping[str, Imputations], space: str) -> list[dict[str, Any]]:
    """The table of one space: errors with intervals, over all seeds."""
    rows = []
    for name, made in collected.items():
        for what in (key[1] for key in made if key[::2] == ("error", space)):
            error, spread, scale = (Estimate.mean_of(made[key]) for key in _keys(what, space))
            row = {"modality": name, "imputed": what}
            rows.append(row | {"mse": error, "ratio": error / scale, "spread": spread / scale})
    return rows


def _keys(what: str, space: str) -> list[tuple[str, str, str]]:
    """Those of the error, of the spread, and of the training mean's error, by which both are divided."""
    return [("error", what, space), ("spread", what, space), ("error", MEAN, space)]


def score_rows(
    collected: Mapping[str, Imputations], seeds: Sequence[int], labels: Any, family: LabelFamily
) -> list[dict[str, Any]]:
    """All metrics of the classifier, one row per modality, training seed and stand-in."""
    return [
        {"training seed": seed, "modality": name, "imputed": what, "n": len(labels)}
        | regression_metrics(scores[s], labels, family)
        for name, made in collected.items()
        for s, seed in enumerate(seeds)
        for (kind, what, _), scores in made.items()
        if kind == "score"
    ]


def score_summary(collected: Mapping[str, Imputations], labels: Any, family: LabelFamily) -> list[dict[str, Any]]:
    """The classifier's metrics over all seeds with intervals, and how they differ from those with the training mean."""
    counts = all_and_resampled(len(labels))
    rows = []
    for name, made in collected.items():
        scored = {
            what: [resampled_metrics(own, labels, family, counts) for own in scores]
            for (kind, what, _), scores in made.items()
            if kind == "score"
        }
        for what, ours in scored.items():
            row: dict[str, Any] = {"modality": name, "imputed": what}
            for metric in ("mae", family.main_accuracy):
                own, mean = (Estimate.of([seed[metric] for seed in of]) for of in (ours, scored[MEAN]))
                row[METRICS[metric].pretty] = own
                row[f"{METRICS[metric].pretty}, difference"] = None if what == MEAN else (own - mean).difference_text()
            rows.append(row)
    return rows


def _draw(figure: Figure, collected: Mapping[str, Imputations]) -> None:
    figure.set_size_inches(max(7.6, 1.6 * len(collected)), 2.8)
    for panel, space in zip(figure.subplots(1, len(SPACES)), SPACES, strict=True):
        rows = [row for row in error_summary(collected, space) if row["imputed"] != MEAN]
        kinds = list(dict.fromkeys(row["imputed"] for row in rows))
        width = 0.8 / len(kinds)
        for number, what in enumerate(kinds):
            means, errors = bars([row["ratio"] for row in rows if row["imputed"] == what])
            places = np.arange(len(collected)) + (number - (len(kinds) - 1) / 2) * width
            panel.bar(places, means, width, yerr=errors, error_kw={"linewidth": 0.7}, label=what)
        panel.axhline(1.0, color=GREY, linestyle=":", linewidth=1, label=MEAN)
        panel.set_xticks(range(len(collected)), [label_lines(name) for name in collected])
        panel.set_title(f"{space}: error / training mean's", fontsize=8)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
