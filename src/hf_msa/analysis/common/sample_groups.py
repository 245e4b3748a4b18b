"""Groups of samples: where one method is better than another, by length, negation, contrast, and label.

Who is better on average need not be better everywhere: a language model that loses to a small one may win on long or negated
sentences. Groups are made of transcripts and labels, never of predictions. Many groups are looked at, so single intervals
that just leave out zero mean little.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.common.prediction_columns import SampleNumbers, check_same_samples, read_named_numbers
from hf_msa.analysis.estimates import Estimate, bars
from hf_msa.analysis.tool_report import Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.loading import load_split
from hf_msa.data.schema import ID, TEXT
from hf_msa.errors import MsaError
from hf_msa.models.msa_label_families import LabelFamily

_CONTRACTED = "do|does|did|is|are|was|were|has|have|had|would|should|could|ca|wo|need|ai"
_NEGATION = re.compile(
    rf"\b(not|no|never|nothing|nobody|none|neither|nor|without|cannot|({_CONTRACTED})n'?t)\b", re.IGNORECASE
)
_CONTRAST = re.compile(r"\b(but|however|although|though|yet|despite|except)\b", re.IGNORECASE)

Members = NDArray[np.bool_]


def is_negated(text: str) -> bool:
    """Whether an English transcript has a negation; "dont" is one as "don't" is."""
    return _NEGATION.search(text.replace("\u2019", "'")) is not None


def has_contrast(text: str) -> bool:
    """Whether an English transcript has a word of contrast, such as "but"."""
    return _CONTRAST.search(text) is not None


def sample_groups(texts: Sequence[str], labels: Sequence[float], family: LabelFamily) -> dict[str, Members]:
    """Groups of N samples; those of one kind leave none out, but for "neutral", which stands by itself.

    Args:
        texts: The transcripts, in English: negation and contrast are told by words.
        labels: In label units.
        family: The label family.

    Returns:
        Name -> which samples belong to it (N,); groups without a sample are left out.
    """
    counts, values = np.array([len(text.split()) for text in texts]), np.asarray(labels, dtype=np.float64)
    short, long = np.floor(np.quantile(counts, (1 / 3, 2 / 3))).astype(int) if len(counts) else (0, 0)
    negated, contrast = np.array([*map(is_negated, texts)], bool), np.array([*map(has_contrast, texts)], bool)
    strength = np.abs(values - family.neutral) / (family.high - family.neutral)
    groups = {
        "all": np.ones(len(values), bool),
        f"up to {short} words": counts <= short,
        f"{short + 1} to {long} words": (counts > short) & (counts <= long),
        f"more than {long} words": counts > long,
        "with negation": negated,
        "without negation": ~negated,
        "with contrast": contrast,
        "without contrast": ~contrast,
        "neutral label": strength == 0,
        "weak label (up to a third)": (strength > 0) & (strength <= 1 / 3 + 1e-6),
        "middle label": (strength > 1 / 3 + 1e-6) & (strength <= 2 / 3 + 1e-6),
        "strong label (from two thirds)": strength > 2 / 3 + 1e-6,
        "negative label": values < family.neutral,
        "positive label": values > family.neutral,
    }
    return {name: members for name, members in groups.items() if members.any()}


def group_rows(runs: Mapping[str, SampleNumbers], groups: Mapping[str, Members]) -> list[dict[str, Any]]:
    """One row per group and run: samples, absolute error, its difference from the first run's, and accuracy of the sign.

    The sign is that of samples with a label that is not neutral, NaN where a group has none.
    """
    rows: list[dict[str, Any]] = []
    for group, members in groups.items():
        first: Estimate | None = None
        for name, numbers in runs.items():
            scores, labels, neutral = numbers.columns["prediction"], numbers.labels, numbers.family.neutral
            error = Estimate.mean_of(np.abs(scores - labels)[:, members])
            signed = members & (labels != neutral)
            right = (scores > neutral) == (labels > neutral)
            rows.append(
                {
                    "group": group,
                    "samples": int(members.sum()),
                    "run": name,
                    "mae": error,
                    "mae minus first": None if first is None else error - first,
                    "sign": Estimate.mean_of(right[:, signed]) if signed.any() else None,
                }
            )
            first = first or error
    return rows


@tool("groups", "error by length, negation, contrast and label, several runs in one table")
def analyze_groups(runs: Sequence[str], report: Report, *, data: str) -> None:
    """Show the errors of several runs on groups of samples, and where one is better than the first.

    Args:
        runs: Folders with a ``results.json`` and its predictions of complete data, of any methods, evaluated on the same
            samples; the first is what the others are compared with.
        report: Takes what is found.
        data: Folder or Hub name of the data set that they were evaluated on.

    Raises:
        MsaError: If a run has no predictions of complete data, or of other samples.
    """
    found = read_named_numbers(runs)
    numbers = [*found.values()]
    check_same_samples(numbers)
    split = load_split(data, numbers[0].results["dataset"]["split"])
    texts = dict(zip(split[ID][:], split[TEXT][:], strict=True))
    if absent := next((name for name in numbers[0].ids if name not in texts), None):
        raise MsaError(
            f"{data!r} has no sample {absent!r}, which the runs were evaluated on; give the data set that they were."
        )
    groups = sample_groups(
        [texts[name] or "" for name in numbers[0].ids], numbers[0].labels.tolist(), numbers[0].family
    )
    table = group_rows(found, groups)
    report.csv(
        "groups.csv",
        [{**row, "mae minus first": _mean(row["mae minus first"]), "sign": _mean(row["sign"])} for row in table],
    )
    report.summary(
        "groups.md",
        "Errors by groups of samples",
        f"{numbers[0].data_text}; negation and contrast are told by English words. Absolute error, its difference from that "
        f"of {next(iter(found))} (below zero is better), and how often the sign of labels that are not neutral is right. ± "
        "is the standard deviation over training seeds, brackets are 95 % bootstrap intervals over samples, of differences "
        "paired; of so many groups some leave out zero by chance.",
        [
            {
                "group": row["group"],
                "samples": row["samples"],
                "run": row["run"],
                "MAE": row["mae"],
                "difference": "" if row["mae minus first"] is None else row["mae minus first"].difference_text(),
                "right sign (%)": None if row["sign"] is None else (row["sign"] * 100).text(1),
            }
            for row in table
        ],
    )
    if len(found) > 1:
        report.figure("groups", _draw, table, [*found][1:])


def _mean(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.mean


def _draw(figure: Figure, table: Sequence[Mapping[str, Any]], others: Sequence[str]) -> None:
    groups = [*dict.fromkeys(row["group"] for row in table)]
    figure.set_size_inches(6.5, 0.6 + 0.3 * len(groups))
    axis = figure.subplots()
    height = 0.8 / len(others)
    for number, name in enumerate(others):
        means, errors = bars([row["mae minus first"] for row in table if row["run"] == name])
        places = np.arange(len(groups)) + (number - (len(others) - 1) / 2) * height
        axis.errorbar(means, places, xerr=errors, fmt="o", markersize=3, linewidth=0.8, label=name)
    axis.axvline(0, color="0.6", linewidth=0.8)
    axis.set_yticks(range(len(groups)), groups, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("absolute error minus that of the first run")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
