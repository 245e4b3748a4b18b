"""Consistency gap: how much worse a method does where the modalities contradict each other (CMC, on D_msc and D_msi).

Two-class accuracy on the samples whose modalities agree and on those whose modalities do not, and the gap between the
two, for any method with predictions on data with labels per modality. One bootstrap resample draws the rows of both
subsets and for all runs together, so the difference between two runs' gaps is paired. Samples whose modalities agree
may be easier for any method: a gap says less than its difference to that of a fusion that cannot tell who lies, such as
CMC's ablation mean_fusion.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.common.split_labels import read_labels
from hf_msa.analysis.estimates import Estimate, Rows, bars
from hf_msa.analysis.tool_report import Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS, resampled_metrics
from hf_msa.evaluation.report import distinct_names
from hf_msa.evaluation.results import Predictions, read_predictions, read_results
from hf_msa.evaluation.statistics import all_and_resampled, paired_p_value
from hf_msa.evaluation.subsets import DEFAULT_RULE, SUBSETS, Subset
from hf_msa.figures import label_lines
from hf_msa.label_families import AnyFamily, find_label_family
from hf_msa.models.msa_schema import UNIMODAL_LABEL_KEYS

GAP_ALARM = 0.25
"""A gap above this is an alarm."""

_METRICS = ("class_has0_acc2", "has0_acc2", "acc2")


def subset_scores(grid: Predictions, family: AnyFamily, inconsistent: NDArray[np.bool_]) -> dict[str, Any]:
    """Score predictions on both subsets.

    Args:
        grid: Predictions of N samples.
        family: Of the labels; it decides the accuracy where there are no three class logits.
        inconsistent: Which samples are, (N,).

    Returns:
        ``metric``, which accuracy; it of each of `SUBSETS`, averaged over mask seeds and rates; and the ``gap``,
        consistent minus inconsistent.
    """
    known = grid.metric_names(family)
    metric = next((name for name in _METRICS if name in known), find_label_family(family).main_accuracy)
    counts = all_and_resampled(len(grid.ids))
    row: dict[str, Any] = {"metric": metric}
    for subset, inside in zip(SUBSETS, (~inconsistent, inconsistent), strict=True):
        cells = np.empty((*grid.scores.shape[:3], len(counts)))
        for cell in np.ndindex(*cells.shape[:3]):
            logits = None if grid.class_logits is None else grid.class_logits[cell][inside]
            # To leave out a subset is to draw none of it; a resample without any sample of a small one has no value in it.
            with np.errstate(invalid="ignore", divide="ignore"):
                scored = resampled_metrics(
                    grid.scores[cell][inside], grid.labels[inside], family, counts[:, inside], logits
                )
            cells[cell] = scored[metric]
        row[subset] = Estimate.of(cells.mean(axis=(1, 2)))
    return row | {"gap": row["consistent"] - row["inconsistent"]}


def difference_row(first: Estimate, other: Estimate) -> dict[str, float]:
    """How much wider another run's gap is than the first's, with a paired 95 % bootstrap interval and p-value."""
    difference = other - first
    low, high = difference.bounds
    p = paired_p_value(first.resampled, other.resampled)
    return {"gap minus first": difference.mean, "low": low, "high": high, "p": p}


@tool("consistency-gap", "accuracy where the modalities agree and where they do not, several runs in one table")
def analyze_consistency_gap(
    runs: Sequence[str], report: Report, *, data: str, subset_rule: str = DEFAULT_RULE
) -> None:
    """Show accuracy on consistent and inconsistent samples, the gap, and how the gaps of several runs differ.

    Args:
        runs: Folders with a ``results.json`` and its predictions, of any methods, evaluated on the same samples; the first
            is what the others are compared with.
        report: Takes what is found.
        data: Folder or Hub name of the data set that they were evaluated on, with labels per modality.
        subset_rule: What is inconsistent: differs_from_M, not_all_equal or polarity_conflict.

    Raises:
        MsaError: If a run has no predictions, the runs differ in samples or protocol, or the data has no labels per
            modality.
    """
    results = [read_results(run) for run in runs]
    names = distinct_names(runs, results)
    grids = [read_predictions(run) for run in runs]
    for name, result, grid in zip(names[1:], results[1:], grids[1:], strict=True):
        same = grid.fingerprint == grids[0].fingerprint and grid.rates == grids[0].rates
        if not same or result["protocol"]["name"] != results[0]["protocol"]["name"]:
            raise MsaError(
                f"{names[0]} and {name} were evaluated on other samples or under another protocol, so their gaps "
                "cannot be compared; evaluate both alike."
            )
    dataset = results[0]["dataset"]
    labels = read_labels(data, dataset["split"]).of(grids[0].ids, grids[0].labels, names[0])
    unimodal = {UNIMODAL_LABEL_KEYS[modality]: values for modality, values in labels.unimodal.items()}
    # Each subset is asked for, because neither may be empty.
    chosen = {
        subset: Subset(subset, subset_rule).rows(labels.multimodal, unimodal, labels.family) for subset in SUBSETS
    }
    inconsistent = np.isin(np.arange(len(labels.ids)), chosen["inconsistent"])
    scores = [subset_scores(grid, dataset["label_family"], inconsistent) for grid in grids]
    table = [
        {"run": name, **own, "alarm": own["gap"].mean > GAP_ALARM} for name, own in zip(names, scores, strict=True)
    ]
    differences: list[dict[str, Any]] = [
        {"run": row["run"], **difference_row(table[0]["gap"], row["gap"])} for row in table[1:]
    ]
    report.csv("consistency.csv", table)
    report.csv("differences.csv", differences)
    report.summary(
        "consistency.md",
        "Consistent and inconsistent samples",
        f"{dataset['name']}, {dataset['split']} split, rule {subset_rule}: {len(chosen['consistent'])} consistent and "
        f"{len(chosen['inconsistent'])} inconsistent samples; protocol {results[0]['protocol']['name']}, mean over "
        f"{', '.join(map(str, grids[0].rates))}. ± is the standard deviation over training seeds, brackets hold 95 % "
        "bootstrap intervals over samples; percent, and points for the gap.",
        [
            {"run": row["run"], "metric": METRICS[row["metric"]].pretty}
            | {name: (row[name] * 100).text(2) for name in (*SUBSETS, "gap")}
            for row in table
        ],
        "\n".join(f"- {_alarm(row)}" for row in table),
    )
    if differences:
        report.section(
            "Differences between gaps",
            "Paired over samples, of these trained models; above zero, the first run's gap is the smaller one.",
            [
                {
                    "run": row["run"],
                    f"gap minus that of {names[0]}": f"{100 * row['gap minus first']:+.2f} [{100 * row['low']:.2f}, "
                    f"{100 * row['high']:.2f}]",
                    "p": row["p"],
                }
                for row in differences
            ],
        )
    report.figure("consistency", _draw, table)


def _alarm(row: Mapping[str, Any]) -> str:
    if row["alarm"]:
        return f"**Alarm, {row['run']}:** the gap is above {100 * GAP_ALARM:g} points."
    return f"{row['run']}: the gap is not above {100 * GAP_ALARM:g} points: no alarm."


def _draw(figure: Figure, table: Rows) -> None:
    figure.set_size_inches(2.4 + 1.2 * len(table), 2.8)
    axis = figure.subplots()
    for offset, subset in zip((-0.2, 0.2), SUBSETS, strict=True):
        values, errors = bars([row[subset] * 100 for row in table])
        axis.bar(np.arange(len(table)) + offset, values, width=0.36, yerr=errors, label=subset, capsize=2)
    axis.set_xticks(
        range(len(table)), [f"{label_lines(row['run'])}\ngap {100 * row['gap'].mean:.1f}" for row in table], fontsize=7
    )
    axis.set_ylabel(" / ".join(dict.fromkeys(METRICS[row["metric"]].pretty for row in table)) + " (%)")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
