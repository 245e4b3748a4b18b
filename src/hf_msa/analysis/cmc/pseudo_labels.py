"""What pseudo labelling did to the labels of each modality (CMC, section on PLGM).

Drift is what the training log says of each epoch: how many hard labels have left the multimodal class that they began
with, and how far the soft labels moved. The paper's failure signature is labels that do not settle by epoch 20 to 40.
With the data set's own labels per modality the tool also asks what the drift is for: do the pseudo labels agree better
with what annotators said of the single modality than the multimodal label does, which costs nothing?
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hf_msa.analysis.common.split_labels import IntArray, SplitLabels, read_labels, sentiment_class
from hf_msa.analysis.common.trained_runs import TrainedRun, find_runs
from hf_msa.analysis.tcmr.confidence import paired_difference
from hf_msa.analysis.tool_report import (
    GREY,
    counted,
    drawn_figure,
    format_number,
    format_spread,
    rows_table,
    write_csv,
    write_markdown,
)
from hf_msa.errors import MsaError, reason
from hf_msa.models.msa_schema import MODALITIES, SENTIMENT_CLASSES

STAGE = "unimodal"
"""The stage that moves the labels."""

LABELS_FILE = "pseudo_labels.safetensors"
"""Where it leaves them, in its folder."""

SETTLED_BY = (20, 40)
"""The epochs by which labels should have settled."""

MOVING = 0.1
"""Labels still move when their change is above this share of their largest change in any epoch."""


def drift_rows(run: TrainedRun) -> list[dict[str, Any]]:
    """One row per epoch of the stage that moves the labels.

    Args:
        run: A CMC run.

    Returns:
        training seed, epoch, and per modality ``flip_rate_*`` and ``label_change_*`` as logged.

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


def settling(rows: Sequence[Mapping[str, Any]], modality: str) -> dict[str, Any]:
    """Say whether the labels of a modality have come to rest.

    They are judged at the last epoch, or at the end of `SETTLED_BY` in a longer training: the alarm is raised where
    their mean change in that epoch is above `MOVING` times their largest mean change in any epoch up to it.

    Args:
        rows: One run's rows of `drift_rows`.
        modality: The modality.

    Returns:
        The epoch that was judged, the change in it, the largest change, and the alarm.
    """
    judged = [row for row in rows if row["epoch"] <= SETTLED_BY[1]]
    changes = [row[f"label_change_{modality}"] for row in judged]
    last, largest = changes[-1], max(changes)
    return {
        "epoch": judged[-1]["epoch"],
        "change": last,
        "largest change": largest,
        "alarm": last > MOVING * largest,
    }


def movable_mass(momentum: float, gamma: float, epochs: int) -> float:
    """The most that can have left a label after some epochs: 1 minus the product of all momenta.

    The momentum of epoch e is ``1 - (1 - momentum) / e**gamma``. While no more than half of a label has left, the class
    that it began with remains the likeliest: its hard label cannot have changed.

    Args:
        momentum: Of the first epoch.
        gamma: How fast it grows.
        epochs: How many there were.
    """
    return float(1 - math.prod(1 - (1 - momentum) / epoch**gamma for epoch in range(1, epochs + 1)))


def flip_limits(run: TrainedRun, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`movable_mass` of each modality over the epochs that a run trained."""
    config = run.facts["config"]
    epochs = rows[-1]["epoch"]
    return {
        modality: movable_mass(config["label_momentum"][modality], config["label_gamma"], epochs)
        for modality in _modalities(rows)
    }


def read_hard_labels(run: TrainedRun, modalities: Sequence[str]) -> dict[str, IntArray]:
    """The hard label of every training sample that the second stage learned from, per modality (N,).

    Args:
        run: A CMC run.
        modalities: In the order of the table.

    Raises:
        MsaError: If the run no longer has the table, or it is damaged.
    """
    file = run.folder / "stages" / STAGE / LABELS_FILE
    try:
        soft = load_file(file)["train"]
    except (OSError, KeyError, SafetensorError) as error:
        raise MsaError(
            f"{file} cannot be read ({reason(error)}); give the folder that `hf-msa train` wrote, its stages included."
        ) from error
    return {name: soft[:, index].argmax(axis=-1).astype(np.int64) for index, name in enumerate(modalities)}


def confusion(classes: IntArray, hard: IntArray) -> NDArray[np.int64]:
    """Count samples by multimodal class (rows) and hard pseudo label (columns), (3, 3)."""
    size = len(SENTIMENT_CLASSES)
    return np.bincount(classes * size + hard, minlength=size**2).reshape(size, size)


def agreement_row(hard: Sequence[IntArray], multimodal: IntArray, own: IntArray) -> dict[str, Any]:
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


def analyze_pseudo_labels(runs: Sequence[str], *, output: Path, data: str | None = None) -> list[Path]:
    """Write how the pseudo labels moved, and with data where they ended.

    Args:
        runs: CMC run folders, their stages included.
        output: The folder to write to.
        data: Folder or Hub name of the data set that they were trained on, for the labels.

    Raises:
        MsaError: If a run moved no labels or lost them, or the data is not what it was trained on.
    """
    found = find_runs(runs, "cmc")
    tables = [drift_rows(run) for run in found]
    modalities = _modalities(tables[0])
    written = [write_csv(output / "drift.csv", [row for rows in tables for row in rows])]
    ends: list[str] = []
    if data is not None:
        labels = read_labels(data, "train")
        hard = [read_hard_labels(run, modalities) for run in found]
        for run, ours in zip(found, hard, strict=True):
            if len(labels.ids) != len(ours["text"]):
                raise MsaError(
                    f"{run.folder} has pseudo labels of {len(ours['text'])} samples, but {data!r} has "
                    f"{len(labels.ids)} to train on; give the data set that it was trained on."
                )
        counts = _confusion_rows(labels, hard)
        written.append(write_csv(output / "confusion.csv", counts))
        ends.append(
            "## Multimodal class and final pseudo label\n\nRows: multimodal class; columns: pseudo label that the second "
            "stage learned from; samples, all training seeds together.\n\n" + rows_table(counts)
        )
        agreements = [
            {"modality": modality}
            | agreement_row(
                [ours[modality] for ours in hard],
                sentiment_class(labels.multimodal),
                sentiment_class(labels.unimodal[modality]),
            )
            for modality in modalities
            if modality in labels.unimodal
        ]
        if agreements:
            written.append(write_csv(output / "agreement.csv", agreements))
        ends.append(_agreement_section(agreements))
    written.append(
        write_markdown(
            output / "pseudo_labels.md",
            "# Pseudo labels",
            f"{found[0].name}; {counted(len(found), 'training seed')}, ± is the standard deviation over them. A flip is "
            "a hard label that is no longer the multimodal class; change is the mean L1 distance that the soft labels "
            "moved in an epoch.",
            rows_table(_summary(tables, modalities)),
            "\n".join(_alarms(found, tables, modalities)),
            "\n".join(_limits(found, tables, modalities)),
            *ends,
        )
    )
    _draw(output / "pseudo_labels", tables, modalities, written)
    return written


def _modalities(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [modality for modality in MODALITIES if f"label_change_{modality}" in rows[0]]


def _summary(tables: Sequence[Sequence[Mapping[str, Any]]], modalities: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "modality": modality,
            "epochs": format_spread([float(rows[-1]["epoch"]) for rows in tables], 0),
            "flip rate, first epoch": format_spread([rows[0][f"flip_rate_{modality}"] for rows in tables]),
            "flip rate, last epoch": format_spread([rows[-1][f"flip_rate_{modality}"] for rows in tables]),
            "largest change": format_spread([max(r[f"label_change_{modality}"] for r in rows) for rows in tables], 4),
            "change, last epoch": format_spread([rows[-1][f"label_change_{modality}"] for rows in tables], 4),
        }
        for modality in modalities
    ]


def _alarms(
    found: Sequence[TrainedRun], tables: Sequence[Sequence[Mapping[str, Any]]], modalities: Sequence[str]
) -> list[str]:
    early, late = SETTLED_BY
    lines = []
    for run, rows in zip(found, tables, strict=True):
        states = {modality: settling(rows, modality) for modality in modalities}
        moving = [name for name, state in states.items() if state["alarm"]]
        epoch = states[modalities[0]]["epoch"]
        short = (
            f" (the stage ended before the {early} to {late} in which labels should settle)" if epoch < early else ""
        )
        shares = ", ".join(
            f"{name} {format_number(state['change'] / state['largest change'] if state['largest change'] else 0.0, 2)}"
            for name, state in states.items()
        )
        verdict = (
            f"**Alarm, seed {run.seed}:** the labels of {', '.join(moving)} still move"
            if moving
            else f"Seed {run.seed}: the labels have settled"
        )
        lines.append(
            f"- {verdict} at epoch {epoch}{short}: change as a share of the largest is {shares}; above {MOVING:g} is "
            "an alarm."
        )
    return lines


def _limits(
    found: Sequence[TrainedRun], tables: Sequence[Sequence[Mapping[str, Any]]], modalities: Sequence[str]
) -> list[str]:
    lines = []
    limits = [flip_limits(run, rows) for run, rows in zip(found, tables, strict=True)]
    for modality in modalities:
        most = max(limit[modality] for limit in limits)
        share = f"at most {format_number(most)} of a label of {modality} could leave its first class"
        if most <= 0.5:
            lines.append(
                f"- **No flips possible:** at this momentum and number of epochs {share}, so its hard labels could not "
                "change, whatever the model predicted."
            )
        else:
            lines.append(f"- At this momentum and number of epochs {share}, so its hard labels could change.")
    return lines


def _confusion_rows(labels: SplitLabels, hard: Sequence[Mapping[str, IntArray]]) -> list[dict[str, Any]]:
    classes = sentiment_class(labels.multimodal)
    return [
        {"modality": modality, "multimodal class": name} | dict(zip(SENTIMENT_CLASSES, counts.tolist(), strict=True))
        for modality in hard[0]
        for name, counts in zip(
            SENTIMENT_CLASSES, np.sum([confusion(classes, ours[modality]) for ours in hard], axis=0), strict=True
        )
    ]


def _agreement_section(agreements: Sequence[Mapping[str, Any]]) -> str:
    title = "## Agreement with the labels of the single modality\n\n"
    if not agreements:
        return title + "The data set has none."
    return (
        title
        + "Share of training samples whose label is the class that annotators gave to the modality by itself. The "
        "multimodal label is what the pseudo labels began as; the difference has its 95 % bootstrap interval over "
        "samples (seeds averaged).\n\n" + rows_table([dict(row) for row in agreements])
    )


def _draw(
    stem: Path, tables: Sequence[Sequence[Mapping[str, Any]]], modalities: Sequence[str], written: list[Path]
) -> None:
    titles = {"flip_rate": "share of flipped hard labels", "label_change": "mean change of soft labels"}
    with drawn_figure(stem, 6.8, 2.6, written) as figure:
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
            axis.set_title(title, fontsize=8)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
