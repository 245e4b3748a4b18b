"""Error of what PGLH's decoder rebuilds of what was dropped (equations 8 to 10).

It is taken apart by modality, missing rate, and masked against visible positions, and set beside that of a reconstruction
that needs no model: the training split's mean per position (and length), of features and of states of the model's text
encoder. A decoder that has learnt nothing beyond it has a ratio of 1, and only what lies below 1 at *masked* positions says
that other frames or words were made use of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_msa.analysis.common.position_means import PositionMeans
from hf_msa.analysis.common.trained_runs import MASK_SEED, find_runs
from hf_msa.analysis.estimates import Rows, format_spread, seed_means
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.missing import FRAME_RATES, CompleteProtocol, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.sweep import MaskedBatch, masked_batches
from hf_msa.models.modeling_pglh import PglhForSentimentAnalysis
from hf_msa.models.msa_schema import ATTENTION_MASK_KEYS, COMPLETE_ATTENTION_KEYS, MISSING_MASK_KEYS, VALUE_KEYS
from hf_msa.models.processing_msa import MsaProcessor
from hf_msa.training.pglh import single_frame_note

POSITIONS = ("masked", "visible")
"""The two kinds of positions; padding is neither."""


@dataclass
class ErrorSums:
    """Sums over positions, from which the errors of the model and of any constant follow.

    Attributes:
        positions: How many were added.
        error: Sum of squared errors of the reconstruction.
        trivial: Sum of squared errors of the trivial one.
        width: Width of a position.
    """

    positions: int = 0
    error: float = 0.0
    trivial: float = 0.0
    width: int = 0

    def add(self, made: Tensor, target: Tensor, where: Tensor, trivial: Tensor) -> None:
        """Add the positions of a batch.

        Args:
            made (`torch.FloatTensor` of shape `(batch, length, width)`): The reconstruction.
            target (`torch.FloatTensor` of shape `(batch, length, width)`): What it should be.
            where (`torch.BoolTensor` of shape `(batch, length)`): True = counts.
            trivial (`torch.FloatTensor` of shape `(batch, length, width)`): The trivial reconstruction.
        """
        chosen = target[where].double()
        self.positions += len(chosen)
        self.width = chosen.shape[1]
        self.error += float((made[where].double() - chosen).square().sum())
        self.trivial += float((trivial[where].double() - chosen).square().sum())

    def mean_squared_error(self) -> float:
        """The reconstruction's error per position and feature; NaN without positions."""
        return self.error / (self.positions * self.width) if self.positions else float("nan")

    def trivial_error(self) -> float:
        """That of the trivial reconstruction."""
        return self.trivial / (self.positions * self.width) if self.positions else float("nan")


@torch.inference_mode()
def training_means(
    model: PglhForSentimentAnalysis, processor: MsaProcessor, rows: MsaRows
) -> dict[str, PositionMeans]:
    """The trivial reconstruction of each modality: means of complete training rows."""
    means: dict[str, PositionMeans] = {}
    for batch in masked_batches(model, processor, rows, [CompleteProtocol()], "training means", batch_size=64):
        targets, real = _truth(model, batch)
        for modality, values in targets.items():
            own = means.setdefault(modality, PositionMeans())
            for sequence, mask in zip(values.cpu().numpy(), real[modality].cpu().numpy(), strict=True):
                own.add(sequence[mask])
    return means


def _truth(model: PglhForSentimentAnalysis, batch: MaskedBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is to be rebuilt of each modality `(batch, length, width)`, and True = a real position of it."""
    complete = batch.complete
    targets = {modality: complete[key] for modality, key in VALUE_KEYS.items() if key in complete}
    targets["text"] = model.encode_text(complete["input_ids"], complete["attention_mask"])
    return targets, {modality: complete[COMPLETE_ATTENTION_KEYS[modality]].bool() for modality in targets}


@torch.inference_mode()
def reconstruction_sums(
    model: PglhForSentimentAnalysis,
    processor: MsaProcessor,
    rows: MsaRows,
    rates: Sequence[float],
    means: Mapping[str, PositionMeans],
) -> dict[tuple[str, float, str], ErrorSums]:
    """Reconstruct all rows at all missing rates, the same rate for every modality.

    Args:
        model: With its decoder.
        processor: The model's.
        rows: What is dropped and rebuilt.
        rates: Missing rates.
        means: Of `training_means`.

    Returns:
        Sums by modality, rate, and one of `POSITIONS`, for the modalities that the model reconstructs.
    """
    protocols = [protocol for _, _, protocol in conditions("frame", ("text",), rates, (MASK_SEED,))]
    sums: dict[tuple[str, float, str], ErrorSums] = {}
    targets: dict[str, Tensor] = {}
    real: dict[str, Tensor] = {}
    trivial: dict[str, Tensor] = {}
    for batch in masked_batches(model, processor, rows, protocols, "reconstructions", batch_size=64):
        if batch.protocol == 0:
            targets, real = _truth(model, batch)
            trivial = {
                modality: torch.from_numpy(means[modality].padded(mask.sum(dim=1).tolist(), mask.shape[1])).to(
                    mask.device
                )
                for modality, mask in real.items()
                if not means[modality].is_empty
            }
        for modality, values in model.reconstruct(batch.incomplete).items():
            # What is wholly missing has another length than the truth, and there is none of what a sample never had.
            length = real[modality].shape[1]
            attended, missing = (
                batch.incomplete[keys[modality]][:, :length].bool()
                for keys in (ATTENTION_MASK_KEYS, MISSING_MASK_KEYS)
            )
            known = real[modality] & attended
            for kind, where in zip(POSITIONS, (known & missing, known & ~missing), strict=True):
                key = (modality, float(rates[batch.protocol]), kind)
                sums.setdefault(key, ErrorSums()).add(values[:, :length], targets[modality], where, trivial[modality])
    return sums


def error_rows(sums: Mapping[tuple[str, float, str], ErrorSums]) -> list[dict[str, Any]]:
    """One row per modality, rate and kind of positions: ``mse`` and ``trivial mse`` per position and feature, ``ratio``.

    They are NaN without positions.
    """
    rows = []
    for (modality, rate, kind), own in sums.items():
        mse, trivial = own.mean_squared_error(), own.trivial_error()
        rows.append(
            {
                "modality": modality,
                "rate": rate,
                "positions": kind,
                "n": own.positions,
                "mse": mse,
                "trivial mse": trivial,
                "ratio": mse / trivial if trivial else float("nan"),
            }
        )
    return rows


@tool("reconstruction", "error of what is rebuilt, masked and visible, beside that of the mean", methods=("pglh",))
def analyze_reconstruction(
    runs: Sequence[str], report: Report, *, data: str, split: str = "validation", rates: Sequence[float] = FRAME_RATES
) -> None:
    """Show the reconstruction's error by modality, missing rate, and masked or visible positions.

    Args:
        runs: PGLH run folders.
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set; its training split gives the trivial reconstruction.
        split: The split to look at.
        rates: Missing rates.

    Raises:
        MsaError: If a run or the data will not do, or the model has no decoder.
    """
    found = find_runs(runs, "pglh")
    rows, train = found[0].rows(data, split), found[0].rows(data, "train")
    table: list[dict[str, Any]] = []
    for run in found:
        model, processor = run.load(rows)
        decoding = cast(PglhForSentimentAnalysis, model)
        if not decoding.config.reconstructed:
            raise MsaError(
                f"{run.folder} has no decoder and reconstructs nothing; give a run that was trained with reconstruction "
                "losses and saved with its decoder."
            )
        means = training_means(decoding, processor, train)
        sums = reconstruction_sums(decoding, processor, rows, rates, means)
        table += [{"training seed": run.seed, **row} for row in error_rows(sums)]
    report.csv("reconstruction.csv", table)
    report.summary(
        "reconstruction.md",
        "Reconstruction of what was dropped",
        f"{found[0].name}; {len(rows)} texts ({split}), {counted(len(found), 'training seed')}, ± is the standard "
        "deviation over them. Mean squared error per position and feature; the text's target is the state that the "
        "text encoder gives to the complete text. Trivial is the training mean per position, of sequences of the same "
        "length where there are enough.",
    )
    modalities = list(dict.fromkeys(row["modality"] for row in table))
    report.section("What these clips cannot show", single_frame_note(rows, modalities) or "")
    report.section(
        "Mean over the missing rates",
        [
            {"modality": modality} | _summary(_where(table, modality=modality)) | _better(table, modality)
            for modality in modalities
        ],
    )
    for modality in modalities:
        report.section(
            modality.capitalize(),
            [{"rate": f"{rate:g}"} | _summary(_where(table, modality=modality, rate=rate)) for rate in rates],
        )
    report.figure("reconstruction", _draw, table, modalities, rates)


def _where(table: Rows, **values: Any) -> list[Mapping[str, Any]]:
    return [row for row in table if all(row[key] == value for key, value in values.items())]


def _summary(rows: Rows) -> dict[str, str]:
    """Errors of both kinds of positions over training seeds, means over the rates at which there are such positions."""
    return {
        f"{kind}: {column}": format_spread(seed_means(_where(rows, positions=kind), column))
        for kind in POSITIONS
        for column in ("mse", "trivial mse", "ratio")
    }


def _better(table: Rows, modality: str) -> dict[str, str]:
    ratios = seed_means(_where(table, modality=modality, positions="masked"), "ratio")
    return {"better than trivial where masked": f"{sum(r < 1 for r in ratios)} of {counted(len(ratios), 'seed')}"}


def _draw(figure: Figure, table: Rows, modalities: Sequence[str], rates: Sequence[float]) -> None:
    def values(column: str, modality: str, kind: str) -> NDArray[np.float64]:
        """(rates, seeds)."""
        return np.array(
            [[row[column] for row in _where(table, modality=modality, rate=rate, positions=kind)] for rate in rates]
        )

    figure.set_size_inches(2.8 * len(modalities), 2.8)
    for axis, modality in zip(figure.subplots(1, len(modalities), squeeze=False).flat, modalities, strict=True):
        for kind, marker in zip(POSITIONS, ("o", "s"), strict=True):
            errors = values("mse", modality, kind)
            mean = errors.mean(axis=1)
            axis.plot(rates, mean, marker=marker, markersize=3.5, label=f"decoder, {kind}")
            if errors.shape[1] > 1:
                spread = errors.std(axis=1, ddof=1)
                axis.fill_between(rates, mean - spread, mean + spread, alpha=0.15, linewidth=0)
        trivial = values("trivial mse", modality, "masked").mean(axis=1)
        axis.plot(rates, trivial, color=GREY, linestyle=":", label="trivial, masked")
        axis.set_xlabel("missing rate")
        axis.set_ylim(bottom=0)
        axis.set_title(f"{modality}: mean squared error", fontsize=8)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
