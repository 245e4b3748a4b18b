"""Error of what OMG-Agent generates against what was hidden, beside that of stand-ins that need no generator.

One modality of complete samples is hidden, the others stay, and what takes its place is compared with what was hidden:
frame by frame in the features, as latents, and as the mean latent, which is all that the classifier reads of a modality.
Beside what is generated stand the retrieved evidence itself, the training mean, and the training mean of the sample's own
class, which is an oracle: it is told the label. The truth through the autoencoder is the best that any latents can give.

A ratio of 1 is the error of the training mean. Something that is *drawn* may be right and still have a ratio of 2: a draw
from the true distribution that has nothing to do with the sample misses it by the spread of both. Read the ratio beside the
spread (squared distance from the training mean, as a share of the truth's), and the classifier's errors beside both.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_msa.analysis.common.prediction_columns import Floats
from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.omg.execution import (
    Estimate,
    bars,
    joined,
    load_omg,
    plan_and_retrieve,
    pooled,
    row_batches,
    stacked,
)
from hf_msa.analysis.tool_report import GREY, Report, format_difference, format_estimate
from hf_msa.analysis.tools import tool
from hf_msa.data.missing import FixedPattern
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import MAIN_ACCURACY, METRICS, regression_metrics, resampled_metrics
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.statistics import resample_counts
from hf_msa.models.modeling_omg import Conditions, OmgForSentimentAnalysis, Perception
from hf_msa.models.omg_executor import LatentVae, masked_mean
from hf_msa.models.processing_msa import MsaProcessor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GENERATED, EVIDENCE, MEAN, CLASS_MEAN, TRUTH = "generated", "evidence", "training mean", "class mean (oracle)", "truth"
"""What takes the place of a hidden modality. `TRUTH` is the truth's latents, and their features those of the autoencoder."""

SPACES = ("features", "latents", "mean latent")
"""What is compared, in the units of the model: standardised features and text states, scaled latents."""


@dataclass(frozen=True)
class Means:
    """Training means of one modality, of all samples (first row) and of each class.

    Attributes:
        features: `(1 + classes, width)`.
        latents: `(1 + classes, latent_dim)`.
    """

    features: Tensor
    latents: Tensor


@torch.inference_mode()
def training_means(model: OmgForSentimentAnalysis, processor: MsaProcessor, train: MsaRows) -> dict[str, Means]:
    """Means over the real positions of the training rows, by modality; a class without any row has that of all rows.

    Args:
        model: In eval mode.
        processor: The model's.
        train: Rows of the training split.
    """
    sums: dict[tuple[str, str], tuple[Any, Any]] = {}
    for batch in row_batches(model, processor, train, None, "training means"):
        perception = model.perceive(batch.complete)
        latents = model.encode_observed(perception)
        classes = model.label_classes(batch.complete["labels"])
        # The first column counts every row.
        groups = torch.nn.functional.one_hot(classes + 1, 1 + model.config.num_classes).double()
        groups[:, 0] = 1
        for name, values in perception.values.items():
            mask = perception.masks[name]
            kinds = {"features": (values, mask), "latents": (latents[name], LatentVae.latent_mask(mask))}
            for kind, (numbers, real) in kinds.items():
                weights = real.double().unsqueeze(-1)
                added = (groups.T @ (numbers * weights).sum(dim=1), groups.T @ weights.sum(dim=1))
                total, count = sums.get((name, kind), (0.0, 0.0))
                sums[name, kind] = (total + added[0], count + added[1])

    def mean(name: str, kind: str) -> Tensor:
        total, count = sums[name, kind]
        means = total / count.clamp(min=1)
        return torch.where(count > 0, means, means[:1]).float()

    return {name: Means(mean(name, "features"), mean(name, "latents")) for name in model.config.modalities}


def stand_ins(
    model: OmgForSentimentAnalysis,
    perception: Perception,
    conditions: Conditions,
    whole: Perception,
    name: str,
    means: Means,
    classes: Tensor,
) -> dict[str, tuple[Tensor, Tensor]]:
    """What can take the place of a hidden modality: features `(batch, positions, width)` and latents, by what it is.

    Args:
        model: In eval mode.
        perception: Of what is left of a batch.
        conditions: Its plan, observation and evidence.
        whole: Perception of the complete rows.
        name: The hidden modality.
        means: Its training means.
        classes: The true classes `(batch,)`.
    """
    vae, positions = model.executors_by_name[name].vae, whole.masks[name]
    truth = model.encode_observed(whole)[name]
    latents, values, _ = model.execute(perception, conditions, model.encode_observed(perception))

    def constant(rows: Tensor) -> tuple[Tensor, Tensor]:
        features, level = means.features[rows].unsqueeze(1), means.latents[rows].unsqueeze(1)
        return features.expand(-1, positions.shape[1], -1), level.expand_as(truth)

    found = {GENERATED: (values[name], latents[name])}
    if conditions.evidence is not None:
        evidence = conditions.evidence.values[name].to(truth)
        found[EVIDENCE] = (vae.decode(evidence, positions), evidence)
    found[MEAN] = constant(torch.zeros_like(classes))
    found[CLASS_MEAN] = constant(classes + 1)
    found[TRUTH] = (vae.decode(truth, positions), truth)
    return found


def squared_errors(made: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference over the real positions and the width of each sample `(batch,)`.

    Args:
        made (`torch.FloatTensor` of shape `(batch, length, width)`): What is compared.
        truth (`torch.FloatTensor` of the same shape): With what.
        mask (`torch.BoolTensor` of shape `(batch, length)`): True = counts.
    """
    return masked_mean((made - truth) ** 2, mask).mean(dim=-1)


@dataclass
class Imputations:
    """What was found of one hidden modality by one model, or by those of all S training seeds.

    Attributes:
        errors: By what took its place and one of `SPACES`: squared error of each sample (n,) or (S, n).
        spreads: Likewise: squared distance from the training mean.
        scores: By what took its place: the classifier's score of each sample.
    """

    errors: dict[tuple[str, str], Floats]
    spreads: dict[tuple[str, str], Floats]
    scores: dict[str, Floats]

    @classmethod
    def of_seeds(cls, seeds: Sequence["Imputations"]) -> "Imputations":
        """Those of all training seeds, of those of each."""
        kinds = ("errors", "spreads", "scores")
        return cls(**{kind: stacked([getattr(seed, kind) for seed in seeds]) for kind in kinds})


@torch.inference_mode()
def impute_rows(
    model: OmgForSentimentAnalysis,
    processor: MsaProcessor,
    rows: MsaRows,
    chosen: Sequence[int],
    name: str,
    means: Means,
) -> Imputations:
    """Hide one modality of some complete rows, and compare all that can take its place with it.

    Args:
        model: In eval mode.
        processor: The model's.
        rows: Tokenised rows.
        chosen: Places of the rows, all of them complete.
        name: The modality to hide.
        means: Its training means.
    """
    errors, spreads, scores = [], [], []
    protocol = FixedPattern(available=tuple(other for other in model.config.modalities if other != name))
    for batch in row_batches(model, processor, rows, protocol, f"without {name}", chosen):
        perception, conditions = plan_and_retrieve(model, processor, batch)
        whole = model.perceive(batch.complete)
        classes = model.label_classes(batch.complete["labels"])
        options = stand_ins(model, perception, conditions, whole, name, means, classes)
        mask = whole.masks[name]
        spaces = {what: list(_spaces(*made, mask)) for what, made in options.items()}
        # The decoded truth is what latents can do at best; what features are compared with is the truth itself.
        truth = [(whole.values[name], mask), *spaces[TRUTH][1:]]
        found, distances = {}, {}
        for what, made in spaces.items():
            for place, space in enumerate(SPACES):
                values, counts = made[place]
                found[what, space] = squared_errors(values, truth[place][0], counts)
                distances[what, space] = squared_errors(values, spaces[MEAN][place][0], counts)
        errors.append(found)
        spreads.append(distances)
        observed = model.encode_observed(perception)
        logits = {
            what: model.classify(perception, conditions.observation, {**observed, name: latents})
            for what, (_, latents) in options.items()
        }
        scores.append({what: model.score(values)[:, 0] for what, values in logits.items()})
    return Imputations(joined(errors), joined(spreads), joined(scores))


def _spaces(features: Tensor, latents: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What is compared in each of `SPACES`, with the mask of what counts."""
    coarse = LatentVae.latent_mask(mask)
    yield features, mask
    yield latents, coarse
    yield masked_mean(latents, coarse).unsqueeze(1), coarse[:, :1]


@torch.inference_mode()
def complete_rows(model: OmgForSentimentAnalysis, processor: MsaProcessor, rows: MsaRows) -> list[int]:
    """Places of the rows that have something of every modality.

    Raises:
        MsaError: If there is none.
    """
    found: list[int] = []
    for batch in row_batches(model, processor, rows, None, "rows"):
        there = torch.stack(list(model.available(batch.complete).values())).all(dim=0)
        found += batch.places[there.cpu().numpy()].tolist()
    if not found:
        raise MsaError(
            f"No row of the split {rows.split!r} has all of {', '.join(model.config.modalities)}, so there is no truth to "
            "compare with; give another split."
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

    Raises:
        MsaError: If a run or the data will not do, or no row is complete.
    """
    found = find_runs(runs, "omg")
    rows, train = found[0].rows(data, split), found[0].rows(data, "train")
    by_seed: dict[str, list[Imputations]] = {}
    for run in found:
        model, processor = load_omg(run, rows)
        chosen = complete_rows(model, processor, rows)
        means = training_means(model, processor, train)
        for name in model.config.modalities:
            made = impute_rows(model, processor, rows, chosen, name, means[name])
            by_seed.setdefault(name, []).append(made)
    collected = {name: Imputations.of_seeds(seeds) for name, seeds in by_seed.items()}
    labels, family = rows.labels[chosen], model.config.label_family
    seeds = [run.seed for run in found]
    report.csv("imputation.csv", [row for name, made in collected.items() for row in error_rows(name, made, seeds)])
    report.csv(
        "imputation_scores.csv",
        [row for name, made in collected.items() for row in score_rows(name, made, seeds, labels, family)],
    )
    report.summary(
        "imputation.md",
        "What is generated, beside what was hidden",
        f"{found[0].name}; {len(chosen)} complete samples of {len(rows)} ({split}), "
        f"{counted(len(found), 'training seed')}; one modality is hidden, all others are observed. Errors are squared, "
        "mean over a sample's positions and width, then over samples. Ratio: to the error of the training mean; spread: "
        "squared distance from the training mean, as a share of the truth's. What is drawn at random from the right "
        "distribution has spread 1 and ratio 2; what says nothing has spread 0 and ratio 1. ± is the standard deviation "
        "over training seeds, brackets are 95 % bootstrap intervals over samples.",
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


def error_rows(name: str, made: Imputations, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One row per training seed, stand-in and space: error, ratio to the training mean's, and spread."""
    rows = []
    for (what, space), errors in made.errors.items():
        scale = made.errors[MEAN, space].mean(axis=1)
        spreads = made.spreads[what, space].mean(axis=1)
        for s, seed in enumerate(seeds):
            error = errors[s].mean()
            row = {"training seed": seed, "modality": name, "space": space, "imputed": what, "n": errors.shape[1]}
            values = {"mse": error, "ratio": error / scale[s], "spread": spreads[s] / scale[s]}
            rows.append(row | {key: float(value) for key, value in values.items()})
    return rows


def ratios(values: Floats, mean_errors: Floats) -> Estimate:
    """Errors, or spreads, (S, N) as a share of the training mean's errors."""
    (own, resampled), (scale, resampled_scale) = pooled(values), pooled(mean_errors)
    return [value / one for value, one in zip(own, scale, strict=True)], resampled / resampled_scale


def error_summary(collected: Mapping[str, Imputations], space: str) -> list[dict[str, str]]:
    """The table of one space: errors with intervals, over all seeds."""
    return [
        {
            "modality": name,
            "imputed": what,
            "mse": format_estimate(*pooled(errors)),
            "ratio": format_estimate(*ratios(errors, made.errors[MEAN, space])),
            "spread": format_estimate(*ratios(made.spreads[what, space], made.errors[MEAN, space])),
        }
        for name, made in collected.items()
        for (what, where), errors in made.errors.items()
        if where == space
    ]


def score_rows(name: str, made: Imputations, seeds: Sequence[int], labels: Any, family: str) -> list[dict[str, Any]]:
    """All metrics of the classifier, one row per training seed and stand-in."""
    return [
        {"training seed": seed, "modality": name, "imputed": what, "n": len(labels)}
        | regression_metrics(scores[s], labels, family)
        for s, seed in enumerate(seeds)
        for what, scores in made.scores.items()
    ]


def score_summary(collected: Mapping[str, Imputations], labels: Any, family: str) -> list[dict[str, Any]]:
    """The classifier's metrics over all seeds with intervals, and how they differ from those with the training mean."""
    # The first row counts every sample once.
    counts = np.concatenate([np.ones((1, len(labels))), resample_counts(len(labels))])
    rows = []
    for name, made in collected.items():
        scored = {
            what: [resampled_metrics(own, labels, family, counts) for own in scores]
            for what, scores in made.scores.items()
        }
        for what, ours in scored.items():
            row: dict[str, Any] = {"modality": name, "imputed": what}
            for metric in ("mae", MAIN_ACCURACY[family]):
                own, mean = (np.stack([seed[metric] for seed in seeds]) for seeds in (ours, scored[MEAN]))
                row[METRICS[metric].pretty] = format_estimate(own[:, 0].tolist(), own[:, 1:].mean(axis=0))
                difference = (own - mean).mean(axis=0)
                shown = None if what == MEAN else format_difference(difference[0], difference[1:])
                row[f"{METRICS[metric].pretty}, difference"] = shown
            rows.append(row)
    return rows


def _draw(figure: "Figure", collected: Mapping[str, Imputations]) -> None:
    first = next(iter(collected.values()))
    kinds = [what for what in first.scores if what != MEAN]
    width = 0.8 / len(kinds)
    figure.set_size_inches(7.6, 2.8)
    for panel, space in zip(figure.subplots(1, len(SPACES)), SPACES, strict=True):
        for number, what in enumerate(kinds):
            means, errors = bars(
                [ratios(made.errors[what, space], made.errors[MEAN, space]) for made in collected.values()]
            )
            places = np.arange(len(collected)) + (number - (len(kinds) - 1) / 2) * width
            panel.bar(places, means, width, yerr=errors, error_kw={"linewidth": 0.7}, label=what)
        panel.axhline(1.0, color=GREY, linestyle=":", linewidth=1, label=MEAN)
        panel.set_xticks(range(len(collected)), list(collected))
        panel.set_title(f"{space}: error / training mean's", fontsize=8)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
