"""Study of U-ACS with scripted experts: a trained small model and experts made of random numbers, on the sample corpus.

No public language model knows what the corpus planted, so the experts are scripted: each knows the label and adds an
error of its own, larger on a few clips, with an entropy that follows the error or does not (`EXPERTS`). Everything of a
clip depends on its id and the expert's seed alone. The numbers therefore say how routing, averaging, verification and their
accounting behave, given an expert like that; they say nothing of any real one.

    python scripts/uacs_stub_study.py --data CORPUS --output FOLDER

trains UBM by `ubm/sample` for each seed (or finds it in `--ubm`), calibrates both thresholds on validation, and evaluates
on test: the cascade, each model alone, and random routing. `uacs_stub_study.json` and `.md` are the summary; beside them
lie results and the figures of the analysis tools for the first expert.
"""

import argparse
import dataclasses
import hashlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis import run_tool
from hf_msa.analysis.estimates import format_bounds, format_number, format_spread
from hf_msa.analysis.tool_report import Report
from hf_msa.data.loading import dataset_facts, load_msa
from hf_msa.data.missing import CompleteProtocol
from hf_msa.data.missing_base import Condition
from hf_msa.data.rows import MsaRows
from hf_msa.data.sample_corpus import read_planted
from hf_msa.evaluation.checkpoints import load_checkpoint, own_fields
from hf_msa.evaluation.metrics import regression_metrics, resampled_metrics
from hf_msa.evaluation.results import EvaluationFacts, build_results, predictions_table, write_results
from hf_msa.evaluation.statistics import confidence_interval, resample_counts
from hf_msa.evaluation.sweep import sweep
from hf_msa.evaluation.uncertainty import auroc, polarity_errors
from hf_msa.models.configuration_uacs import UacsConfig
from hf_msa.models.modeling_uacs import UacsForSentimentAnalysis
from hf_msa.models.msa_label_families import BUILT_IN
from hf_msa.models.msa_mllm import MllmRequest
from hf_msa.models.msa_mllm_answers import MllmAnswer
from hf_msa.models.msa_mllm_forms import AnswerForm
from hf_msa.models.processing_msa import MsaProcessor
from hf_msa.models.uacs_prompts import SECOND_OPINION, answer_text
from hf_msa.models.uacs_rules import FAST, ROUTES
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import run_recipe
from hf_msa.training.uacs.thresholds import fit_agreement, require_tau

Floats = NDArray[np.float64]
Columns = dict[str, Floats]

SECONDS_PER_ANSWER = 0.004
"""What an expert sleeps for each answer, so that seconds show something; an invented number."""

SMALL_COST = 15.35 / 379.18
"""What the small model costs, in calls of the expert: the paper's seconds on MOSI (its Table 3)."""

RANDOM_DRAWS = 5


@dataclass(frozen=True)
class Expert:
    """How a scripted expert errs. Deviations and slopes are in label units and nats.

    Args:
        spread: Standard deviation of its error on most clips.
        few: Share of clips that it finds hard; they are none of the corpus' own hard ones.
        spread_few: Standard deviation of its error there.
        slope: Entropy per unit of error.
        noise: Mean of the part of the entropy that has nothing to do with the error.
        second: Error of its second answer, as a share of that of a fresh first one.
        seed: Of all draws.
    """

    spread: float = 0.4
    few: float = 0.15
    spread_few: float = 1.8
    slope: float = 0.8
    noise: float = 0.3
    second: float = 0.7
    seed: int = 0

    def answer(self, key: str, label: float, low: float, high: float) -> tuple[float, float, float]:
        """First score, its entropy, and second score of a clip."""
        digest = hashlib.blake2b(f"{self.seed}/{key}".encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "little"))
        spread = self.spread_few if generator.random() < self.few else self.spread
        first, second = generator.normal(0, spread, 2)
        entropy = 0.1 + self.slope * abs(first) + generator.exponential(self.noise)
        # Ten digits can be no more uncertain than that.
        entropy = min(float(entropy), math.log(10))
        return (
            float(np.clip(label + first, low, high)),
            entropy,
            float(np.clip(label + self.second * second, low, high)),
        )


EXPERTS = {
    "good": Expert(),
    "good, entropy says nothing": Expert(slope=0.0, noise=0.6),
    "error-prone": Expert(spread=0.8, few=0.25, spread_few=1.8),
}
"""The experts of the study."""


class ScriptedMllm:
    """An `Mllm` that is told whom a question is about, and answers by a script.

    Args:
        expert: How it errs.
        labels: True scores by id.

    Attributes:
        calls: Answers so far.
    """

    name = "scripted"

    def __init__(self, expert: Expert, labels: Mapping[str, float], label_range: tuple[float, float]) -> None:
        low, high = label_range
        self._answers = {key: expert.answer(key, label, low, high) for key, label in labels.items()}
        self.calls = 0

    def generate(
        self,
        requests: Sequence[MllmRequest],
        max_new_tokens: int,
        num_candidates: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        only_number: bool | tuple[float, float] = False,
        form: AnswerForm | None = None,
    ) -> list[list[MllmAnswer]]:
        """Answer each request with a number of one decimal."""
        self.calls += len(requests)
        time.sleep(SECONDS_PER_ANSWER * len(requests))
        answers = []
        for request in requests:
            first, entropy, second = self._answers[str(request.system)]
            text = answer_text(second if SECOND_OPINION in request.prompt else first)
            tokens = (*text, "")
            entropies = (*[entropy] * len(text), 0.0)
            answers.append([MllmAnswer(text, tokens, entropies, tuple(-each for each in entropies))])
        return answers

    def embed(self, requests: Sequence[MllmRequest]) -> NDArray[np.float32]:
        """Not scripted."""
        raise NotImplementedError


class StudySystem(UacsForSentimentAnalysis):
    """U-ACS that tells its expert whom a question is about."""

    def expert_requests(
        self, rows: Sequence[Mapping[str, Any]], inputs: Mapping[str, Any] | None = None, processor: Any = None
    ) -> list[MllmRequest]:
        """The questions, with the clip's id in the place of the system's message."""
        requests = super().expert_requests(rows, inputs, processor)
        return [dataclasses.replace(made, system=str(row["id"])) for made, row in zip(requests, rows, strict=True)]


def wrap(folder: Path) -> tuple[StudySystem, MsaProcessor]:
    """Put the cascade around a trained UBM."""
    small, processor = load_checkpoint(str(folder))
    own = {key: value for key, value in small.config.to_dict().items() if key not in ("model_type", "auto_map")}
    config = UacsConfig.from_dict(own | {"use_verbalizer": False})
    system = StudySystem(config)
    system.load_state_dict(small.state_dict())
    return system.eval(), processor


def predict(system: StudySystem, processor: MsaProcessor, rows: MsaRows, **settings: Any) -> Columns:
    """Predict a split with some settings of the cascade; every column of the predictions."""
    for name, value in settings.items():
        setattr(system.config, name, value)
    (part,), _ = sweep(system, processor, rows, [Condition(0, 0.0, CompleteProtocol())])
    return {
        name: np.asarray(values, dtype=np.float64)
        for name, values in part.items()
        if name not in ("id", "mask_seed", "rate")
    }


def calibrate(system: StudySystem, processor: MsaProcessor, rows: MsaRows) -> None:
    """Set both thresholds on the validation split."""
    config = system.config
    found = predict(system, processor, rows, route="mllm")
    fits = {
        "small": fit_agreement(found["small_score"], rows.labels, found["uncertainty"], config.family),
        "expert": fit_agreement(found["expert_score"], rows.labels, found["expert_uncertainty"], config.family),
    }
    config.calibration = {name: fit.to_dict() for name, fit in fits.items()}
    for field, name in (("tau_1", "small"), ("tau_2", "expert")):
        setattr(config, field, require_tau(fits[name], config.threshold_lambda, config.threshold_beta, field))


# --- Numbers ---


def check_accounting(found: Columns, answered: int) -> dict[str, Any]:
    """Samples, calls and seconds per route; the calls must be 0, 1, 1 and 2, and all that the expert answered.

    Raises:
        AssertionError: If they are not.
    """
    counts: dict[str, Any] = {}
    for index, (route, calls) in enumerate(zip(ROUTES, (0, 1, 1, 2), strict=True)):
        inside = found["route"] == index
        assert (found["expert_calls"][inside] == calls).all(), f"calls on the route {route}"
        counts[route] = {"n": int(inside.sum()), "calls": int(found["expert_calls"][inside].sum())}
        counts[route]["seconds"] = round(float(found["seconds"][inside].sum()), 4)
    assert sum(each["calls"] for each in counts.values()) == answered, "calls in all"
    return counts


def escalation(cascades: Sequence[Columns], labels: Floats, hard: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """How well the small model's uncertainty, and the decision made by it, find the planted hard clips and its own errors.

    Args:
        cascades: Per training seed.
        labels: True scores.
        hard: Which clips are planted as hard.

    Returns:
        Per target and ranking the AUROC of each seed and its interval. Of a decision it is the mean of the shares of targets
        handed on and of others kept.
    """
    draws = resample_counts(len(labels))
    rows = []
    everywhere = np.ones(len(labels), dtype=bool)
    for target in ("planted hard clip", "wrong polarity", "error above 1"):
        for ranking in ("entropy", "-|score|", "handed on or not"):
            values, drawn = [], np.zeros(len(draws))
            for found in cascades:
                small = found["small_score"]
                counted, wrong = polarity_errors(small, labels, "mosi")
                flags = {
                    "planted hard clip": hard,
                    "wrong polarity": wrong,
                    "error above 1": np.abs(small - labels) > 1,
                }
                unsure = {
                    "entropy": found["uncertainty"],
                    "-|score|": -np.abs(small),
                    "handed on or not": (found["route"] != FAST).astype(np.float64),
                }[ranking]
                inside = counted if target == "wrong polarity" else everywhere
                values.append(float(auroc(unsure[inside], flags[target][inside])[0]))
                drawn += auroc(unsure[inside], flags[target][inside], draws[:, inside]) / len(cascades)
            rows.append(
                {"target": target, "ranking": ranking, "auroc": values, "interval": confidence_interval(drawn)}
            )
    return rows


def scores_of(scores: Sequence[Floats], labels: Floats, draws: Floats) -> dict[str, tuple[list[float], Floats]]:
    """MAE and accuracy of each seed, and their mean in each resample."""
    metrics = ("mae", BUILT_IN["mosi"].main_accuracy)
    plain = [regression_metrics(each, labels, "mosi") for each in scores]
    drawn = [resampled_metrics(each, labels, "mosi", draws) for each in scores]
    return {name: ([row[name] for row in plain], np.mean([row[name] for row in drawn], axis=0)) for name in metrics}


def mixture(small: Any, expert: Any, parts: Sequence[float]) -> dict[str, tuple[list[float], Floats]]:
    """Scores of random routing of these parts, per seed, to the expert: the mean over all draws."""
    mean = float(np.mean(parts))
    return {
        name: (
            [(1 - p) * a + p * b for p, a, b in zip(parts, small[name][0], expert[name][0], strict=True)],
            (1 - mean) * small[name][1] + mean * expert[name][1],
        )
        for name in small
    }


def study(
    expert: Expert,
    systems: Mapping[int, tuple[StudySystem, MsaProcessor]],
    splits: Mapping[str, MsaRows],
    hard: NDArray[np.bool_],
    data: str,
    runs: Path,
) -> dict[str, Any]:
    """Everything about one expert.

    Args:
        expert: How it errs.
        systems: Per training seed.
        splits: The validation and test rows.
        hard: Which test clips are planted as hard.
        data: The corpus.
        runs: Where the results of cascade and expert alone go.
    """
    rows, labels = splits["test"], splits["test"].labels.astype(np.float64)
    known = {key: float(label) for part in splits.values() for key, label in zip(part.ids, part.labels, strict=True)}
    predicted: dict[str, list[Columns]] = {}
    thresholds, accounting = [], []
    for seed, (system, processor) in systems.items():
        mllm = ScriptedMllm(expert, known, system.config.label_range)
        system.set_expert(mllm)
        calibrate(system, processor, splits["validation"])
        thresholds.append({"tau_1": system.config.tau_1, "tau_2": system.config.tau_2})
        before = mllm.calls
        found = {"fast": predict(system, processor, rows, route="fast")}
        assert mllm.calls == before, "the small model alone asks nobody"
        found["mllm"] = predict(system, processor, rows, route="mllm")
        for draw in range(RANDOM_DRAWS):
            found[f"random-{draw}"] = predict(system, processor, rows, route="random", route_seed=draw)
        # It has to answer again what it has answered, to be counted.
        system.set_expert(mllm)
        before = mllm.calls
        # Last, so that its configuration is what is kept.
        found["cascade"] = predict(system, processor, rows, route="cascade")
        accounting.append(check_accounting(found["cascade"], mllm.calls - before))
        system.config.save_pretrained(runs / f"seed-{seed}")
        for name, columns in found.items():
            predicted.setdefault(name, []).append(columns)
    for name, folder in (("cascade", runs), ("mllm", runs / "mllm")):
        write_route(folder, name, predicted[name], list(systems.items()), rows, data)
    return {
        "expert": dataclasses.asdict(expert),
        "thresholds": thresholds,
        "accounting": accounting,
        "escalation": escalation(predicted["cascade"], labels, hard),
        **compared(predicted, labels),
    }


def compared(predicted: Mapping[str, Sequence[Columns]], labels: Floats) -> dict[str, Any]:
    """Scores and costs of every way to answer, and what the cascade gains over each."""
    draws = resample_counts(len(labels))
    scored = {
        name: scores_of([columns["prediction"] for columns in found], labels, draws)
        for name, found in predicted.items()
    }
    calls = {name: [float(c["expert_calls"].mean()) for c in found] for name, found in predicted.items()}
    seconds = {name: [float(c["seconds"].mean()) for c in found] for name, found in predicted.items()}
    random = [name for name in scored if name.startswith("random")]
    drawn = {
        metric: (
            np.mean([scored[name][metric][0] for name in random], axis=0).tolist(),
            np.mean([scored[name][metric][1] for name in random], axis=0),
        )
        for metric in scored["cascade"]
    }
    share = [float((columns["route"] != FAST).mean()) for columns in predicted["cascade"]]
    ways = {
        "U-ACS": (scored["cascade"], calls["cascade"], seconds["cascade"], SMALL_COST),
        "UBM alone": (scored["fast"], calls["fast"], seconds["fast"], SMALL_COST),
        "expert alone": (scored["mllm"], calls["mllm"], None, 0.0),
        f"random, equal share, {len(random)} draws": (drawn, share, None, SMALL_COST),
        "random, equal calls, all draws": (
            mixture(scored["fast"], scored["mllm"], [min(each, 1.0) for each in calls["cascade"]]),
            calls["cascade"],
            None,
            SMALL_COST,
        ),
    }
    table = []
    for name, (scores, asked, taken, small) in ways.items():
        row: dict[str, Any] = {"way": name, "calls": asked, "cost": [small + each for each in asked], "seconds": taken}
        for metric, (values, resampled) in scores.items():
            gain = scored["cascade"][metric][1] - resampled
            row[metric] = values
            row[f"{metric} interval"] = confidence_interval(resampled)
            row[f"U-ACS minus this, {metric}"] = float(np.mean(scored["cascade"][metric][0]) - np.mean(values))
            row[f"U-ACS minus this, {metric} interval"] = confidence_interval(gain)
        table.append(row)
    return {"share handed on": share, "ways": table}


def write_route(
    folder: Path,
    route: str,
    columns: Sequence[Columns],
    systems: Sequence[tuple[int, tuple[StudySystem, MsaProcessor]]],
    rows: MsaRows,
    data: str,
) -> None:
    """Write results and predictions of one route, as an evaluation does."""
    parts = [
        {
            "id": rows.ids,
            "training_seed": seed,
            "mask_seed": 0,
            "rate": 0.0,
            **{name: values.astype(np.float32) for name, values in found.items() if "class_logits" not in name},
        }
        for (seed, _), found in zip(systems, columns, strict=True)
    ]
    facts = dataset_facts(data)
    table = predictions_table(parts)
    told = EvaluationFacts(
        method="uacs",
        dataset={"name": facts.name, "split": rows.split, "label_family": facts.label_family},
        protocol={"name": "complete"},
        config=own_fields(systems[-1][1][0].config) | {"route": route},
        ablation=None if route == "cascade" else f"{route}_only",
    )
    write_results(folder, build_results(table, told), table)


# --- The summary ---


def summarise(report: Report, found: Mapping[str, Any]) -> None:
    """Write the sections of the Markdown page."""
    for name, values in found.items():
        expert = values["expert"]
        report.section(
            f"Expert: {name}",
            f"Error deviation {expert['spread']:g}, on {100 * expert['few']:g} % of the clips {expert['spread_few']:g}; "
            f"entropy 0.1 + {expert['slope']:g} * error + noise of mean {expert['noise']:g}; second answers err "
            f"{expert['second']:g} times as much. Thresholds: "
            + ", ".join(
                f"{tau} {format_spread([each[tau] for each in values['thresholds']])}" for tau in ("tau_1", "tau_2")
            )
            + f"; handed on: {format_spread(values['share handed on'])} of the clips.",
            [_way(row) for row in values["ways"]],
            [_route(route, values["accounting"]) for route in ROUTES],
        )
    report.section(
        "What is handed on",
        "The same for every expert, as the small model decides alone.",
        [
            {
                "target": row["target"],
                "ranked by": row["ranking"],
                "AUROC": f"{format_spread(row['auroc'])} {format_bounds(row['interval'])}",
            }
            for row in next(iter(found.values()))["escalation"]
        ],
    )


def _way(row: Mapping[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {"way": row["way"]}
    cells |= {name: format_spread(row[name]) for name in ("calls", "cost")}
    for metric in ("mae", BUILT_IN["mosi"].main_accuracy):
        cells[metric] = f"{format_spread(row[metric])} {format_bounds(row[f'{metric} interval'])}"
        key = f"U-ACS minus this, {metric}"
        same = row["way"] == "U-ACS"
        cells[key] = None if same else f"{format_number(row[key])} {format_bounds(row[f'{key} interval'])}"
    return cells


def _route(route: str, accounting: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    digits = {"n": 1, "calls": 1, "seconds": 3}
    return {"route": route} | {
        key: format_spread([float(each[route][key]) for each in accounting], places) for key, places in digits.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a sample corpus")
    parser.add_argument("--output", required=True, type=Path, help="folder of the summary")
    parser.add_argument("--ubm", type=Path, help="trained UBM runs (seed-*); default: trained in the output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1111, 1112, 1113])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override the recipe ubm/sample")
    parser.add_argument("--experts", nargs="+", choices=list(EXPERTS), default=list(EXPERTS))
    arguments = parser.parse_args(argv)
    ubm = arguments.ubm or arguments.output / "ubm"
    systems: dict[int, tuple[StudySystem, MsaProcessor]] = {}
    for seed in arguments.seeds:
        if not (ubm / f"seed-{seed}" / "run.json").is_file():
            recipe = load_recipe("ubm/sample", assignments=arguments.set)
            run_recipe(recipe, arguments.data, ubm, seed, {"disable_tqdm": True})
        systems[seed] = wrap(ubm / f"seed-{seed}")
    processor = systems[arguments.seeds[0]][1]
    splits = {
        name: MsaRows(load_msa(arguments.data, name), name, processor.tokenizer, processor.text_max_length)
        for name in ("validation", "test")
    }
    planted = {row["id"]: bool(row["hard"]) for row in read_planted(arguments.data, "test").rows}
    hard = np.array([planted[key] for key in splits["test"].ids])
    found: dict[str, Any] = {}
    for place, name in enumerate(arguments.experts):
        runs = arguments.output / "runs" / str(place)
        found[name] = study(EXPERTS[name], systems, splits, hard, arguments.data, runs)
    facts = {"seeds": arguments.seeds, "test clips": len(hard), "hard clips": int(hard.sum())}
    report = Report(arguments.output)
    report.json("uacs_stub_study.json", {**facts, "experts": found})
    report.summary(
        "uacs_stub_study.md",
        "U-ACS with scripted experts on the sample corpus",
        f"{len(hard)} test clips, of which {int(hard.sum())} are planted as hard; {len(systems)} training seeds of UBM. "
        "± is the standard deviation over them, brackets are 95 % bootstrap intervals over clips. Calls are questions to "
        f"the expert per clip; cost counts the small model as {SMALL_COST:.3f} of a call, the paper's ratio of seconds on "
        "MOSI. The experts know the labels and err by script: what is tested is the routing, no language model.",
    )
    summarise(report, found)
    report.write()
    cascade, alone = str(arguments.output / "runs" / "0"), str(arguments.output / "runs" / "0" / "mllm")
    for tool, given in (
        ("uncertainty", [cascade]),
        ("risk-coverage", [cascade]),
        ("accuracy-cost", [cascade, alone]),
        ("routes", [cascade, alone]),
        ("cases", [cascade]),
    ):
        run_tool(tool, given, output=str(arguments.output / "analysis" / tool))
    return 0


if __name__ == "__main__":
    sys.exit(main())
