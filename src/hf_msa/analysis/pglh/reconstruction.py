"""Error of what PGLH's decoder rebuilds of what was dropped (equations 8 to 10).

It is taken apart by modality, missing rate, and masked against visible positions, and set beside that of a reconstruction
that needs no model: the same vector at every position. For features that vector is the mean of the training split, which is
zero where features are standardised, and the mean of the evaluated rows where they are not; for text it is the mean state
of the evaluated rows. A decoder that has learnt nothing beyond the mean has a ratio of 1, and only what lies below 1 at
*masked* positions says that other frames or words were made use of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_msa.analysis.common.trained_runs import MASK_SEED, find_runs
from hf_msa.analysis.estimates import Rows, format_spread, seed_means
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.missing import FRAME_RATES, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.sweep import masked_batches
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
        squares: Sum of squared targets.
        total: Sum of the targets (d,).
    """

    positions: int = 0
    error: float = 0.0
    squares: float = 0.0
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def add(self, made: Tensor, target: Tensor, where: Tensor) -> None:
        """Add the positions of a batch.

        Args:
            made (`torch.FloatTensor` of shape `(batch, length, width)`): The reconstruction.
            target (`torch.FloatTensor` of shape `(batch, length, width)`): What it should be.
            where (`torch.BoolTensor` of shape `(batch, length)`): True = counts.
        """
        chosen = target[where].double()
        total = chosen.sum(dim=0).cpu().numpy()
        self.positions += len(chosen)
        self.error += float((made[where].double() - chosen).square().sum())
        self.squares += float(chosen.square().sum())
        self.total = total if not self.total.size else self.total + total

    def mean_squared_error(self) -> float:
        """The reconstruction's error per position and feature; NaN without positions."""
        return self.error / (self.positions * self.total.size) if self.positions else float("nan")

    def error_of(self, constant: NDArray[np.float64]) -> float:
        """The error per position and feature of giving the vector `constant` (d,) everywhere; NaN without positions."""
        if not self.positions:
            return float("nan")
        error = self.squares - 2 * constant @ self.total + self.positions * constant @ constant
        return float(error / (self.positions * self.total.size))


@torch.inference_mode()
def reconstruction_sums(
    model: PglhForSentimentAnalysis, processor: MsaProcessor, rows: MsaRows, rates: Sequence[float]
) -> dict[tuple[str, float, str], ErrorSums]:
    """Reconstruct all rows at all missing rates, the same rate for every modality.

    Returns:
        Sums by modality, rate, and one of `POSITIONS`, for the modalities that the model reconstructs.
    """
    protocols = [protocol for _, _, protocol in conditions("frame", ("text",), rates, (MASK_SEED,))]
    sums: dict[tuple[str, float, str], ErrorSums] = {}
    targets: dict[str, Tensor] = {}
    real: dict[str, Tensor] = {}
    for batch in masked_batches(model, processor, rows, protocols, "reconstructions", batch_size=64):
        if batch.protocol == 0:
            complete = batch.complete
            targets = {modality: complete[key] for modality, key in VALUE_KEYS.items() if key in complete}
            targets["text"] = model.encode_text(complete["input_ids"], complete["attention_mask"])
            real = {modality: complete[COMPLETE_ATTENTION_KEYS[modality]].bool() for modality in targets}
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
                sums.setdefault(key, ErrorSums()).add(values[:, :length], targets[modality], where)
    return sums


def error_rows(
    sums: Mapping[tuple[str, float, str], ErrorSums], constants: Mapping[str, NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """One row per modality, rate and kind of positions.

    Args:
        sums: From `reconstruction_sums`.
        constants: Per modality the vector (d,) of the trivial reconstruction; where there is none, the mean target.

    Returns:
        ``mse`` and ``trivial mse`` per position and feature, and their ``ratio``; NaN without positions.
    """
    rows = []
    for (modality, rate, kind), own in sums.items():
        constant = constants.get(modality)
        if constant is None:
            # Masked and visible positions of any one rate are all positions.
            parts = [sums[modality, rate, name] for name in POSITIONS]
            positions = max(1, sum(part.positions for part in parts))
            constant = np.sum([part.total for part in parts if part.positions], axis=0) / positions
        mse, trivial = own.mean_squared_error(), own.error_of(constant)
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
        data: Folder or Hub name of a prepared data set.
        split: The split to look at.
        rates: Missing rates.

    Raises:
        MsaError: If a run or the data will not do, or the model has no decoder.
    """
    found = find_runs(runs, "pglh")
    rows = found[0].rows(data, split)
    table: list[dict[str, Any]] = []
    for run in found:
        model, processor = run.load(rows)
        extractor = processor.feature_extractor
        standardised = [m for m in extractor.modalities if getattr(extractor, f"{m}_mean") is not None]
        constants = {m: np.zeros(getattr(extractor, f"{m}_dim")) for m in standardised}
        decoding = cast(PglhForSentimentAnalysis, model)
        if not decoding.config.reconstructed:
            raise MsaError(
                f"{run.folder} has no decoder and reconstructs nothing; give a run that was trained with reconstruction "
                "losses and saved with its decoder."
            )
        sums = reconstruction_sums(decoding, processor, rows, rates)
        table += [{"training seed": run.seed, **row} for row in error_rows(sums, constants)]
    report.csv("reconstruction.csv", table)
    report.summary(
        "reconstruction.md",
        "Reconstruction of what was dropped",
        f"{found[0].name}; {len(rows)} texts ({split}), {counted(len(found), 'training seed')}, ± is the standard "
        "deviation over them. Mean squared error per position and feature; the text's target is the state that the "
        "text encoder gives to the complete text. Trivial is the same vector everywhere: the training mean of "
        "standardised features, else the mean of these rows.",
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
