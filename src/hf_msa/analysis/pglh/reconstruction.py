"""Does the decoder rebuild what was dropped (PGLH, equations 8 to 10)?

The error of the reconstruction is taken apart by modality, missing rate, and masked against visible positions, and set
beside that of a reconstruction that needs no model: the same vector at every position. For features that vector is the
mean of the training split, which is zero where features are standardised, and the mean of the evaluated rows where
they are not; for text it is the mean state of the evaluated rows. A decoder that has learnt nothing beyond the mean
has a ratio of 1, and only what lies below 1 at *masked* positions says that other frames or words were made use of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from hf_msa.analysis.common.trained_runs import find_runs, load_split
from hf_msa.analysis.tool_report import (
    GREY,
    counted,
    drawn_figure,
    format_spread,
    rows_table,
    write_csv,
    write_markdown,
)
from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import FRAME_RATES, apply_missing, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.models.modeling_pglh import PglhForSentimentAnalysis
from hf_msa.models.msa_schema import ATTENTION_MASK_KEYS, COMPLETE_KEYS, MISSING_MASK_KEYS, VALUE_KEYS
from hf_msa.models.processing_msa import MsaProcessor

POSITIONS = ("masked", "visible")
"""The two kinds of positions; padding is neither."""

_MASK_SEED = 1111
_BATCH_SIZE = 64


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

    Args:
        model: In eval mode.
        processor: The model's.
        rows: Tokenised rows.
        rates: Missing rates.

    Returns:
        Sums by modality, rate, and one of `POSITIONS`, for the modalities that the model reconstructs.
    """
    device = next(model.parameters()).device
    tested = conditions("frame", ("text",), rates, (_MASK_SEED,))
    bound = [(float(rate), protocol.bind(rows.ids)) for _, rate, protocol in tested]
    order = np.argsort(np.sum(list(rows.lengths.values()), axis=0), kind="stable")
    sums: dict[tuple[str, float, str], ErrorSums] = {}
    for start in tqdm(range(0, len(order), _BATCH_SIZE), desc="reconstructions", leave=False):
        members = [rows[int(index)] for index in order[start : start + _BATCH_SIZE]]
        collated = MsaCollator(processor, None, split=rows.split)(members)
        complete = {key: value.to(device) for key, value in collated.items()}
        targets = {modality: complete[key] for modality, key in VALUE_KEYS.items() if key in complete}
        originals = {COMPLETE_KEYS[modality]: values for modality, values in targets.items()}
        targets["text"] = model.encode_text(complete["input_ids"], complete["attention_mask"])
        for rate, protocol in bound:
            masks = MsaCollator(processor, protocol, split=rows.split).masks(members)
            batch = apply_missing(complete, masks, processor.tokenizer.unk_token_id)
            made = model.reconstruct({**batch, **originals})
            for modality, values in made.items():
                real = batch[ATTENTION_MASK_KEYS[modality]].bool()
                dropped = batch[MISSING_MASK_KEYS[modality]] & real
                for kind, where in zip(POSITIONS, (dropped, real & ~dropped), strict=True):
                    sums.setdefault((modality, rate, kind), ErrorSums()).add(values, targets[modality], where)
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
    for (modality, rate, kind), found in sums.items():
        constant = constants.get(modality)
        if constant is None:
            # Masked and visible positions of any one rate are all positions.
            parts = [sums[modality, rate, name] for name in POSITIONS]
            positions = max(1, sum(part.positions for part in parts))
            constant = np.sum([part.total for part in parts if part.positions], axis=0) / positions
        mse, trivial = found.mean_squared_error(), found.error_of(constant)
        rows.append(
            {
                "modality": modality,
                "rate": rate,
                "positions": kind,
                "n": found.positions,
                "mse": mse,
                "trivial mse": trivial,
                "ratio": mse / trivial if trivial else float("nan"),
            }
        )
    return rows


def analyze_reconstruction(
    runs: Sequence[str], *, data: str, output: Path, split: str = "validation", rates: Sequence[float] = FRAME_RATES
) -> list[Path]:
    """Write the reconstruction's error by modality, missing rate, and masked or visible positions.

    Args:
        runs: PGLH run folders.
        data: Folder or Hub name of a prepared data set.
        output: The folder to write to.
        split: The split to look at.
        rates: Missing rates.

    Raises:
        MsaError: If a run or the data will not do, or the model has no decoder.
    """
    found = find_runs(runs, "pglh")
    rows = load_split(data, split, found[0])
    table: list[dict[str, Any]] = []
    for run in found:
        model, processor = run.load(data, rows)
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
    written = [write_csv(output / "reconstruction.csv", table)]
    written.append(
        write_markdown(
            output / "reconstruction.md",
            "# Reconstruction of what was dropped",
            f"{found[0].name}; {len(rows)} texts ({split}), {counted(len(found), 'training seed')}, ± is the standard "
            "deviation over them. Mean squared error per position and feature; the text's target is the state that the "
            "text encoder gives to the complete text. Trivial is the same vector everywhere: the training mean of "
            "standardised features, else the mean of these rows.",
            _verdict(table),
            *(
                f"## {modality.capitalize()}\n\n" + rows_table(_per_rate(table, modality))
                for modality in _modalities(table)
            ),
        )
    )
    _draw(output / "reconstruction", table, written)
    return written


def _modalities(table: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["modality"] for row in table))


def _select(table: Sequence[Mapping[str, Any]], column: str, **where: Any) -> list[float]:
    return [row[column] for row in table if all(row[key] == value for key, value in where.items())]


def _seed_means(table: Sequence[Mapping[str, Any]], column: str, **where: Any) -> list[float]:
    """Per training seed the mean over the rates at which there are such positions; NaN where there are none."""
    seeds = dict.fromkeys(row["training seed"] for row in table)
    values = [np.array(_select(table, column, **where, **{"training seed": seed})) for seed in seeds]
    return [float(v[np.isfinite(v)].mean()) if np.isfinite(v).any() else float("nan") for v in values]


def _verdict(table: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for modality in _modalities(table):
        ratios = _seed_means(table, "ratio", modality=modality, positions="masked")
        rows.append(
            {"modality": modality}
            | {
                f"{kind}: {column}": format_spread(_seed_means(table, column, modality=modality, positions=kind))
                for kind in POSITIONS
                for column in ("mse", "trivial mse", "ratio")
            }
            | {"better than trivial where masked": f"{sum(r < 1 for r in ratios)} of {counted(len(ratios), 'seed')}"}
        )
    return "## Mean over the missing rates\n\n" + rows_table(rows)


def _per_rate(table: Sequence[Mapping[str, Any]], modality: str) -> list[dict[str, Any]]:
    return [
        {"rate": f"{rate:g}"}
        | {
            f"{kind}: {column}": format_spread(_select(table, column, modality=modality, rate=rate, positions=kind))
            for kind in POSITIONS
            for column in ("mse", "trivial mse", "ratio")
        }
        for rate in dict.fromkeys(row["rate"] for row in table)
    ]


def _draw(stem: Path, table: Sequence[Mapping[str, Any]], written: list[Path]) -> None:
    modalities = _modalities(table)
    rates = list(dict.fromkeys(row["rate"] for row in table))
    with drawn_figure(stem, 2.8 * len(modalities), 2.8, written) as figure:
        for axis, modality in zip(figure.subplots(1, len(modalities), squeeze=False).flat, modalities, strict=True):
            for kind, marker in zip(POSITIONS, ("o", "s"), strict=True):
                values = np.array([_select(table, "mse", modality=modality, rate=r, positions=kind) for r in rates])
                axis.plot(rates, values.mean(axis=1), marker=marker, markersize=3.5, label=f"decoder, {kind}")
                if values.shape[1] > 1:
                    axis.fill_between(
                        rates,
                        values.mean(axis=1) - values.std(axis=1, ddof=1),
                        values.mean(axis=1) + values.std(axis=1, ddof=1),
                        alpha=0.15,
                        linewidth=0,
                    )
            trivial = [_select(table, "trivial mse", modality=modality, rate=r, positions="masked") for r in rates]
            axis.plot(rates, np.mean(trivial, axis=1), color=GREY, linestyle=":", label="trivial, masked")
            axis.set_xlabel("missing rate")
            axis.set_ylim(bottom=0)
            axis.set_title(f"{modality}: mean squared error", fontsize=8)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
