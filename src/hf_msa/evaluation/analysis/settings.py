"""What settings are worth that matter only when OMG-Agent predicts: metrics and time for every value, nothing trained again.

How many entries are retrieved (the paper plots K), the sampler and its steps, the temperature of the retriever, the seed of
the noise. Several fields give the grid of all their values.

Time is that of retrieval, generation, classification and batching; planning has been done before it is taken, as it depends
on none of this. The `latency` tool takes it apart.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml

from hf_msa.data.missing import Condition, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError, as_msa_errors, unknown_name
from hf_msa.evaluation.checkpoints import check_widths, load_checkpoint
from hf_msa.evaluation.metrics import METRICS
from hf_msa.evaluation.results import Predictions, predictions_table
from hf_msa.evaluation.statistics import confidence_interval, resample_counts
from hf_msa.evaluation.sweep import sweep
from hf_msa.label_families import AnyFamily
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.omg_plan_store import PlanStore
from hf_msa.models.processing_msa import MsaProcessor

from .executing import Floats, row_batches, shown_metrics, with_interval
from .runs import TrainedRun, find_runs, load_split
from .writing import counted, drawn_figure, format_number, format_spread, rows_table, write_csv, write_markdown

_MASK_SEED = 1111

Setting = Mapping[str, Any]
"""Values of configuration fields by name."""


@dataclass(frozen=True)
class SettingScores:
    """What all checkpoints scored with one setting.

    Attributes:
        setting: The values that were set.
        own: Whether they are those that the checkpoints were saved with.
        metrics: By metric, one per training seed and rate (S, R).
        drawn: By metric, the mean over seeds in each bootstrap resample (R, resamples).
        seconds: Per sample, one per training seed (S,).
    """

    setting: Setting
    own: bool
    metrics: dict[str, Floats]
    drawn: dict[str, Floats]
    seconds: list[float]


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


def analyze_settings(
    runs: Sequence[str],
    *,
    data: str,
    output: Path,
    split: str = "validation",
    vary: Sequence[str] = ("top_k=1,5,10,20,50",),
    rates: Sequence[float] = (0.7,),
    metrics: Sequence[str] | None = None,
    batch_size: int = 128,
) -> list[Path]:
    """Write metrics and seconds per sample for every value of some configuration fields.

    Args:
        runs: Run folders of OMG-Agent.
        data: Folder or Hub name of a prepared data set.
        output: The folder to write to.
        split: The split to look at; a setting that is to be chosen is chosen on validation.
        vary: ``FIELD=VALUE,VALUE,...``, one or several.
        rates: Missing rates of the protocol ``"modality"``.
        metrics: Metrics to show; default: all.
        batch_size: Rows per batch.

    Raises:
        MsaError: If a run, the data, a field or a value will not do.
    """
    settings = parse_settings(vary)
    found = find_runs(runs, "omg")
    rows = load_split(data, split, found[0])
    tested = conditions("modality", (), rates, (_MASK_SEED,))
    stores = [PlanStore() for _ in found]
    scored = [score_setting(setting, found, stores, rows, tested, batch_size) for setting in settings]
    known = list(scored[0].metrics)
    for name in metrics or ():
        if name not in known:
            raise unknown_name("metric", name, known)
    shown = list(metrics or known)
    written = [
        write_csv(output / "settings.csv", setting_rows(scored, [run.seed for run in found], rates)),
        write_markdown(
            output / "settings.md",
            "# Settings of inference",
            f"{found[0].name}; {len(rows)} samples ({split}), {counted(len(found), 'training seed')}, protocol modality at "
            f"rate {', '.join(map(str, rates))}, batches of {batch_size} on "
            f"{'a GPU' if torch.cuda.is_available() else counted(torch.get_num_threads(), 'CPU thread')}. Trained once, "
            "then only these fields are changed; * marks what the checkpoint was saved with. Times leave planning out. ± is "
            "the standard deviation over training seeds, brackets are 95 % bootstrap intervals over samples, those of "
            f"differences (to {_setting_text(_reference(scored).setting)}) paired.",
            *(
                f"## Missing rate {rate}\n\n" + rows_table(setting_summary(scored, place, shown))
                for place, rate in enumerate(rates)
            ),
        ),
    ]
    _draw(output / "settings", scored, shown, len(rates) // 2, rates, written)
    return written


def score_setting(
    setting: Setting,
    runs: Sequence[TrainedRun],
    stores: Sequence[PlanStore],
    rows: MsaRows,
    tested: Sequence[Condition],
    batch_size: int,
) -> SettingScores:
    """Predict with one setting by all checkpoints.

    Args:
        setting: The values to set.
        runs: Of OMG-Agent.
        stores: Of each run what its planner has said before; added to.
        rows: Tokenised rows.
        tested: Rates, with one mask seed.
        batch_size: Rows per batch.

    Raises:
        MsaError: If a checkpoint cannot be loaded with it.
    """
    parts, seconds, own = [], [], True
    family: AnyFamily = ""
    for run, store in zip(runs, stores, strict=True):
        loaded, processor = load_checkpoint(str(run.folder), setting)
        check_widths(loaded, rows, str(run.folder))
        model = cast(OmgForSentimentAnalysis, loaded)
        saved = type(loaded.config).from_pretrained(run.folder)
        own = own and all(getattr(saved, name) == value for name, value in setting.items())
        family = model.config.family
        prepare_plans(model, processor, store, rows, tested, batch_size)
        started = time.perf_counter()
        made, _ = sweep(model, processor, rows, tested, batch_size)
        seconds.append((time.perf_counter() - started) / (len(rows) * len(tested)))
        parts += [{"training_seed": run.seed, **part} for part in made]
    predictions = Predictions.from_table(predictions_table(parts))
    metrics = {name: values[:, 0] for name, values in predictions.metrics(family).items()}
    drawn = predictions.resampled(family, resample_counts(len(rows)))
    return SettingScores(setting, own, metrics, drawn, seconds)


@torch.inference_mode()
def prepare_plans(
    model: OmgForSentimentAnalysis,
    processor: MsaProcessor,
    store: PlanStore,
    rows: MsaRows,
    tested: Sequence[Condition],
    batch_size: int,
) -> None:
    """Have everything planned and loaded that the measured time is not to hold, and predict one batch."""
    with as_msa_errors():
        model.planner(processor).store = store
        for _, _, protocol in tested:
            for number, batch in enumerate(row_batches(model, processor, rows, protocol, "plans", None, batch_size)):
                _, vectors = model.plan_inputs(batch.inputs, batch.members, processor)
                if not number:
                    model(**batch.inputs, **vectors)


def _reference(scored: Sequence[SettingScores]) -> SettingScores:
    """What the others are compared with: the checkpoint's own setting if it is one of them, else the first."""
    return next((scores for scores in scored if scores.own), scored[0])


def _setting_text(setting: Setting) -> str:
    return ", ".join(f"{name} {value}" for name, value in setting.items())


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
        | {name: float(values[s, place]) for name, values in scores.metrics.items()}
        for scores in scored
        for place, rate in enumerate(rates)
        for s, seed in enumerate(seeds)
    ]


def setting_summary(scored: Sequence[SettingScores], place: int, shown: Sequence[str]) -> list[dict[str, Any]]:
    """The table of one rate, by its place among the rates: means over seeds, and differences to the reference."""
    reference = _reference(scored)
    family = "mosi" if "acc7" in reference.metrics else "sims"
    compared = [name for name in shown_metrics(family) if name in shown] or list(shown[:1])
    table = []
    for scores in scored:
        row: dict[str, Any] = {
            name: f"{value}{' *' if scores.own and number == len(scores.setting) - 1 else ''}"
            for number, (name, value) in enumerate(scores.setting.items())
        }
        for name in shown:
            values = scores.metrics[name][:, place].tolist()
            row[METRICS[name].pretty] = (
                with_interval(values, scores.drawn[name][place]) if name in compared else format_spread(values)
            )
        for name in compared:
            means = (one.metrics[name][:, place].mean() for one in (scores, reference))
            low, high = confidence_interval(scores.drawn[name][place] - reference.drawn[name][place])
            row[f"{METRICS[name].pretty}, difference"] = (
                None
                if scores is reference
                else f"{next(means) - next(means):+.3f} [{format_number(low)}, {format_number(high)}]"
            )
        row["ms per sample"] = format_spread([1000 * second for second in scores.seconds], 2)
        row["samples/s"] = format_spread([1 / second for second in scores.seconds], 1)
        table.append(row)
    return table


def _draw(
    stem: Path,
    scored: Sequence[SettingScores],
    shown: Sequence[str],
    place: int,
    rates: Sequence[float],
    written: list[Path],
) -> None:
    """The last field's values along the axis, a line for each combination of the others'."""
    *others, last = scored[0].setting
    ticks = list(dict.fromkeys(str(scores.setting[last]) for scores in scored))
    lines: dict[str, list[SettingScores]] = {}
    for scores in scored:
        lines.setdefault(_setting_text({name: scores.setting[name] for name in others}), []).append(scores)
    family = "mosi" if "acc7" in scored[0].metrics else "sims"
    drawn = [name for name in shown_metrics(family) if name in shown] or list(shown[:1])
    with drawn_figure(stem, 2.8 * (len(drawn) + 1), 2.6, written) as figure:
        panels = figure.subplots(1, len(drawn) + 1)
        for label, line in lines.items():
            at = [ticks.index(str(scores.setting[last])) for scores in line]
            for panel, name in zip(panels, drawn, strict=False):
                ends = np.array([confidence_interval(scores.drawn[name][place]) for scores in line])
                panel.plot(at, [scores.metrics[name][:, place].mean() for scores in line], "o-", ms=3.5, label=label)
                panel.fill_between(at, ends[:, 0], ends[:, 1], alpha=0.12, linewidth=0)
            panels[-1].plot(at, [1000 * np.mean(scores.seconds) for scores in line], "o-", ms=3.5, label=label)
        for panel, title in zip(panels, [*(METRICS[name].pretty for name in drawn), "ms per sample"], strict=True):
            panel.set_title(title if title == "ms per sample" else f"{title}, rate {rates[place]}", fontsize=8)
            panel.set_xticks(range(len(ticks)), ticks)
            panel.set_xlabel(last)
        seconds = [np.mean(scores.seconds) for scores in scored]
        # Samplers differ by orders of magnitude, most other settings hardly.
        if max(seconds) > 10 * min(seconds):
            panels[-1].set_yscale("log")
        else:
            panels[-1].set_ylim(bottom=0)
        if others:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
