"""How the error falls when a model may leave out what it is unsure of: the risk-coverage curve.

Samples go in order of certainty; at coverage c the risk is the mean loss of the surest share c. The area under the curve
is the mean risk over all coverages: a useless uncertainty has the risk of all samples everywhere, so the area is to be
read beside that. Two losses: the absolute error, and wrong polarity (neutral labels left out), for which there is the
AUROC as well. Any method with predictions has the trivial uncertainty, minus the size of the score. An expert's is shown
where it answered all samples (route ``"mllm"``); a curve of those that it was handed would be one of hard samples alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_msa.analysis.common.curves import distinct_names
from hf_msa.analysis.common.prediction_columns import (
    Floats,
    SampleNumbers,
    Uncertainty,
    check_same_samples,
    read_numbers,
    uncertainties,
)
from hf_msa.analysis.tool_report import (
    drawn_figure,
    format_number,
    format_spread,
    rows_table,
    write_csv,
    write_markdown,
)
from hf_msa.errors import MsaError
from hf_msa.evaluation.report import split_text
from hf_msa.evaluation.statistics import confidence_interval, resample_counts
from hf_msa.evaluation.uncertainty import auroc, coverage_risks, polarity_errors

COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
"""Where the curve is written down."""

_RISKS = {"mae": "MAE", "polarity": "share of wrong polarity"}


def analyze_risk_coverage(runs: Sequence[str], *, output: Path) -> list[Path]:
    """Write the risk-coverage curves of every uncertainty of one or several runs, the areas under them, and AUROC.

    Args:
        runs: Evaluated runs of any methods, on the same samples.
        output: The folder to write to.

    Raises:
        MsaError: If a run was not evaluated on complete data, or on other samples than the first.
    """
    found = [read_numbers(run) for run in runs]
    check_same_samples(found)
    names = distinct_names(runs, [numbers.results for numbers in found])
    curves: dict[str, dict[str, Floats]] = {}
    table, summary = [], []
    for name, numbers in zip(names, found, strict=True):
        for kind in uncertainties(numbers):
            if not np.isfinite(kind.values).all():
                continue
            label = f"{name}, {kind.name}"
            curves[label] = {risk: risk_curves(numbers, kind, risk) for risk in _RISKS}
            key = {"run": name, "uncertainty": kind.name}
            table += [key | row for row in curve_rows(curves[label])]
            summary.append(key | area_row(numbers, kind, curves[label]))
    if not curves:
        raise MsaError("None of the runs has an uncertainty for every sample; evaluate them again.")
    written = [
        write_csv(output / "risk_coverage.csv", table),
        write_markdown(
            output / "risk_coverage.md",
            "# Risk over coverage",
            f"{found[0].results['dataset']['name']}, {split_text(found[0].results)}, complete data. Area: the mean risk "
            "over all coverages; it is as high as the risk of all samples where the uncertainty says nothing. ± is the "
            "standard deviation over training seeds, brackets are 95 % bootstrap intervals over samples.",
            rows_table(summary),
        ),
    ]
    _draw(output / "risk_coverage", curves, written)
    return written


def losses(numbers: SampleNumbers, scores: Floats, risk: str) -> tuple[Floats, np.ndarray]:
    """The loss of each sample and whether it counts, both (S, N).

    Args:
        numbers: The run.
        scores: What is judged (S, N).
        risk: ``"mae"`` or ``"polarity"``.
    """
    if risk == "polarity":
        counted, wrong = polarity_errors(scores, numbers.labels)
        return wrong.astype(np.float64), counted
    # As the metric of this label family.
    clipped = np.clip(scores, -1, 1) if numbers.family == "sims" else scores
    return np.abs(clipped - numbers.labels), np.ones(scores.shape, dtype=bool)


def risk_curves(numbers: SampleNumbers, kind: Uncertainty, risk: str) -> Floats:
    """The risk at each coverage 1/n, 2/n, ... 1 per training seed, (S, n)."""
    loss, counted = losses(numbers, kind.scores, risk)
    return np.stack([coverage_risks(u[c], v[c]) for u, v, c in zip(kind.values, loss, counted, strict=True)])


def curve_rows(curves: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """The curves at `COVERAGES`: means over seeds, each at the nearest number of samples, but at least one."""
    return [
        {
            "coverage": coverage,
            **{
                risk: float(values[:, max(round(coverage * values.shape[1]), 1) - 1].mean())
                for risk, values in curves.items()
            },
        }
        for coverage in COVERAGES
    ]


def area_row(numbers: SampleNumbers, kind: Uncertainty, curves: Mapping[str, Floats]) -> dict[str, Any]:
    """Risk of all samples, area under the curve with its interval, and AUROC, as table cells."""
    draws = resample_counts(len(numbers.ids))
    row: dict[str, Any] = {}
    for risk, values in curves.items():
        loss, counted = losses(numbers, kind.scores, risk)
        drawn = np.zeros(len(draws))
        for u, v, c in zip(kind.values, loss, counted, strict=True):
            drawn += [coverage_risks(u[c], v[c], counts[c]).mean() / len(loss) for counts in draws]
        row[f"{risk}, all"] = format_spread(values[:, -1].tolist())
        row[f"{risk}, area"] = _with_interval(values.mean(axis=1).tolist(), drawn)
    counted, wrong = polarity_errors(kind.scores, numbers.labels)
    pairs = list(zip(kind.values, wrong, counted, strict=True))
    ranked = [float(auroc(u[c], w[c])[0]) for u, w, c in pairs]
    drawn = np.mean([auroc(u[c], w[c], draws[:, c]) for u, w, c in pairs], axis=0)
    return row | {"AUROC": _with_interval(ranked, drawn)}


def _with_interval(values: Sequence[float], drawn: Floats) -> str:
    low, high = (format_number(end) for end in confidence_interval(drawn))
    return f"{format_spread(values)} [{low}, {high}]"


def _draw(stem: Path, curves: Mapping[str, Mapping[str, Floats]], written: list[Path]) -> None:
    with drawn_figure(stem, 8.0, 3.4, written) as figure:
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
