"""Predicted confidence against missing rate and true-class probability (TCMR, Figure 1).

The paper's claim is that a confidence says more of what a text still means than its missing rate does. So the
predicted confidence is set beside its target (the true-class probability under the same mask, eq. 7) and beside the
share of tokens that survived. On a sample corpus, where the words that matter are known, it is also tested directly:
masking the planted cue words must lower the confidence more than masking equally many fillers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hf_msa.analysis.common.trained_runs import MASK_SEED, TrainedRun, find_runs
from hf_msa.analysis.estimates import Rows, format_number
from hf_msa.analysis.tcmr.judged_model import judge, load_judged
from hf_msa.analysis.tcmr.masked_words import Words, planted_roles, run_text, split_words
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.missing import FRAME_RATES
from hf_msa.data.rows import MsaRows
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.statistics import mean_and_std, paired_difference

BINS = 10
"""Equal bins of the predicted confidence in the calibration table."""

FILLER_DRAWS = 8
"""How often fillers are drawn anew per text; the mean is what cue words are compared with."""


def correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Pearson correlation; NaN where either is constant or there are fewer than two values."""
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.size < 2 or np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def confidence_statistics(confidence: ArrayLike, truth: ArrayLike, kept: ArrayLike) -> dict[str, float]:
    """Say how predicted confidence, true-class probability and kept share of tokens, each (N,), go together.

    Returns:
        Means, standard deviations over samples (divisor n - 1), the mean squared error of the prediction (eq. 6) and
        the correlations; NaN where undefined.
    """
    c_hat, c = np.asarray(confidence, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    mean, std = mean_and_std(c_hat.tolist())
    true_mean, true_std = mean_and_std(c.tolist())
    return {
        "confidence": mean,
        "confidence sd": std,
        "truth": true_mean,
        "truth sd": true_std,
        "squared error": float(np.square(c_hat - c).mean()),
        "corr with truth": correlation(c_hat, c),
        "corr with kept share": correlation(c_hat, kept),
        "kept share with truth": correlation(kept, c),
    }


def calibration(confidence: ArrayLike, truth: ArrayLike, bins: int = BINS) -> tuple[list[dict[str, Any]], float]:
    """Compare the mean true-class probability with the mean predicted confidence, bin by bin.

    Args:
        confidence: Predicted, (N,), in [0, 1].
        truth: True-class probabilities, (N,).
        bins: Number of equal bins; a value on an edge belongs to the upper one, 1 to the last.

    Returns:
        One row per bin that holds any, and the mean absolute gap weighted by the bins' sizes.
    """
    c_hat, c = np.asarray(confidence, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    number = np.minimum((c_hat * bins).astype(np.int64), bins - 1)
    rows = []
    gap = 0.0
    for index in np.unique(number):
        inside = number == index
        predicted, true = float(c_hat[inside].mean()), float(c[inside].mean())
        gap += abs(predicted - true) * inside.mean()
        rows.append(
            {
                "from": float(index / bins),
                "to": float((index + 1) / bins),
                "n": int(inside.sum()),
                "confidence": predicted,
                "truth": true,
            }
        )
    return rows, float(gap)


@tool("confidence", "predicted confidence against missing rate and true-class probability", methods=("tcmr",))
def analyze_confidence(
    runs: Sequence[str], report: Report, *, data: str, split: str = "validation", rates: Sequence[float] = FRAME_RATES
) -> None:
    """Show how the predicted confidence follows missing rate and true-class probability.

    confidence.csv holds a row per training seed and rate, calibration.csv a row per bin (all seeds and rates
    together), and cue_masking.csv, for a sample corpus, a row per training seed.

    Args:
        runs: TCMR run folders.
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set.
        split: The split to look at.
        rates: Missing rates.
    """
    found = find_runs(runs, "tcmr")
    rows = found[0].rows(data, split)
    roles = planted_roles(data)
    parts: list[dict[str, Any]] = []
    planted: list[dict[str, Any]] = []
    for run in found:
        parts += judge(run, rows, rates, [MASK_SEED])
        if roles is not None:
            planted += probe_cue_words(run, rows, roles)
    table = [
        {"training seed": part["training_seed"], "rate": part["rate"], "n": len(part["id"])}
        | confidence_statistics(part["confidence"], part["truth"], part["kept"])
        for part in parts
    ]
    pooled = {
        name: np.concatenate([np.broadcast_to(part[name], len(part["id"])) for part in parts])
        for name in ("confidence", "truth", "kept", "rate")
    }
    bins, gap = calibration(pooled["confidence"], pooled["truth"])
    report.csv("confidence.csv", table)
    report.csv("calibration.csv", bins)
    report.csv("cue_masking.csv", planted)
    report.summary(
        "confidence.md",
        "Confidence, missing rate and true-class probability",
        f"{len(rows)} texts ({split}), {counted(len(found), 'training seed')}. Truth is the "
        "probability that the frozen classifier gives to the true polarity of the same incomplete text; kept "
        "share is the share of its tokens that survived.",
        correlation_rows(pooled),
        f"Mean gap between predicted confidence and truth over {BINS} bins: {format_number(gap)}.",
    )
    report.section("Per missing rate (mean over training seeds)", _per_rate(table))
    report.section("Calibration", bins)
    if planted:
        report.section(
            "Masking planted cue words against masking fillers",
            f"All cue words of a complete text are masked, or as many fillers ({FILLER_DRAWS} draws); shown is how far the "
            "value falls, their paired difference, and its 95 % bootstrap interval over texts.",
            [
                {"training seed": str(row["training seed"]), "fall of": name, "texts": row["texts"]}
                | {key: row[f"{name}: {key}"] for key in ("cues", "fillers", "difference", "low", "high")}
                for row in planted
                for name in ("confidence", "truth")
            ],
        )
    report.figure("confidence", _draw, _per_rate(table), pooled, bins)


def probe_cue_words(run: TrainedRun, rows: MsaRows, roles: Mapping[str, str]) -> list[dict[str, Any]]:
    """Mask all planted cue words of each text, and as many fillers, and compare how far the confidence falls.

    Texts without a cue or with fewer fillers than cues are left out. The fillers are drawn `FILLER_DRAWS` times.

    Returns:
        One row, or none where no text qualifies: the mean fall of the confidence for cues and for fillers, their
        paired difference with a bootstrap interval over texts, and the same for the true-class probability.
    """
    model, processor, classifier = load_judged(run, rows)
    tokenizer = processor.tokenizer
    device = next(model.parameters()).device
    words = split_words(rows, tokenizer)
    variants, owner = cue_and_filler_masks(words, roles, np.random.default_rng(run.seed))
    if not len(owner):
        return []
    widest = max(len(names) for names in words.names)
    chosen = np.zeros((len(variants), widest + 1), dtype=bool)
    for index, places in enumerate(variants):
        chosen[index, places] = True

    def dropped(numbers: NDArray[np.int64], word_of: NDArray[np.int64]) -> NDArray[np.bool_]:
        # Special tokens have the number -1, which is the last column, always False.
        return np.take_along_axis(chosen[numbers], np.where(word_of < 0, widest, word_of), axis=1)

    def confidence(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model.estimate_confidence(model.encode_text(ids, mask)[:, 0])

    def probabilities(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = classifier(ids, mask).logits.softmax(dim=-1)
        return predicted

    kinds = 2 + FILLER_DRAWS
    row: dict[str, Any] = {"training seed": run.seed, "texts": len(owner) // kinds}
    truth_of = model.config.family.polarity(rows.labels[owner])
    for name, model_of_text in (("confidence", confidence), ("truth", probabilities)):
        values = run_text(model_of_text, words, owner, dropped, tokenizer, device).astype(np.float64)
        single = values[:, 0] if values.shape[1] == 1 else values[np.arange(len(owner)), truth_of]
        complete, without_cues, *without_fillers = single.reshape(-1, kinds).T
        falls = complete - without_cues, complete - np.mean(without_fillers, axis=0)
        row |= {f"{name}: cues": float(falls[0].mean()), f"{name}: fillers": float(falls[1].mean())}
        row |= {f"{name}: {key}": value for key, value in paired_difference(*falls).items()}
    return [row]


def cue_and_filler_masks(
    words: Words, roles: Mapping[str, str], generator: np.random.Generator
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Choose what to mask: per text nothing, all its cue words, and `FILLER_DRAWS` times as many random fillers.

    Returns:
        The numbers of the masked words per variant, and the text of each variant (V,).
    """
    variants: list[NDArray[np.int64]] = []
    owner: list[int] = []
    for index, names in enumerate(words.names):
        kinds = np.array([roles.get(name, "none") for name in names])
        cues, fillers = np.flatnonzero(kinds == "cue"), np.flatnonzero(kinds == "filler")
        if 0 < len(cues) <= len(fillers):
            drawn = [generator.choice(fillers, len(cues), replace=False) for _ in range(FILLER_DRAWS)]
            variants += [np.zeros(0, dtype=np.int64), cues, *drawn]
            owner += [index] * (2 + FILLER_DRAWS)
    return variants, np.array(owner, dtype=np.int64)


def _per_rate(table: Rows) -> list[dict[str, Any]]:
    names = [name for name in table[0] if name not in ("training seed", "rate", "n")]
    return [
        {"rate": f"{rate:g}"}
        | {name: float(np.mean([row[name] for row in table if row["rate"] == rate])) for name in names}
        for rate in dict.fromkeys(row["rate"] for row in table)
    ]


def correlation_rows(pooled: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """The correlations of confidence, truth, missing rate and kept share over all rates."""
    complete = 1 - pooled["rate"].astype(np.float64)
    pairs = {
        "predicted confidence and truth": (pooled["confidence"], pooled["truth"]),
        "1 - missing rate and truth": (complete, pooled["truth"]),
        "predicted confidence and 1 - missing rate": (pooled["confidence"], complete),
        "predicted confidence and kept share": (pooled["confidence"], pooled["kept"]),
    }
    return [{"over all rates": name, "correlation": correlation(*pair)} for name, pair in pairs.items()]


def _draw(figure: Figure, per_rate: Rows, pooled: Mapping[str, NDArray[Any]], bins: Rows) -> None:
    figure.set_size_inches(9.0, 2.8)
    left, middle, right = figure.subplots(1, 3)
    rates = [float(row["rate"]) for row in per_rate]
    for name, label, marker in (
        ("confidence", "predicted confidence", "o"),
        ("truth", "true-class probability", "s"),
    ):
        mean, sd = (np.array([row[key] for row in per_rate]) for key in (name, f"{name} sd"))
        left.plot(rates, mean, marker=marker, markersize=3.5, label=label)
        left.fill_between(rates, mean - sd, mean + sd, alpha=0.15, linewidth=0)
    left.plot(rates, [1 - rate for rate in rates], color=GREY, linestyle=":", label="1 - missing rate")
    left.set_xlabel("missing rate")
    left.set_title("mean and deviation over texts", fontsize=8)
    left.legend(frameon=False, fontsize=6)
    dots = middle.scatter(
        pooled["kept"], pooled["confidence"], c=pooled["truth"], s=3, alpha=0.5, cmap="viridis", rasterized=True
    )
    figure.colorbar(dots, ax=middle, label="true-class probability")
    middle.set_xlabel("share of tokens that survived")
    middle.set_ylabel("predicted confidence")
    right.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    right.plot([row["confidence"] for row in bins], [row["truth"] for row in bins], marker="o", markersize=3.5)
    right.set_xlabel("predicted confidence (bin mean)")
    right.set_ylabel("true-class probability (bin mean)")
    right.set_title("calibration", fontsize=8)
