"""How uncertainty is spread where the polarity is right and where it is not, and how well it tells the two apart (U-ACS).

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.common.curves import distinct_names
from hf_msa.analysis.common.prediction_columns import (
    EXPERT,
    OWN,
    TRIVIAL,
    Calibration,
    Floats,
    SampleNumbers,
    Uncertainty,
    calibrations,
    read_numbers,
    uncertainties,
)
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
from hf_msa.evaluation.report import split_text
from hf_msa.evaluation.statistics import confidence_interval, mean_and_std, resample_counts
from hf_msa.evaluation.uncertainty import Gaussian, auroc, fit_agreement, polarity_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 25


def analyze_uncertainty(runs: Sequence[str], *, output: Path, validation: Sequence[str] | None = None) -> list[Path]:
    """Write histograms, fits, and what each uncertainty tells of polarity errors.

    Args:
        runs: Evaluated runs of UBM or U-ACS, e.g. one per kind of uncertainty.
        output: The folder to write to.
        validation: Results of the same runs on the validation split, in the same order; without them thresholds are known
            only where a checkpoint's configuration has them.

    Raises:
        MsaError: If a run has no uncertainty, was not evaluated on complete data, or a result on validation is none.
    """
    found = [read_numbers(run) for run in runs]
    for numbers in found:
        numbers.require("uncertainty", method="ubm' or 'uacs")
    if validation is not None and len(validation) != len(runs):
        raise MsaError(f"--validation names {len(validation)} results for {len(runs)} runs; give one for each.")
    held_out = [None] * len(runs) if validation is None else [read_numbers(run) for run in validation]
    names = distinct_names(runs, [numbers.results for numbers in found])
    fits, told, panels = [], [], []
    for name, numbers, other in zip(names, found, held_out, strict=True):
        taus = calibrations(numbers, other)
        for kind in uncertainties(numbers):
            known = taus.get(kind.whose) or [Calibration(None, None)] * len(numbers.seeds)
            fits += [{"run": name, **row} for row in fit_rows(numbers, kind, known)]
            sure, rule = sure_samples(numbers, kind, taus)
            told.append({"run": name, "uncertainty": kind.name, "sure by": rule, **error_row(numbers, kind, sure)})
            panels.append((f"{name}: {kind.name}", numbers, kind, known))
    written = [
        write_csv(output / "uncertainty.csv", list(map(_flat, told))),
        write_csv(output / "fits.csv", fits),
        write_markdown(
            output / "uncertainty.md",
            "# Uncertainty and wrong polarity",
            f"{found[0].results['dataset']['name']}, {split_text(found[0].results)}, complete data, samples with a label "
            "other than 0. ± is the standard deviation over training seeds, brackets are 95 % bootstrap intervals over "
            "samples. AUROC: how likely a sample with a wrong polarity is more uncertain than one with the right one. "
            "-|score| is the trivial uncertainty that any model has.",
            rows_table([_shown(row) for row in told]),
            "## Fits",
            "Of the samples shown; the threshold tau and its two means come from the validation split.",
            rows_table(_fit_summary(fits)),
            _without_threshold(panels),
        ),
    ]
    _draw(output / "uncertainty", panels, written)
    return written


def sure_samples(
    numbers: SampleNumbers, kind: Uncertainty, taus: dict[str, list[Calibration]]
) -> tuple[NDArray[np.bool_], str]:
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


def error_row(numbers: SampleNumbers, kind: Uncertainty, sure: NDArray[np.bool_]) -> dict[str, Any]:
    """What an uncertainty tells of polarity errors.

    Args:
        numbers: The run.
        kind: The uncertainty.
        sure: Which samples count as sure (S, N).

    Returns:
        AUROC, share of samples that are not sure, and the shares of wrong polarities among the sure and the others; each
        as (one value per training seed, bootstrap interval of their mean); and `n`, the mean number of samples that count.
    """
    counted, wrong = polarity_errors(kind.scores, numbers.labels)
    counted &= np.isfinite(kind.values)
    draws = resample_counts(len(numbers.ids))
    names = ("auroc", "share unsure", "errors sure", "errors unsure")
    values: dict[str, list[float]] = {name: [] for name in names}
    drawn: dict[str, Floats] = {name: np.zeros(len(draws)) for name in names}
    for uncertainty, count, bad, inside in zip(kind.values, counted, wrong, sure, strict=True):
        for name, weights in (("values", np.ones((1, len(count)))), ("drawn", draws)):
            found = {
                "auroc": auroc(uncertainty[count], bad[count], weights[:, count]),
                "share unsure": _share(weights, ~inside, count),
                "errors sure": _share(weights, bad, count & inside),
                "errors unsure": _share(weights, bad, count & ~inside),
            }
            for key, results in found.items():
                if name == "values":
                    values[key].append(float(results[0]))
                else:
                    drawn[key] += results / len(sure)
    row: dict[str, Any] = {"n": float(counted.sum(axis=1).mean())}
    return row | {key: (values[key], confidence_interval(drawn[key])) for key in names}


def _share(weights: Floats, flags: NDArray[np.bool_], among: NDArray[np.bool_]) -> Floats:
    """The share of flagged samples among some, in each resample (R,); NaN where there are none."""
    total = weights @ among.astype(np.float64)
    flagged = weights @ (flags & among).astype(np.float64)
    shares: Floats = np.divide(flagged, total, out=np.full(len(total), np.nan), where=total > 0)
    return shares


def fit_rows(numbers: SampleNumbers, kind: Uncertainty, known: Sequence[Calibration]) -> list[dict[str, Any]]:
    """Per training seed the normal distributions of both groups on the samples shown, and those behind the threshold."""
    rows = []
    for seed, scores, values, calibration in zip(numbers.seeds, kind.scores, kind.values, known, strict=True):
        fit = fit_agreement(scores, numbers.labels, values)
        row: dict[str, Any] = {"uncertainty": kind.name, "training seed": seed}
        for prefix, of in (("", fit), ("validation ", calibration.fit)):
            for name in ("same", "opposite"):
                group = None if of is None else getattr(of, name)
                row |= {f"{prefix}{name} {key}": None if group is None else getattr(group, key) for key in _FIT_KEYS}
        rows.append(row | {"tau": calibration.tau})
    return rows


_FIT_KEYS = ("mean", "std", "n")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, tuple):
            mean, std = mean_and_std(value[0])
            flat |= {key: mean, f"{key} sd": std, f"{key} low": value[1][0], f"{key} high": value[1][1]}
        else:
            flat[key] = value
    return flat


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, tuple):
            low, high = (format_number(end) for end in value[1])
            cells[key] = f"{format_spread(value[0])} [{low}, {high}]"
        else:
            cells[key] = format_number(value, 0) if isinstance(value, float) else value
    return cells


def _fit_summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    summary = []
    for key in dict.fromkeys((row["run"], row["uncertainty"]) for row in rows):
        mine = [row for row in rows if (row["run"], row["uncertainty"]) == key]
        cells: dict[str, Any] = {"run": key[0], "uncertainty": key[1]}
        for name in ("same mean", "same std", "opposite mean", "opposite std", "validation same mean"):
            cells[name] = _spread([row[name] for row in mine])
        cells["validation opposite mean"] = _spread([row["validation opposite mean"] for row in mine])
        cells["tau"] = _spread([row["tau"] for row in mine])
        summary.append(cells)
    return summary


def _spread(values: Sequence[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    return format_spread(known) if len(known) == len(values) else None


_Panel = tuple[str, SampleNumbers, Uncertainty, Sequence[Calibration]]


def _without_threshold(panels: Sequence[_Panel]) -> str:
    absent = [name for name, _, kind, known in panels if kind.whose != TRIVIAL and _thresholds(known) is None]
    if not absent:
        return ""
    return f"No threshold is known for {'; '.join(absent)}: give the run's result on the validation split with --validation."


def _draw(stem: Path, panels: Sequence[_Panel], written: list[Path]) -> None:
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    with drawn_figure(stem, 3.2 * columns, 0.4 + 2.3 * rows, written) as figure:
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
    axis: "Axes", name: str, numbers: SampleNumbers, kind: Uncertainty, known: Sequence[Calibration]
) -> None:
    counted, wrong = polarity_errors(kind.scores, numbers.labels)
    counted &= np.isfinite(kind.values)
    shown = kind.values[counted]
    axis.set_title(name, fontsize=7)
    axis.set_xlabel("uncertainty" + (" (nats)" if kind.whose == EXPERT or "entropy" in kind.name else ""))
    axis.set_ylabel("density")
    if not shown.size:
        return
    edges = np.linspace(shown.min(), shown.max() + 1e-9, _BINS + 1)
    for place, (label, flags) in enumerate((("same polarity", ~wrong), ("opposite polarity", wrong))):
        values = kind.values[counted & flags]
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
