"""Plans of OMG-Agent against what is known of the samples: do they keep to the schema, and is their sentiment right?

For every set of observed modalities: which share of the candidates keeps to the schema, for which share of the samples none
does, how often the sentiment that was chosen is the word for the label, and has its sign, and how far the planner's score
(`PlanChoice.score`) is from the label. Beside it stands a constant: the mean label of the training split, and its word.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.estimates import Estimate, Floats
from hf_msa.analysis.omg.execution import OmgOnRows, stacked
from hf_msa.analysis.tool_report import Report
from hf_msa.analysis.tools import tool
from hf_msa.data.missing import FixedPattern
from hf_msa.errors import as_msa_errors
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.statistics import all_and_resampled
from hf_msa.models.msa_label_families import LabelFamily
from hf_msa.models.msa_schema import SENTIMENT_SCALE
from hf_msa.models.omg_plan import score_label, sentiment_word
from hf_msa.models.omg_planner import PlanChoice

COLUMNS = ("valid", "fallback", "word", "sign", "error", "cost")
"""Of each sample: share of the candidates that keep to the schema; whether none does; whether the word is the label's, and
has its sign; distance of score and label, in label units; C_sem of the plan."""


def word_value(word: str, family: LabelFamily) -> float:
    """The label that a word of the scale stands for."""
    return score_label(SENTIMENT_SCALE.index(word) - 3, family)


def judge_plan(choice: PlanChoice, label: float, family: LabelFamily) -> dict[str, float]:
    """Judge the plan of one sample: `COLUMNS`, and the planner's `score` in label units."""
    valid = [candidate for candidate in choice.candidates if candidate.plan is not None]
    score = score_label(choice.score, family)
    value = word_value(choice.plan.sentiment, family)
    return {
        "valid": len(valid) / max(len(choice.candidates), 1),
        "fallback": float(choice.is_fallback),
        "word": float(choice.plan.sentiment == sentiment_word(label, family)),
        "sign": float(np.sign(value - family.neutral) == np.sign(label - family.neutral)),
        "error": abs(score - label),
        "cost": np.nan if choice.chosen is None else choice.candidates[choice.chosen].cost,
        "score": score,
    }


def plan_columns(omg: OmgOnRows, pattern: FixedPattern | None) -> tuple[dict[str, Floats], int]:
    """Plan for all rows as a pattern leaves them; None: as they are.

    Returns:
        Per sample `(n,)` what `judge_plan` says, and how many different plans there are.
    """
    family, judged, texts = omg.model.config.family, list[dict[str, float]](), set[str]()
    for batch in omg.batches(pattern, "plans"):
        with as_msa_errors():
            choices = omg.model.planner(omg.processor).plan(
                omg.model.observations(batch.inputs, batch.members, omg.processor)
            )
        texts |= {choice.plan.to_text() for choice in choices}
        labels = batch.complete["labels"].flatten().tolist()
        judged += [judge_plan(choice, label, family) for choice, label in zip(choices, labels, strict=True)]
    return {name: np.array([one[name] for one in judged]) for name in judged[0]}, len(texts)


def correlation(scores: Floats, labels: Floats) -> Estimate:
    """Pearson correlation of scores `(seeds, samples)` and labels `(samples,)`; NaN where one of them does not differ."""
    counts = all_and_resampled(len(labels)).T / len(labels)
    scores, labels = scores - scores.mean(axis=1, keepdims=True), labels - labels.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        means, mean = scores @ counts, labels @ counts
        covariance = (scores * labels) @ counts - means * mean
        spread = np.sqrt(((scores**2) @ counts - means**2).clip(0) * ((labels**2) @ counts - mean**2).clip(0))
        return Estimate.of(np.where(spread > 1e-12, covariance / spread, np.nan))


@tool(
    "plans",
    "whether plans keep to the schema and their sentiment is right, for every set of modalities",
    methods=("omg",),
)
def analyze_plans(runs: Sequence[str], report: Report, *, data: str, split: str = "validation") -> None:
    """Show how good OMG-Agent's plans are by themselves, before anything is generated.

    Args:
        runs: Run folders of OMG-Agent.
        report: Takes what is found.
        data: Folder or Hub name of the data set.
        split: The split to look at.
    """
    found = find_runs(runs, "omg")
    rows, train = found[0].rows(data, split), found[0].rows(data, "train")
    by_seed: dict[str, list[dict[str, Floats]]] = {}
    kinds: dict[str, list[int]] = {}
    for run in found:
        omg = OmgOnRows.load(run, rows)
        complete = "+".join(omg.model.config.modalities)
        for pattern in (None, *reversed(omg.incomplete_patterns())):
            name = complete if pattern is None else "+".join(pattern.available)
            columns, different = plan_columns(omg, pattern)
            by_seed.setdefault(name, []).append(columns)
            kinds.setdefault(name, []).append(different)
    family, mean = omg.model.config.family, float(train.labels.mean())
    labels = rows.labels.astype(np.float64)
    summary: list[dict[str, Any]] = []
    for name, seeds in by_seed.items():
        columns = stacked(seeds)
        cost = columns["cost"][:, np.isfinite(columns["cost"]).all(axis=0)]
        summary.append(
            {
                "observed": name,
                "valid candidates": Estimate.mean_of(columns["valid"]),
                "fallback plans": Estimate.mean_of(columns["fallback"]),
                "different plans": float(np.mean(kinds[name])) / len(labels),
                "right word": Estimate.mean_of(columns["word"]),
                "right sign": Estimate.mean_of(columns["sign"]),
                "MAE of the score": Estimate.mean_of(columns["error"]),
                "Corr of the score": correlation(columns["score"], labels),
                "C_sem": Estimate.mean_of(cost) if cost.size else None,
            }
        )
    word = sentiment_word(mean, family)
    constant = {
        "word": np.array([[word == sentiment_word(label, family) for label in labels]], dtype=np.float64),
        "sign": np.array([np.sign(word_value(word, family) - family.neutral) == np.sign(labels - family.neutral)]),
        "error": np.abs(mean - labels)[None],
    }
    named = {"word": "right word", "sign": "right sign", "error": "MAE of the score"}
    empty = dict.fromkeys(summary[0])
    summary.append(
        empty | {"observed": "constant"} | {named[key]: Estimate.mean_of(value) for key, value in constant.items()}
    )
    report.csv("plans.csv", summary)
    report.summary(
        "plans.md",
        "Plans and labels",
        f"{found[0].name}; {len(rows)} samples ({split}), {counted(len(found), 'training seed')}; planner: "
        f"{Path(omg.model.planner(omg.processor).name).name}. Constant: the training split's mean label ({mean:.2f}) and "
        f"its word ({word}). C_sem: 1 - cosine of plan and observation, of plans that keep to the schema. ± is the standard "
        "deviation over training seeds, brackets are 95 % bootstrap intervals over samples.",
        summary,
    )
