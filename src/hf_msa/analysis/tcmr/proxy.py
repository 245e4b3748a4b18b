"""What TCMR rebuilds of the complete text, and what proxy and gate have to do with it (equations 8 to 11).

The features of the incomplete text (H_t), the proxy made of audio and vision (H_p) and their mix (eq. 10) are set beside
those that the text regressor gives to the complete text, at every missing rate. An error is a mean over positions and
widths, in units of that of giving the same features to every text: the mean of the complete training texts, position by
position. Above 1 a feature is worse than no knowledge of the sample. The spread is the variance over samples, in units of
that of the complete texts: near 0 a feature is the same for all samples, whatever its error.

What it is worth is the score's to say: predictions with that mean in the place of the proxy, with the text alone, and with
the complete text's own features in the place of what was rebuilt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_msa.analysis.common.position_means import PositionMeans
from hf_msa.analysis.common.trained_runs import MASK_SEED, find_runs
from hf_msa.analysis.estimates import Rows, format_spread, seed_means
from hf_msa.analysis.tcmr.judged_model import text_regressor
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import FRAME_RATES, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.statistics import mean_and_std
from hf_msa.evaluation.sweep import masked_batches
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis, TcmrTextRegressor
from hf_msa.models.msa_schema import MODALITIES
from hf_msa.models.processing_msa import MsaProcessor

FEATURES = ("text", "proxy", "rebuilt")
"""H_t, H_p and their mix."""

SCORES = ("as trained", "mean for the proxy", "text alone", "complete text")
"""What the score is made of."""


@dataclass
class FeatureSums:
    """Sums over samples, from which error and variance follow.

    Attributes:
        samples: How many were added.
        error: Sum of squared distances to the target.
        squares: Sum of squared features.
        total: Sum of the features (num_tokens, hidden_size).
    """

    samples: int = 0
    error: float = 0.0
    squares: float = 0.0
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def add(self, made: Tensor, target: Tensor) -> None:
        """Add the samples of a batch, both `(batch, num_tokens, hidden_size)`."""
        values = made.double()
        total = values.sum(dim=0).cpu().numpy()
        self.samples += len(values)
        self.error += float((values - target.double()).square().sum())
        self.squares += float(values.square().sum())
        self.total = total if not self.total.size else self.total + total

    def mean_squared_error(self) -> float:
        """The error per element."""
        return self.error / (self.samples * self.total.size)

    def variance(self) -> float:
        """The variance over samples around the mean per position, per element."""
        return float(self.squares - np.square(self.total).sum() / self.samples) / (self.samples * self.total.size)


@dataclass
class RateSums:
    """What is gathered at one missing rate.

    Attributes:
        target: Of the complete text's features, whose error is 0.
        mean: Of the mean complete training text, whose error is the unit of the others.
        features: Of each of `FEATURES`.
        errors: Absolute errors of the score for each of `SCORES`.
        numbers: Gate (empty without one) and confidence of each sample.
    """

    target: FeatureSums = field(default_factory=FeatureSums)
    mean: FeatureSums = field(default_factory=FeatureSums)
    features: dict[str, FeatureSums] = field(default_factory=lambda: {name: FeatureSums() for name in FEATURES})
    errors: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SCORES})
    numbers: dict[str, list[float]] = field(default_factory=lambda: {"gate": [], "confidence": []})

    def row(self) -> dict[str, float]:
        """Errors and spreads as ratios, mean and standard deviation of gate and confidence, and MAE; NaN if undefined."""
        variance, unit = self.target.variance(), self.mean.mean_squared_error()
        found = {"error of the mean": unit}
        for name, sums in self.features.items():
            found[f"{name}: error"] = sums.mean_squared_error() / unit if unit else float("nan")
            found[f"{name}: spread"] = sums.variance() / variance if variance else float("nan")
        for name, values in self.numbers.items():
            mean, std = mean_and_std(values) if values else (float("nan"), float("nan"))
            found |= {name: mean, f"{name} sd": std}
        return found | {f"mae {name}": float(np.mean(errors)) for name, errors in self.errors.items()}


@torch.inference_mode()
def mean_text(
    model: TcmrForSentimentAnalysis, regressor: TcmrTextRegressor, processor: MsaProcessor, rows: MsaRows
) -> Tensor:
    """Mean of the complete texts' features over training rows, in the model's own terms `(num_tokens, hidden_size)`."""
    means, collate = PositionMeans(), MsaCollator(processor, None, split=rows.split)
    for members in rows.batches(order=rows.by_length()):
        batch = collate(members)
        for features in complete_features(model, regressor, batch["input_ids"], batch["attention_mask"]):
            means.add(features.double().cpu().numpy())
    return torch.from_numpy(means(model.config.num_tokens)).float().to(model.device)


def complete_features(
    model: TcmrForSentimentAnalysis, regressor: TcmrTextRegressor, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """What eq. 11 compares with: the regressor's features of complete text, as the model centres them."""
    features = regressor(input_ids.to(model.device), attention_mask.to(model.device)).features
    return model.center(model.shape_targets(features))


@torch.inference_mode()
def gather(
    model: TcmrForSentimentAnalysis,
    regressor: TcmrTextRegressor,
    processor: MsaProcessor,
    rows: MsaRows,
    rates: Sequence[float],
    modalities: Sequence[str],
    mean: Tensor,
) -> dict[float, RateSums]:
    """Run the model on all rows at all missing rates of some modalities; for the mean see `mean_text`."""
    tested = conditions("frame", model.modalities, rates, (MASK_SEED,), modalities=list(modalities))
    protocols = [protocol for _, _, protocol in tested]
    found = {float(rate): RateSums() for rate in rates}
    target = torch.empty(0)
    for batch in masked_batches(model, processor, rows, protocols, "rebuilt texts", batch_size=64):
        if batch.protocol == 0:
            target = complete_features(model, regressor, batch.complete["input_ids"], batch.complete["attention_mask"])
        sums = found[float(rates[batch.protocol])]
        outputs = model(**batch.inputs)
        text, weight = outputs.text_features, outputs.confidence.unsqueeze(-1)
        sums.target.add(target, target)
        sums.mean.add(mean.expand_as(target), target)
        parts = (text, outputs.proxy_features, outputs.reconstructed_features)
        for name, made in zip(FEATURES, parts, strict=True):
            sums.features[name].add(made, target)
        inputs = model.read(batch.inputs)
        features = {
            name: model.encode(name, inputs.values(name), inputs.attention(name)) for name in model.modalities[1:]
        }
        fused = (weight * text + (1 - weight) * mean, text, target)
        scores = (outputs.logits, *(model.fuse(part, features) for part in fused))
        labels = batch.complete["labels"]
        for name, score in zip(SCORES, scores, strict=True):
            sums.errors[name] += (score.squeeze(-1) - labels).abs().tolist()
        for name, values in (("gate", outputs.gate), ("confidence", outputs.confidence)):
            sums.numbers[name] += [] if values is None else values.squeeze(-1).tolist()
    return found


@tool("proxy", "what is rebuilt of the text, and what proxy and gate have to do with it", methods=("tcmr",))
def analyze_proxy(
    runs: Sequence[str],
    report: Report,
    *,
    data: str,
    split: str = "validation",
    rates: Sequence[float] = FRAME_RATES,
    modalities: Sequence[str] = MODALITIES,
) -> None:
    """Show errors and spreads of text, proxy and rebuilt features, the gate, and what each is worth, per missing rate.

    Args:
        runs: TCMR run folders.
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set.
        split: The split to look at.
        rates: Missing rates.
        modalities: The modalities that lose something; the others stay complete.

    Raises:
        MsaError: If a run or the data will not do, or a run no longer has its text regressor.
    """
    found = find_runs(runs, "tcmr")
    rows, training_rows = found[0].rows(data, split), found[0].rows(data, "train")
    table: list[dict[str, Any]] = []
    for run in found:
        model, processor = run.load(rows)
        tcmr, regressor = cast(TcmrForSentimentAnalysis, model), text_regressor(run)
        mean = mean_text(tcmr, regressor, processor, training_rows)
        sums = gather(tcmr, regressor, processor, rows, rates, modalities, mean)
        table += [{"training seed": run.seed, "rate": rate, **each.row()} for rate, each in sums.items()]
    report.csv("proxy.csv", table)
    report.summary(
        "proxy.md",
        "Rebuilt text, proxy and gate",
        f"{found[0].name}; {len(rows)} texts ({split}), {counted(len(found), 'training seed')}, ± is the standard deviation "
        f"over them. Words and frames are missing of {', '.join(modalities)}. Errors are in units of that of the mean "
        "complete training text per position: 1 is no knowledge of the sample. Spreads are variances over samples in units "
        "of that of the complete texts: 0 is the same for all.",
        [
            {"features": name} | {part: _over_seeds(table, f"{name}: {part}") for part in ("error", "spread")}
            for name in FEATURES
        ],
    )
    report.section(
        "Absolute error of the score",
        "Mean over the missing rates; complete text is an oracle.",
        [{"made of": name, "mae": _over_seeds(table, f"mae {name}")} for name in SCORES],
    )
    report.section(
        "Per missing rate",
        "Gate is the weight of audio against vision; sd is over samples.",
        [
            {"rate": f"{rate:g}"}
            | {
                column: _over_seeds([row for row in table if row["rate"] == rate], column)
                for column in table[0]
                if column not in ("training seed", "rate")
            }
            for rate in rates
        ],
    )
    report.figure("proxy", _draw, table, rates)


def _over_seeds(rows: Rows, column: str) -> str:
    return format_spread(seed_means(rows, column))


def _draw(figure: Figure, table: Rows, rates: Sequence[float]) -> None:
    def means(column: str) -> list[float]:
        return [float(np.mean([row[column] for row in table if row["rate"] == rate])) for rate in rates]

    figure.set_size_inches(8.4, 2.8)
    panels: Mapping[str, Sequence[tuple[str, str]]] = {
        "error beside that of the mean": [(name, f"{name}: error") for name in FEATURES],
        "spread beside the complete text's": [(name, f"{name}: spread") for name in FEATURES],
        "absolute error of the score": [(name, f"mae {name}") for name in SCORES],
    }
    for axis, (title, lines) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for label, column in lines:
            axis.plot(rates, means(column), marker="o", markersize=3, label=label)
        if lines[0][0] in FEATURES:
            axis.axhline(1, color=GREY, linestyle=":")
            axis.set_ylim(bottom=0)
        axis.set_xlabel("missing rate")
        axis.set_title(title, fontsize=8)
        axis.legend(frameon=False, fontsize=6)
