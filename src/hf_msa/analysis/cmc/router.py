"""Which modality the router listens to, and whether it listens less to one that lies (CMC).

The alarm is the paper's failure signature: a mean text weight above 0.7 is unimodal inference in disguise. The claim
behind the router is stronger, and can be tested where every modality was annotated by itself: its weight should be
lower in samples where its own class is not that of the whole. In a sample corpus that disagreement is partly the
annotators' noise on weak sentiment, so there the planted lies themselves are looked at, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.common.curves import distinct_names
from hf_msa.analysis.common.split_labels import BoolArray, planted_liars, read_labels
from hf_msa.analysis.tool_report import (
    GREY,
    drawn_figure,
    format_number,
    format_spread,
    rows_table,
    write_csv,
    write_markdown,
)
from hf_msa.errors import MsaError
from hf_msa.evaluation.results import PREDICTION_COLUMNS, PREDICTIONS_FILE, Predictions, Results, read_results
from hf_msa.evaluation.statistics import confidence_interval, mean_and_std, resample_counts

TEXT_ALARM = 0.7
"""A mean text weight above this is an alarm."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_PREFIX = "router_weights_"
_BINS = 20


@dataclass(frozen=True)
class RouterWeights:
    """The router's weights on complete data.

    Attributes:
        ids: The N sample ids.
        labels: Their labels (N,).
        seeds: The S training seeds.
        weights: Per modality (S, N).
    """

    ids: tuple[str, ...]
    labels: NDArray[np.float32]
    seeds: tuple[int | None, ...]
    weights: dict[str, NDArray[np.float64]]


def read_weights(run: str) -> RouterWeights:
    """Read the weights beside a result.

    Args:
        run: Folder with a ``results.json`` and its predictions.

    Raises:
        MsaError: If there are no predictions, none of complete data, or they are of a method without a router.
    """
    import pyarrow.parquet as pq

    path = Path(run)
    file = (path if path.is_dir() else path.parent) / PREDICTIONS_FILE
    if not file.is_file():
        raise MsaError(f"There are no predictions at {file}; evaluate the model again to write them.")
    names = [name for name in pq.read_schema(file).names if name.startswith(_PREFIX)]
    if not names:
        raise MsaError(f"The predictions at {file} hold no router weights; give an evaluated run of 'cmc'.")
    table = pq.read_table(file, columns=[*PREDICTION_COLUMNS, *names])
    weights = {}
    for name in names:
        grid = Predictions.from_table(table.drop_columns("prediction").rename_columns({name: "prediction"}))
        if 0.0 not in grid.rates:
            raise MsaError(
                f"{run} was not evaluated on complete data (its rates are {', '.join(map(str, grid.rates))}); evaluate "
                "it with --protocol complete."
            )
        scores = grid.scores[:, :, grid.rates.index(0.0)]
        weights[name.removeprefix(_PREFIX)] = scores.mean(axis=1, dtype=np.float64)
    return RouterWeights(grid.ids, grid.labels, grid.training_seeds, weights)


def weight_rows(found: RouterWeights) -> list[dict[str, Any]]:
    """One row per training seed and modality: n, mean, standard deviation over samples, quantiles."""
    return [
        {"training seed": seed, "modality": modality, "n": values.shape[1]} | _distribution(values[index])
        for index, seed in enumerate(found.seeds)
        for modality, values in found.weights.items()
    ]


def lie_row(weights: NDArray[np.float64], lies: BoolArray) -> dict[str, Any]:
    """Compare a modality's weight where it lies with its weight elsewhere.

    Args:
        weights: (S, N) for S training seeds.
        lies: Where it lies, (N,).

    Returns:
        Numbers of samples, both means, and their difference (lying minus others), which is negative where the router
        does what it is for, with a 95 % bootstrap interval over samples of the seeds' mean weight and its standard
        deviation over seeds; NaN where one side is empty.
    """
    sides = {"lying": lies, "others": ~lies}
    row: dict[str, Any] = {f"n {name}": int(inside.sum()) for name, inside in sides.items()}
    if not lies.any() or lies.all():
        return row | dict.fromkeys(
            ("weight lying", "weight others", "difference", "low", "high", "sd over seeds"), float("nan")
        )
    means = {name: weights[:, inside].mean(axis=1) for name, inside in sides.items()}
    counts = resample_counts(weights.shape[1])
    drawn = _side_means(counts, weights.mean(axis=0), lies) - _side_means(counts, weights.mean(axis=0), ~lies)
    low, high = confidence_interval(drawn)
    difference, spread = mean_and_std((means["lying"] - means["others"]).tolist())
    return row | {
        **{f"weight {name}": float(values.mean()) for name, values in means.items()},
        "difference": difference,
        "low": low,
        "high": high,
        "sd over seeds": spread,
    }


def analyze_router(runs: Sequence[str], *, output: Path, data: str | None = None) -> list[Path]:
    """Write how the router's weights are distributed, and with data whether they fall where a modality lies.

    Args:
        runs: Evaluated CMC runs, e.g. the method and an ablation of its router.
        output: The folder to write to.
        data: Folder or Hub name of the data set that they were evaluated on, for its unimodal labels.

    Raises:
        MsaError: If a run was not evaluated on complete data, has no router, or on other data.
    """
    results = [read_results(run) for run in runs]
    names = distinct_names(runs, results)
    found = {name: read_weights(run) for name, run in zip(names, runs, strict=True)}
    table = [{"run": name, **row} for name, weights in found.items() for row in weight_rows(weights)]
    written = [write_csv(output / "router.csv", table)]
    lies: list[dict[str, Any]] = []
    if data is not None:
        for name, result in zip(names, results, strict=True):
            lies += [{"run": name, **row} for row in _lie_rows(found[name], data, result, name)]
    if lies:
        written.append(write_csv(output / "lies.csv", lies))
    written.append(
        write_markdown(
            output / "router.md",
            "# Weights of the router",
            f"{results[0]['dataset']['name']}, {results[0]['dataset']['split']} split, complete data. Mean ± is the "
            "standard deviation over training seeds; sd and quantiles are over samples, all seeds together.",
            rows_table([row for name, weights in found.items() for row in _summary(name, weights)]),
            "\n".join(_alarm(name, weights) for name, weights in found.items()),
            _lie_section(lies, data),
        )
    )
    _draw(output / "router", found, written)
    return written


def _distribution(values: NDArray[np.float64]) -> dict[str, float]:
    mean, std = mean_and_std(values.tolist())
    quantiles = np.quantile(values, QUANTILES).tolist()
    return {"mean": mean, "sd": std} | {f"q{100 * q:02.0f}": v for q, v in zip(QUANTILES, quantiles, strict=True)}


def _side_means(counts: NDArray[np.float64], values: NDArray[np.float64], inside: BoolArray) -> NDArray[np.float64]:
    """The mean of `values` over one side in every resample; NaN where it holds none of that side."""
    total = counts @ inside
    means: NDArray[np.float64] = np.divide(
        counts @ (values * inside), total, out=np.full(len(counts), np.nan), where=total > 0
    )
    return means


def _lie_rows(found: RouterWeights, data: str, result: Results, name: str) -> list[dict[str, Any]]:
    split = result["dataset"]["split"]
    labels = read_labels(data, split).of(found.ids, found.labels, name)
    rows = [
        {"lies by": "own label", "modality": modality} | lie_row(weights, labels.disagreeing(modality))
        for modality, weights in found.weights.items()
        if modality in labels.unimodal
    ]
    liars = planted_liars(data, split)
    if liars is not None:
        of_sample = np.array([liars[name] for name in found.ids])
        rows += [
            {"lies by": "planted", "modality": modality} | lie_row(weights, of_sample == modality)
            for modality, weights in found.weights.items()
        ]
    return rows


def _summary(name: str, found: RouterWeights) -> list[dict[str, Any]]:
    rows = []
    for modality, values in found.weights.items():
        pooled = _distribution(values.ravel())
        pooled.pop("mean")
        row = {"run": name, "modality": modality, "n": values.shape[1]}
        rows.append(row | {"mean": format_spread(values.mean(axis=1).tolist())} | pooled)
    return rows


def _alarm(name: str, found: RouterWeights) -> str:
    if "text" not in found.weights:
        return f"{name} reads no text."
    mean = float(found.weights["text"].mean())
    if mean > TEXT_ALARM:
        return (
            f"**Alarm, {name}:** the mean text weight is {format_number(mean)}, above {TEXT_ALARM:g}: the other "
            "modalities hardly count."
        )
    return f"{name}: the mean text weight is {format_number(mean)}, not above {TEXT_ALARM:g}: no alarm."


def _lie_section(lies: Sequence[Mapping[str, Any]], data: str | None) -> str:
    title = "## Weight of a modality where it lies\n\n"
    if data is None:
        return title + "Not looked at; give the data set with --data."
    if not lies:
        return title + "The data set has no label per modality, so nothing says where one lies."
    text = (
        "By own label: the class of the modality's own label is not that of the multimodal label."
        + (
            " Planted: the modality that the generator made lie."
            if any(r["lies by"] == "planted" for r in lies)
            else ""
        )
        + " The difference is lying minus others, with its 95 % bootstrap interval over samples (weights averaged over "
        "training seeds) and its standard deviation over seeds; below zero, the router trusts a lying modality less."
    )
    shown = [dict(row) for row in lies]
    return title + text + "\n\n" + rows_table(shown)


def _draw(stem: Path, found: Mapping[str, RouterWeights], written: list[Path]) -> None:
    modalities = list(dict.fromkeys(name for weights in found.values() for name in weights.weights))
    edges = np.linspace(0, 1, _BINS + 1)
    with drawn_figure(stem, 2.4 * len(modalities), 0.4 + 1.9 * len(found), written) as figure:
        axes = figure.subplots(len(found), len(modalities), squeeze=False, sharex=True, sharey="row")
        for row, (name, weights) in zip(axes, found.items(), strict=True):
            row[0].set_ylabel(f"{name}\nshare of samples", fontsize=7)
            for axis, modality in zip(row, modalities, strict=True):
                values = weights.weights.get(modality)
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
        figure.suptitle(
            "all training seeds; orange: mean; dotted: a mean text weight above it is an alarm", fontsize=8
        )
