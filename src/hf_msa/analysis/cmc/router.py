"""Weights of CMC's router: which modality it listens to, and whether it listens less to one that lies.

The alarm is the paper's failure signature: a mean text weight above 0.7 is unimodal inference in disguise. The claim
behind the router is stronger, and can be tested where every modality was annotated by itself: its weight should be
lower in samples where its own class is not that of the whole. In a sample corpus that disagreement is partly the
annotators' noise on weak sentiment, so there the planted lies themselves are looked at, too.

A difference of means says little of how well a weight tells a lie, so the AUC for "this modality lies" stands beside it. The
published router can hardly have a high one: it is a linear map of the sum of the vectors, so that each modality adds its
part to the logits whatever the others say, while a contradiction lies between them (`router_input="rows"` can see it). In a
sample corpus that was checked when it was made, the AUC of the best possible guess stands beside it.

What routing is worth is told by the same experts under constant weights: the run's own mean weights, which keep what the
router has learned of the modalities and drop what it says of the sample, and even ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.common.prediction_columns import SampleNumbers, read_named_numbers
from hf_msa.analysis.common.split_labels import best_lie_areas, planted_liars, read_labels
from hf_msa.analysis.estimates import Estimate, Floats, format_number, format_spread
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS, resampled_metrics
from hf_msa.evaluation.statistics import all_and_resampled, mean_and_std, resampled_means
from hf_msa.evaluation.uncertainty import auroc
from hf_msa.models.msa_schema import SENTIMENT_CLASSES

TEXT_ALARM = 0.7
"""A mean text weight above this is an alarm."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Weights = Mapping[str, Floats]
"""Per modality the router's weights on complete data, (S, N) for S training seeds and N samples."""

WEIGHINGS = ("router", "own mean (mcr_static)", "even (mean)")
"""How the experts' logits are weighed: as the run did, by its weights' means over the samples, and by equal shares."""

_BEST = "AUC of the best guess"
_PREFIX = "router_weights_"
_BINS = 20
_METRICS = ("class_has0_acc2", "class_acc3")


def router_weights(numbers: SampleNumbers) -> Weights:
    """The weights in a run's predictions.

    Raises:
        MsaError: If they are of a method without a router.
    """
    found = {
        name.removeprefix(_PREFIX): values for name, values in numbers.columns.items() if name.startswith(_PREFIX)
    }
    if not found:
        raise MsaError(f"The predictions of {numbers.run} hold no router weights; give an evaluated run of 'cmc'.")
    return found


def weight_rows(weights: Weights, seeds: Sequence[int | None]) -> list[dict[str, Any]]:
    """One row per training seed and modality: n, mean, standard deviation over samples, quantiles."""
    return [
        {"training seed": seed, "modality": modality, "n": values.shape[1]} | _distribution(values[index])
        for index, seed in enumerate(seeds)
        for modality, values in weights.items()
    ]


def lie_row(weights: Floats, lies: NDArray[np.bool_]) -> dict[str, Any]:
    """Compare a modality's weight (S, N) where it lies (N,) with its weight elsewhere.

    Returns:
        Numbers of samples, both means, and their difference (lying minus others), which is negative where the router
        does what it is for, with its 95 % bootstrap interval over samples and its standard deviation over seeds; and the
        same of the AUC, how likely a lying sample has less weight than another (a tie counts half; 0.5 is chance). NaN
        where a side is empty.
    """
    counts = all_and_resampled(len(lies))
    area = Estimate.of([auroc(-own, lies, counts) for own in weights])
    lying, others = (
        Estimate.of([resampled_means(own, counts, inside) for own in weights]) for inside in (lies, ~lies)
    )
    difference = lying - others
    low, high = difference.bounds
    return {
        "n lying": int(lies.sum()),
        "n others": int((~lies).sum()),
        "weight lying": lying.mean,
        "weight others": others.mean,
        "difference": difference.mean,
        "low": low,
        "high": high,
        "sd over seeds": difference.std,
        **area.cells("AUC"),
    }


def weighing_rows(numbers: SampleNumbers, weights: Weights) -> list[dict[str, Any]]:
    """Score the experts' logits of a run under each of `WEIGHINGS`.

    Returns:
        Per weighing its class metrics, and by how much the router's first metric exceeds its own, paired over samples and
        seeds; nothing where the predictions do not hold the experts' logits, as those of earlier versions.
    """
    try:
        experts = np.stack(
            [
                np.stack([numbers.columns[f"unimodal_logits_{m}_{name}"] for name in SENTIMENT_CLASSES], axis=-1)
                for m in weights
            ],
            axis=2,
        )
    except KeyError:
        return []
    routed = np.stack(list(weights.values()), axis=2)
    own_mean = np.broadcast_to(routed.mean(axis=1, keepdims=True), routed.shape)
    counts = all_and_resampled(len(numbers.ids))
    rows: list[dict[str, Any]] = []
    for kind, shares in zip(WEIGHINGS, (routed, own_mean, np.full_like(routed, 1 / len(weights))), strict=True):
        scored = [
            resampled_metrics(scores, numbers.labels, numbers.family, counts, logits)
            for scores, logits in zip(
                numbers.columns["prediction"], (shares[..., None] * experts).sum(axis=2), strict=True
            )
        ]
        row: dict[str, Any] = {"weights": kind}
        row |= {METRICS[name].pretty: Estimate.of([own[name] for own in scored]) for name in _METRICS}
        first = METRICS[_METRICS[0]].pretty
        rows.append(row | {"router minus it": (rows[0] if rows else row)[first] - row[first]})
    return rows


@tool("router", "weight of each modality, and whether it falls where the modality lies", methods=("cmc",))
def analyze_router(runs: Sequence[str], report: Report, *, data: str | None = None) -> None:
    """Show how the router's weights are distributed, and with data whether they fall where a modality lies.

    Args:
        runs: Evaluated CMC runs, e.g. the method and an ablation of its router.
        report: Takes what is found.
        data: Folder or Hub name of the data set that they were evaluated on, for its unimodal labels.

    Raises:
        MsaError: If a run was not evaluated on complete data, has no router, or was evaluated on other data.
    """
    found = read_named_numbers(runs)
    weights = {name: router_weights(numbers) for name, numbers in found.items()}
    dataset = next(iter(found.values())).results["dataset"]
    report.csv(
        "router.csv",
        [{"run": name, **row} for name, own in weights.items() for row in weight_rows(own, found[name].seeds)],
    )
    report.summary(
        "router.md",
        "Weights of the router",
        f"{dataset['name']}, {dataset['split']} split, complete data. Mean ± is the "
        "standard deviation over training seeds; sd and quantiles are over samples, all seeds together.",
        [row for name, own in weights.items() for row in _summary(name, own)],
        "\n".join(_alarm(name, own) for name, own in weights.items()),
    )
    worth = [{"run": name, **row} for name, own in weights.items() for row in weighing_rows(found[name], own)]
    report.csv("weighings.csv", worth)
    report.section(
        "What routing sample by sample is worth",
        "The same experts under constant weights: the run's own mean weights keep what the router has learned of the "
        "modalities and drop what it says of the sample. ± is the standard deviation over training seeds, brackets hold "
        f"95 % bootstrap intervals over samples; the difference is in {METRICS[_METRICS[0]].pretty}. An ablation that was "
        "trained without a router has other experts."
        if worth
        else "Not known: the predictions do not hold the experts' logits; evaluate the run again.",
        [row | {"router minus it": row["router minus it"].difference_text()} for row in worth],
    )
    lies = [
        {"run": name, **row}
        for name, numbers in found.items()
        if data is not None
        for row in _lie_rows(numbers, weights[name], data, name)
    ]
    best, clips = ({}, 0) if data is None else best_lie_areas(data)
    for row in lies if best else ():
        row[_BEST] = best.get(row["modality"]) if row["lies by"] == "planted" else None
    report.csv("lies.csv", lies)
    title = "Weight of a modality where it lies"
    if data is None:
        report.section(title, "Not looked at; give the data set with --data.")
    elif not lies:
        report.section(title, "The data set has no label per modality, so nothing says where one lies.")
    else:
        planted = any(row["lies by"] == "planted" for row in lies)
        report.section(
            title,
            "By own label: the class of the modality's own label is not that of the multimodal label."
            f"{' Planted: the modality that the generator made lie.' if planted else ''} The difference is lying minus "
            "others, with its 95 % bootstrap interval over samples (weights averaged over training seeds) and its standard "
            "deviation over seeds; below zero, the router trusts a lying modality less. AUC: how likely a sample in which "
            "the modality lies gives it less weight than one in which it does not; 0.5 is chance. "
            + (
                f"{_BEST}: of the probability that the corpus' own story gives to the lie, over its first {clips} test "
                "clips; no router can exceed it but by chance."
                if best
                else "No AUC can be above that of the best possible guess, which is not known of this data."
            ),
            lies,
            "\n".join(f"- {name}: {_SUM_NOTE}" for name, numbers in found.items() if _reads_sum(numbers)),
        )
    report.figure("router", _draw, weights)
    drawn = [row for row in lies if row["lies by"] == "planted"]
    if drawn:
        report.figure("lies", _draw_lies, drawn)


_SUM_NOTE = (
    "its router reads the sum of the modalities (`router_input=sum`, as published), so each of them adds its part to the "
    "logits whatever the others say, and it can hardly see that they contradict each other."
)


def _reads_sum(numbers: SampleNumbers) -> bool:
    config = numbers.config
    return bool(config.get("mcr", "router") == "router" and config.get("router_input", "sum") == "sum")


def _distribution(values: Floats) -> dict[str, float]:
    mean, std = mean_and_std(values.tolist())
    quantiles = np.quantile(values, QUANTILES).tolist()
    return {"mean": mean, "sd": std} | {f"q{100 * q:02.0f}": v for q, v in zip(QUANTILES, quantiles, strict=True)}


def _lie_rows(numbers: SampleNumbers, weights: Weights, data: str, name: str) -> list[dict[str, Any]]:
    split = numbers.results["dataset"]["split"]
    labels = read_labels(data, split).of(numbers.ids, numbers.labels, name)
    rows = [
        {"lies by": "own label", "modality": modality} | lie_row(values, labels.disagreeing(modality))
        for modality, values in weights.items()
        if modality in labels.unimodal
    ]
    liars = planted_liars(data, split)
    if liars is not None:
        of_sample = np.array([liars[sample] for sample in numbers.ids])
        rows += [
            {"lies by": "planted", "modality": modality} | lie_row(values, of_sample == modality)
            for modality, values in weights.items()
        ]
    return rows


def _summary(name: str, weights: Weights) -> list[dict[str, Any]]:
    return [
        {"run": name, "modality": modality, "n": values.shape[1]}
        | _distribution(values.ravel())
        | {"mean": format_spread(values.mean(axis=1).tolist())}
        for modality, values in weights.items()
    ]


def _alarm(name: str, weights: Weights) -> str:
    if "text" not in weights:
        return f"{name} reads no text."
    mean = float(weights["text"].mean())
    if mean > TEXT_ALARM:
        return (
            f"**Alarm, {name}:** the mean text weight is {format_number(mean)}, above {TEXT_ALARM:g}: the other "
            "modalities hardly count."
        )
    return f"{name}: the mean text weight is {format_number(mean)}, not above {TEXT_ALARM:g}: no alarm."


def _draw(figure: Figure, found: Mapping[str, Weights]) -> None:
    modalities = list(dict.fromkeys(name for weights in found.values() for name in weights))
    edges = np.linspace(0, 1, _BINS + 1)
    figure.set_size_inches(2.4 * len(modalities), 0.4 + 1.9 * len(found))
    axes = figure.subplots(len(found), len(modalities), squeeze=False, sharex=True, sharey="row")
    for row, (name, weights) in zip(axes, found.items(), strict=True):
        row[0].set_ylabel(f"{name}\nshare of samples", fontsize=7)
        for axis, modality in zip(row, modalities, strict=True):
            values = weights.get(modality)
            if values is None:
                axis.set_visible(False)
                continue
            axis.hist(values.ravel(), bins=edges, weights=np.full(values.size, 1 / values.size))
            axis.axvline(values.mean(), color="C1")
            if modality == "text":
                axis.axvline(TEXT_ALARM, color=GREY, linestyle=":")
            axis.set_title(f"{modality}, mean {values.mean():.2f}", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("weight")
    figure.suptitle("all training seeds; orange: mean; dotted: a mean text weight above it is an alarm", fontsize=8)


def _draw_lies(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(row["run"] for row in rows))
    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    figure.set_size_inches(1.2 + 1.6 * len(modalities), 2.8)
    axis = figure.subplots()
    for place, modality in enumerate(modalities):
        for row in rows:
            if row["modality"] != modality:
                continue
            index = names.index(row["run"])
            x = place + 0.6 * ((index + 0.5) / len(names) - 0.5)
            area = row["AUC"]
            # The bootstrap interval of few samples need not hold the area itself.
            reach = [[max(0.0, area - row["AUC low"])], [max(0.0, row["AUC high"] - area)]]
            label = row["run"] if place == 0 else None
            axis.errorbar([x], [area], yerr=reach, fmt="o", markersize=3, linewidth=1, color=f"C{index}", label=label)
        best = next(row.get(_BEST) for row in rows if row["modality"] == modality)
        if best is not None:
            label = "best guess" if place == 0 else None
            axis.plot([place - 0.4, place + 0.4], [best, best], color="black", linewidth=1, label=label)
    axis.axhline(0.5, color=GREY, linestyle=":")
    axis.set_xticks(range(len(modalities)), modalities)
    axis.set_ylabel("AUC for a planted lie")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7)
