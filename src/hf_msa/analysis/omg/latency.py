"""Time of a prediction of OMG-Agent by its parts: planning, encoding, retrieval, execution, classification.

For every set of observed modalities the same samples are predicted several times. Planning is measured twice: with
nothing known of the samples, which is what a new clip costs, and with plans and vectors of these observations remembered.
Encoding is what the executor needs of what is observed: states of the text encoder, features on their positions, latents.

The paper gives one number: about 84 ms per sample, 45 % of them planning and 55 % retrieval and execution, on an RTX 4090
with Qwen2.5-Omni as planner. It does not say how large its batches were, nor how many steps its sampler took.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.estimates import Rows, format_bounds, format_number
from hf_msa.analysis.omg.execution import OmgOnRows
from hf_msa.analysis.tool_report import Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.missing import FixedPattern
from hf_msa.errors import MsaError, as_msa_errors
from hf_msa.evaluation.report import counted
from hf_msa.models.msa_answer_store import AnswerStore

UNCACHED, CACHED = "planning, uncached", "planning, cached"
PARTS = (UNCACHED, CACHED, "encoding", "retrieval", "execution", "classification")
"""What is timed, in ms per sample."""

PAPER_MS, PAPER_PLANNING = 84.0, 0.45
"""The paper's latency per sample and the share of planning in it (its section on hardware)."""

_REPEATS = 5


class Stopwatch:
    """Adds up the seconds of named parts.

    Args:
        device: Its pending work is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Count what happens within towards `part`."""
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self.seconds[part] += time.perf_counter() - started

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@torch.inference_mode()
def time_pattern(omg: OmgOnRows, chosen: Sequence[int], pattern: FixedPattern, batch_size: int) -> dict[str, float]:
    """Predict the rows at some places once, as a pattern leaves them: milliseconds per sample for each of `PARTS`.

    Raises:
        MsaError: If the model has no planner, or its language model cannot be used.
    """
    model, processor = omg.model, omg.processor
    watch = Stopwatch(model.device)
    with as_msa_errors():
        planner = model.planner(processor)
        for batch in omg.batches(pattern, "+".join(pattern.available), chosen, batch_size):
            # Nothing is known of the batch, nor of another that has the same plans.
            planner.store = AnswerStore()
            with watch.timing(UNCACHED):
                model.plan_inputs(batch.inputs, batch.members, processor)
            with watch.timing(CACHED):
                _, vectors = model.plan_inputs(batch.inputs, batch.members, processor)
            with watch.timing("encoding"):
                perception = model.perceive(batch.inputs)
                latents = model.encode_observed(perception)
            with watch.timing("retrieval"):
                conditioning = model.conditioning(perception, vectors)
            with watch.timing("execution"):
                latents, _, _ = model.execute(perception, conditioning, latents)
            with watch.timing("classification"):
                model.score(model.classify(perception, conditioning, latents))
    return {part: 1000 * seconds / len(chosen) for part, seconds in watch.seconds.items()}


@tool("latency", "milliseconds per sample of planning, retrieval, execution and classification", methods=("omg",))
def analyze_latency(
    runs: Sequence[str],
    report: Report,
    *,
    data: str,
    split: str = "validation",
    samples: int = 32,
    batch_size: int = 1,
) -> None:
    """Show the milliseconds per sample of each part of a prediction, for every set of observed modalities.

    Args:
        runs: Run folders of OMG-Agent; the first seed is timed.
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set.
        split: The split to look at.
        samples: How many of its first samples are predicted.
        batch_size: Rows per batch.
    """
    if samples < 1 or batch_size < 1:
        raise MsaError(f"--samples {samples} and --batch-size {batch_size}: both must be at least 1.")
    run = find_runs(runs, "omg")[0]
    rows = run.rows(data, split)
    omg = OmgOnRows.load(run, rows)
    chosen = range(min(samples, len(rows)))
    table = []
    for pattern in omg.incomplete_patterns():
        # The first batch of a process waits for memory and libraries.
        time_pattern(omg, chosen[:batch_size], pattern, batch_size)
        for repeat in range(_REPEATS):
            found = time_pattern(omg, chosen, pattern, batch_size)
            table.append({"observed": "+".join(pattern.available), "repeat": repeat + 1} | found)
    config, planner = omg.model.config, omg.model.planner(omg.processor).name
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else counted(torch.get_num_threads(), "CPU thread")
    )
    report.csv("latency.csv", table)
    report.summary(
        "latency.md",
        "Milliseconds per sample",
        f"{run.name}, training seed {run.seed}; {len(chosen)} samples ({split}) in batches of {batch_size} on {device}; "
        f"planner: {planner}; {config.num_inference_steps} steps of {config.scheduler}; {config.top_k} entries "
        f"retrieved. Median over {_REPEATS} repeats, in brackets the lowest and the highest. Reading files and batching "
        "are not in it.",
        latency_summary(table),
        f"The paper reports about {PAPER_MS:g} ms per sample, {PAPER_PLANNING:.0%} planning and "
        f"{1 - PAPER_PLANNING:.0%} retrieval and execution. The two are **not comparable**: the paper has an RTX 4090, "
        "Qwen2.5-Omni as planner and features of other sizes, and names neither batch size nor sampler steps; here it "
        f"is the {planner} on {device}.",
    )
    report.figure("latency", _draw, table)


def _by_pattern(table: Rows) -> dict[str, dict[str, Any]]:
    """The milliseconds of each part in all repeats (repeats,), by pattern."""
    return {
        name: {part: np.array([row[part] for row in table if row["observed"] == name]) for part in PARTS}
        for name in dict.fromkeys(row["observed"] for row in table)
    }


def latency_summary(table: Rows) -> list[dict[str, str]]:
    """Median, lowest and highest of each part by pattern, the totals with either kind of planning, and planning's shares."""
    summary = []
    for name, values in _by_pattern(table).items():
        row = {"observed": name} | {part: _spread(numbers) for part, numbers in values.items()}
        rest = sum(values[part] for part in PARTS[2:])
        for planning in (UNCACHED, CACHED):
            kind = planning.split(", ")[1]
            total = values[planning] + rest
            row[f"total, {kind}"] = _spread(total)
            row[f"share of planning, {kind}"] = f"{np.median(values[planning] / total):.0%}"
        summary.append(row)
    return summary


def _spread(values: Any) -> str:
    return f"{format_number(float(np.median(values)), 2)} {format_bounds((values.min(), values.max()), 2)}"


def _draw(figure: Figure, table: Rows) -> None:
    patterns = _by_pattern(table)
    figure.set_size_inches(7.0, 0.6 + 0.35 * len(patterns))
    panel = figure.subplots()
    starts = np.zeros(len(patterns))
    for part in (part for part in PARTS if part != CACHED):
        widths = np.array([np.median(values[part]) for values in patterns.values()])
        panel.barh(list(patterns), widths, left=starts, label=part)
        starts += widths
    panel.invert_yaxis()
    panel.set_xlabel("ms per sample")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
