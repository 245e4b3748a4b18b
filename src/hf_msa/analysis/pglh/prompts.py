"""Learned mixing weights of the prompts over training (PGLH, equations 7, 13 and 14): how far the prompts are let in.

beta is the share of the language-guided prompt in what the audio and vision decoders read; alpha is the share of the
second, text-guided stage in the fusion's prompts. Both start at 0.5 and are logged each epoch, so nothing is computed
here. A weight that stays near its start says that the loss hardly depends on it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_msa.analysis.common.trained_runs import TrainedRun, find_runs
from hf_msa.analysis.estimates import Rows, format_spread
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.errors import MsaError
from hf_msa.evaluation.report import counted
from hf_msa.models.msa_schema import MODALITIES

START = 0.5
"""What every weight is before training."""

_PREFIXES = ("beta_", "alpha_")


def prompt_rows(run: TrainedRun) -> list[dict[str, Any]]:
    """One row per logged epoch of the final stage, with every logged weight.

    Raises:
        MsaError: If the run logged none, e.g. because both kinds of prompts were off.
    """
    history = run.facts["stages"][-1]["history"]
    rows = [
        {"training seed": run.seed, "epoch": entry["epoch"]}
        | {name: value for name, value in entry.items() if name.startswith(_PREFIXES)}
        for entry in history
        if any(name.startswith(_PREFIXES) for name in entry)
    ]
    if not rows:
        raise MsaError(
            f"{run.folder} logged no alpha or beta; give a run that was trained with language prompts or UBPF."
        )
    return rows


@tool("prompts", "the learned shares of the prompts over training", methods=("pglh",))
def analyze_prompts(runs: Sequence[str], report: Report) -> None:
    """Show alpha and beta over the epochs, per training seed.

    Args:
        runs: PGLH run folders.
        report: Takes what is found.
    """
    found = find_runs(runs, "pglh")
    tables = [prompt_rows(run) for run in found]
    chosen = [chosen_row(run, rows) for run, rows in zip(found, tables, strict=True)]
    names = [name for name in tables[0][0] if name.startswith(_PREFIXES)]
    report.csv("prompts.csv", [row for rows in tables for row in rows])
    report.summary(
        "prompts.md",
        "Prompt weights over training",
        f"{found[0].name}; {counted(len(found), 'training seed')}, ± is the standard deviation over them. Every "
        f"weight starts at {START:g}; chosen is the epoch whose checkpoint was kept, moved is its distance from "
        "the start.",
        [
            {
                "weight": name,
                "first epoch": format_spread([rows[0][name] for rows in tables]),
                "chosen": format_spread([row[name] for row in chosen]),
                "last epoch": format_spread([rows[-1][name] for rows in tables]),
                "moved": format_spread([row[name] - START for row in chosen]),
            }
            for name in names
        ],
    )
    report.section(
        "Per training seed, at the chosen epoch",
        [row | {key: str(int(row[key])) for key in ("training seed", "epoch")} for row in chosen],
    )
    report.figure("prompts", _draw, tables, chosen, names)


def chosen_row(run: TrainedRun, rows: Rows) -> dict[str, Any]:
    """The row of the epoch whose checkpoint the run kept."""
    epoch = run.facts["selection"]["epoch"]
    return dict(min(rows, key=lambda row: abs(row["epoch"] - epoch)))


def _draw(figure: Figure, tables: Sequence[Rows], chosen: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    kinds = [prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in names)]
    figure.set_size_inches(3.4 * len(kinds), 2.6)
    for axis, prefix in zip(figure.subplots(1, len(kinds), squeeze=False).flat, kinds, strict=True):
        for name in (name for name in names if name.startswith(prefix)):
            modality = name.removeprefix(prefix)
            colour = f"C{MODALITIES.index(modality)}"
            for number, (rows, kept) in enumerate(zip(tables, chosen, strict=True)):
                label = modality if number == 0 else None
                axis.plot([r["epoch"] for r in rows], [r[name] for r in rows], color=colour, label=label)
                axis.plot(kept["epoch"], kept[name], marker="*", markersize=8, color=colour)
        axis.axhline(START, color=GREY, linestyle=":")
        axis.set_xlabel("epoch (star: chosen on validation)")
        axis.set_title(f"{prefix.rstrip('_')}, a line per training seed", fontsize=8)
        axis.legend(frameon=False, fontsize=6)
