"""Sentiment-clue sensitivity: the words that decide what the polarity classifier says (TCMR, section 5 and appendix C).

Of the complete texts those are taken that the classifier gets right with a true-class probability above a threshold.
Each word in turn is replaced by the unknown token. What counts as a flip the paper says in two ways: by appendix C a turn
to the opposite polarity (`"opposite"`), so that a turn to neutral is none and neutral texts have nothing to flip to; by
section 5 any turn from a right prediction to a wrong one (`"wrong"`). The paper prints counts alone, which favour words
that are said often; beside each count stands how often the word was masked.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.tcmr.judged_model import polarity_classifier
from hf_msa.analysis.tcmr.masked_words import Words, planted_roles, run_text, split_words
from hf_msa.analysis.tool_report import GREY, Figure, Report, mark_whole_numbers
from hf_msa.analysis.tools import tool
from hf_msa.data.loading import load_msa
from hf_msa.errors import MsaError, unknown_name
from hf_msa.models.modeling_tcmr import TcmrPolarityClassifier

ALL_SPLITS = "all"
"""The name that stands for all splits together."""

THRESHOLDS = (0.5, 0.7, 0.9)
"""The paper shows three thresholds without printing them."""

READINGS = ("opposite", "wrong")
"""What counts as a flip: appendix C, section 5."""

CLUES_FILE = "clues.csv"

_NEGATIVE, _NEUTRAL, _POSITIVE = range(3)
_TURNS = {"opposite": "to the opposite polarity", "wrong": "from right to wrong"}
_IN_SUMMARY, _IN_FIGURE, _TOP = 15, 15, 10


@dataclass(frozen=True)
class MaskedOnce:
    """Predictions on complete texts, and on each of them with one word masked at a time.

    Attributes:
        true: True class of each text (N,): 0 negative, 1 neutral, 2 positive.
        probabilities: Of the three classes on the complete text (N, 3).
        names: Per text its words.
        masked: Per text the predicted class with each of its words masked (words,); empty for a text that cannot flip.
    """

    true: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    names: Sequence[Sequence[str]]
    masked: Sequence[NDArray[np.int64]]


@dataclass
class ClueCounts:
    """What was counted at one threshold.

    Attributes:
        texts: Texts that are right, above the threshold, and can flip.
        flips: Per word, how often masking it flipped the prediction.
        masked: Per word, how often it was masked.
        to_neutral: How often the prediction turned to neutral, which by the reading `"opposite"` is no flip.
    """

    texts: int = 0
    flips: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    to_neutral: int = 0

    def ranking(self) -> list[tuple[str, int, int]]:
        """Words that flipped any, as (word, flips, masked): most flips first, then the higher rate, then by name."""
        found = [(word, flips, self.masked[word]) for word, flips in self.flips.items()]
        return sorted(found, key=lambda entry: (-entry[1], -entry[1] / entry[2], entry[0]))


def usable_texts(
    true: NDArray[np.int64], probabilities: NDArray[np.float32], threshold: float, reading: str = "opposite"
) -> NDArray[np.bool_]:
    """Which texts are analysed (N,): predicted right, with more than `threshold`, and not neutral, which has no opposite."""
    certain = probabilities[np.arange(len(true)), true] > threshold
    can_flip = (true != _NEUTRAL) | (reading == "wrong")
    usable: NDArray[np.bool_] = (probabilities.argmax(axis=1) == true) & certain & can_flip
    return usable


def count_clues(texts: MaskedOnce, threshold: float, counts: ClueCounts, reading: str = "opposite") -> None:
    """Count the words whose masking flips the prediction.

    Args:
        texts: From `mask_each_word`, computed for this threshold or a lower one, and this reading.
        threshold: The true-class probability that a text must exceed.
        counts: Added to.
        reading: One of `READINGS`.
    """
    for index in np.flatnonzero(usable_texts(texts.true, texts.probabilities, threshold, reading)).tolist():
        names, masked, true = texts.names[index], texts.masked[index], texts.true[index]
        flipped = masked != true if reading == "wrong" else masked == _NEGATIVE + _POSITIVE - true
        counts.texts += 1
        counts.masked.update(names)
        counts.flips.update(name for name, flips in zip(names, flipped, strict=True) if flips)
        counts.to_neutral += int(((masked == _NEUTRAL) & (masked != true)).sum())


def mask_each_word(
    classifier: TcmrPolarityClassifier,
    tokenizer: PreTrainedTokenizerBase,
    words: Words,
    true: NDArray[np.int64],
    threshold: float,
    reading: str = "opposite",
) -> MaskedOnce:
    """Run the classifier on complete texts, then on the usable ones with one word masked at a time.

    Args:
        classifier: In eval mode.
        tokenizer: The model's.
        words: The texts.
        true: Their true classes (N,).
        threshold: The lowest that will be asked for.
        reading: One of `READINGS`.
    """

    def logits(ids: Any, mask: Any) -> Any:
        return classifier(ids, mask).logits

    device = next(classifier.parameters()).device
    raw = run_text(
        logits, words, np.arange(len(true)), lambda variants, numbers: numbers < -1, tokenizer, device
    ).astype(np.float64)
    raw = np.exp(raw - raw.max(axis=1, keepdims=True))
    probabilities = (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)
    counts = np.array([len(names) for names in words.names], dtype=np.int64)
    counts[~usable_texts(true, probabilities, threshold, reading)] = 0
    rows = np.repeat(np.arange(len(true)), counts)
    ends = np.cumsum(counts)
    which = np.arange(len(rows)) - np.repeat(ends - counts, counts)
    masked = run_text(
        logits, words, rows, lambda variants, numbers: numbers == which[variants][:, None], tokenizer, device
    )
    predicted = masked.argmax(axis=1).astype(np.int64) if len(rows) else np.zeros(0, dtype=np.int64)
    return MaskedOnce(true, probabilities, words.names, np.split(predicted, ends[:-1]))


@tool("clues", "words whose masking alone flips the polarity classifier", methods=("tcmr",))
def analyze_clues(
    runs: Sequence[str],
    report: Report,
    *,
    data: str,
    split: str = ALL_SPLITS,
    thresholds: Sequence[float] = THRESHOLDS,
    pieces: bool = False,
    reading: str = "opposite",
) -> None:
    """Show which words flip the polarity classifier, per threshold.

    Counts of several seeds, each with its own classifier, are added up.

    Args:
        runs: TCMR run folders.
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set.
        split: A split, or ``all``; the paper does not say which it used.
        thresholds: True-class probabilities that a text must exceed.
        pieces: Mask word pieces one at a time, as the paper does, instead of whole words.
        reading: What counts as a flip: a turn to the ``opposite`` polarity (appendix C), or any turn from right to
            ``wrong`` (section 5), for which neutral texts are masked as well.
    """
    if reading not in READINGS:
        raise unknown_name("reading", reading, READINGS)
    for threshold in thresholds:
        if not 0 <= threshold < 1:
            raise MsaError(f"A threshold is {threshold:g}; give probabilities from 0 to below 1, e.g. 0.5 0.7 0.9.")
    levels = sorted(set(thresholds))
    found = find_runs(runs, "tcmr")
    splits = [name for name, part in load_msa(data).items() if len(part)] if split == ALL_SPLITS else [split]
    parts = [found[0].rows(data, name) for name in splits]
    tokenizer = found[0].processor.tokenizer
    words = sum((split_words(rows, tokenizer, pieces) for rows in parts), Words([], [], []))
    labels = np.concatenate([rows.labels for rows in parts])
    totals = {level: ClueCounts() for level in levels}
    for run in found:
        classifier = polarity_classifier(run)
        true = classifier.config.family.polarity(labels)
        texts = mask_each_word(classifier, tokenizer, words, true, levels[0], reading)
        for level in levels:
            count_clues(texts, level, totals[level], reading)
    roles = planted_roles(data)
    table = clue_rows(totals, roles)
    report.csv(CLUES_FILE, table)
    report.summary(
        "clues.md",
        "Sentiment-clue sensitivity",
        f"{len(labels)} texts ({'all splits' if split == ALL_SPLITS else split}), {len(found)} trained classifier"
        f"{'' if len(found) == 1 else 's, counts added up'}; one {'word piece' if pieces else 'word'} masked at a "
        f"time. A flip is a turn {_TURNS[reading]}; rate is flips per masking of that word.",
        [_summary(level, counts, roles) for level, counts in totals.items()],
    )
    for level in levels:
        shown = [row for row in table if row["threshold"] == level]
        report.section(f"True-class probability above {level:g}", shown[:_IN_SUMMARY])
    if table:
        report.figure("clues", _draw, totals, roles, reading)


def clue_rows(totals: Mapping[float, ClueCounts], roles: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """The rows of clues.csv: threshold, word, flips, masked, rate, and for a sample corpus the word's planted role."""
    return [
        {"threshold": level, "word": word, "flips": flips, "masked": masked, "rate": flips / masked}
        | ({} if roles is None else {"role": roles.get(word, "none")})
        for level, counts in totals.items()
        for word, flips, masked in counts.ranking()
    ]


def _summary(level: float, counts: ClueCounts, roles: Mapping[str, str] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "threshold": f"{level:g}",
        "texts": counts.texts,
        "maskings": counts.masked.total(),
        "flips": counts.flips.total(),
        "turns to neutral": counts.to_neutral,
    }
    if roles is not None:
        top = [word for word, _, _ in counts.ranking()[:_TOP]]
        row["planted cues among the top words"] = f"{sum(roles.get(word) == 'cue' for word in top)} of {len(top)}"
        cues = sum(flips for word, flips in counts.flips.items() if roles.get(word) == "cue")
        row["flips by planted cues"] = cues
    return row


def _draw(figure: Figure, totals: Mapping[float, ClueCounts], roles: Mapping[str, str] | None, reading: str) -> None:
    drawn = {level: counts for level, counts in totals.items() if counts.flips}
    tallest = max(min(len(counts.flips), _IN_FIGURE) for counts in drawn.values())
    figure.set_size_inches(max(3.6, 2.8 * len(drawn)), 1.0 + 0.2 * tallest)
    panels = figure.subplots(1, len(drawn), squeeze=False).flat
    for axis, (level, counts) in zip(panels, drawn.items(), strict=True):
        words, flips, masked = zip(*counts.ranking()[:_IN_FIGURE][::-1], strict=True)
        colours = ["C0" if roles is None or roles.get(word) == "cue" else GREY for word in words]
        axis.bar_label(axis.barh(words, flips, color=colours), [f" of {number}" for number in masked], fontsize=6)
        axis.margins(x=0.2)
        axis.set_title(f"probability above {level:g}: {counts.texts} texts", fontsize=8)
        axis.set_xlabel(f"flips {_TURNS[reading]}")
        mark_whole_numbers(axis.xaxis)
    if roles is not None:
        figure.suptitle("blue: planted cue words; grey: other words", fontsize=8)
