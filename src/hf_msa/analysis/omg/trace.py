"""Trace of OMG-Agent's way to a score, step by step, for single samples: the trajectory of its paper.

The candidates of the planner with what eq. 5 makes of them, the retrieved entries with their weights, the size of each step
of generation, the classes' probabilities; and the utility of eq. 3, which the paper defines and never optimises, as a
diagnostic: U = -(L_rec + lambda_s C_sem + lambda_e C_evi + lambda_p C_path). L_rec is the squared error of the generated
latents, mean over the modalities that are generated and whose truth is known; without any it is left out, and so is U.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.estimates import format_number
from hf_msa.analysis.omg.execution import OmgOnRows
from hf_msa.analysis.omg.imputation import squared_errors
from hf_msa.analysis.tool_report import Report
from hf_msa.analysis.tools import tool
from hf_msa.data.loading import load_split
from hf_msa.data.missing import FixedPattern
from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import ID, LABEL, TEXT
from hf_msa.errors import MsaError, as_msa_errors
from hf_msa.evaluation.sweep import MaskedBatch
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.omg_batches import GeneratedBatch
from hf_msa.models.omg_executor import LatentVae
from hf_msa.models.omg_knowledge_base import NO_ENTRY
from hf_msa.models.omg_plan import PLAN_FIELDS
from hf_msa.models.omg_planner import PlanChoice, semantic_cost

EVIDENCE_WEIGHT, PATH_WEIGHT = 0.1, 0.1
"""lambda_e and lambda_p of eq. 3 (appendix A); lambda_s is the configuration's."""

_SHOWN_SETTINGS = (
    *("planner", "num_candidates", "semantic_weight", "log_prob", "reranking", "plan_source", "plan_tokens"),
    *("top_k", "retrieval_temperature", "retrieval_query", "retrieval_aggregation", "injection"),
    *("scheduler", "num_inference_steps", "generation_seed"),
)

Known = Mapping[str, tuple[float, str]]
"""Label and transcript of entries of the knowledge base, by id."""


@tool("trace", "plan, evidence, steps of generation and utility of single samples", methods=("omg",))
def analyze_trace(
    runs: Sequence[str],
    report: Report,
    *,
    data: str,
    split: str = "validation",
    available: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    samples: int = 3,
    structure: bool = False,
) -> None:
    """Show what happened on the way to some samples' scores: all of it as JSON, and readable.

    Args:
        runs: Run folders of OMG-Agent; the first seed is traced.
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set; entries of the knowledge base that are in its training split are
            shown with label and transcript.
        split: The split that the samples are in.
        available: Modalities that are left of them; default: all but text.
        ids: Ids of the samples; default: the first ones of the split.
        samples: How many of these.
        structure: Leave out ids, words, and labels, and what plans made of them: the trace then holds no row of the data,
            and can be published.
    """
    run = find_runs(runs, "omg")[0]
    rows = run.rows(data, split)
    omg = OmgOnRows.load(run, rows)
    config = omg.model.config
    pattern = FixedPattern(tuple(available) if available else tuple(config.modalities[1:]))
    traces = trace_rows(omg, chosen_rows(rows, ids, samples), pattern, entries_of(data))
    planner = omg.model.planner(omg.processor).name
    if structure:
        traces = [without_data(sample) for sample in traces]
    report.json(
        "trace.json",
        {
            "method": run.name,
            "training_seed": run.seed,
            "split": split,
            "available": list(pattern.available),
            "planner": planner,
            "settings": {name: getattr(config, name) for name in _SHOWN_SETTINGS},
            "samples": traces,
        },
    )
    report.summary(
        "trace.md",
        "Traces",
        f"{run.name}, training seed {run.seed}; {split} split, {' and '.join(pattern.available)} left; planner: {planner}.",
    )
    for number, sample in enumerate(traces, 1):
        add_section(report, sample, number)


def chosen_rows(rows: MsaRows, ids: Sequence[str] | None, samples: int) -> list[int]:
    """Places of the samples with these ids, or of the first ones.

    Raises:
        MsaError: If there is no such id, or no sample is wanted.
    """
    if ids is None:
        if samples < 1:
            raise MsaError(f"--samples is {samples}; at least 1 sample must be traced.")
        return list(range(min(samples, len(rows))))
    place = {sample: index for index, sample in enumerate(rows.ids)}
    absent = next((sample for sample in ids if sample not in place), None)
    if absent is not None:
        raise MsaError(f"The split {rows.split!r} has no sample {absent!r}; it has e.g. {rows.ids[0]!r}.")
    return [place[sample] for sample in ids]


def entries_of(data: str) -> Known:
    """Label and transcript of every training row, by id."""
    dataset = load_split(data, "train")
    columns = (dataset[name][:] for name in (ID, LABEL, TEXT))
    return {str(sample): (float(label), str(text)) for sample, label, text in zip(*columns, strict=True)}


@torch.inference_mode()
def trace_rows(omg: OmgOnRows, chosen: Sequence[int], pattern: FixedPattern, known: Known) -> list[dict[str, Any]]:
    """Generate what a pattern drops of the rows at some places, and say how.

    Raises:
        MsaError: If the model has no planner, or its language model cannot be used.
    """
    traces = []
    for batch in omg.batches(pattern, "traces", chosen):
        with as_msa_errors():
            made = omg.model.generate_missing(batch.inputs, batch.members, omg.processor)
        errors = latent_errors(omg.model, batch, made)
        traces += [
            sample_trace(omg.model, member, made, row, errors[row], known) for row, member in enumerate(batch.members)
        ]
    return traces


def latent_errors(model: OmgForSentimentAnalysis, batch: MaskedBatch, made: GeneratedBatch) -> list[dict[str, float]]:
    """Per sample the mean squared error of each generated modality's latents, where the complete row has it."""
    whole = model.perceive(batch.complete)
    truth = model.encode_observed(whole)
    found: list[dict[str, float]] = [{} for _ in batch.members]
    for name, mask in made.masks.items():
        # What is generated may be longer or shorter than the truth.
        both = LatentVae.latent_mask(mask) & LatentVae.latent_mask(whole.masks[name])
        errors = squared_errors(made.latents[name], truth[name], both)
        known = mask.any(dim=1) & whole.available[name]
        for row in known.nonzero().squeeze(1).tolist():
            found[row][name] = float(errors[row])
    return found


def sample_trace(
    model: OmgForSentimentAnalysis,
    member: Mapping[str, Any],
    made: GeneratedBatch,
    row: int,
    errors: Mapping[str, float],
    known: Known,
) -> dict[str, Any]:
    """All that happened to one sample, as plain JSON values; None where a step was not taken."""
    config = model.config
    generated = [name for name, mask in made.masks.items() if bool(mask[row].any())]
    steps = {name: made.step_costs[name][row].double().tolist() for name in generated}
    path = [sum(costs) / len(costs) for costs in steps.values()]
    plan = None if made.plans is None else plan_trace(made.plans[row])
    evidence = retrieval_trace(made, row, known)
    costs = {
        "reconstruction": sum(errors.values()) / len(errors) if errors else None,
        "semantic": None if plan is None else plan["semantic_cost"],
        "evidence": None if evidence is None else evidence["alignment_cost"],
        "path": sum(path) / len(path) if path else None,
    }
    logits = made.class_logits[row : row + 1]
    probabilities = logits.float().softmax(dim=-1)[0].tolist()
    return {
        "id": str(member[ID]),
        "label": float(member[LABEL]),
        "text": str(member[TEXT]),
        "observed": [name for name in config.modalities if name not in generated],
        "plan": plan,
        "retrieval": evidence,
        "execution": {
            name: {
                "latents": int(LatentVae.latent_mask(made.masks[name][row : row + 1]).sum()),
                "step_norms": [math.sqrt(cost) for cost in steps[name]],
                "path_cost": sum(steps[name]) / len(steps[name]),
                "reconstruction_error": errors.get(name),
            }
            for name in generated
        },
        "class_probabilities": dict(zip(config.class_names, probabilities, strict=True)),
        "score": float(model.score(logits)),
        "utility": utility_trace(costs, float(config.semantic_weight)),
    }


def plan_trace(choice: PlanChoice) -> dict[str, Any]:
    """The winner, what it cost, and every candidate."""
    return {
        **choice.plan.to_dict(),
        "score": choice.plan.score,
        "is_fallback": choice.is_fallback,
        "chosen": choice.chosen,
        "semantic_cost": float(semantic_cost(choice.plan_vector[None], choice.observation_vector[None])[0]),
        "candidates": [
            {
                "text": candidate.text,
                "sentiment": None if candidate.plan is None else candidate.plan.sentiment,
                "log_prob": candidate.log_prob,
                "semantic_cost": candidate.cost,
                "utility": candidate.utility,
                "violations": list(candidate.violations),
            }
            for candidate in choice.candidates
        ],
    }


def retrieval_trace(made: GeneratedBatch, row: int, known: Known) -> dict[str, Any] | None:
    """The retrieved entries, best first, with label and transcript where they are known."""
    evidence = made.evidence
    if evidence is None:
        return None
    there = evidence.entries[row] != NO_ENTRY
    weights, cosines = (values[row][there].tolist() for values in (evidence.weights, evidence.similarities))
    entries = []
    for entry, weight, cosine in zip(made.evidence_ids[row], weights, cosines, strict=True):
        label, text = known.get(entry, (None, None))
        entries.append({"id": entry, "weight": weight, "cosine": cosine, "label": label, "text": text})
    # Rounding can leave a cosine above 1.
    return {"alignment_cost": max(float(evidence.alignment_cost[row]), 0.0), "entries": entries}


def utility_trace(costs: Mapping[str, float | None], semantic_weight: float) -> dict[str, Any]:
    """Eq. 3 with its parts; a part that is not known counts 0, but without a known truth there is no utility.

    Args:
        costs: `reconstruction`, `semantic`, `evidence` and `path`.
        semantic_weight: lambda_s.
    """
    weights = {"reconstruction": 1.0, "semantic": semantic_weight, "evidence": EVIDENCE_WEIGHT, "path": PATH_WEIGHT}
    total = -sum(weight * (costs[name] or 0.0) for name, weight in weights.items())
    return {"value": None if costs["reconstruction"] is None else total, "costs": dict(costs), "weights": weights}


def without_data(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of a sample's trace: its numbers, without anything that stands in a row of the data.

    Gone are ids, transcripts and labels, of the sample and of what was retrieved; the plans' entities and actions, which are
    words of transcripts; what candidates read, and how they break the schema, of which the number of ways is left.
    """
    bare: dict[str, Any] = {key: value for key, value in sample.items() if key not in ("id", "label", "text")}
    if bare["plan"] is not None:
        plan = {key: value for key, value in bare["plan"].items() if key not in PLAN_FIELDS[:2]}
        plan["candidates"] = [
            {key: value for key, value in candidate.items() if key != "text"}
            | {"violations": len(candidate["violations"])}
            for candidate in plan["candidates"]
        ]
        bare["plan"] = plan
    if bare["retrieval"] is not None:
        entries = [{key: entry[key] for key in ("weight", "cosine")} for entry in bare["retrieval"]["entries"]]
        bare["retrieval"] = {**bare["retrieval"], "entries": entries}
    return bare


def add_section(report: Report, sample: Mapping[str, Any], number: int) -> None:
    """Add one sample's trace to the summary, with or without the data's words."""
    label = f", label {format_number(sample['label'], 1)}" if "label" in sample else ""
    parts: list[Any] = [
        f"Score **{format_number(sample['score'])}**{label}; observed: {', '.join(sample['observed'])}.",
    ]
    if "text" in sample:
        hidden = "" if "text" in sample["observed"] else " (hidden from the model)"
        parts.append(f"Words{hidden}: {' '.join(sample['text'].split())}")
    if sample["plan"] is not None:
        parts += _plan_parts(sample["plan"])
    if sample["retrieval"] is not None:
        parts.append(f"**Evidence**, C_evi {format_number(sample['retrieval']['alignment_cost'])}")
        parts.append([{"rank": rank, **entry} for rank, entry in enumerate(sample["retrieval"]["entries"], 1)])
    for modality, run in sample["execution"].items():
        norms = run["step_norms"]
        shown = _thinned(norms)
        which = "all" if len(shown) == len(norms) else "some of"
        error, path = (format_number(run[key]) for key in ("reconstruction_error", "path_cost"))
        parts.append(
            f"**Generated {modality}**: {run['latents']} latents, squared error {error}, C_path {path}. Root mean square of "
            f"{which} {len(norms)} steps: {' '.join(map(format_number, shown))}."
        )
    parts.append([sample["class_probabilities"]])
    utility = sample["utility"]
    known = ", ".join(f"{name} {format_number(cost)}" for name, cost in utility["costs"].items())
    parts.append(f"Utility (eq. 3, a diagnostic) {format_number(utility['value'])}; costs: {known}.")
    report.section(f"Sample {number}" + (f": {sample['id']}" if "id" in sample else ""), *parts)


def _plan_parts(plan: Mapping[str, Any]) -> list[Any]:
    """The plan and its candidates; the winner is marked."""
    fields = "; ".join(f"{name}: {plan[name]}" for name in PLAN_FIELDS if name in plan)
    fallback = ", as no candidate kept to the schema" if plan["is_fallback"] else ""
    rows = []
    for number, candidate in enumerate(plan["candidates"]):
        broken = candidate["violations"]
        shown = ("; ".join(broken) or None) if isinstance(broken, list) else broken
        rows.append({"": "*" if number == plan["chosen"] else "", **candidate, "violations": shown})
    return [f"**Plan**: {' '.join(fields.split())} (C_sem {format_number(plan['semantic_cost'])}){fallback}", rows]


def _thinned(values: Sequence[float], most: int = 10) -> list[float]:
    """At most so many of the values, the first and the last among them."""
    places = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    return [values[place] for place in places]
