"""Effect of pseudo labelling on the labels of each modality (CMC, section on PLGM): drift over the epochs, and its use.

Drift is what the training log says of each epoch: how many hard labels have left the multimodal class that they began
with, and how far the soft labels moved. The paper's failure signature is labels that do not settle by epoch 20 to 40.
With the data set's own labels per modality the tool also asks what the drift is for: do the pseudo labels agree better
with what annotators said of the single modality than the multimodal label does, which costs nothing?
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hf_msa.analysis.common.split_labels import SplitLabels, read_labels
from hf_msa.analysis.common.trained_runs import TrainedRun, find_runs
from hf_msa.analysis.estimates import Rows, format_number, format_spread
from hf_msa.analysis.tool_report import GREY, Figure, Report, mark_whole_numbers
from hf_msa.analysis.tools import tool
from hf_msa.errors import MsaError, reason
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.statistics import paired_difference
from hf_msa.models.msa_schema import MODALITIES, SENTIMENT_CLASSES
from hf_msa.training.cmc.pseudo_labels import momentum_at
from hf_msa.training.cmc.stages import PSEUDO_LABELS_FILE

STAGE = "unimodal"
"""The stage that moves the labels."""

SETTLED_BY = (20, 40)
"""The epochs by which labels should have settled."""

MOVING = 0.1
"""Labels still move when their change is above this share of their largest change in any epoch."""


def drift_rows(run: TrainedRun) -> list[dict[str, Any]]:
    """One row per epoch of the stage that moves the labels: what was logged of them, see `_logged`.

    Raises:
        MsaError: If the run has no such stage, or it logged nothing of labels.
    """
    history: list[dict[str, Any]] = next(
        (stage["history"] for stage in run.facts["stages"] if stage["name"] == STAGE), []
    )
    # Of several logs of one epoch the last one saw all of it.
    by_epoch = {
        math.ceil(entry["epoch"]): {name: entry[name] for name in _logged(entry)}
        for entry in history
        if _logged(entry)
    }
    rows = [{"training seed": run.seed, "epoch": epoch, **values} for epoch, values in by_epoch.items()]
    if not rows:
        raise MsaError(
            f"{run.folder} moved no pseudo labels (no epoch of a stage {STAGE!r} logged any); give a run of CMC with "
            "pretraining and pseudo labels."
        )
    return rows


def _logged(entry: Mapping[str, Any]) -> list[str]:
    names = [f"{kind}_{modality}" for kind in ("flip_rate", "label_change") for modality in MODALITIES]
    return [name for name in names if name in entry]


def settling(rows: Rows, modality: str) -> dict[str, Any]:
    """Say whether the labels of a modality have come to rest.

    They are judged at the last epoch, or at the end of `SETTLED_BY` in a longer training: the alarm is raised where
    their mean change in that epoch is above `MOVING` times their largest mean change in any epoch up to it.

    Args:
        rows: One run's rows of `drift_rows`.
        modality: The modality.

    Returns:
        The epoch that was judged, the change in it as a share of the largest, and the alarm.
    """
    judged = [row for row in rows if row["epoch"] <= SETTLED_BY[1]]
    changes = [row[f"label_change_{modality}"] for row in judged]
    last, largest = changes[-1], max(changes)
    return {
        "epoch": judged[-1]["epoch"],
        "share": last / largest if largest else 0.0,
        "alarm": last > MOVING * largest,
    }


def movable_mass(momentum: float, gamma: float, epochs: int) -> float:
    """The most that can have left a label after some epochs: 1 minus the product of all momenta (see `momentum_at`).

    While no more than half of a label has left, the class that it began with remains the likeliest: its hard label cannot
    have changed.

    Args:
        momentum: Of the first epoch.
        gamma: How fast it grows.
        epochs: How many there were.
    """
    return 1 - math.prod(momentum_at(momentum, gamma, epoch) for epoch in range(1, epochs + 1))


def first_epoch_share(momentum: float, gamma: float, steps: float, epochs: int) -> float:
    """How much of an averaged teacher is still what it was when the first epoch ended.

    That is the product of the momenta of all later steps, those of an epoch being equal (see `momentum_at`).

    Args:
        momentum: Of the first epoch.
        gamma: How fast it grows.
        steps: Optimizer steps per epoch.
        epochs: How many epochs there were.
    """
    share: float = math.prod(momentum_at(momentum, gamma, epoch) ** steps for epoch in range(2, epochs + 1))
    return share


def flip_limits(run: TrainedRun, rows: Rows) -> dict[str, float]:
    """`movable_mass` of each modality over the epochs that a run trained."""
    config = run.facts["config"]
    epochs = rows[-1]["epoch"]
    return {
        modality: movable_mass(config["label_momentum"][modality], config["label_gamma"], epochs)
        for modality in _modalities(rows)
    }


def read_hard_labels(run: TrainedRun, modalities: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """The hard label of every training sample that the second stage learned from, per modality (N,).

    Raises:
        MsaError: If the run no longer has the table, or it is damaged.
    """
    file = run.folder / "stages" / STAGE / PSEUDO_LABELS_FILE
    try:
        soft = load_file(file)["train"]
    except (OSError, KeyError, SafetensorError) as error:
        raise MsaError(
            f"{file} cannot be read ({reason(error)}); give the folder that `hf-msa train` wrote, its stages included."
        ) from error
    return {name: soft[:, index].argmax(axis=-1).astype(np.int64) for index, name in enumerate(modalities)}


def confusion(classes: NDArray[np.int64], hard: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count samples by multimodal class (rows) and hard pseudo label (columns), (3, 3)."""
    size = len(SENTIMENT_CLASSES)
    return np.bincount(classes * size + hard, minlength=size**2).reshape(size, size)


def agreement_row(
    hard: Sequence[NDArray[np.int64]], multimodal: NDArray[np.int64], own: NDArray[np.int64]
) -> dict[str, Any]:
    """How often labels are the class that annotators gave to the modality itself.

    Args:
        hard: Hard pseudo labels (N,), one per training seed.
        multimodal: Multimodal classes (N,).
        own: The modality's own classes (N,).

    Returns:
        n, the agreement of the pseudo labels (averaged over seeds) and of the multimodal label, and their paired
        difference with its 95 % bootstrap interval over samples.
    """
    ours = np.mean([labels == own for labels in hard], axis=0)
    baseline = (multimodal == own).astype(np.float64)
    return {
        "n": len(own),
        "pseudo label": float(ours.mean()),
        "multimodal label": float(baseline.mean()),
    } | paired_difference(ours, baseline)


@tool(
    "pseudo-labels",
    "how the labels of each modality moved, and whether they came closer to the truth",
    methods=("cmc",),
)
def analyze_pseudo_labels(runs: Sequence[str], report: Report, *, data: str | None = None) -> None:
    """Show how the pseudo labels moved, and with data where they ended.

    Args:
        runs: CMC run folders, their stages included.
        report: Takes what is found.
        data: Folder or Hub name of the data set that they were trained on, for the labels.

    Raises:
        MsaError: If a run moved no labels or lost them, or the data is not what it was trained on.
    """
    found = find_runs(runs, "cmc")
    tables = [drift_rows(run) for run in found]
    modalities = _modalities(tables[0])
    report.csv("drift.csv", [row for rows in tables for row in rows])
    report.summary(
        "pseudo_labels.md",
        "Pseudo labels",
        f"{found[0].name}; {counted(len(found), 'training seed')}, ± is the standard deviation over them. A flip is "
        "a hard label that is no longer the multimodal class; change is the mean L1 distance that the soft labels "
        "moved in an epoch.",
        [_summary(tables, modality) for modality in modalities],
        "\n".join(_alarm(run, rows, modalities) for run, rows in zip(found, tables, strict=True)),
        "\n".join(_limit(found, tables, modality) for modality in modalities),
        "\n".join(_teacher(found[0], modality) for modality in modalities),
    )
    if data is not None:
        _compare_with_annotations(report, found, data, modalities)
    report.figure("pseudo_labels", _draw, tables, modalities)


def _compare_with_annotations(
    report: Report, found: Sequence[TrainedRun], data: str, modalities: Sequence[str]
) -> None:
    """Set the final labels beside the multimodal ones, and both beside those that annotators gave to the modality."""
    labels = read_labels(data, "train")
    hard = [read_hard_labels(run, modalities) for run in found]
    for run, ours in zip(found, hard, strict=True):
        if len(labels.ids) != len(ours["text"]):
            raise MsaError(
                f"{run.folder} has pseudo labels of {len(ours['text'])} samples, but {data!r} has "
                f"{len(labels.ids)} to train on; give the data set that it was trained on."
            )
    counts = _confusion_rows(labels, hard)
    report.csv("confusion.csv", counts)
    report.section(
        "Multimodal class and final pseudo label",
        "Rows: multimodal class; columns: pseudo label that the second stage learned from; samples, all training seeds "
        "together.",
        counts,
    )
    agreements = [
        {"modality": modality}
        | agreement_row([ours[modality] for ours in hard], labels.classes(), labels.classes(modality))
        for modality in modalities
        if modality in labels.unimodal
    ]
    report.csv("agreement.csv", agreements)
    text = (
        "Share of training samples whose label is the class that annotators gave to the modality by itself. The "
        "multimodal label is what the pseudo labels began as; the difference has its 95 % bootstrap interval over "
        "samples (seeds averaged)."
    )
    report.section(
        "Agreement with the labels of the single modality",
        text if agreements else "The data set has none.",
        agreements,
    )


def _modalities(rows: Rows) -> list[str]:
    return [modality for modality in MODALITIES if f"label_change_{modality}" in rows[0]]


def _summary(tables: Sequence[Rows], modality: str) -> dict[str, str]:
    flips, changes = (
        [[row[f"{kind}_{modality}"] for row in rows] for rows in tables] for kind in ("flip_rate", "label_change")
    )
    return {
        "modality": modality,
        "epochs": format_spread([float(rows[-1]["epoch"]) for rows in tables], 0),
        "flip rate, first epoch": format_spread([values[0] for values in flips]),
        "flip rate, last epoch": format_spread([values[-1] for values in flips]),
        "largest change": format_spread([max(values) for values in changes], 4),
        "change, last epoch": format_spread([values[-1] for values in changes], 4),
    }


def _alarm(run: TrainedRun, rows: Rows, modalities: Sequence[str]) -> str:
    early, late = SETTLED_BY
    states = {modality: settling(rows, modality) for modality in modalities}
    moving = [name for name, state in states.items() if state["alarm"]]
    epoch = states[modalities[0]]["epoch"]
    short = f" (the stage ended before the {early} to {late} in which labels should settle)" if epoch < early else ""
    shares = ", ".join(f"{name} {format_number(state['share'], 2)}" for name, state in states.items())
    verdict = (
        f"**Alarm, seed {run.seed}:** the labels of {', '.join(moving)} still move"
        if moving
        else f"Seed {run.seed}: the labels have settled"
    )
    judged = f"change as a share of the largest is {shares}; above {MOVING:g} is an alarm."
    return f"- {verdict} at epoch {epoch}{short}: {judged}"


def _limit(found: Sequence[TrainedRun], tables: Sequence[Rows], modality: str) -> str:
    most = max(flip_limits(run, rows)[modality] for run, rows in zip(found, tables, strict=True))
    share = f"at most {format_number(most)} of a label of {modality} could leave its first class"
    if most <= 0.5:
        return (
            f"- **No flips possible:** at this momentum and number of epochs {share}, so its hard labels could not change, "
            "whatever the model predicted."
        )
    return f"- At this momentum and number of epochs {share}, so its hard labels could change."


def _teacher(run: TrainedRun, modality: str) -> str:
    stage = next(stage for stage in run.facts["stages"] if stage["name"] == STAGE)
    last, config = stage["history"][-1], run.facts["config"]
    share = first_epoch_share(
        config["ema_momentum"][modality],
        config["ema_gamma"][modality],
        last["step"] / last["epoch"],
        math.ceil(last["epoch"]),
    )
    return (
        f"- {share:.0%} of the averaged teacher of {modality} at the last epoch is what it was after the first one, by its "
        "momentum alone."
    )


def _confusion_rows(labels: SplitLabels, hard: Sequence[Mapping[str, NDArray[np.int64]]]) -> list[dict[str, Any]]:
    classes = labels.classes()
    counts = {
        modality: np.sum([confusion(classes, ours[modality]) for ours in hard], axis=0).tolist()
        for modality in hard[0]
    }
    return [
        {"modality": modality, "multimodal class": name} | dict(zip(SENTIMENT_CLASSES, row, strict=True))
        for modality, table in counts.items()
        for name, row in zip(SENTIMENT_CLASSES, table, strict=True)
    ]


def _draw(figure: Figure, tables: Sequence[Rows], modalities: Sequence[str]) -> None:
    titles = {"flip_rate": "share of flipped hard labels", "label_change": "mean change of soft labels"}
    figure.set_size_inches(6.8, 2.6)
    for axis, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for index, modality in enumerate(modalities):
            for number, rows in enumerate(tables):
                values = [row[f"{kind}_{modality}"] for row in rows]
                label = modality if number == 0 else None
                axis.plot([row["epoch"] for row in rows], values, color=f"C{index}", label=label, clip_on=False)
        if max(row["epoch"] for rows in tables for row in rows) >= SETTLED_BY[0]:
            axis.axvspan(*SETTLED_BY, color=GREY, alpha=0.2, linewidth=0)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("epoch")
        mark_whole_numbers(axis.xaxis)
        axis.set_title(title, fontsize=8)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
