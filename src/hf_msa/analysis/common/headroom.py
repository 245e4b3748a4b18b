"""Headroom: what a data set can show of a mechanism, before any model is trained on it.

For each modality and mechanism it is asked what probes of `hf_msa.analysis.common.probes` gain on training rows of videos
that they were not fitted to; validation and test stay unseen. Numbers are shares of variance explained (R2), 0 = nothing
beyond the mean, or areas under the ROC curve, .5 = chance. What a probe finds, a model can find; what no probe finds may
still be there, but a method that gains nothing from it has not failed by that.

A text is the counts of its words (of its characters, where there are no blanks) or, with `--text-model`, the mean state of
that encoder. A modality is the mean of its frames over time and, where there are several, their deviation. The word of a
frame follows from the times in the column `words`, where there is one; otherwise words are taken to be equally long, which
is exact where frames are aligned to words.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.common.position_means import PositionMeans
from hf_msa.analysis.common.probes import (
    LINEAR,
    NEIGHBOURS,
    NON_LINEAR,
    PROBES,
    explained,
    fit_and_predict,
    folds,
    out_of_fold,
    told_apart,
)
from hf_msa.analysis.estimates import Estimate, Floats, bars, format_bounds
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.loading import dataset_facts, load_split
from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import PRESENCE, TEXT, VIDEO_ID, WORDS
from hf_msa.errors import MsaError, require_package
from hf_msa.models.msa_schema import FEATURE_MODALITIES, UNIMODAL_LABEL_KEYS

_MOST_WORDS, _WORDS_NEARBY, _TEXT_COMPONENTS = 500, 300, 20
_FRAMES_PER_CLIP, _FEWEST_OF_A_LENGTH = 6, 20
# A column whose deviation is a smaller part of what columns differ by among themselves is lost in a normalisation over them.
_LOST = 0.01
_LITTLE = 0.01
_NO_TIMES: Floats = np.zeros((0, 2))


@dataclass(frozen=True)
class Clips:
    """Training rows as probes read them.

    Attributes:
        groups: The video of each of the N rows.
        texts: The words of each.
        spoken: The words of each that are looked for around a frame: those with times where there are such.
        times: When each of these is said, `(words, 2)` seconds; of length 0 where nothing tells.
        labels: (N,).
        own_labels: Of each annotated modality (N,).
        sequences: Of each feature modality its frames, row by row (length, width); of length 0 where a row lacks it.
        vectors: Of each modality (N, columns).
        present: Of each modality (N,).
    """

    groups: list[str]
    texts: list[list[str]]
    spoken: list[list[str]]
    times: list[Floats]
    labels: Floats
    own_labels: dict[str, Floats]
    sequences: dict[str, list[Floats]]
    vectors: dict[str, Floats]
    present: dict[str, NDArray[np.bool_]]


def read_clips(data: str, most: int, text_model: str | None = None) -> tuple[Clips, list[dict[str, Any]]]:
    """Read training rows, and say what is in their columns.

    Args:
        data: Folder or Hub name of a prepared data set.
        most: The most rows; of more, some are drawn.
        text_model: Text encoder whose mean states stand for texts; None: counts of words.

    Returns:
        The clips, and facts of each feature modality for a table.
    """
    dataset = load_split(data, "train")
    rows = MsaRows(dataset, "train")
    chosen = np.arange(len(rows))
    if len(rows) > most:
        chosen = np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))
    members = [rows[int(place)] for place in chosen]
    sequences: dict[str, list[Floats]] = {}
    facts = []
    for name in (name for name in FEATURE_MODALITIES if name in rows.lengths):
        raw = [
            np.asarray(row[name] if row.get(PRESENCE[name], True) else row[name][:0], dtype=np.float64)
            for row in members
        ]
        sequences[name] = [np.nan_to_num(one, nan=0.0, posinf=0.0, neginf=0.0) for one in raw]
        facts.append(column_facts(name, raw))
    texts = [str(row[TEXT]) for row in members]
    words = words_of(texts)
    vectors = {"text": word_counts(words) if text_model is None else _text_states(texts, text_model)}
    vectors |= {name: _over_time(own) for name, own in sequences.items()}
    own_labels = {
        name: np.array([row[key] for row in members], dtype=np.float64)
        for name, key in UNIMODAL_LABEL_KEYS.items()
        if key in members[0]
    }
    # Aligned frames have the places of their words.
    timed = WORDS in dataset.column_names and not dataset_facts(data).aligned
    spoken, times = (
        timed_words(dataset.select(chosen)[WORDS][:], words) if timed else (words, [_NO_TIMES] * len(words))
    )
    clips = Clips(
        groups=[str(row.get(VIDEO_ID) or row["id"]) for row in members],
        texts=words,
        spoken=spoken,
        times=times,
        labels=rows.labels[chosen].astype(np.float64),
        own_labels={name: own for name, own in own_labels.items() if np.isfinite(own).all()},
        sequences=sequences,
        vectors=vectors,
        present={"text": np.array([bool(own) for own in words])}
        | {name: np.array([len(one) > 0 for one in own]) for name, own in sequences.items()},
    )
    return clips, facts


def words_of(texts: Sequence[str]) -> list[list[str]]:
    """Words of each text in small letters; characters where most texts have no blanks, as in Chinese."""
    words = [text.lower().split() for text in texts]
    has_blanks = np.median([len(own) for own in words]) > 1
    return words if has_blanks else [[character for character in text if not character.isspace()] for text in texts]


def timed_words(
    column: Sequence[Sequence[Mapping[str, Any]]], words: Sequence[list[str]]
) -> tuple[list[list[str]], list[Floats]]:
    """Words of the column `words` in small letters and their times `(words, 2)`; those of the text where it is empty.

    Args:
        column: Of each row its words, with `text`, `start` and `end` in seconds.
        words: Of each text.
    """
    spoken, times = [], []
    for own, others in zip(column, words, strict=True):
        spoken.append([str(word["text"]).strip().lower() for word in own] or others)
        times.append(np.array([(word["start"], word["end"]) for word in own], dtype=np.float64).reshape(-1, 2))
    return spoken, times


def column_facts(name: str, sequences: Sequence[Floats]) -> dict[str, Any]:
    """Row of the table of columns: how many frames there are, and how many columns say nothing or are out of range.

    Args:
        name: The modality.
        sequences: Its frames (length, width) of each row; of length 0 where a row lacks it.
    """
    there = [one for one in sequences if len(one)]
    if not there:
        return {"modality": name, "rows with it": 0}
    frames = np.concatenate(there)
    finite = np.isfinite(frames)
    values = np.where(finite, frames, 0.0)
    spread, mean = values.std(axis=0), np.abs(values.mean(axis=0))
    constant = spread <= 1e-6 * np.maximum(mean, 1e-12)
    lost = ~constant & (spread < _LOST * values.std(axis=1).mean())
    lengths = np.array([len(one) for one in there])
    return {
        "modality": name,
        "rows with it": len(there),
        "median frames": int(np.median(lengths)),
        "rows of one frame": f"{100 * float((lengths == 1).mean()):.0f} %",
        "columns": frames.shape[1],
        "constant": int(constant.sum()),
        "lost among the others": int(lost.sum()),
        "with NaN or infinity": int((~finite).any(axis=0).sum()),
        "largest over smallest deviation": (
            float(spread[~constant].max() / spread[~constant].min()) if (~constant).any() else float("nan")
        ),
    }


def _over_time(sequences: Sequence[Floats]) -> Floats:
    """Means over time and, where some sequence has several frames, deviations; rows without any have those of the others."""
    there = [one for one in sequences if len(one)]
    width = there[0].shape[1] if there else 1
    several = any(len(one) > 1 for one in there)
    rows = np.array(
        [
            np.concatenate([one.mean(axis=0), one.std(axis=0)][: 1 + several])
            if len(one)
            else np.full(width * (1 + several), np.nan)
            for one in sequences
        ]
    )
    if not there:
        return np.zeros_like(rows)
    filled: Floats = np.where(np.isnan(rows), np.nanmean(rows, axis=0), rows)
    return filled


def word_counts(texts: Sequence[Sequence[str]], most: int = _MOST_WORDS) -> Floats:
    """Counts (N, words) of the most frequent of the words that are in two texts or more; of equally frequent ones in order.

    Args:
        texts: Words of each text.
        most: The most words.
    """
    counts = Counter(word for words in texts for word in words)
    in_texts = Counter(word for words in texts for word in set(words))
    common = sorted((word for word in counts if in_texts[word] > 1), key=lambda word: (-counts[word], word))
    columns = {word: column for column, word in enumerate(common[:most])}
    found = np.zeros((len(texts), max(1, len(columns))))
    for row, words in zip(found, texts, strict=True):
        for word in words:
            if word in columns:
                row[columns[word]] += 1
    return found


def _text_states(texts: Sequence[str], text_model: str) -> Floats:
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer, encoder = AutoTokenizer.from_pretrained(text_model), AutoModel.from_pretrained(text_model).eval()
    except (OSError, ValueError) as error:
        raise MsaError(
            f"The text encoder {text_model!r} cannot be loaded; give a folder or Hub name of a BERT-family checkpoint."
        ) from error
    found = []
    for begin in range(0, len(texts), 32):
        some = list(texts[begin : begin + 32])
        batch = tokenizer(some, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            states = encoder(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        found.append(((states * mask).sum(dim=1) / mask.sum(dim=1)).double().numpy())
    return np.concatenate(found)


Row = dict[str, Any]
"""A row of a table: what is told, of what, number of rows, and an `Estimate` for each probe."""


def label_rows(clips: Clips) -> list[Row]:
    """What each set of modalities tells of the label, and what each modality adds to all others."""
    targets = clips.labels[:, None]
    names = tuple(clips.vectors)
    sets = [chosen for size in range(1, len(names) + 1) for chosen in combinations(names, size)]
    squared: dict[tuple[tuple[str, ...], str], Floats] = {}
    rows, trivial = [], np.zeros(0)
    for chosen in sets:
        row: Row = {"told": "label", "from": "+".join(chosen), "n": len(targets)}
        found, constant = out_of_fold([clips.vectors[name] for name in chosen], targets, clips.groups)
        trivial = np.square(constant - targets)[:, 0]
        for probe, predicted in found.items():
            squared[chosen, probe] = np.square(predicted - targets)[:, 0]
            row[probe] = explained(squared[chosen, probe], trivial, clips.groups)
        rows.append(_with_gain(row))
    for name in names if len(names) > 1 else ():
        others = tuple(other for other in names if other != name)
        row = {"told": "label", "from": f"{name}, beyond {'+'.join(others)}", "n": len(targets)}
        for probe in PROBES:
            row[probe] = explained(squared[names, probe], trivial, clips.groups) - explained(
                squared[others, probe], trivial, clips.groups
            )
        rows.append(_with_gain(row))
    return rows


def _with_gain(row: Row) -> Row:
    return {**row, "gain of neighbours": row[NEIGHBOURS] - row[LINEAR]}


def feature_rows(clips: Clips) -> list[Row]:
    """What the other modalities tell of each modality's vector, of rows that have all of them."""
    names = tuple(clips.vectors)
    complete = np.logical_and.reduce([clips.present[name] for name in names])
    rows = []
    for name in names if len(names) > 1 and complete.sum() > 1 else ():
        groups = [group for group, there in zip(clips.groups, complete, strict=True) if there]
        targets = _standardised(clips.vectors[name][complete])
        if name == "text":
            targets = _main_components(targets)
        others = tuple(other for other in names if other != name)
        row: Row = {"told": f"{name} of a sample", "from": "+".join(others), "n": len(targets)}
        found, constant = out_of_fold([clips.vectors[other][complete] for other in others], targets, groups)
        for probe, predicted in found.items():
            errors, trivial = (np.square(one - targets).sum(axis=1) for one in (predicted, constant))
            row[probe] = explained(errors, trivial, groups)
        rows.append(_with_gain(row))
    return rows


def _standardised(values: Floats) -> Floats:
    """Columns of mean 0 and deviation 1; constant ones are left out."""
    spread = values.std(axis=0)
    kept = spread > 1e-9 * np.maximum(np.abs(values.mean(axis=0)), 1e-9)
    made: Floats = (values[:, kept] - values[:, kept].mean(axis=0)) / spread[kept]
    return made if kept.any() else np.zeros((len(values), 1))


def _main_components(values: Floats) -> Floats:
    """The first components of words: of hundreds of counts nothing tells most."""
    from sklearn.decomposition import PCA

    found: Floats = PCA(min(_TEXT_COMPONENTS, *values.shape), random_state=0).fit_transform(values)
    return found


def sign_rows(clips: Clips, neutral: float) -> list[Row]:
    """Whether the sign of a modality's own label can be told from it, and whether the modality disagrees with the label.

    Without labels of single modalities, whether the sign of the label can be told from each.

    Args:
        clips: The rows.
        neutral: The label that is neither positive nor negative.
    """
    rows = []
    label = clips.labels - neutral
    for name in clips.vectors:
        own = clips.own_labels[name] - neutral if name in clips.own_labels else label
        what = f"the sign of {f'the label of {name}' if name in clips.own_labels else 'the label'}"
        rows.append(_sign_row(clips, what, (name,), own > 0, own != 0))
    for name in clips.own_labels:
        own = clips.own_labels[name] - neutral
        rows.append(
            _sign_row(clips, f"{name} disagrees", tuple(clips.vectors), own * label < 0, (own != 0) & (label != 0))
        )
    return [row for row in rows if row["n"]]


def _sign_row(
    clips: Clips, what: str, names: Sequence[str], positive: NDArray[np.bool_], counts: NDArray[np.bool_]
) -> Row:
    groups = [group for group, there in zip(clips.groups, counts, strict=True) if there]
    flags = positive[counts]
    row: Row = {"told": what, "from": "+".join(names), "n": len(flags)}
    if min(flags.sum(), (~flags).sum()) < 10 or len(set(groups)) < 2:
        return {**row, "n": 0}
    blocks = [clips.vectors[name][counts] for name in names]
    found, constant = out_of_fold(blocks, flags[:, None].astype(np.float64), groups)
    # The share of positives that a fold was fitted to runs against that of the rows that were left out.
    row |= {probe: told_apart((predicted - constant)[:, 0], flags, groups) for probe, predicted in found.items()}
    return _with_gain(row)


def frame_rows(clips: Clips, most: int, seed: int = 1111) -> list[Row]:
    """What visible frames and words tell of masked frames, beyond the mean per position; half of the frames are masked.

    Args:
        clips: The rows.
        most: The most clips.
        seed: Seed of the masks.
    """
    rows = []
    for name, sequences in clips.sequences.items():
        places = [place for place, one in enumerate(sequences) if len(one) > 1][:most]
        groups = [clips.groups[place] for place in places]
        if len(set(groups)) < 2:
            continue
        frames = _standardised(np.concatenate([sequences[place] for place in places]))
        ends = np.cumsum([len(sequences[place]) for place in places])
        clip_frames = np.split(frames, ends[:-1])
        words = WordWindows([clips.spoken[place] for place in places], [clips.times[place] for place in places])
        sources = {"visible frames": (0,), "words": (1,), "visible frames+words": (0, 1)}
        errors = {source: {probe: np.zeros(len(places)) for probe in PROBES} for source in sources}
        trivial = np.zeros(len(places))
        for fitted, held_out in folds(groups, 3):
            means = PositionMeans(_FEWEST_OF_A_LENGTH)
            for place in fitted:
                means.add(clip_frames[place])
            sides = [_masked(clip_frames, words, side, means, seed) for side in (fitted, held_out)]
            (known, missed, fitted_owners), (asked, truth, owners) = sides
            videos = [groups[owner] for owner in fitted_owners]
            np.add.at(trivial, owners, np.square(truth).sum(axis=1))
            for source, parts in sources.items():
                inputs, queries = ([side[part] for part in parts] for side in (known, asked))
                for probe, predicted in fit_and_predict(inputs, missed, queries, videos).items():
                    np.add.at(errors[source][probe], owners, np.square(predicted - truth).sum(axis=1))
        for source, found in errors.items():
            row: Row = {"told": f"masked frames of {name}", "from": source, "n": len(places)}
            rows.append(
                _with_gain({**row, **{probe: explained(own, trivial, groups) for probe, own in found.items()}})
            )
        both, alone = (errors[source] for source in ("visible frames+words", "visible frames"))
        row = {"told": f"masked frames of {name}", "from": "words, beyond visible frames", "n": len(places)}
        gains = {
            probe: explained(both[probe], trivial, groups) - explained(alone[probe], trivial, groups)
            for probe in PROBES
        }
        rows.append(_with_gain({**row, **gains}))
    return rows


class WordWindows:
    """Words around a relative place of a clip, as counts; the neighbours count half.

    Args:
        texts: Words of each text.
        times: When each is said, `(words, 2)` seconds; of length 0 where nothing tells, and words are equally long.
    """

    def __init__(self, texts: Sequence[Sequence[str]], times: Sequence[Floats]) -> None:
        counts = Counter(word for words in texts for word in words)
        common = sorted(counts, key=lambda word: (-counts[word], word))[:_WORDS_NEARBY]
        self._columns = {word: column for column, word in enumerate(common)}
        self._texts = texts
        self._middles = [own.mean(axis=1) for own in times]
        self._ends = [own[:, 1].max(initial=0.0) for own in times]

    def __call__(self, text: int, share: float) -> Floats:
        """Counts around the place that lies at a share of the clip, which is taken to end with its last word."""
        found = np.zeros(max(1, len(self._columns)))
        words, middles = self._texts[text], self._middles[text]
        if len(middles):
            centre = int(np.abs(middles - share * self._ends[text]).argmin())
        else:
            centre = min(int(share * len(words)), len(words) - 1)
        for place in range(max(0, centre - 1), min(len(words), centre + 2)):
            column = self._columns.get(words[place])
            if column is not None:
                found[column] += 1.0 if place == centre else 0.5
        return found


def _masked(
    frames: Sequence[Floats],
    words: WordWindows,
    places: Sequence[int] | NDArray[np.int64],
    means: PositionMeans,
    seed: int,
) -> tuple[tuple[Floats, Floats], Floats, NDArray[np.int64]]:
    """Some masked frames of some clips: what is visible around them, and their words; themselves; and their clips.

    All frames are taken as what they differ by from the mean at their position.
    """
    visible, nearby, targets, owners = [], [], [], []
    for place in map(int, places):
        own = frames[place]
        left = own - means(len(own))
        generator = np.random.default_rng((seed, place))
        masked = generator.random(len(own)) < 0.5
        # Something is masked and something is left.
        first, second = generator.permutation(len(own))[:2]
        masked[first], masked[second] = True, False
        seen = np.flatnonzero(~masked)
        chosen = generator.permutation(np.flatnonzero(masked))[:_FRAMES_PER_CLIP]
        average = left[seen].mean(axis=0)
        for frame in chosen:
            around = [seen[seen < frame][-1:], seen[seen > frame][:1]]
            # A neighbour that is farther away tells less.
            sides = [left[side[0]] / abs(side[0] - frame) if len(side) else np.zeros(own.shape[1]) for side in around]
            visible.append(np.concatenate([*sides, average]))
            nearby.append(words(place, (frame + 0.5) / len(own)))
            targets.append(left[frame])
            owners.append(place)
    return (np.array(visible), np.array(nearby)), np.array(targets), np.array(owners)


@tool("headroom", "what a data set can show of each mechanism, by probes, before anything is trained on it")
def analyze_headroom(
    report: Report, *, data: str, text_model: str | None = None, rows: int = 2000, clips: int = 400
) -> None:
    """Show what probes gain on training rows of videos that they were not fitted to, for each modality and mechanism.

    Args:
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set.
        text_model: Folder or Hub name of a text encoder whose mean states stand for texts; default: counts of words.
        rows: The most training rows; of more, some are drawn.
        clips: The most clips of which frames are masked.

    Raises:
        MsaError: If the data will not do, or scikit-learn is not installed.
    """
    require_package("sklearn", "probes")
    known = dataset_facts(data)
    found, columns = read_clips(data, rows, text_model)
    tables = {
        "Label": label_rows(found),
        "Signs and disagreement (area under the ROC curve)": sign_rows(found, known.family.neutral),
        "A missing modality from the others": feature_rows(found),
        "Masked frames, beyond the mean per position": frame_rows(found, clips),
    }
    every = [row for table in tables.values() for row in table]
    report.csv("headroom.csv", every)
    report.csv("columns.csv", columns)
    report.summary(
        "headroom.md",
        "What this data can show",
        f"{known.name}: {len(found.labels)} training rows of {len(set(found.groups))} videos; neither validation nor test. "
        "Shares of variance explained in rows of other videos than those that a probe was fitted to, 0 = the mean, with "
        "95 % bootstrap intervals over videos. What a probe finds, a model can find; that no probe finds something does not "
        "prove that it is not there.",
        "\n".join(f"- {line}" for line in reading(every, columns)),
    )
    report.section("What cannot be known of it", "\n".join(f"- {line}" for line in unknown(found, data)))
    report.section("Features", columns)
    for title, table in tables.items():
        report.section(title, table)
    report.figure("headroom", _draw, every)


def reading(rows: Sequence[Mapping[str, Any]], columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables in words.

    Args:
        rows: Of all tables but that of columns.
        columns: Of `column_facts`.
    """
    lines = []
    for facts in columns:
        name = facts["modality"]
        if facts.get("rows of one frame") == "100 %":
            lines.append(
                f"Every row has one frame of {name}: mechanisms over time (masked frames, their reconstruction, alignment) "
                "cannot show."
            )
        for key, meaning in (
            ("constant", "say nothing"),
            ("lost among the others", "are lost in a normalisation over columns unless features are standardised"),
            ("with NaN or infinity", "hold NaN or infinity, which count as 0"),
        ):
            if facts.get(key):
                lines.append(f"{facts[key]} of {facts['columns']} columns of {name} {meaning}.")
    for row in rows:
        told, source = row["told"], row["from"]
        name, _, beyond = source.partition(", beyond ")
        if told == "label" and beyond:
            lines.append(_finding(row, f"{name} adds", f"to {beyond.replace('+', ' and ')} about the label"))
        elif told == "label" and "+" in source:
            continue
        elif beyond:
            lines.append(_finding(row, f"{name} add", f"to {beyond} about {told}"))
        elif "+" in source and told.startswith("masked"):
            continue
        else:
            verb = "tell" if source in ("words", "visible frames") or "+" in source else "tells"
            what = f"whether {told}" if told.endswith("disagrees") else f"the {told}" if told == "label" else told
            lines.append(
                _finding(row, f"{source.replace('+', ' and ')} {verb}", f"about {what}", 0.5 if _is_area(row) else 0.0)
            )
    gains = [row for row in rows if not row["from"].partition(", beyond ")[1]]
    better = [
        row for row in gains if row["gain of neighbours"].bounds[0] > 0 and row["gain of neighbours"].mean >= _LITTLE
    ]
    if gains and not better:
        most_row = max(gains, key=lambda row: float(np.nan_to_num(row["gain of neighbours"].mean)))
        most = most_row["gain of neighbours"]
        lines.append(
            f"nearest neighbours add nothing of note to ridge regression, at most {_number(most)} ({most_row['told']}): "
            "retrieval has nothing to gain that these probes find."
        )
    lines += [
        f"nearest neighbours add {_number(row['gain of neighbours'])} to ridge regression for {row['told']} from "
        f"{row['from'].replace('+', ' and ')}: retrieval can gain there."
        for row in better
    ]
    return [line[0].upper() + line[1:] for line in lines]


def unknown(clips: Clips, data: str) -> list[str]:
    """What nothing says of a mechanism on this data, in sentences.

    Args:
        clips: The rows.
        data: Folder or Hub name of the data set.
    """
    from hf_msa.data.sample_corpus.corpus_files import CHECKS_FILE, PLANTED_FOLDER, is_sample_corpus, read_checks

    lines = []
    if is_sample_corpus(data):
        checked = (read_checks(data) or {}).get("mechanisms")
        lines.append(
            f"The most that each mechanism can reach is known here, as it was planted: `{PLANTED_FOLDER}/{CHECKS_FILE}`."
            if checked
            else "The most that each mechanism can reach was not measured of this corpus; `hf-msa sample-corpus` does for "
            "version 2, of 500 training and 150 test clips on."
        )
    else:
        lines.append(
            "The most that any mechanism can reach: probes bound it from below alone, and a single label does not say how "
            "far annotators differ. A mechanism that gains nothing here has not failed by that."
        )
    if without := [name for name in clips.vectors if name not in clips.own_labels]:
        lines.append(
            f"Whether {' or '.join(without)} lies, what a router has to see: the data has no label of "
            f"{'it' if len(without) == 1 else 'them'} alone."
        )
    if any(len(one) > 1 for own in clips.sequences.values() for one in own) and not any(map(len, clips.times)):
        lines.append(
            "When each word is said: there is no column `words`, or frames are aligned to words. Unless they are, words are "
            "taken to be equally long, and what they tell of frames is the least that they can tell."
        )
    lines.append(
        "Who speaks: no column names speakers. What memory of them gains shows in nearest neighbours alone, and only of "
        "those who are in several videos."
    )
    return lines


def _is_area(row: Mapping[str, Any]) -> bool:
    """Whether its numbers are areas under the ROC curve; else they are shares of variance."""
    told: str = row["told"]
    return told.startswith("the sign") or told.endswith("disagrees")


def _finding(row: Mapping[str, Any], who: str, about: str, nothing: float = 0.0) -> str:
    linear, other = row[LINEAR], row[NON_LINEAR]
    if linear.bounds[0] > nothing:
        more = other - linear
        beyond = f"; a non-linear probe {_number(more)} more" if more.bounds[0] > 0 else "; a non-linear probe no more"
        return f"{who} {_much(linear, nothing)} {about}: {_number(linear, nothing)} by a linear probe{beyond}."
    if other.bounds[0] > nothing:
        return (
            f"{who} {_much(other, nothing)} {about} that only a non-linear probe finds: {_number(other, nothing)}, linear "
            f"{_number(linear, nothing)}."
        )
    found = f"{_number(linear, nothing)} linear, {_number(other, nothing)} non-linear"
    return f"{who} nothing {about} that a probe finds: {found}."


def _much(estimate: Estimate, nothing: float) -> str:
    """A gain that is sure need not be large."""
    return "something" if estimate.mean >= nothing + _LITTLE else "next to nothing"


def _number(estimate: Estimate, nothing: float = 0.0) -> str:
    """A number as people read it: gains with their sign, areas without."""
    return f"{estimate.mean:{'+' if nothing == 0 else ''}.3f} {format_bounds(estimate.bounds)}"


def _draw(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    figure.set_size_inches(7.6, 0.6 + 0.24 * len(rows))
    panels = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(rows))[::-1]
    areas = np.array([_is_area(row) for row in rows])
    for panel, shown, title, nothing in zip(
        panels, (~areas, areas), ("share of variance explained", "area under the ROC curve"), (0.0, 0.5), strict=True
    ):
        for offset, probe in zip((0.2, 0.0, -0.2), PROBES, strict=True):
            if shown.any():
                means, reach = bars([row[probe] for row, one in zip(rows, shown, strict=True) if one])
                panel.errorbar(
                    means, places[shown] + offset, xerr=reach, fmt="o", markersize=3, linewidth=1, label=probe
                )
        panel.axvline(nothing, color=GREY, linestyle=":")
        panel.set_xlabel(title)
    panels[0].set_yticks(places, [f"{row['told']} from {row['from']}" for row in rows], fontsize=6)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
