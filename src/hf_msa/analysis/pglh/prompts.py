"""Learned mixing weights of the prompts over training (PGLH, equations 7, 13 and 14): how far the prompts are let in.

beta is the share of the language-guided prompt in what the audio and vision decoders read; alpha is the share of the
second, text-guided stage in the fusion's prompts. Both start at 0.5 and are logged each epoch. A weight that stays near its
start says that the loss hardly depends on it, if its learning rate lets it move at all.

With data the tool also asks whether the prompts of a modality are several at all: how far what they gather (equations 11 to
14) lies apart, and how even their attention is. Prompts that are copies of each other average what is averaged anyway.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from hf_msa.analysis.common.trained_runs import TrainedRun, find_runs
from hf_msa.analysis.estimates import Rows, format_spread
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.missing import CompleteProtocol
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.sweep import masked_batches
from hf_msa.models.modeling_pglh import (
    PglhForSentimentAnalysis,
    PromptAttention,
    PromptRefiner,
    Reconstructor,
    VisibleTokens,
)
from hf_msa.models.msa_schema import MODALITIES
from hf_msa.models.processing_msa import MsaProcessor
from hf_msa.training.pglh import single_frame_note

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


def spread(prompts: Tensor) -> tuple[float, float]:
    """How far the prompts of each sample lie apart.

    Args:
        prompts (`torch.FloatTensor` of shape `(batch, prompts, width)`): What they gathered.

    Returns:
        Sums over the batch of squared distances from the sample's mean prompt, and of squared lengths. The root of their
        quotient is 0 for copies, and near 1 for prompts that point everywhere.
    """
    values = prompts.double()
    distances = values - values.mean(dim=1, keepdim=True)
    return float(distances.square().sum()), float(values.square().sum())


def evenness(attention: PromptAttention, prompts: Tensor, tokens: VisibleTokens) -> Tensor:
    """Entropy of the attention of each sample as a share of the largest possible one, averaged over the prompts.

    Args:
        attention: From prompts to tokens.
        prompts (`torch.FloatTensor` of shape `(prompts, width)`): What asks.
        tokens: What is read, of `batch` samples.

    Returns:
        `torch.DoubleTensor` of shape `(samples,)`, of the samples with at least two tokens: 1 = all alike, 0 = one token.
    """
    scores = attention.query(prompts) @ attention.key(tokens.hidden).transpose(1, 2) / prompts.shape[1] ** 0.5
    weights = scores.double().masked_fill(~tokens.mask.unsqueeze(1), float("-inf")).softmax(dim=-1)
    counts = tokens.mask.sum(dim=1)
    shares: Tensor = torch.special.entr(weights).sum(dim=-1).mean(dim=1) / counts.double().log()
    return shares[counts > 1]


@torch.inference_mode()
def use_rows(model: PglhForSentimentAnalysis, processor: MsaProcessor, rows: MsaRows) -> list[dict[str, Any]]:
    """One row per kind of prompts and modality, over complete rows.

    Returns:
        ``spread``, see `spread`, of the fusion's refined prompts (NaN for the language-guided one, which is single); and the
        ``evenness`` of the attention of the prompts as they are learned, NaN without a sample of two tokens.
    """
    distances, lengths = dict.fromkeys(model.refiners, 0.0), dict.fromkeys(model.refiners, 0.0)
    even: dict[tuple[str, str], list[Tensor]] = {}
    for batch in masked_batches(model, processor, rows, [CompleteProtocol()], "prompts", batch_size=64):
        tokens = model.encode(batch.incomplete)
        for name, refiner in cast(Mapping[str, PromptRefiner], model.refiners).items():
            own = spread(refiner(tokens[name], None if name == "text" else tokens["text"]))
            distances[name], lengths[name] = distances[name] + own[0], lengths[name] + own[1]
            found = evenness(refiner.self_guided, refiner.prompts, tokens[name])
            even.setdefault(("fusion", name), []).append(found)
        for name, guide in cast(Mapping[str, Reconstructor], model.reconstructors).items():
            if guide.prompt is not None and guide.attention is not None:
                found = evenness(guide.attention, guide.prompt, tokens["text"])
                even.setdefault(("language", name), []).append(found)
    return [
        {
            "prompts": kind,
            "modality": name,
            "spread": (distances[name] / lengths[name]) ** 0.5 if kind == "fusion" else float("nan"),
            "evenness": float(torch.cat(values).mean()),
        }
        for (kind, name), values in sorted(even.items())
    ]


@tool("prompts", "the learned shares of the prompts over training, and how far the prompts differ", methods=("pglh",))
def analyze_prompts(
    runs: Sequence[str], report: Report, *, data: str | None = None, split: str = "validation"
) -> None:
    """Show alpha and beta over the epochs, per training seed, and with data what the prompts do.

    Args:
        runs: PGLH run folders.
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set, for the prompts' spread and attention.
        split: The split of it to look at.

    Raises:
        MsaError: If a run logged no weights, or the data will not do.
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
    if data is None:
        report.section("How far the prompts differ", "Not looked at; give a data set with --data.")
    else:
        _look_at_use(report, found, data, split)
    report.figure("prompts", _draw, tables, chosen, names)


def _look_at_use(report: Report, found: Sequence[TrainedRun], data: str, split: str) -> None:
    rows = found[0].rows(data, split)
    tables = []
    for run in found:
        model, processor = run.load(rows)
        tables.append(use_rows(cast(PglhForSentimentAnalysis, model), processor, rows))
    report.csv(
        "use.csv",
        [{"training seed": run.seed, **row} for run, own in zip(found, tables, strict=True) for row in own],
    )
    report.section(
        "How far the prompts differ",
        f"{len(rows)} complete texts ({split}). Spread: distance of what the prompts of a modality gathered from their "
        "mean, as a share of its length; near 0 they are copies of one. Evenness: entropy of their attention as a share of "
        "the largest possible; at 1 a prompt averages all tokens alike.",
        [
            {"prompts": row["prompts"], "modality": row["modality"]}
            | {key: format_spread([own[index][key] for own in tables]) for key in ("spread", "evenness")}
            for index, row in enumerate(tables[0])
        ],
        single_frame_note(rows, [row["modality"] for row in tables[0] if row["prompts"] == "language"]) or "",
    )


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
