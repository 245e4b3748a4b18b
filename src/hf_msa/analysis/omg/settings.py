"""Settings that matter only when OMG-Agent predicts: metrics and time for every value, with nothing trained again.

How many entries are retrieved (the paper plots K), the sampler and its steps, the temperature of the retriever, the seed of
the noise. Several fields give the grid of all their values.

Time is that of retrieval, generation, classification and batching; planning has been done before it is taken, as it depends
on none of this. The `latency` tool takes it apart.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml

from hf_msa.analysis.common.trained_runs import MASK_SEED, TrainedRun, find_runs
from hf_msa.analysis.estimates import Estimate, format_spread
from hf_msa.analysis.omg.execution import OmgOnRows
from hf_msa.analysis.tool_report import Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.loading import dataset_facts
from hf_msa.data.missing import Condition, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError, as_msa_errors, unknown_name
from hf_msa.evaluation.metrics import METRICS
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.results import Predictions, predictions_table
from hf_msa.evaluation.statistics import mean_and_std, resample_counts
from hf_msa.evaluation.sweep import sweep
from hf_msa.models.msa_answer_store import AnswerStore

Setting = Mapping[str, Any]
"""Values of configuration fields by name."""


@dataclass(frozen=True)
class SettingScores:
    """What all checkpoints scored with one setting.

    Attributes:
        setting: The values that were set.
        own: Whether they are those that the checkpoints were saved with.
        metrics: By metric, one estimate per missing rate.
        seconds: Per sample, one per training seed (S,).
    """

    setting: Setting
    own: bool
    metrics: dict[str, list[Estimate]]
    seconds: list[float]

    @property
    def text(self) -> str:
        """The setting, as headings and legends show it."""
        return ", ".join(f"{name} {value}" for name, value in self.setting.items())


def parse_settings(assignments: Sequence[str]) -> list[Setting]:
    """Read fields with their values, and make the grid.

    Args:
        assignments: ``FIELD=VALUE,VALUE,...``, each value as YAML.

    Returns:
        Every combination, the last field's values in the innermost loop.

    Raises:
        MsaError: If one is no such assignment, or a field or value comes twice.
    """
    fields: dict[str, list[Any]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        try:
            values = [yaml.safe_load(value) for value in text.split(",")]
        except yaml.YAMLError:
            values = []
        if not name or not equals or not values or None in values:
            raise MsaError(f"--vary takes FIELD=VALUE,VALUE, e.g. top_k=1,5,10; got {assignment!r}.")
        if name in fields or any(values.count(value) > 1 for value in values):
            raise MsaError(f"--vary {assignment} names a field or a value twice; give each once.")
        fields[name] = values
    return [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]


@tool("settings", "metrics and time for values of fields that matter at inference, e.g. top_k", methods=("omg",))
def analyze_settings(
    runs: Sequence[str],
    report: Report,
    *,
    data: str,
    split: str = "validation",
    vary: Sequence[str] = ("top_k=1,5,10,20,50",),
    rates: Sequence[float] = (0.7,),
    metrics: Sequence[str] | None = None,
    batch_size: int = 128,
) -> None:
    """Show metrics and seconds per sample for every value of some configuration fields.

    Args:
        runs: Run folders of OMG-Agent.
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set.
        split: The split to look at; a setting that is to be chosen is chosen on validation.
        vary: Values to try, as ``FIELD=VALUE,VALUE``; several fields give the grid.
        rates: Missing rates of the protocol ``modality``.
        metrics: Metrics to show; default: all.
        batch_size: Rows per batch.
    """
    settings = parse_settings(vary)
    found = find_runs(runs, "omg")
    rows = found[0].rows(data, split)
    tested = conditions("modality", (), rates, (MASK_SEED,))
    stores = [AnswerStore() for _ in found]
    scored = [score_setting(setting, found, stores, rows, tested, batch_size) for setting in settings]
    for name in metrics or ():
        if name not in scored[0].metrics:
            raise unknown_name("metric", name, scored[0].metrics)
    shown = list(metrics or scored[0].metrics)
    main = [name for name in ("mae", dataset_facts(data).family.main_accuracy) if name in shown] or shown[:1]
    report.csv("settings.csv", setting_rows(scored, [run.seed for run in found], rates))
    report.summary(
        "settings.md",
        "Settings of inference",
        f"{found[0].name}; {len(rows)} samples ({split}), {counted(len(found), 'training seed')}, protocol modality at "
        f"rate {', '.join(map(str, rates))}, batches of {batch_size} on "
        f"{'a GPU' if torch.cuda.is_available() else counted(torch.get_num_threads(), 'CPU thread')}. Trained once, "
        "then only these fields are changed; * marks what the checkpoint was saved with. Times leave planning out. ± is "
        "the standard deviation over training seeds, brackets are 95 % bootstrap intervals over samples, those of "
        f"differences (to {_reference(scored).text}) paired.",
    )
    for place, rate in enumerate(rates):
        report.section(f"Missing rate {rate}", setting_summary(scored, place, shown, main))
    place = len(rates) // 2
    report.figure("settings", _draw, scored, main, place, rates[place])


def score_setting(
    setting: Setting,
    runs: Sequence[TrainedRun],
    stores: Sequence[AnswerStore],
    rows: MsaRows,
    tested: Sequence[Condition],
    batch_size: int,
) -> SettingScores:
    """Predict with one setting by the checkpoints of all runs, each with a store of what its planner has said before.

    Raises:
        MsaError: If a checkpoint cannot be loaded with it.
    """
    parts, seconds, own = [], [], True
    for run, store in zip(runs, stores, strict=True):
        omg = OmgOnRows.load(run, rows, setting)
        saved = type(omg.model.config).from_pretrained(run.folder)
        own = own and all(getattr(saved, name) == value for name, value in setting.items())
        prepare_plans(omg, store, tested, batch_size)
        started = time.perf_counter()
        made, _ = sweep(omg.model, omg.processor, rows, tested, batch_size)
        seconds.append((time.perf_counter() - started) / (len(rows) * len(tested)))
        parts += [{"training_seed": run.seed, **part} for part in made]
    predictions, family = Predictions.from_table(predictions_table(parts)), omg.model.config.family
    values, drawn = predictions.metrics(family), predictions.resampled(family, resample_counts(len(rows)))
    metrics = {
        name: [Estimate(values[name][:, 0, place], drawn[name][place]) for place in range(len(tested))]
        for name in values
    }
    return SettingScores(setting, own, metrics, seconds)


@torch.inference_mode()
def prepare_plans(omg: OmgOnRows, store: AnswerStore, tested: Sequence[Condition], batch_size: int) -> None:
    """Plan and load everything that the measured time is not to hold, and predict one batch."""
    model = omg.model
    with as_msa_errors():
        model.planner(omg.processor).store = store
        for _, _, protocol in tested:
            for number, batch in enumerate(omg.batches(protocol, "plans", batch_size=batch_size)):
                _, vectors = model.plan_inputs(batch.inputs, batch.members, omg.processor)
                if not number:
                    model(**batch.inputs, **vectors)


def _reference(scored: Sequence[SettingScores]) -> SettingScores:
    """What the others are compared with: the checkpoint's own setting if it is one of them, else the first."""
    return next((scores for scores in scored if scores.own), scored[0])


def setting_rows(
    scored: Sequence[SettingScores], seeds: Sequence[int], rates: Sequence[float]
) -> list[dict[str, Any]]:
    """One row per setting, rate and training seed."""
    return [
        {
            **scores.setting,
            "own": scores.own,
            "rate": rate,
            "training seed": seed,
            "seconds per sample": scores.seconds[s],
            "samples per second": 1 / scores.seconds[s],
        }
        | {name: float(estimates[place].per_seed[s]) for name, estimates in scores.metrics.items()}
        for scores in scored
        for place, rate in enumerate(rates)
        for s, seed in enumerate(seeds)
    ]


def setting_summary(
    scored: Sequence[SettingScores], place: int, shown: Sequence[str], main: Sequence[str]
) -> list[dict[str, Any]]:
    """The table of one rate, by its place among the rates: means over seeds.

    Args:
        scored: The settings.
        place: Of the rate.
        shown: Metrics.
        main: Those of them that are shown with intervals and with differences to the reference.
    """
    reference = _reference(scored)
    table = []
    for scores in scored:
        *others, last = scores.setting.items()
        row: dict[str, Any] = {name: str(value) for name, value in others}
        row[last[0]] = f"{last[1]}{' *' if scores.own else ''}"
        for name in shown:
            estimate = _as_shown(name, scores.metrics[name][place])
            row[METRICS[name].pretty] = estimate if name in main else format_spread(estimate.per_seed.tolist())
        for name in main:
            difference = _as_shown(name, scores.metrics[name][place] - reference.metrics[name][place])
            row[f"{METRICS[name].pretty}, difference"] = None if scores is reference else difference.difference_text()
        row["ms per sample"] = format_spread([1000 * second for second in scores.seconds], 2)
        row["samples/s"] = format_spread([1 / second for second in scores.seconds], 1)
        table.append(row)
    return table


def _as_shown(metric: str, estimate: Estimate) -> Estimate:
    """An estimate in the unit of tables and figures: percent where the metric is shown in it."""
    return estimate * 100 if METRICS[metric].percent else estimate


def _draw(figure: Figure, scored: Sequence[SettingScores], main: Sequence[str], place: int, rate: float) -> None:
    """The last field's values along the axis, a line for each combination of the others'."""
    *others, last = scored[0].setting
    ticks = list(dict.fromkeys(str(scores.setting[last]) for scores in scored))
    lines: dict[str, list[SettingScores]] = {}
    for scores in scored:
        lines.setdefault(", ".join(f"{name} {scores.setting[name]}" for name in others), []).append(scores)
    figure.set_size_inches(2.8 * (len(main) + 1), 2.6)
    *panels, clock = figure.subplots(1, len(main) + 1)
    for label, line in lines.items():
        at = [ticks.index(str(scores.setting[last])) for scores in line]
        for panel, name in zip(panels, main, strict=True):
            estimates = [_as_shown(name, scores.metrics[name][place]) for scores in line]
            panel.plot(at, [estimate.mean for estimate in estimates], "o-", ms=3.5, label=label)
            panel.fill_between(
                at, *zip(*(estimate.bounds for estimate in estimates), strict=True), alpha=0.12, linewidth=0
            )
            panel.set_title(
                f"{METRICS[name].pretty}{' (%)' if METRICS[name].percent else ''}, rate {rate}", fontsize=8
            )
        times = [mean_and_std([1000 * second for second in scores.seconds]) for scores in line]
        means, deviations = zip(*times, strict=True)
        clock.errorbar(at, means, yerr=deviations, fmt="o-", ms=3.5, elinewidth=0.8, label=label)
    clock.set_title(f"ms per sample{', deviation over seeds' if len(scored[0].seconds) > 1 else ''}", fontsize=8)
    for panel in (*panels, clock):
        panel.set_xticks(range(len(ticks)), ticks)
        panel.set_xlabel(last)
    seconds = [np.mean(scores.seconds) for scores in scored]
    # Samplers differ by orders of magnitude, most other settings hardly.
    if max(seconds) > 10 * min(seconds):
        clock.set_yscale("log")
    else:
        clock.set_ylim(bottom=0)
    if others:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
