"""Accuracy against cost: the cascade of U-ACS over the share of samples that it hands on, and over seconds.

The cascade is replayed from recorded numbers, nothing is asked again. That takes the expert's answer to every sample, so
one of the runs must have been evaluated with ``--set route=mllm``. The threshold tau_1 then runs through the quantiles of
the small model's uncertainty; tau_2 and the rules stay as they are. Second answers (verification) exist only for samples
that were verified when the cascade, given beside it, was evaluated. They do not depend on tau_1, so there they are exact;
elsewhere the weighted average stands in, the call is counted all the same, and the table says for how many samples.

Beside the cascade stand the small model alone, the expert alone, and random routing: as many samples, but random ones, go
to the expert, which is believed. Its MAE and accuracy are given as their mean over all possible draws, which is exact:
both are averages over samples, and every sample is drawn equally often, so the mean lies on the straight line from the
small model to the expert. It is taken at an equal share of escalated samples and at an equal number of calls;
verification makes the second the fairer one. Oracle routing knows the labels: it believes the expert on those samples on
which that lowers the error by most, at most as many as the cascade makes calls. No routing to this expert has a lower MAE.

Seconds are those that were measured when the runs were evaluated. What the small model takes is known from samples that
took the fast route; without any it stays part of the expert's time. A second call is taken to last as long as the first.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.common.prediction_columns import SampleNumbers, check_same_samples, read_numbers
from hf_msa.analysis.estimates import Floats, Rows, format_number
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.analysis.uacs.calibrations import seed_configs
from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS, resampled_metrics
from hf_msa.evaluation.report import counted, format_value, metric_heading
from hf_msa.evaluation.statistics import all_and_resampled, confidence_interval
from hf_msa.label_families import find_label_family
from hf_msa.models.msa_label_families import LabelFamily
from hf_msa.models.uacs_rules import FAST, VERIFY, WEIGHTED, answer_routes, small_weight, threshold_for

SHARES = tuple(round(0.05 * step, 2) for step in range(21))
"""Shares of escalated samples that are swept."""

_NEEDED = ("small_score", "uncertainty", "expert_score", "expert_uncertainty", "seconds", "route", "second_score")


@dataclass(frozen=True)
class Recorded:
    """What both models said of N samples, for one training seed.

    Attributes:
        small, uncertainty: The small model's scores and uncertainties (N,).
        expert, expert_uncertainty: The expert's first scores and uncertainties (N,). Where it gave no number the uncertainty
            is infinite, and the score what stands for it where the expert alone answers.
        second: Its second scores (N,); NaN where it was not asked.
        small_seconds: What the small model takes for a sample.
        expert_seconds: What the expert takes for a first answer (N,).
    """

    small: Floats
    uncertainty: Floats
    expert: Floats
    expert_uncertainty: Floats
    second: Floats
    small_seconds: float
    expert_seconds: Floats

    @property
    def believed(self) -> Floats:
        """The expert's scores, the small model's where it gave no number: what routing gets that believes the expert."""
        return np.where(np.isfinite(self.expert_uncertainty), self.expert, self.small)


@dataclass(frozen=True)
class Rules:
    """Of the cascade, see `UacsConfig`.

    Attributes:
        tau_1, tau_2: Thresholds.
        offset: Added to the small model's uncertainties before they divide.
        neutral: The neutral score.
        neutral_zone, agreement_rule, disagreement_rule, epsilon: As there.
    """

    tau_1: float
    tau_2: float
    offset: float = 0.0
    neutral: float = 0.0
    neutral_zone: float = 0.05
    agreement_rule: str = "weighted"
    disagreement_rule: str = "verify"
    epsilon: float = 1e-12

    @classmethod
    def of(cls, config: Mapping[str, Any], run: str) -> "Rules":
        """Those of a configuration.

        Raises:
            MsaError: If it has no thresholds.
        """
        for name in ("tau_1", "tau_2"):
            if config.get(name) is None:
                raise MsaError(
                    f"The configuration behind {run} has no threshold {name}; calibrate the run on validation, and keep "
                    "its result in its folder."
                )
        family = find_label_family(config["label_family"])
        farthest = max(family.high - family.neutral, family.neutral - family.low)
        offset = farthest if config.get("uncertainty_kind") == "score" else 0.0
        names = {field.name for field in dataclasses.fields(cls)}
        same = {key: value for key, value in config.items() if key in names}
        return cls(offset=offset, neutral=family.neutral, **same)


@dataclass(frozen=True)
class Replayed:
    """A cascade, replayed.

    Attributes:
        scores: Its scores (N,).
        routes: Indices into `ROUTES` (N,).
        missing: How many second answers were not there (N,), True = the average stands in.
        calls: Questions to the expert (N,).
        seconds: (N,).
    """

    scores: Floats
    routes: NDArray[np.int64]
    missing: NDArray[np.bool_]
    calls: Floats
    seconds: Floats


def replay(recorded: Recorded, rules: Rules) -> Replayed:
    """Run the cascade on recorded answers."""
    expert = recorded.believed
    routes = answer_routes(
        recorded.small,
        expert,
        recorded.expert_uncertainty,
        rules.tau_2,
        neutral_zone=rules.neutral_zone,
        neutral=rules.neutral,
        agreement_rule=rules.agreement_rule,
        disagreement_rule=rules.disagreement_rule,
    )
    routes = np.where(recorded.uncertainty <= rules.tau_1, FAST, routes)
    weight = small_weight(recorded.uncertainty + rules.offset, recorded.expert_uncertainty, rules.epsilon)
    average = weight * recorded.small + (1 - weight) * expert
    missing = (routes == VERIFY) & np.isnan(recorded.second)
    second = np.where(missing, average, recorded.second)
    scores = np.select(
        [routes == FAST, routes == WEIGHTED, routes == VERIFY], [recorded.small, average, second], expert
    )
    calls = np.where(routes == FAST, 0.0, np.where(routes == VERIFY, 2.0, 1.0))
    return Replayed(scores, routes, missing, calls, recorded.small_seconds + calls * recorded.expert_seconds)


def read_recorded(runs: Sequence[SampleNumbers]) -> list[Recorded]:
    """Put the answers of a run with the expert's answers to all samples and, beside it, of a cascade together.

    Args:
        runs: One or two runs of the same checkpoints on the same samples, in any order.

    Returns:
        One per training seed.

    Raises:
        MsaError: If none has the expert's answer to every sample, or they are of different samples, seeds or models.
    """
    for numbers in runs:
        numbers.require(*_NEEDED, method="uacs")
    check_same_samples(runs)
    whole = next((numbers for numbers in runs if np.isfinite(numbers.columns["expert_score"]).all()), None)
    if whole is None:
        raise MsaError(
            f"{' and '.join(numbers.run for numbers in runs)} lack the expert's answer to some samples; evaluate the run "
            "with --set route=mllm --output FOLDER as well, and give that folder beside the cascade's."
        )
    beside = next((numbers for numbers in runs if numbers is not whole), whole)
    if beside.seeds != whole.seeds or not np.allclose(
        beside.columns["small_score"], whole.columns["small_score"], atol=1e-4
    ):
        raise MsaError(
            f"{whole.run} and {beside.run} are of different small models or training seeds; give two evaluations of one run."
        )
    found = []
    for seed in range(len(whole.seeds)):
        first, other = ({name: numbers.columns[name][seed] for name in _NEEDED} for numbers in (whole, beside))
        fast = other["route"] == FAST
        small_seconds = float(other["seconds"][fast].mean()) if fast.any() else 0.0
        # A cascade may itself hold the answers of all samples; then a sample's seconds are those of its calls.
        calls = np.where(first["route"] == VERIFY, 2, 1)
        found.append(
            Recorded(
                first["small_score"],
                first["uncertainty"],
                first["expert_score"],
                first["expert_uncertainty"],
                np.where(np.isnan(other["second_score"]), first["second_score"], other["second_score"]),
                small_seconds,
                np.maximum(first["seconds"] - small_seconds, 0.0) / calls,
            )
        )
    return found


@tool("accuracy-cost", "error over the share of samples handed to the expert, and over seconds", methods=("uacs",))
def analyze_accuracy_cost(runs: Sequence[str], report: Report) -> None:
    """Show MAE and accuracy over the share of escalated samples and over seconds, beside random routing.

    Args:
        runs: Evaluations of one U-ACS run: with ``--set route=mllm``, and, for the second answers, as a cascade.
        report: Takes what is found.

    Raises:
        MsaError: If there are more than two, they do not belong together, or there is no threshold.
    """
    if len(runs) > 2:
        raise MsaError(f"accuracy-cost takes the expert's run and the cascade's, but {len(runs)} runs were given.")
    found = [read_numbers(run) for run in runs]
    recorded = read_recorded(found)
    rules = [Rules.of(config, found[0].run) for config in seed_configs(found[0])]
    labels, family = found[0].labels, found[0].family
    rows = sweep_rows(recorded, rules, labels, family)
    metrics = ("mae", family.main_accuracy)
    missing = max(row["verification answers missing"] for row in rows)
    report.csv("accuracy_cost.csv", rows)
    report.summary(
        "accuracy_cost.md",
        "Accuracy against cost",
        f"{found[0].data_text}, means over "
        f"{counted(len(recorded), 'training seed')}. Share: samples handed to the expert; calls and seconds are per "
        "sample. Random routing hands on equally many samples, or makes equally many calls, and believes the expert; "
        "its numbers are means over all draws. The oracle knows the labels. Brackets: the cascade minus random routing at "
        "equal calls, 95 % bootstrap interval over samples.",
        [_shown(row, metrics) for row in rows if row["point"] != "swept" or _is_tenth(row["share"])],
        "Every second answer that a swept point needs is known."
        if not missing
        else f"At the point that needs most of them, {format_number(missing, 1)} of {len(labels)} samples have no second "
        "answer on record, as they were not verified when the cascade was evaluated; there the weighted average stands in, "
        "which the cascade would not have given.",
    )
    report.figure("accuracy_cost", _draw, rows, metrics)


def sweep_rows(
    recorded: Sequence[Recorded], rules: Sequence[Rules], labels: Floats, family: LabelFamily
) -> list[dict[str, Any]]:
    """One row per point: the small model, the swept shares, the calibrated thresholds, the expert.

    Args:
        recorded: Per training seed.
        rules: Per training seed, with the calibrated thresholds.
        labels: (N,).
        family: Of the labels.

    Returns:
        Means over training seeds; with random routing at equal share and at equal calls, and intervals of the difference
        to the latter.
    """
    metrics = ("mae", family.main_accuracy)
    counts = all_and_resampled(len(labels))

    def scored(scores: Floats) -> Floats:
        """(metrics, 1 + resamples)."""
        found = resampled_metrics(scores, labels, family, counts)
        return np.stack([found[name] for name in metrics])

    ends = [(scored(seed.small), scored(seed.believed)) for seed in recorded]
    pairs = list(zip(recorded, rules, strict=True))

    def point(name: str, replays: Sequence[Replayed]) -> dict[str, Any]:
        shares = [float((made.routes != FAST).mean()) for made in replays]
        calls = [float(made.calls.mean()) for made in replays]
        own = np.mean([scored(made.scores) for made in replays], axis=0)
        # Over all draws the mean of random routing lies on the line from the small model to the expert.
        random = {
            kind: np.mean(
                [(1 - part) * small + part * expert for part, (small, expert) in zip(parts, ends, strict=True)], axis=0
            )
            for kind, parts in {"share": shares, "calls": [min(each, 1.0) for each in calls]}.items()
        }
        row: dict[str, Any] = {"point": name, "share": float(np.mean(shares)), "calls": float(np.mean(calls))}
        row["seconds"] = float(np.mean([made.seconds.mean() for made in replays]))
        row["verification answers missing"] = float(np.mean([made.missing.sum() for made in replays]))
        row |= {metric: float(values[0]) for metric, values in zip(metrics, own, strict=True)}
        oracle = [
            scored(oracle_scores(seed, labels, round(made.calls.sum())))
            for seed, made in zip(recorded, replays, strict=True)
        ]
        row |= {
            f"{m}, oracle, equal calls": float(v) for m, v in zip(metrics, np.mean(oracle, axis=0)[:, 0], strict=True)
        }
        for kind, lines in random.items():
            row |= {f"{m}, random, equal {kind}": float(line[0]) for m, line in zip(metrics, lines, strict=True)}
        for metric, difference in zip(metrics, own - random["calls"], strict=True):
            low, high = confidence_interval(difference[1:])
            row |= {f"{metric} minus random, low": low, f"{metric} minus random, high": high}
        return row

    rows = [point("small model", [replay(s, dataclasses.replace(r, tau_1=math.inf)) for s, r in pairs])]
    for share in SHARES[1:]:
        made = [
            replay(s, dataclasses.replace(r, tau_1=threshold_for(s.uncertainty, round(share * len(labels)))))
            for s, r in pairs
        ]
        rows.append(point("swept", made))
    rows.append(point("calibrated", [replay(s, r) for s, r in pairs]))
    alone = [
        dataclasses.replace(replay(s, dataclasses.replace(r, tau_1=-math.inf, tau_2=math.inf)), scores=s.expert)
        for s, r in pairs
    ]
    return [*rows, point("expert", alone)]


def oracle_scores(recorded: Recorded, labels: Floats, calls: int) -> Floats:
    """Scores of a routing that knows the labels, and asks the expert where that helps most.

    Args:
        recorded: What both models said.
        labels: (N,).
        calls: Most questions to the expert.
    """
    gains = np.abs(recorded.small - labels) - np.abs(recorded.believed - labels)
    chosen = np.argsort(-gains, kind="stable")[:calls]
    chosen = chosen[gains[chosen] > 0]
    scores = recorded.small.copy()
    scores[chosen] = recorded.believed[chosen]
    return scores


def _is_tenth(share: float) -> bool:
    return abs(share * 10 - round(share * 10)) < 0.1


def _shown(row: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    cells: dict[str, Any] = {name: row[name] for name in ("point", "share", "calls")}
    cells["seconds"] = f"{row['seconds']:.3g}"
    for metric in metrics:
        ends = [format_value(metric, row[f"{metric} minus random, {end}"]) for end in ("low", "high")]
        cells[metric_heading(metric)] = f"{format_value(metric, row[metric])} [{', '.join(ends)}]"
        cells[f"{METRICS[metric].pretty} of random, equal share / calls"] = " / ".join(
            format_value(metric, row[f"{metric}, random, equal {kind}"]) for kind in ("share", "calls")
        )
        cells[f"{METRICS[metric].pretty} of an oracle, equal calls"] = format_value(
            metric, row[f"{metric}, oracle, equal calls"]
        )
    return cells | {"second answers missing": format_number(row["verification answers missing"], 1)}


def _draw(figure: Figure, rows: Rows, metrics: Sequence[str]) -> None:
    by_name = {row["point"]: row for row in rows}
    swept = [row for row in rows if row["point"] in ("small model", "swept")]
    # What is drawn, the end of the column that it is read from, and how.
    lines: list[tuple[Sequence[Mapping[str, Any]], str, dict[str, Any]]] = [
        (swept, ", random, equal calls", {"color": GREY, "linestyle": "--", "label": "random routing, equal calls"}),
        (swept, ", oracle, equal calls", {"color": GREY, "linestyle": ":", "label": "oracle routing, equal calls"}),
        (swept, "", {"marker": ".", "label": "cascade"}),
        *(
            ([by_name[name]], "", {"marker": marker, "linestyle": "", "label": name})
            for name, marker in (("small model", "s"), ("expert", "D"), ("calibrated", "*"))
        ),
    ]
    figure.set_size_inches(7.6, 5.6)
    panels = figure.subplots(len(metrics), 2, sharex="col", sharey="row")
    for line, metric in zip(panels, metrics, strict=True):
        scale = 100 if METRICS[metric].percent else 1
        for panel, cost in zip(line, ("share", "seconds"), strict=True):
            for of, end, style in lines:
                panel.plot([row[cost] for row in of], [scale * row[metric + end] for row in of], **style)
        line[0].set_ylabel(metric_heading(metric) + (" (%)" if METRICS[metric].percent else ""))
    panels[-1][0].set_xlabel("share of samples handed to the expert")
    panels[-1][1].set_xlabel("seconds per sample")
    panels[0][0].legend(frameon=False, fontsize=7)
