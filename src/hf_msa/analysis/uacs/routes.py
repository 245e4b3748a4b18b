"""Routes of U-ACS: counts, seconds, calls and errors of each, and single cases with all their numbers.

The four routes are those of Algorithm 1: the small model's answer (``fast``), the expert's (``mllm``), the average of both
(``weighted``), and the expert's second one (``verify``), which cost 0, 1, 1 and 2 calls. Seconds are a sample's share of
each batch that it went through.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_msa.analysis.common.prediction_columns import SampleNumbers, read_named_numbers
from hf_msa.analysis.common.split_labels import read_labels
from hf_msa.analysis.estimates import Rows, format_number, format_spread
from hf_msa.analysis.tool_report import Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.analysis.uacs.calibrations import seed_configs
from hf_msa.data.loading import load_split
from hf_msa.data.schema import ID
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.uncertainty import polarity_errors
from hf_msa.models.uacs_rules import ROUTES, random_choice

CASES_PER_ROUTE = 3
"""How many samples of each route are shown."""

_COLUMNS = (
    "small_score",
    "uncertainty",
    "expert_score",
    "expert_uncertainty",
    "weight",
    "second_score",
    "prediction",
    "expert_calls",
    "unparsed",
    "seconds",
    "route",
)
_ALL = "all"


def read_routes(runs: Sequence[str]) -> dict[str, SampleNumbers]:
    """Read evaluated runs of U-ACS, by names that tell them apart.

    Raises:
        MsaError: If one is of another method.
    """
    found = read_named_numbers(runs)
    for numbers in found.values():
        numbers.require(*_COLUMNS, method="uacs")
    return found


@tool("routes", "counts, seconds, calls and errors per route", methods=("uacs",))
def analyze_routes(runs: Sequence[str], report: Report) -> None:
    """Show how many samples took each route, what that cost, and how good the answers were.

    Args:
        runs: Evaluated runs of U-ACS, e.g. the cascade and the expert alone.
        report: Takes what is found.

    Raises:
        MsaError: If a run is of another method, or was not evaluated on complete data.
    """
    found = read_routes(runs)
    tables = {name: route_rows(numbers) for name, numbers in found.items()}
    report.csv("routes.csv", [{"run": name, **row} for name, rows in tables.items() for row in rows])
    report.summary(
        "routes.md",
        "Routes and their cost",
        f"{next(iter(found.values())).data_text}. ± is the standard "
        "deviation over training seeds. Calls are questions to the expert; unreadable ones had no number in their "
        "answer. Wrong polarity leaves neutral labels out.",
        [{"run": name, **row} for name, rows in tables.items() for row in _route_summary(rows)],
        *(_cost_text(name, numbers) for name, numbers in found.items()),
    )
    report.figure("routes", _draw, tables)


def route_rows(numbers: SampleNumbers) -> list[dict[str, Any]]:
    """Per training seed and route, and for all routes together: counts, calls, seconds and errors.

    A mean over no samples is NaN.
    """
    rows = []
    for s, seed in enumerate(numbers.seeds):
        at = {name: values[s] for name, values in numbers.columns.items()}
        judged, wrong = polarity_errors(at["prediction"], numbers.labels, numbers.family)
        _, wrong_before = polarity_errors(at["small_score"], numbers.labels, numbers.family)
        for name in (*ROUTES, _ALL):
            inside = np.ones(len(judged), dtype=bool) if name == _ALL else at["route"] == ROUTES.index(name)
            n, polar = int(inside.sum()), int((inside & judged).sum())
            rows.append(
                {
                    "training seed": seed,
                    "route": name,
                    "n": n,
                    "share": n / len(judged),
                    "calls": int(at["expert_calls"][inside].sum()),
                    "unreadable": int(at["unparsed"][inside].sum()),
                    "seconds": float(at["seconds"][inside].sum()),
                    "seconds per sample": _ratio(at["seconds"][inside].sum(), n),
                    "mae": _ratio(np.abs(at["prediction"] - numbers.labels)[inside].sum(), n),
                    "mae of the small model": _ratio(np.abs(at["small_score"] - numbers.labels)[inside].sum(), n),
                    "wrong polarity": _ratio((wrong & judged & inside).sum(), polar),
                    "wrong polarity of the small model": _ratio((wrong_before & judged & inside).sum(), polar),
                }
            )
    return rows


def _ratio(total: float, n: int) -> float:
    return float(total) / n if n else float("nan")


def _route_summary(rows: Rows) -> list[dict[str, Any]]:
    """Means over seeds; a seed that has no sample on a route is left out where a number is a mean over samples."""
    summary = []
    for route in (*ROUTES, _ALL):
        mine = [row for row in rows if row["route"] == route]
        cells: dict[str, Any] = {"route": route}
        for name in list(mine[0])[2:]:
            known = [float(row[name]) for row in mine if np.isfinite(row[name])]
            digits = {"n": 1, "calls": 1, "unreadable": 1, "seconds per sample": 5}.get(name, 3)
            cells[name] = format_spread(known, digits) if known else None
        summary.append(cells)
    return summary


def _cost_text(name: str, numbers: SampleNumbers) -> str:
    calls = format_number(float(numbers.columns["expert_calls"].mean(axis=1).mean()))
    seconds = format_number(float(numbers.columns["seconds"].sum(axis=1).mean()))
    return f"{name}: {calls} calls per sample, {seconds} seconds for {counted(len(numbers.ids), 'sample')}."


def _draw(figure: Figure, tables: Mapping[str, Rows]) -> None:
    figure.set_size_inches(7.0, 0.8 + 0.5 * len(tables))
    panels = figure.subplots(1, 2, sharey=True)
    for panel, key in zip(panels, ("share", "seconds"), strict=True):
        for place, (name, rows) in enumerate(tables.items()):
            start = 0.0
            for colour, route in enumerate(ROUTES):
                width = float(np.mean([row[key] for row in rows if row["route"] == route]))
                panel.barh(name, width, left=start, color=f"C{colour}", label=route if not place else None)
                start += width
        panel.set_xlabel("share of samples" if key == "share" else "seconds for all samples")
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)


@tool("cases", "a few samples of each route with all their numbers", methods=("uacs",))
def analyze_cases(runs: Sequence[str], report: Report, *, data: str | None = None) -> None:
    """Show a few samples of each route with every number on the way to their score.

    They are drawn by chance (always the same ones), not picked, from each run's first training seed.

    Args:
        runs: Evaluated runs of U-ACS.
        report: Takes what is found.
        data: Folder or Hub name of the data set that they were evaluated on: the transcripts then go into the summary.

    Raises:
        MsaError: If a run is of another method, was not evaluated on complete data, or on other data.
    """
    found = read_routes(runs)
    report.summary(
        "cases.md",
        "Cases",
        f"{next(iter(found.values())).data_text}. Up to {CASES_PER_ROUTE} samples per route, drawn by chance.",
    )
    rows: list[dict[str, Any]] = []
    for name, numbers in found.items():
        config = seed_configs(numbers)[0]
        texts = {} if data is None else transcripts(numbers, data)
        mine = [{"run": name, "training seed": numbers.seeds[0], **row} for row in case_rows(numbers)]
        rows += mine
        taus = ", ".join(f"{key} {format_number(config.get(key))}" for key in ("tau_1", "tau_2"))
        heading = f"Training seed {numbers.seeds[0]}, thresholds: {taus}."
        report.section(name, heading, *(_case_text(row, texts.get(row["id"])) for row in mine))
    report.csv("cases.csv", rows)


def case_rows(numbers: SampleNumbers) -> list[dict[str, Any]]:
    """The numbers of the samples drawn for each route, of the first training seed."""
    routes = numbers.columns["route"][0]
    rows = []
    for index, route in enumerate(ROUTES):
        members = np.flatnonzero(routes == index)
        chosen = random_choice([numbers.ids[member] for member in members], CASES_PER_ROUTE, seed=0)
        for member in members[chosen]:
            row: dict[str, Any] = {"route": route, "id": numbers.ids[member], "label": float(numbers.labels[member])}
            rows.append(row | {key: float(numbers.columns[key][0, member]) for key in _COLUMNS if key != "route"})
    return rows


def transcripts(numbers: SampleNumbers, data: str) -> dict[str, str]:
    """The transcripts of a run's samples by id.

    Raises:
        MsaError: If it is not the data that the run was evaluated on.
    """
    split = numbers.results["dataset"]["split"]
    read_labels(data, split).of(numbers.ids, numbers.labels, numbers.run)
    dataset = load_split(data, split)
    return dict(zip(dataset[ID][:], dataset["text"][:], strict=True))


def _case_text(row: dict[str, Any], text: str | None) -> str:
    lines = [f"**{row['id']}**, route {row['route']}, label {format_number(row['label'], 1)}"]
    if text is not None:
        lines.append(f"- words: {text}")
    lines.append(
        f"- small model: {format_number(row['small_score'])}, uncertainty {format_number(row['uncertainty'])}"
    )
    if np.isfinite(row["expert_score"]):
        unsure = row["expert_uncertainty"]
        said = f"uncertainty {format_number(unsure)}" if np.isfinite(unsure) else "no number in its answer"
        lines.append(f"- expert: {format_number(row['expert_score'])}, {said}")
    if np.isfinite(row["weight"]):
        lines.append(f"- weight of the small model in the average: {format_number(row['weight'])}")
    if np.isfinite(row["second_score"]):
        lines.append(f"- expert, asked again with both predictions: {format_number(row['second_score'])}")
    calls = counted(int(row["expert_calls"]), "call")
    lines.append(f"- final: **{format_number(row['prediction'])}**, {calls}, {row['seconds']:.3g} seconds")
    return "\n".join(lines)
