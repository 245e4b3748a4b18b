"""Is what OMG-Agent generates closer to the truth than what needs no generator?

One modality of complete samples is hidden, the others stay, and what takes its place is compared with what was hidden:
frame by frame in the features, as latents, and as the mean latent, which is all that the classifier reads of a modality.
Beside what is generated stand the retrieved evidence itself, the training mean, and the training mean of the sample's own
class, which is an oracle: it is told the label. The truth through the autoencoder is the best that any latents can give.

A ratio of 1 is the error of the training mean. Something that is *drawn* may be right and still have a ratio of 2: a draw
from the true distribution that has nothing to do with the sample misses it by the spread of both. Read the ratio beside the
spread (squared distance from the training mean, as a share of the truth's), and the classifier's errors beside both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_msa.data.missing import FixedPattern
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS, regression_metrics, resampled_metrics
from hf_msa.evaluation.statistics import confidence_interval, resample_counts
from hf_msa.models.modeling_msa import masked_mean
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.omg_executor import LatentVae
from hf_msa.models.processing_msa import MsaProcessor

from .executing import Floats, Told, load_omg, pooled, row_batches, shown_metrics, tell, with_interval
from .runs import find_runs, load_split
from .writing import GREY, counted, drawn_figure, format_number, rows_table, write_csv, write_markdown

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
    sums: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
    for batch in row_batches(model, processor, train, None, "training means"):
        perception = model.perceive(batch.complete)
        classes = torch.nn.functional.one_hot(model.label_classes(batch.labels), len(model.config.class_names))
        # The first column counts every row.
        groups = torch.cat([torch.ones_like(classes[:, :1]), classes], dim=1).double()
        latents = model.encode_observed(perception)
        for name, values in perception.values.items():
            mask = perception.masks[name]
            kinds = {"features": (values, mask), "latents": (latents[name], LatentVae.latent_mask(mask))}
            for kind, (numbers, real) in kinds.items():
                weights = real.double().unsqueeze(-1)
                total = groups.T @ (numbers * weights).sum(dim=1)
                count = groups.T @ weights.sum(dim=1)
                before = sums.get((name, kind))
                sums[name, kind] = (total, count) if before is None else (before[0] + total, before[1] + count)
    found = {}
    for key, (total, count) in sums.items():
        means = total / count.clamp(min=1)
        found[key] = torch.where(count > 0, means, means[:1]).float()
    return {name: Means(found[name, "features"], found[name, "latents"]) for name in model.config.modalities}


def imputed(
    model: OmgForSentimentAnalysis, told: Told, name: str, means: Means, classes: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """What takes the place of a hidden modality: features `(batch, positions, width)` and latents, by what it is.

    Args:
        model: In eval mode.
        told: Of a batch in which the modality is hidden.
        name: The modality.
        means: Its training means.
        classes: The true classes `(batch,)`.
    """
    vae, positions = model.executors_by_name[name].vae, told.whole.masks[name]
    truth = model.encode_observed(told.whole)[name]
    latents, values, _ = model.execute(told.perception, told.conditions, model.encode_observed(told.perception))

    def constant(rows: Tensor) -> tuple[Tensor, Tensor]:
        features, level = means.features[rows].unsqueeze(1), means.latents[rows].unsqueeze(1)
        return features.expand(-1, positions.shape[1], -1), level.expand_as(truth)

    found = {GENERATED: (values[name], latents[name])}
    if told.conditions.evidence is not None:
        evidence = told.conditions.evidence.values[name].to(truth)
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
    """What was found of one hidden modality by one model.

    Attributes:
        errors: By what took its place and one of `SPACES`: squared error of each sample.
        spreads: Likewise: squared distance from the training mean.
        scores: By what took its place: the classifier's score of each sample.
    """

    errors: dict[tuple[str, str], list[float]]
    spreads: dict[tuple[str, str], list[float]]
    scores: dict[str, list[float]]


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
    found = Imputations({}, {}, {})
    protocol = FixedPattern(available=tuple(other for other in model.config.modalities if other != name))
    for batch in row_batches(model, processor, rows, protocol, f"without {name}", chosen):
        told = tell(model, processor, batch)
        classes = model.label_classes(batch.labels)
        options = imputed(model, told, name, means, classes)
        mask = told.whole.masks[name]
        coarse = LatentVae.latent_mask(mask)
        truth, truth_latents = told.whole.values[name], options[TRUTH][1]
        mean, mean_latents = options[MEAN]
        observed = model.encode_observed(told.perception)
        for what, (values, latents) in options.items():
            compared = {
                "features": (values, truth, mean, mask),
                "latents": (latents, truth_latents, mean_latents, coarse),
                "mean latent": tuple(
                    masked_mean(part, coarse).unsqueeze(1) for part in (latents, truth_latents, mean_latents)
                )
                + (coarse[:, :1],),
            }
            for space, (made, real, centre, counts) in compared.items():
                found.errors.setdefault((what, space), []).extend(squared_errors(made, real, counts).tolist())
                found.spreads.setdefault((what, space), []).extend(squared_errors(made, centre, counts).tolist())
            logits = model.classify(told.perception, told.conditions.observation, {**observed, name: latents})
            found.scores.setdefault(what, []).extend(model.score(logits)[:, 0].tolist())
    return found


@torch.inference_mode()
def complete_rows(model: OmgForSentimentAnalysis, processor: MsaProcessor, rows: MsaRows) -> list[int]:
    """Places of the rows that have something of every modality.

    Raises:
        MsaError: If there is none.
    """
    found = []
    for batch in row_batches(model, processor, rows, None, "rows"):
        there = torch.stack(list(model.available(batch.complete).values())).all(dim=0).tolist()
        found += [index for index, complete in zip(batch.indices, there, strict=True) if complete]
    if not found:
        raise MsaError(
            f"No row of the split {rows.split!r} has all of {', '.join(model.config.modalities)}, so there is no truth to "
            "compare with; give another split."
        )
    return found


def analyze_imputation(runs: Sequence[str], *, data: str, output: Path, split: str = "validation") -> list[Path]:
    """Write the errors of what is generated, and what the classifier makes of it, beside those of simpler stand-ins.

    Args:
        runs: Run folders of OMG-Agent.
        data: Folder or Hub name of the data set that they were trained on: its training split gives the means.
        output: The folder to write to.
        split: The split to look at.

    Raises:
        MsaError: If a run or the data will not do, or no row is complete.
    """
    found = find_runs(runs, "omg")
    rows, train = load_split(data, split, found[0]), load_split(data, "train", found[0])
    collected: dict[str, list[Imputations]] = {}
    chosen: list[int] = []
    family = ""
    for run in found:
        model, processor = load_omg(run, data, rows)
        chosen = complete_rows(model, processor, rows)
        means = training_means(model, processor, train)
        family = model.config.family.name
        for name in model.config.modalities:
            made = impute_rows(model, processor, rows, chosen, name, means[name])
            collected.setdefault(name, []).append(made)
    labels = rows.labels[chosen]
    seeds = [run.seed for run in found]
    errors = [row for name, made in collected.items() for row in error_rows(name, made, seeds)]
    scores = [row for name, made in collected.items() for row in score_rows(name, made, seeds, labels, family)]
    spaces = (f"## {space.capitalize()}\n\n" + rows_table(error_summary(collected, space)) for space in SPACES)
    written = [
        write_csv(output / "imputation.csv", errors),
        write_csv(output / "imputation_scores.csv", scores),
        write_markdown(
            output / "imputation.md",
            "# What is generated, beside what was hidden",
            f"{found[0].name}; {len(chosen)} complete samples of {len(rows)} ({split}), "
            f"{counted(len(found), 'training seed')}; one modality is hidden, all others are observed. Errors are squared, "
            "mean over a sample's positions and width, then over samples. Ratio: to the error of the training mean; spread: "
            "squared distance from the training mean, as a share of the truth's. What is drawn at random from the right "
            "distribution has spread 1 and ratio 2; what says nothing has spread 0 and ratio 1. ± is the standard deviation "
            "over training seeds, brackets are 95 % bootstrap intervals over samples.",
            "The class mean is an **oracle**: it is told the class of the label. As features, the truth has gone through "
            "the autoencoder: no latents can do better.",
            *spaces,
            "## The classifier\n\nWhat it scores with these latents in the place of the hidden modality; the observation "
            "that it also reads is that of the incomplete sample. Differences are to the training mean, and their intervals "
            "paired.\n\n" + rows_table(score_summary(collected, labels, family)),
        ),
    ]
    _draw(output / "imputation", collected, written)
    return written


def _stack(made: Sequence[Imputations], kind: str, key: Any) -> Floats:
    return np.array([getattr(one, kind)[key] for one in made], dtype=np.float64)


def error_rows(name: str, made: Sequence[Imputations], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One row per training seed, stand-in and space: error, ratio to the training mean's, and spread."""
    rows = []
    for what, space in made[0].errors:
        errors, spreads = (_stack(made, kind, (what, space)).mean(axis=1) for kind in ("errors", "spreads"))
        scale = _stack(made, "errors", (MEAN, space)).mean(axis=1)
        rows += [
            {
                "training seed": seed,
                "modality": name,
                "space": space,
                "imputed": what,
                "n": len(made[0].errors[what, space]),
                "mse": float(errors[s]),
                "ratio": float(errors[s] / scale[s]),
                "spread": float(spreads[s] / scale[s]),
            }
            for s, seed in enumerate(seeds)
        ]
    return rows


def ratios(made: Sequence[Imputations], what: str, space: str, kind: str = "errors") -> tuple[list[float], Floats]:
    """Errors, or spreads, as a share of the training mean's error: per seed, and over seeds in each resample."""
    values, drawn = pooled(_stack(made, kind, (what, space)))
    scale, drawn_scale = pooled(_stack(made, "errors", (MEAN, space)))
    return [value / one for value, one in zip(values, scale, strict=True)], drawn / drawn_scale


def error_summary(collected: Mapping[str, Sequence[Imputations]], space: str) -> list[dict[str, Any]]:
    """The table of one space: errors with intervals, over all seeds."""
    return [
        {
            "modality": name,
            "imputed": what,
            "mse": with_interval(*pooled(_stack(made, "errors", (what, space)))),
            "ratio": with_interval(*ratios(made, what, space)),
            "spread": with_interval(*ratios(made, what, space, "spreads")),
        }
        for name, made in collected.items()
        for what, where in made[0].errors
        if where == space
    ]


def score_rows(
    name: str, made: Sequence[Imputations], seeds: Sequence[int], labels: Any, family: str
) -> list[dict[str, Any]]:
    """All metrics of the classifier, one row per training seed and stand-in."""
    return [
        {"training seed": seed, "modality": name, "imputed": what, "n": len(labels)}
        | regression_metrics(one.scores[what], labels, family)
        for one, seed in zip(made, seeds, strict=True)
        for what in one.scores
    ]


def score_summary(collected: Mapping[str, Sequence[Imputations]], labels: Any, family: str) -> list[dict[str, Any]]:
    """The classifier's metrics over all seeds with intervals, and how they differ from those with the training mean."""
    counts = resample_counts(len(labels))
    rows = []
    for name, made in collected.items():
        drawn = {
            what: [resampled_metrics(one.scores[what], labels, family, counts) for one in made]
            for what in made[0].scores
        }
        for what, ours in drawn.items():
            row: dict[str, Any] = {"modality": name, "imputed": what}
            for metric in shown_metrics(family):
                mean, base = (np.mean([seed[metric] for seed in one], axis=0) for one in (ours, drawn[MEAN]))
                values = [regression_metrics(one.scores[what], labels, family)[metric] for one in made]
                trivial = [regression_metrics(one.scores[MEAN], labels, family)[metric] for one in made]
                row[METRICS[metric].pretty] = with_interval(values, mean)
                low, high = confidence_interval(mean - base)
                row[f"{METRICS[metric].pretty}, difference"] = (
                    None
                    if what == MEAN
                    else f"{np.mean(values) - np.mean(trivial):+.3f} [{format_number(low)}, {format_number(high)}]"
                )
            rows.append(row)
    return rows


def _draw(stem: Path, collected: Mapping[str, Sequence[Imputations]], written: list[Path]) -> None:
    names = list(collected)
    kinds = [what for what, space in next(iter(collected.values()))[0].errors if space == SPACES[0] and what != MEAN]
    width = 0.8 / len(kinds)
    with drawn_figure(stem, 7.6, 2.8, written) as figure:
        for panel, space in zip(figure.subplots(1, len(SPACES)), SPACES, strict=True):
            for number, what in enumerate(kinds):
                shown = [ratios(collected[name], what, space) for name in names]
                means = np.array([np.mean(values) for values, _ in shown])
                ends = np.array([confidence_interval(drawn) for _, drawn in shown])
                panel.bar(
                    np.arange(len(names)) + (number - (len(kinds) - 1) / 2) * width,
                    means,
                    width,
                    yerr=np.maximum(np.stack([means - ends[:, 0], ends[:, 1] - means]), 0),
                    error_kw={"linewidth": 0.7},
                    label=what,
                )
            panel.axhline(1.0, color=GREY, linestyle=":", linewidth=1, label=MEAN)
            panel.set_xticks(range(len(names)), names)
            panel.set_title(f"{space}: error / training mean's", fontsize=8)
        figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
