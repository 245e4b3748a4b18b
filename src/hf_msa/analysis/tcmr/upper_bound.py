"""TCMR beside its upper bound (Table 6): the same model, told the true confidence instead of predicting it.

The upper bound reads the labels of what it predicts. It is an oracle: it bounds the method, and is no result.
"""

from collections.abc import Sequence
from typing import Any

from hf_msa.analysis.tool_report import Report
from hf_msa.analysis.tools import tool
from hf_msa.errors import MsaError
from hf_msa.evaluation.compare import compare_runs
from hf_msa.evaluation.metrics import METRICS
from hf_msa.evaluation.plots import draw_curves
from hf_msa.evaluation.report import run_name
from hf_msa.evaluation.results import Results, read_results


@tool("upper-bound", "the method beside its upper bound, which is told the confidence", methods=("tcmr",))
def analyze_upper_bound(runs: Sequence[str], report: Report) -> None:
    """Show the method, its upper bound and their difference, over all rates and per rate.

    Args:
        runs: Two folders with a ``results.json``, one of the method and one of its upper bound, in any order.
        report: Takes what is found.

    Raises:
        MsaError: If they are not such a pair, or were not evaluated alike.
    """
    results = [read_results(run) for run in runs]
    if sorted(result["oracle"] for result in results) != [False, True]:
        given = ", ".join(map(run_name, results))
        raise MsaError(
            f"The upper bound needs two results, one of the method and one of its upper bound (ablation ub); got {given}."
        )
    if results[0]["method"] != results[1]["method"]:
        raise MsaError(
            f"The upper bound of {results[0]['method']!r} cannot be a run of {results[1]['method']!r}; give two of "
            "one method."
        )
    order = sorted(range(2), key=lambda index: results[index]["oracle"])
    results = [results[index] for index in order]
    comparison = compare_runs([runs[index] for index in order], allow_oracle=True)
    report.csv("upper_bound.csv", difference_rows(*results))
    report.summary(
        "upper_bound.md",
        "Upper bound",
        "**Oracle:** the upper bound is told the true-class probability, which takes the labels of what it predicts. "
        "It says what a perfect confidence would be worth, and is not a result of the method.",
        comparison.to_markdown().strip(),
    )
    report.figure("upper_bound", draw_curves, results)


def difference_rows(method: Results, bound: Results) -> list[dict[str, Any]]:
    """One row per rate and metric, then per metric over all rates: method, oracle, and oracle minus method.

    ``gain`` is positive where the oracle is better, whatever the metric's direction.
    """
    pairs = zip(method["per_rate"], bound["per_rate"], strict=True)
    places = [(ours["rate"], ours["metrics"], theirs["metrics"]) for ours, theirs in pairs]
    places.append(("mean", method["mean_over_rates"], bound["mean_over_rates"]))
    rows = []
    for rate, ours, theirs in places:
        for metric in ours:
            a, b = ours[metric]["mean"], theirs[metric]["mean"]
            difference = None if a is None or b is None else b - a
            gain = None if difference is None else difference if METRICS[metric].higher_is_better else -difference
            rows.append(
                {"rate": rate, "metric": metric, "method": a, "oracle": b, "difference": difference, "gain": gain}
            )
    return rows
