"""Quadrants of missing rate and cue words (TCMR, Figure 5): low or high, kept or dropped, counted instead of picked.

A method that goes by the missing rate treats the two cells of a column alike; one that knows what a text still means
should be less confident where the cue words are gone. A text falls into a cell only when all its cue words have the
same fate; texts that lose some of them, and texts without any, are left out.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.estimates import Rows
from hf_msa.analysis.tcmr.clues import CLUES_FILE
from hf_msa.analysis.tcmr.judged_model import judge
from hf_msa.analysis.tcmr.masked_words import Words, planted_roles, read_word_list, split_words
from hf_msa.analysis.tool_report import Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.loading import dataset_facts
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import regression_metrics
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.statistics import mean_and_std
from hf_msa.models.msa_label_families import LabelFamily

RATES = (0.2, 0.7)
"""The low and the high missing rate."""

MASK_SEEDS = (1111, 1112, 1113, 1114, 1115)
"""Several draws, because at a low rate few texts lose all their cue words."""

CELLS = (("low", "kept"), ("low", "dropped"), ("high", "kept"), ("high", "dropped"))
"""Missing rate and fate of the cue words, in the order of tables."""

_EXAMPLES = 3
_CLUE_RATE = 0.1


def cue_fates(words: Words, cues: frozenset[str], masks: Sequence[NDArray[np.bool_]]) -> list[str | None]:
    """Say of each text what became of its cue words.

    Args:
        words: The texts.
        cues: Cue words, lower-case.
        masks: Per text the dropped tokens (T,). A word is dropped when any of its tokens is.

    Returns:
        Per text ``"kept"`` or ``"dropped"`` where all its cue words share that fate, ``"mixed"`` where they do not,
        and None where it has none.
    """
    fates: list[str | None] = []
    for names, word_of, mask in zip(words.names, words.word_of, masks, strict=True):
        places = [number for number, name in enumerate(names) if name in cues]
        lost = {bool(mask[word_of == number].any()) for number in places}
        fates.append(None if not lost else "mixed" if len(lost) > 1 else "dropped" if lost == {True} else "kept")
    return fates


def cell_rows(table: Rows, family: LabelFamily) -> list[dict[str, Any]]:
    """Score every cell.

    Args:
        table: One row per prediction: rate (``"low"`` or ``"high"``), fate, label, prediction, confidence, truth.
        family: Of the labels; it decides the accuracy.

    Returns:
        One row per cell of `CELLS`: n, mae, acc2, mean and standard deviation of the confidence, mean truth; None
        where the cell is empty.
    """
    rows = []
    for rate, fate in CELLS:
        inside = [row for row in table if row["rate"] == rate and row["fate"] == fate]
        cell: dict[str, Any] = dict.fromkeys(("mae", "acc2", "confidence", "confidence sd", "truth"))
        if inside:
            metrics = regression_metrics([r["prediction"] for r in inside], [r["label"] for r in inside], family)
            mean, std = mean_and_std([float(row["confidence"]) for row in inside])
            truth = float(np.mean([row["truth"] for row in inside]))
            cell = dict(zip(cell, (metrics["mae"], metrics[family.main_accuracy], mean, std, truth), strict=True))
        rows.append({"missing rate": rate, "cue words": fate, "n": len(inside), **cell})
    return rows


def choose_cues(data: str, runs: Sequence[str], cues: Path | None) -> tuple[frozenset[str], str]:
    """Find the cue words: those given, else those planted in a sample corpus, else those of the tool ``clues``.

    The table of ``clues`` is looked for in the first run; those words are taken that flip at least one prediction in ten
    at its highest threshold.

    Returns:
        The words, and where they came from.

    Raises:
        MsaError: If there are none.
    """
    if cues is not None:
        return frozenset(read_word_list(Path(cues))), Path(cues).name
    roles = planted_roles(data)
    if roles is not None:
        return frozenset(word for word, role in roles.items() if role == "cue"), "planted in the sample corpus"
    table = Path(runs[0]) / "analysis" / "clues" / CLUES_FILE
    if not table.is_file():
        raise MsaError(
            f"No cue words are known for {data!r}; run `hf-msa analyze clues` on {runs[0]} first, or give a word list "
            "with --cues."
        )
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    highest = max(float(row["threshold"]) for row in rows)
    chosen = [r["word"] for r in rows if float(r["threshold"]) == highest and float(r["rate"]) >= _CLUE_RATE]
    if not chosen:
        raise MsaError(f"No word in {table} flips one prediction in ten; give a word list with --cues.")
    return frozenset(chosen), f"{CLUES_FILE}, threshold {highest:g}"


@tool("quadrants", "low or high missing rate, key cue words kept or dropped", methods=("tcmr",))
def analyze_quadrants(
    runs: Sequence[str],
    report: Report,
    *,
    data: str,
    split: str = "validation",
    rates: Sequence[float] = RATES,
    cues: Path | None = None,
    examples: bool = False,
) -> None:
    """Show error and confidence in the four cells, and a few utterances of each.

    The utterances go to examples.csv, a file for the reader's own eyes: most data sets must not be passed on. The
    summary shows them only if asked to, or if they are of a sample corpus. The predictions of all seeds and mask draws
    are pooled.

    Args:
        runs: TCMR run folders.
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set.
        split: The split to look at.
        rates: The low and the high missing rate.
        cues: File of cue words: one per line, or a CSV table with a column ``word``; default: those planted in a sample
            corpus, else those that the tool clues found.
        examples: Put the utterances into the summary, too.
    """
    if len(rates) != 2 or not rates[0] < rates[1]:
        raise MsaError(
            f"The four cells need a low and a high missing rate, e.g. 0.2 0.7; got {' '.join(map(str, rates))}."
        )
    found = find_runs(runs, "tcmr")
    facts = dataset_facts(data)
    chosen, source = choose_cues(data, runs, cues)
    rows = found[0].rows(data, split)
    words = split_words(rows, found[0].processor.tokenizer)
    table: list[dict[str, Any]] = []
    for run in found:
        for part in judge(run, rows, rates, MASK_SEEDS):
            table += _predictions(part, cue_fates(words, chosen, part["text_masks"]), rates)
    cells = cell_rows(table, facts.family)
    shown = example_rows(table, words, rows)
    report.csv("quadrants.csv", cells)
    report.file("quadrants.parquet", lambda path: _write_predictions(path, table))
    report.csv("examples.csv", shown)
    without = len(words.names) - sum(any(name in chosen for name in names) for names in words.names)
    mixed = sum(row["fate"] == "mixed" for row in table)
    report.summary(
        "quadrants.md",
        "Missing rate and cue words",
        f"{len(rows)} texts ({split}), missing rates {rates[0]:g} and {rates[1]:g}, {len(MASK_SEEDS)} mask draws, "
        f"{counted(len(found), 'training seed')}. {len(chosen)} cue words ({source}). Left "
        f"out: {without} texts without a cue word, and {mixed} predictions whose cue words are partly dropped.",
        cells,
    )
    if examples or planted_roles(data) is not None:
        report.section("Examples", shown)
    report.figure("quadrants", _draw, cells, rates)


def example_rows(table: Rows, words: Words, rows: MsaRows) -> list[dict[str, Any]]:
    """A few utterances per cell, those with the clearest sentiment first, as the model read them."""
    shown = []
    for rate, fate in CELLS:
        inside = [row for row in table if row["rate"] == rate and row["fate"] == fate]
        inside.sort(key=lambda row: (-abs(row["label"]), row["id"], row["mask_seed"]))
        first = {row["id"]: row for row in reversed(inside)}
        # One row per utterance; utterances keep the order of the rows.
        for row in [row for row in inside if first[row["id"]] is row][:_EXAMPLES]:
            word_of, mask = words.word_of[row["index"]], row["mask"]
            lost = {int(number) for number in word_of[mask] if number >= 0}
            text = " ".join("[UNK]" if i in lost else name for i, name in enumerate(words.names[row["index"]]))
            shown.append(
                {
                    "missing rate": rate,
                    "cue words": fate,
                    "id": row["id"],
                    "text": rows[row["index"]]["text"],
                    "read as": text,
                    **{name: float(row[name]) for name in ("label", "prediction", "confidence", "truth")},
                }
            )
    return shown


def _predictions(part: Mapping[str, Any], fates: Sequence[str | None], rates: Sequence[float]) -> list[dict[str, Any]]:
    """The predictions of one condition on texts with a cue word, one row each."""
    return [
        {
            "index": index,
            "rate": "low" if part["rate"] == rates[0] else "high",
            "fate": fate,
            "mask": part["text_masks"][index],
            **{name: part[name] for name in ("training_seed", "mask_seed")},
            **{name: part[name][index] for name in ("id", "label", "prediction", "confidence", "truth", "kept")},
        }
        for index, fate in enumerate(fates)
        if fate is not None
    ]


def _write_predictions(path: Path, table: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("id", "training_seed", "mask_seed", "rate", "fate", "label", "prediction", "confidence", "truth", "kept")
    pq.write_table(pa.table({name: [row[name] for row in table] for name in names}), path)


def _draw(figure: Figure, cells: Rows, rates: Sequence[float]) -> None:
    figure.set_size_inches(5.6, 2.6)
    titles = {"confidence": "predicted confidence (mean, standard deviation)", "mae": "mean absolute error"}
    for axis, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for offset, fate in ((-0.2, "kept"), (0.2, "dropped")):
            column = [cell for cell in cells if cell["cue words"] == fate]
            heights = [np.nan if cell[name] is None else cell[name] for cell in column]
            spread = [cell["confidence sd"] or 0.0 for cell in column] if name == "confidence" else None
            bars = axis.bar(np.arange(2) + offset, heights, width=0.36, yerr=spread, label=f"cue words {fate}")
            if name == "mae":
                axis.bar_label(bars, [f"n = {cell['n']}" for cell in column], fontsize=6)
        axis.set_xticks(range(2), [f"missing rate {rate:g}" for rate in rates])
        axis.set_title(title, fontsize=8)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
