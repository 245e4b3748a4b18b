"""Risk over coverage: how the error falls when a model may leave out what it is unsure of.

Samples go in order of certainty; at coverage c the risk is the mean loss of the surest share c. The area under the curve
is the mean risk over all coverages: a useless uncertainty has the risk of all samples everywhere, so the area is to be
read beside that. Two losses: the absolute error, and wrong polarity (neutral labels left out), for which there is the
AUROC as well. Any method with predictions has the trivial uncertainty, minus the size of the score. An expert's is shown
where it answered all samples (route ``"mllm"``); a curve of those that it was handed would be one of hard samples alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_msa.analysis.common.prediction_columns import (
    SampleNumbers,
    Uncertainty,
    check_same_samples,
    read_named_numbers,
    uncertainties,
)
from hf_msa.analysis.estimates import Estimate, Floats, format_spread
from hf_msa.analysis.tool_report import Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.errors import MsaError
from hf_msa.evaluation.statistics import all_and_resampled
from hf_msa.evaluation.uncertainty import auroc, coverage_risks, polarity_errors

COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
"""Where the curve is written down."""

_RISKS = {"mae": "MAE", "polarity": "share of wrong polarity"}


@tool("risk-coverage", "error when the least certain samples are left out, several runs in one figure")
def analyze_risk_coverage(runs: Sequence[str], report: Report) -> None:
    """Show the risk-coverage curves of every uncertainty of one or several runs, the areas under them, and AUROC.

    Args:
        runs: Evaluated runs of any methods, on the same samples.
        report: Takes what is found.

    Raises:
        MsaError: If a run was not evaluated on complete data, or on other samples than the first.
    """
    found = read_named_numbers(runs)
    first, *others = found.values()
    check_same_samples([first, *others])
    curves: dict[str, dict[str, Floats]] = {}
    table, summary = [], []
    for name, numbers in found.items():
        for kind in uncertainties(numbers):
            if not np.isfinite(kind.values).all():
                continue
            curve = {risk: risk_curves(numbers, kind, risk) for risk in _RISKS}
            curves[f"{name}, {kind.name}"] = curve
            key = {"run": name, "uncertainty": kind.name}
            table += [key | row for row in curve_rows(curve)]
            summary.append(key | area_row(numbers, kind, curve))
    if not curves:
        raise MsaError("None of the runs has an uncertainty for every sample; evaluate them again.")
    report.csv("risk_coverage.csv", table)
    report.summary(
        "risk_coverage.md",
        "Risk over coverage",
        f"{first.data_text}. Area: the mean risk over all coverages; it is as high as the risk of all samples where the "
        "uncertainty says nothing. ± is the standard deviation over training seeds, brackets are 95 % bootstrap intervals "
        "over samples.",
        summary,
    )
    report.figure("risk_coverage", _draw, curves)


def losses(numbers: SampleNumbers, scores: Floats, risk: str) -> tuple[Floats, np.ndarray]:
    """The loss of each sample's score (S, N), by one of `_RISKS`, and whether it counts, both (S, N)."""
    if risk == "polarity":
        judged, wrong = polarity_errors(scores, numbers.labels, numbers.family)
        return wrong.astype(np.float64), judged
    # As the metric of this label family.
    clipped = np.clip(scores, numbers.family.low, numbers.family.high) if numbers.family.clip else scores
    return np.abs(clipped - numbers.labels), np.ones(scores.shape, dtype=bool)


def risk_curves(numbers: SampleNumbers, kind: Uncertainty, risk: str) -> Floats:
    """The risk at each coverage 1/n, 2/n, ... 1 per training seed, (S, n)."""
    loss, judged = losses(numbers, kind.scores, risk)
    return np.stack([coverage_risks(u[j], v[j]) for u, v, j in zip(kind.values, loss, judged, strict=True)])


def curve_rows(curves: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """The curves at `COVERAGES`: means over seeds, each at the nearest number of samples, but at least one."""
    return [
        {"coverage": coverage}
        | {
            risk: float(values[:, max(round(coverage * values.shape[1]), 1) - 1].mean())
            for risk, values in curves.items()
        }
        for coverage in COVERAGES
    ]


def area_row(numbers: SampleNumbers, kind: Uncertainty, curves: Mapping[str, Floats]) -> dict[str, Any]:
    """Risk of all samples, area under the curve, and AUROC, as table cells."""
    counts = all_and_resampled(len(numbers.ids))
    row: dict[str, Any] = {}
    for risk, values in curves.items():
        loss, judged = losses(numbers, kind.scores, risk)
        row[f"{risk}, all"] = format_spread(values[:, -1].tolist())
        row[f"{risk}, area"] = Estimate.of(
            [
                [coverage_risks(u[j], v[j], times[j]).mean() for times in counts]
                for u, v, j in zip(kind.values, loss, judged, strict=True)
            ]
        )
    judged, wrong = polarity_errors(kind.scores, numbers.labels, numbers.family)
    triples = zip(kind.values, wrong, judged, strict=True)
    return row | {"AUROC": Estimate.of([auroc(u[j], w[j], counts[:, j]) for u, w, j in triples])}


def _draw(figure: Figure, curves: Mapping[str, Mapping[str, Floats]]) -> None:
    figure.set_size_inches(8.0, 3.4)
    panels = figure.subplots(1, len(_RISKS))
    for panel, (risk, title) in zip(panels, _RISKS.items(), strict=True):
        for name, of in curves.items():
            mean = of[risk].mean(axis=0)
            coverage = np.arange(1, len(mean) + 1) / len(mean)
            # The first few samples are no mean of anything.
            shown = coverage >= COVERAGES[0]
            panel.plot(coverage[shown], mean[shown], linewidth=1.2, label=name)
        panel.set_xlabel("coverage: share of samples, surest first")
        panel.set_ylabel(title)
    panels[0].legend(frameon=False, fontsize=6)
