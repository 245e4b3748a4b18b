"""Uncertainty of UBM and U-ACS against wrong polarity: how it is spread where the polarity is right and where it is not.

The paper's Figure 3: histograms of the uncertainty for same and opposite polarity, with a normal curve through each and
the threshold. The curves are of the samples that are shown; the threshold is not, it comes from validation alone, out of
the checkpoint's configuration or from the run's result on the validation split.

Beside each uncertainty stands the trivial one, minus the size of the score: a model that says nothing of its certainty
has it, too. What both tell is measured by the AUROC for polarity errors and by the share of errors among the samples that
count as sure and among the others. Where the trivial one has no threshold of its own, as many samples count as sure as by
the model's own uncertainty; where there is no threshold at all, the surer half. Neutral labels have no polarity and are
left out throughout.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.common.prediction_columns import (
    EXPERT,
    OWN,
    TRIVIAL,
    SampleNumbers,
    Uncertainty,
    read_named_numbers,
    read_numbers,
    uncertainties,
)
from hf_msa.analysis.estimates import Estimate, Floats, Rows, format_number, format_spread
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.analysis.uacs.calibrations import Calibration, calibrations
from hf_msa.errors import MsaError
from hf_msa.evaluation.statistics import all_and_resampled, resampled_means
from hf_msa.evaluation.uncertainty import auroc, polarity_errors
from hf_msa.training.uacs.thresholds import Gaussian, fit_agreement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Flags = NDArray[np.bool_]

_BINS = 25


_Panel = tuple[str, SampleNumbers, Uncertainty, Sequence[Calibration]]
"""A panel of the figure: its title, the labels of the samples (N,), the uncertainty, and its threshold per seed."""


@tool("uncertainty", "the uncertainty where polarity is right and where it is wrong", methods=("ubm", "uacs"))
def analyze_uncertainty(runs: Sequence[str], report: Report, *, validation: Sequence[str] | None = None) -> None:
    """Show histograms, fits, and what each uncertainty tells of polarity errors.

    Args:
        runs: Evaluated runs of UBM or U-ACS, e.g. one per kind of uncertainty.
        report: Takes what is found.
        validation: Results of the same runs on the validation split, in the same order; without them thresholds are known
            only where a checkpoint's configuration has them.

    Raises:
        MsaError: If a run has no uncertainty, was not evaluated on complete data, or a result on validation is none.
    """
    found = read_named_numbers(runs)
    for numbers in found.values():
        numbers.require("uncertainty", method="ubm' or 'uacs")
    if validation is not None and len(validation) != len(runs):
        raise MsaError(f"--validation names {len(validation)} results for {len(runs)} runs; give one for each.")
    held_out = [None] * len(runs) if validation is None else [read_numbers(run) for run in validation]
    fits, errors, panels = [], [], []
    for (name, numbers), other in zip(found.items(), held_out, strict=True):
        taus = calibrations(numbers, other)
        for kind in uncertainties(numbers):
            known = taus.get(kind.whose) or [Calibration(None, None)] * len(numbers.seeds)
            fits += [{"run": name, **row} for row in fit_rows(numbers, kind, known)]
            sure, rule = sure_samples(numbers, kind, taus)
            errors.append({"run": name, "uncertainty": kind.name, "sure by": rule, **error_row(numbers, kind, sure)})
            panels.append((f"{name}: {kind.name}", numbers, kind, known))
    report.csv("uncertainty.csv", errors)
    report.csv("fits.csv", fits)
    report.summary(
        "uncertainty.md",
        "Uncertainty and wrong polarity",
        f"{next(iter(found.values())).data_text}, samples with a label "
        "that is not neutral. ± is the standard deviation over training seeds, brackets are 95 % bootstrap intervals over "
        "samples. AUROC: how likely a sample with a wrong polarity is more uncertain than one with the right one. "
        "-|score| is the trivial uncertainty that any model has.",
        [row | {"n": format_number(row["n"], 0)} for row in errors],
    )
    absent = [title for title, _, kind, known in panels if kind.whose != TRIVIAL and _thresholds(known) is None]
    report.section(
        "Fits",
        "Of the samples shown; the threshold tau and its two means come from the validation split.",
        _fit_summary(fits),
        f"No threshold is known for {'; '.join(absent)}: give the run's result on the validation split with --validation."
        if absent
        else "",
    )
    report.figure("uncertainty", _draw, panels)


def sure_samples(numbers: SampleNumbers, kind: Uncertainty, taus: dict[str, list[Calibration]]) -> tuple[Flags, str]:
    """Which samples count as sure (S, N), and by what rule: ``tau``, ``equal share`` or ``half``.

    Args:
        numbers: The run.
        kind: The uncertainty.
        taus: Thresholds, see `calibrations`.
    """
    own = _thresholds(taus.get(kind.whose))
    if own is not None:
        return kind.values <= own[:, None], "tau"
    theirs = _thresholds(taus.get(OWN)) if kind.whose == TRIVIAL else None
    answered = np.isfinite(kind.values)
    counts = answered.sum(axis=1) // 2
    if theirs is not None:
        counts = (numbers.columns["uncertainty"] <= theirs[:, None]).sum(axis=1)
    ranks = np.where(answered, kind.values, np.inf).argsort(axis=1, kind="stable").argsort(axis=1)
    return (ranks < counts[:, None]) & answered, "half" if theirs is None else "equal share"


def _thresholds(known: Sequence[Calibration] | None) -> Floats | None:
    """One threshold per seed, or None where one is not known."""
    taus = [calibration.tau for calibration in known or ()]
    return None if not taus or None in taus else np.array(taus, dtype=np.float64)


def error_row(numbers: SampleNumbers, kind: Uncertainty, sure: Flags) -> dict[str, Any]:
    """What an uncertainty tells of polarity errors.

    Args:
        numbers: The run.
        kind: Its uncertainty.
        sure: Which samples count as sure (S, N).

    Returns:
        `n`, the mean number of samples that count; estimates of AUROC, share of samples that are not sure, and the shares
        of wrong polarities among the sure and the others.
    """
    judged, wrong = polarity_errors(kind.scores, numbers.labels, numbers.family)
    judged &= np.isfinite(kind.values)
    counts = all_and_resampled(len(numbers.ids))
    found = [
        {
            "auroc": auroc(values[inside], bad[inside], counts[:, inside]),
            "share unsure": resampled_means(~certain, counts, inside),
            "errors sure": resampled_means(bad, counts, inside & certain),
            "errors unsure": resampled_means(bad, counts, inside & ~certain),
        }
        for values, inside, bad, certain in zip(kind.values, judged, wrong, sure, strict=True)
    ]
    estimates = {name: Estimate.of([seed[name] for seed in found]) for name in found[0]}
    return {"n": float(judged.sum(axis=1).mean()), **estimates}


def fit_rows(numbers: SampleNumbers, kind: Uncertainty, known: Sequence[Calibration]) -> list[dict[str, Any]]:
    """Per training seed the normal distributions of both groups on the samples shown, and those behind the threshold."""
    rows = []
    for seed, scores, values, calibration in zip(numbers.seeds, kind.scores, kind.values, known, strict=True):
        fit = fit_agreement(scores, numbers.labels, values, numbers.family)
        row: dict[str, Any] = {"uncertainty": kind.name, "training seed": seed}
        for prefix, of in (("", fit), ("validation ", calibration.fit)):
            for name in ("same", "opposite"):
                group = None if of is None else getattr(of, name)
                row |= {f"{prefix}{name} {key}": getattr(group, key, None) for key in ("mean", "std", "n")}
        rows.append(row | {"tau": calibration.tau})
    return rows


def _fit_summary(fits: Rows) -> list[dict[str, Any]]:
    """Means over seeds; nothing where a seed has no such number."""
    summary = []
    names = (
        *("same mean", "same std", "opposite mean", "opposite std"),
        *("validation same mean", "validation opposite mean", "tau"),
    )
    for key in dict.fromkeys((row["run"], row["uncertainty"]) for row in fits):
        mine = [row for row in fits if (row["run"], row["uncertainty"]) == key]
        values = {name: [row[name] for row in mine] for name in names}
        summary.append(
            {"run": key[0], "uncertainty": key[1]}
            | {name: None if None in column else format_spread(column) for name, column in values.items()}
        )
    return summary


def _draw(figure: Figure, panels: Sequence[_Panel]) -> None:
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure.set_size_inches(3.2 * columns, 0.4 + 2.3 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, *panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    axes[0].legend(frameon=False, fontsize=6)
    figure.suptitle(
        "all training seeds; curves: normal distributions of the samples shown; dashed: tau, from validation",
        fontsize=7,
    )


def _draw_panel(
    axis: "Axes", title: str, numbers: SampleNumbers, kind: Uncertainty, known: Sequence[Calibration]
) -> None:
    judged, wrong = polarity_errors(kind.scores, numbers.labels, numbers.family)
    judged &= np.isfinite(kind.values)
    shown = kind.values[judged]
    axis.set_title(title, fontsize=7)
    axis.set_xlabel("uncertainty" + (" (nats)" if kind.whose == EXPERT or "entropy" in kind.name else ""))
    axis.set_ylabel("density")
    if not shown.size:
        return
    edges = np.linspace(shown.min(), shown.max() + 1e-9, _BINS + 1)
    for place, (label, flags) in enumerate((("same polarity", ~wrong), ("opposite polarity", wrong))):
        values = kind.values[judged & flags]
        if not values.size:
            continue
        axis.hist(values, bins=edges.tolist(), density=True, alpha=0.45, color=f"C{place}", label=label)
        fit = Gaussian.fit(values)
        if fit.std > 0:
            grid = np.linspace(edges[0], edges[-1], 200)
            density = np.exp(-(((grid - fit.mean) / fit.std) ** 2) / 2) / (fit.std * np.sqrt(2 * np.pi))
            axis.plot(grid, density, color=f"C{place}", linewidth=1.2)
    for calibration in known:
        if calibration.tau is not None and np.isfinite(calibration.tau):
            axis.axvline(calibration.tau, color=GREY, linestyle="--", linewidth=0.9)
