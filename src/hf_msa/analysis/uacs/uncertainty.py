"""Uncertainty of UBM and U-ACS against errors: where the polarity is wrong, and which uncertainty tells the errors best.

The paper's Figure 3: histograms of the uncertainty for same and opposite polarity, with a normal curve through each and
the threshold. The curves are of the samples that are shown; the threshold is not, it comes from validation alone, out of
the checkpoint's configuration or from the run's result on the validation split.

Beside each uncertainty stands the trivial one, minus the size of the score: a model that says nothing of its certainty
has it, too. What both tell is measured by the AUROC for polarity errors and by the share of errors among the samples that
count as sure and among the others. Where the trivial one has no threshold of its own, as many samples count as sure as by
the model's own uncertainty; where there is no threshold at all, the surer half. Neutral labels have no polarity and are
left out there.

The comparison is of the small model's uncertainties as predictions of its absolute error, on all samples: rank correlation
with the error and with the trivial one, of which a copy adds nothing, and the area under the curve of risk over coverage,
beside an oracle that knows the errors and a random order. With the data at hand it is of all kinds that the checkpoints
can give, else of the one that was evaluated.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

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
from hf_msa.analysis.common.risk_coverage import COVERAGES, losses
from hf_msa.analysis.estimates import Estimate, Floats, Rows, format_number, format_spread
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.analysis.uacs.calibrations import Calibration, calibrations, seed_folders
from hf_msa.data.loading import load_split
from hf_msa.data.missing import CompleteProtocol, Condition
from hf_msa.errors import MsaError
from hf_msa.evaluation.checkpoints import checkpoint_rows, load_checkpoint
from hf_msa.evaluation.statistics import all_and_resampled, resampled_means
from hf_msa.evaluation.sweep import sweep
from hf_msa.evaluation.uncertainty import auroc, coverage_risks, polarity_errors, spearman
from hf_msa.models.configuration_ubm import UNCERTAINTIES, UbmConfig
from hf_msa.models.modeling_ubm import UbmForSentimentAnalysis
from hf_msa.training.uacs.thresholds import Gaussian, fit_agreement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Flags = NDArray[np.bool_]

_BINS = 25
_GAIN = "area - trivial"
_INTERVAL = (_LOW, _HIGH) = "interval_low", "interval_high"


_Panel = tuple[str, SampleNumbers, Uncertainty, Sequence[Calibration]]
"""A panel of the figure: its title, the labels of the samples (N,), the uncertainty, and its threshold per seed."""


@tool(
    "uncertainty", "which uncertainty tells errors, and where it lies when polarity is wrong", methods=("ubm", "uacs")
)
def analyze_uncertainty(
    runs: Sequence[str], report: Report, *, validation: Sequence[str] | None = None, data: str | None = None
) -> None:
    """Show histograms, fits, what each uncertainty tells of polarity errors, and which tells the size of errors best.

    Args:
        runs: Evaluated runs of UBM or U-ACS, e.g. one per kind of uncertainty.
        report: Takes what is found.
        validation: Results of the same runs on the validation split, in the same order; without them thresholds are known
            only where a checkpoint's configuration has them.
        data: The prepared data set that the runs were evaluated on: compare all kinds that their checkpoints can give.

    Raises:
        MsaError: If a run has no uncertainty, was not evaluated on complete data, or a result on validation is none; with
            data also if the checkpoints are not beside the results, or give other scores on it.
    """
    found = read_named_numbers(runs)
    for numbers in found.values():
        numbers.require("uncertainty", method="ubm' or 'uacs")
    if validation is not None and len(validation) != len(runs):
        raise MsaError(f"--validation names {len(validation)} results for {len(runs)} runs; give one for each.")
    held_out = [None] * len(runs) if validation is None else [read_numbers(run) for run in validation]
    fits, errors, panels = [], [], []
    compared: dict[str, tuple[SampleNumbers, list[Uncertainty]]] = {}
    for (name, numbers), other in zip(found.items(), held_out, strict=True):
        taus = calibrations(numbers, other)
        for kind in uncertainties(numbers):
            known = taus.get(kind.whose) or [Calibration(None, None)] * len(numbers.seeds)
            fits += [{"run": name, **row} for row in fit_rows(numbers, kind, known)]
            sure, rule = sure_samples(numbers, kind, taus)
            errors.append({"run": name, "uncertainty": kind.name, "sure by": rule, **error_row(numbers, kind, sure)})
            panels.append((f"{name}: {kind.name}", numbers, kind, known))
        shown = numbers if data is None else small_model_numbers(numbers, data)
        compared[name] = shown, compared_kinds(shown)
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
    rows = [{"run": name, **row} for name, (shown, kinds) in compared.items() for row in comparison_rows(shown, kinds)]
    report.csv("comparison.csv", rows)
    report.section(
        "Comparison",
        "All samples. Spearman: rank correlation with the absolute error, and with the trivial uncertainty -|score|, to "
        "which one that is near 1 there adds nothing. Area: mean absolute error over all coverages, surest samples first; "
        "the oracle orders by the errors themselves, and a random order has the MAE of all samples everywhere.",
        [row | {_GAIN: row[_GAIN].difference_text()} for row in rows],
    )
    intervals = [
        {"run": name, **interval_row(shown)} for name, (shown, _) in compared.items() if _LOW in shown.columns
    ]
    report.csv("intervals.csv", intervals)
    report.section("Intervals", "Share of labels within the conformal interval, and its mean width.", intervals)
    report.figure("uncertainty", _draw, panels)
    report.figure("comparison", _draw_comparison, compared)


def small_model_numbers(numbers: SampleNumbers, data: str) -> SampleNumbers:
    """Run the small model of each seed's checkpoint, once per kind of uncertainty that all of them can give.

    Args:
        numbers: The run.
        data: The data set that it was evaluated on.

    Returns:
        Its `prediction` is the small model's score; the uncertainties are columns by their kinds.

    Raises:
        MsaError: If there are no checkpoints, or they give other scores than the results have.
    """
    folders = seed_folders(numbers)
    if None in folders:
        raise MsaError(
            f"The checkpoints of {numbers.run} are not beside it (seed-*/config.json), but --data compares what they can "
            "give; leave it out, or give the folder of the run."
        )
    found: list[dict[str, Floats]] = []
    for folder in folders:
        changes = {"route": "fast"} if "small_score" in numbers.columns else {}
        model, processor = load_checkpoint(str(folder), changes)
        split = numbers.results["dataset"]["split"]
        rows = checkpoint_rows(model, processor, str(folder), load_split(data, split), split)
        columns: dict[str, Floats] = {}
        for kind in cast(UbmForSentimentAnalysis, model).available_uncertainties:
            cast(UbmConfig, model.config).uncertainty_kind = kind  # type: ignore[assignment]  # it is one of them
            (part,), _ = sweep(model, processor, rows, [Condition(0, 0.0, CompleteProtocol())])
            place = {sample: index for index, sample in enumerate(part["id"])}
            if place.keys() != set(numbers.ids):
                raise MsaError(
                    f"{data!r} has other samples than {numbers.run}; give the data that it was evaluated on."
                )
            order = [place[sample] for sample in numbers.ids]
            columns |= {
                name: part[name][order].astype(np.float64) for name in (*_INTERVAL, "prediction") if name in part
            }
            columns[kind] = part["uncertainty"][order].astype(np.float64)
        found.append(columns)
    common = [name for name in found[0] if all(name in columns for columns in found)]
    made = {name: np.stack([columns[name] for columns in found]) for name in common}
    if not np.allclose(made["prediction"], own_scores(numbers), atol=1e-3):
        raise MsaError(
            f"The checkpoints beside {numbers.run} give other scores than it has; evaluate them again, or give the data "
            "that they were evaluated on."
        )
    return dataclasses.replace(numbers, columns=made)


def own_scores(numbers: SampleNumbers) -> Floats:
    """Scores of the model that the uncertainty is of (S, N): in a cascade the small one's."""
    return numbers.columns["small_score" if "small_score" in numbers.columns else "prediction"]


def compared_kinds(numbers: SampleNumbers) -> list[Uncertainty]:
    """The small model's uncertainties, the trivial one last of them, then the oracle and the random order.

    Args:
        numbers: A run, or what `small_model_numbers` made of it.
    """
    scores = own_scores(numbers)
    errors, _ = losses(numbers, scores, "mae")
    kinds = [
        Uncertainty(OWN, kind.replace("_", "-"), scores, numbers.columns[kind])
        for kind in UNCERTAINTIES
        if kind in numbers.columns and kind != "score"
    ]
    kinds = kinds or [kind for kind in uncertainties(numbers) if kind.whose == OWN]
    return [
        *kinds,
        Uncertainty(TRIVIAL, "-|score|", scores, -np.abs(scores - numbers.family.neutral)),
        Uncertainty(OWN, "oracle", scores, errors),
        Uncertainty(OWN, "random", scores, np.zeros_like(errors)),
    ]


def comparison_rows(numbers: SampleNumbers, kinds: Sequence[Uncertainty]) -> list[dict[str, Any]]:
    """What each uncertainty tells of the absolute error: estimates of rank correlations and area, and the area's gain.

    Args:
        numbers: The run.
        kinds: Its uncertainties, the trivial one among them.
    """
    counts = all_and_resampled(len(numbers.ids))
    errors, _ = losses(numbers, kinds[0].scores, "mae")
    trivial = next(kind for kind in kinds if kind.whose == TRIVIAL)
    areas = {
        kind.name: Estimate.of(
            [
                [coverage_risks(values, error, times).mean() for times in counts]
                for values, error in zip(kind.values, errors, strict=True)
            ]
        )
        for kind in kinds
    }
    return [
        {
            "uncertainty": kind.name,
            **{
                f"Spearman, {name}": Estimate.of(
                    [spearman(*pair, counts) for pair in zip(kind.values, other, strict=True)]
                )
                for name, other in (("error", errors), ("trivial", trivial.values))
            },
            "area": areas[kind.name],
            _GAIN: areas[kind.name] - areas[trivial.name],
        }
        for kind in kinds
    ]


def interval_row(numbers: SampleNumbers) -> dict[str, Any]:
    """Estimates of the share of labels within their intervals, and of the intervals' width."""
    low, high = (numbers.columns[name] for name in _INTERVAL)
    inside = (low <= numbers.labels) & (numbers.labels <= high)
    return {"covered": Estimate.mean_of(inside), "width": Estimate.mean_of(high - low)}


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


def _panels(figure: Figure, count: int, columns: int, width: float, height: float) -> "list[Axes]":
    """So many panels in rows of at most `columns`, each of this size in inches."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure.set_size_inches(width * columns, 0.4 + height * rows)
    found = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in found[count:]:
        axis.set_visible(False)
    return found[:count]


def _draw(figure: Figure, panels: Sequence[_Panel]) -> None:
    axes = _panels(figure, len(panels), 3, 3.2, 2.3)
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, *panel)
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


def _draw_comparison(figure: Figure, compared: Mapping[str, tuple[SampleNumbers, Sequence[Uncertainty]]]) -> None:
    panels = _panels(figure, len(compared), 2, 5.0, 3.2)
    styles = {"oracle": {"color": "black", "linestyle": ":"}, "random": {"color": GREY, "linestyle": "--"}}
    for panel, (name, (numbers, kinds)) in zip(panels, compared.items(), strict=True):
        errors, _ = losses(numbers, kinds[0].scores, "mae")
        coverage = np.arange(1, errors.shape[1] + 1) / errors.shape[1]
        shown = coverage >= COVERAGES[0]
        for kind in kinds:
            risks = np.mean([coverage_risks(*pair) for pair in zip(kind.values, errors, strict=True)], axis=0)
            style: dict[str, Any] = styles.get(kind.name, {"linewidth": 1.2})
            panel.plot(coverage[shown], risks[shown], label=kind.name, **style)
        panel.set_title(name, fontsize=7)
        panel.set_xlabel("coverage: share of samples, surest first")
        panel.set_ylabel("MAE")
        panel.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
