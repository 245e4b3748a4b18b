"""Consistency gap: how much worse a method does where the modalities contradict each other (CMC, on D_msc and D_msi).

Two-class accuracy on the samples whose modalities agree and on those whose modalities do not, and the gap between the
two, for any method with predictions on data with labels per modality. One bootstrap resample draws the rows of both
subsets and for all runs together, so the difference between two runs' gaps is paired. Samples whose modalities agree
may be easier for any method: a gap says less than its difference to that of a fusion that cannot tell who lies, such as
CMC's ablation mean_fusion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.common.split_labels import read_labels
from hf_msa.analysis.tool_report import Report, Rows
from hf_msa.analysis.tools import tool
from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS, resampled_metrics
from hf_msa.evaluation.report import distinct_names
from hf_msa.evaluation.results import Predictions, read_predictions, read_results
from hf_msa.evaluation.statistics import confidence_interval, mean_and_std, paired_p_value, resample_counts
from hf_msa.evaluation.subsets import DEFAULT_RULE, SUBSETS, Subset
from hf_msa.models.msa_schema import UNIMODAL_LABEL_KEYS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP_ALARM = 0.25
"""A gap above this is an alarm."""

_CLASS_METRIC = "class_has0_acc2"
_METRIC = {"mosi": "has0_acc2", "sims": "acc2"}


@dataclass(frozen=True)
class SubsetScores:
    """A run's accuracy on both subsets.

    Attributes:
        metric: Which accuracy.
        per_seed: Per subset the S training seeds' values, averaged over mask seeds and rates (S,).
        drawn: Per subset its value in every resample, averaged over seeds, too (resamples,).
    """

    metric: str
    per_seed: dict[str, NDArray[np.float64]]
    drawn: dict[str, NDArray[np.float64]]

    @property
    def gaps(self) -> NDArray[np.float64]:
        """Consistent minus inconsistent, per training seed (S,)."""
        return self.per_seed["consistent"] - self.per_seed["inconsistent"]

    @property
    def drawn_gaps(self) -> NDArray[np.float64]:
        """Consistent minus inconsistent, per resample."""
        return self.drawn["consistent"] - self.drawn["inconsistent"]


def subset_scores(grid: Predictions, family: str, inconsistent: NDArray[np.bool_]) -> SubsetScores:
    """Score predictions on both subsets.

    Args:
        grid: Predictions of N samples.
        family: Label family; it decides the accuracy where there are no three class logits.
        inconsistent: Which samples are, (N,).
    """
    metric = _CLASS_METRIC if _CLASS_METRIC in grid.metric_names(family) else _METRIC[family]
    # The first row counts every sample once; to leave out a subset is to draw none of it.
    counts = np.concatenate([np.ones((1, len(grid.ids))), resample_counts(len(grid.ids))])
    per_seed, drawn = {}, {}
    for subset, inside in zip(SUBSETS, (~inconsistent, inconsistent), strict=True):
        cells = np.empty((*grid.scores.shape[:3], len(counts)))
        for cell in np.ndindex(*cells.shape[:3]):
            logits = None if grid.class_logits is None else grid.class_logits[cell][inside]
            # A resample without any sample of a small subset has no value in it.
            with np.errstate(invalid="ignore", divide="ignore"):
                scored = resampled_metrics(
                    grid.scores[cell][inside], grid.labels[inside], family, counts[:, inside], logits
                )
            cells[cell] = scored[metric]
        means = cells.mean(axis=(1, 2))
        per_seed[subset], drawn[subset] = means[:, 0], means[:, 1:].mean(axis=0)
    return SubsetScores(metric, per_seed, drawn)


def gap_row(scores: SubsetScores) -> dict[str, Any]:
    """Both accuracies and their gap: mean and standard deviation over seeds, 95 % bootstrap interval over samples."""
    row: dict[str, Any] = {"metric": scores.metric}
    for name, values, drawn in (
        *((subset, scores.per_seed[subset], scores.drawn[subset]) for subset in SUBSETS),
        ("gap", scores.gaps, scores.drawn_gaps),
    ):
        row[name], row[f"{name} sd"] = mean_and_std(values.tolist())
        row[f"{name} low"], row[f"{name} high"] = confidence_interval(drawn)
    return row | {"alarm": bool(row["gap"] > GAP_ALARM)}


def difference_row(first: SubsetScores, other: SubsetScores) -> dict[str, float]:
    """How much wider another run's gap is than the first's, with a paired 95 % bootstrap interval and p-value."""
    low, high = confidence_interval(other.drawn_gaps - first.drawn_gaps)
    return {
        "gap minus first": float(other.gaps.mean() - first.gaps.mean()),
        "low": low,
        "high": high,
        "p": paired_p_value(first.drawn_gaps, other.drawn_gaps),
    }


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
    chosen = {subset: Subset(subset, subset_rule).rows(labels.multimodal, unimodal) for subset in SUBSETS}
    inconsistent = np.isin(np.arange(len(labels.ids)), chosen["inconsistent"])
    scores = [subset_scores(grid, dataset["label_family"], inconsistent) for grid in grids]
    table = [{"run": name, **gap_row(own)} for name, own in zip(names, scores, strict=True)]
    differences: list[dict[str, Any]] = [
        {"run": name, **difference_row(scores[0], other)} for name, other in zip(names[1:], scores[1:], strict=True)
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
            | {name: _percent(row, name) for name in (*SUBSETS, "gap")}
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


def _percent(row: Mapping[str, Any], name: str) -> str:
    spread = "" if np.isnan(row[f"{name} sd"]) else f" ± {100 * row[f'{name} sd']:.2f}"
    return f"{100 * row[name]:.2f}{spread} [{100 * row[f'{name} low']:.2f}, {100 * row[f'{name} high']:.2f}]"


def _alarm(row: Mapping[str, Any]) -> str:
    if row["alarm"]:
        return f"**Alarm, {row['run']}:** the gap is above {100 * GAP_ALARM:g} points."
    return f"{row['run']}: the gap is not above {100 * GAP_ALARM:g} points: no alarm."


def _draw(figure: "Figure", table: Rows) -> None:
    figure.set_size_inches(2.4 + 1.2 * len(table), 2.8)
    axis = figure.subplots()
    for offset, subset in zip((-0.2, 0.2), SUBSETS, strict=True):
        values, low, high = (100 * np.array([row[f"{subset}{end}"] for row in table]) for end in ("", " low", " high"))
        # A percentile interval can leave out the mean of a small sample; a bar cannot have a negative length.
        bars = np.clip([values - low, high - values], 0, None)
        axis.bar(np.arange(len(table)) + offset, values, width=0.36, yerr=bars, label=subset, capsize=2)
    axis.set_xticks(range(len(table)), [f"{row['run']}\ngap {100 * row['gap']:.1f}" for row in table], fontsize=7)
    axis.set_ylabel(" / ".join(dict.fromkeys(METRICS[row["metric"]].pretty for row in table)) + " (%)")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
