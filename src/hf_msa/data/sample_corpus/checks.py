"""Checks that a sample corpus on disk is what it claims to be."""

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.sample_corpus.ceiling import ceiling_predictions
from hf_msa.data.sample_corpus.corpus_files import (
    TEXT_MODEL_FOLDER,
    PlantedSplit,
    read_planted,
    read_planted_recordings,
)
from hf_msa.data.sample_corpus.grammar import HIGHEST, LOWEST, score_tokens
from hf_msa.data.sample_corpus.recordings import manifest_row, measure_recordings, read_manifest, spoken_clips
from hf_msa.data.sample_corpus.rows import generate_rows
from hf_msa.data.sample_corpus.story import Floats
from hf_msa.data.schema import SPLITS
from hf_msa.errors import MsaError
from hf_msa.models.msa_schema import FEATURE_MODALITIES, MODALITIES

#: Rows per split that are compared one by one; of a larger split only this many are read whole.
_ROWS = 2000
#: Below these sizes a correlation says too little to check.
_FEWEST_TO_FIT, _FEWEST_TO_JUDGE = 500, 150
#: What a linear probe on the time-averaged features, or the text's true sentiment, correlates with the label.
_CLAIMED = {"text": (0.75, 0.86), "audio": (0.35, 0.5), "vision": (0.35, 0.5)}
_RIDGE = 30.0
#: What is measured on recordings correlates with what was planted; fewer of them say too little to judge.
_HEARD, _FEWEST_TO_HEAR = 0.8, 10


def check_corpus(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Check a sample corpus against its own claims.

    The claims: rows are reproduced by the generator bit for bit; the data set holds no planted column; no clip, video
    or speaker is in two splits; text, roles, contributions and latents obey the scoring rule; kinds of clips have
    their shares and labels their distribution; every word is one token of the text model; linear probes correlate
    with the label as claimed, together more than any alone; and the ceiling lies between the probes and perfection
    and falls as more is hidden. The last two are judged only where train has 500 clips and test 150. Recordings, if any, are
    of the corpus's clips; from ten on, pitch, rate and energy of the waves correlate with what was planted.

    Args:
        folder: A folder that `write_sample_corpus` wrote.

    Returns:
        What was measured, as plain JSON values; None where there were too few clips to tell.

    Raises:
        MsaError: If the folder is not a sample corpus or a claim does not hold; all that failed are named.
    """
    folder = Path(folder)
    planted = {split: read_planted(folder, split) for split in SPLITS}
    rows = {split: list(itertools.islice(_rows(folder, split), _ROWS)) for split in SPLITS}
    failures: list[str] = []
    measured: dict[str, Any] = {"clips": {split: len(planted[split].rows) for split in SPLITS}}
    for split in SPLITS:
        failures += _check_rows(split, rows[split], planted[split])
    failures += _check_splits(folder, planted)
    failures += _check_text_model(folder, planted)
    found_wrong = [check(rows, planted) for check in (_check_shares, _check_labels, _check_probes, _check_ceiling)]
    for found, wrong in (*found_wrong, _check_recordings(folder, planted)):
        measured |= found
        failures += wrong
    if failures:
        raise MsaError(f"The sample corpus in {folder} is not what it claims: {'; '.join(failures)}.")
    return measured


_Rows = dict[str, list[dict[str, Any]]]
_Planted = dict[str, PlantedSplit]
_Found = tuple[dict[str, Any], list[str]]


def _rows(folder: Path, split: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    from hf_msa.data.sources import parquet_files

    for file in parquet_files(folder).get(split, []):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=200, columns=columns):
            yield from batch.to_pylist()


def _check_rows(split: str, rows: list[dict[str, Any]], planted: PlantedSplit) -> list[str]:
    """Compare rows with a fresh run of the generator, and each with its own planted facts."""
    unplanted = {"id", "video_id", "clip_id", "text", "audio", "vision", "label", "annotation"}
    unplanted |= {f"label_{modality}" for modality in MODALITIES}
    if rows and set(rows[0]) != unplanted:
        return [f"the {split} split has the columns {sorted(rows[0])}"]
    if len(planted.rows) != planted.config.size(split):
        return [f"the {split} split has {len(planted.rows)} clips instead of {planted.config.size(split)}"]
    for row, facts, fresh in zip(rows, planted.rows, generate_rows(planted.config, split), strict=False):
        name = row["id"]
        if not _same(row, fresh.row) or not _same(facts, fresh.planted):
            return [f"the generator does not reproduce {name}"]
        score, roles, contributions = score_tokens(facts["tokens"])
        if (row["text"].split(), roles, contributions) != (facts["tokens"], facts["roles"], facts["contributions"]):
            return [f"the roles or contributions of {name} do not follow from its words"]
        summed = min(max(math.fsum(contributions), LOWEST), HIGHEST)
        if abs(summed - score) > 1e-9 or score != facts["latent_text"]:
            return [f"the text sentiment of {name} is not the sum of its words' contributions"]
        truth = [m for m in MODALITIES if m != facts["lying_modality"] and (m, facts["kind"]) != ("text", "silent")]
        if any(facts[f"latent_{m}"] != facts["consensus"] for m in truth):
            return [f"the modalities of {name} that do not lie disagree"]
        for modality in FEATURE_MODALITIES:
            lengths = {len(row[modality]), *(len(facts[f"{modality}_{k}"]) for k in ("word", "strength", "evidence"))}
            if len(lengths) != 1 or not np.isfinite(np.array(row[modality])).all():
                return [f"the {modality} frames of {name} are not finite or do not fit their planted facts"]
    return []


def _same(stored: dict[str, Any], fresh: dict[str, Any]) -> bool:
    """Whether a stored row is a generated one, as far as the stored types can tell."""
    for key, value in fresh.items():
        if isinstance(value, bool | str) or (isinstance(value, list) and value and isinstance(value[0], str)):
            if stored[key] != value:
                return False
        elif not np.array_equal(
            np.array(stored[key], dtype=np.float32), np.array(value, dtype=np.float32), equal_nan=True
        ):
            return False
    return True


def _check_splits(folder: Path, planted: _Planted) -> list[str]:
    owner: dict[str, str] = {}
    for split in SPLITS:
        keys = {f"clip {row['id']}" for row in planted[split].rows}
        if len(keys) < len(planted[split].rows):
            return [f"two clips of the {split} split have the same id"]
        keys |= {f"speaker {row['speaker']}" for row in planted[split].rows}
        ids = []
        for row in _rows(folder, split, ["id", "video_id"]):
            ids.append(row["id"])
            keys.add(f"video {row['video_id']}")
        if ids != [row["id"] for row in planted[split].rows]:
            return [f"the planted facts of the {split} split are not in the order of its rows"]
        for key in keys:
            if key in owner:
                return [f"{key} is in {owner[key]} and in {split}"]
            owner[key] = split
    return []


def _check_text_model(folder: Path, planted: _Planted) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder / TEXT_MODEL_FOLDER))
    words = sorted({word for split in SPLITS for row in planted[split].rows for word in row["tokens"]})
    broken = [word for word in words if tokenizer.tokenize(word) != [word]]
    return [f"the tokenizer breaks {len(broken)} words, such as {broken[0]!r}"] if broken else []


def _check_shares(rows: _Rows, planted: _Planted) -> _Found:
    clips = [row for split in SPLITS for row in planted[split].rows]
    found: dict[str, Any] = {
        "kinds": {
            kind: sum(row["kind"] == kind for row in clips) / len(clips)
            for kind in planted["train"].config.kind_prior()
        },
        "hard": {
            name: sum(row[f"hard_{name}"] for row in clips) / len(clips) for name in ("no_cue", "sarcasm", "contrast")
        },
    }
    failures = []
    for kind, share in planted["train"].config.kind_prior().items():
        # Four standard errors: one corpus in some ten thousand strays farther by chance.
        if abs(found["kinds"][kind] - share) > 4 * math.sqrt(share * (1 - share) / len(clips)) + 1e-9:
            failures.append(f"{found['kinds'][kind]:.3f} of the clips are {kind} instead of {share:.3f}")
    return found, failures


def _check_labels(rows: _Rows, planted: _Planted) -> _Found:
    labels = np.concatenate([_labels(rows[split]) for split in SPLITS])
    zero = float((labels == 0).mean())
    found = {"label": {"mean": float(labels.mean()), "std": float(labels.std()), "zero": zero}}
    failures = []
    if np.abs(labels * 5 - np.rint(labels * 5)).max() > 1e-5 or np.abs(labels).max() > HIGHEST:
        failures.append("a label is not a multiple of 0.2 from -3 to 3")
    slack = 4 / math.sqrt(len(labels))
    if abs(zero - 0.05) > 0.02 + slack * math.sqrt(0.05 * 0.95):
        failures.append(f"{zero:.3f} of the labels are 0 instead of about 0.05")
    if abs(labels.mean()) > 0.1 + 1.5 * slack or not 1.4 - slack < labels.std() < 1.65 + slack:
        failures.append(f"labels have mean {labels.mean():.2f} and standard deviation {labels.std():.2f}")
    return found, failures


def _check_probes(rows: _Rows, planted: _Planted) -> _Found:
    if not _enough(rows):
        return {"probes": None}, []
    probes = {
        name: float(np.corrcoef(_probe(rows, planted, modalities), _labels(rows["test"]))[0, 1])
        for name, modalities in {**{m: (m,) for m in MODALITIES}, "all": MODALITIES}.items()
    }
    failures = []
    slack = 2.5 / math.sqrt(len(rows["test"]))
    for modality, (low, high) in _CLAIMED.items():
        if not low - slack < probes[modality] < high + slack:
            failures.append(f"{modality} alone correlates {probes[modality]:.2f} instead of {low} to {high}")
    if probes["all"] < max(probes[modality] for modality in MODALITIES) - slack / 5:
        failures.append(f"all modalities correlate {probes['all']:.2f}, less than one alone")
    return {"probes": probes}, failures


def _check_ceiling(rows: _Rows, planted: _Planted) -> _Found:
    if not _enough(rows):
        return {"ceiling": None}, []
    labels = _labels(rows["test"])
    facts = PlantedSplit(planted["test"].config, planted["test"].rows[: len(labels)])
    generator = np.random.default_rng(0)
    fields = {
        modality: [
            generator.random(len(row["tokens"] if modality == "text" else row[f"{modality}_evidence"]))
            for row in facts.rows
        ]
        for modality in MODALITIES
    }
    errors = {}
    for rate in (0.0, 0.5, 0.9):
        kept = {modality: [field >= rate for field in fields[modality]] for modality in MODALITIES}
        errors[rate] = float(np.abs(ceiling_predictions(facts, kept, samples=100) - labels).mean())
    probe = float(np.abs(_probe(rows, planted, MODALITIES) - labels).mean())
    constant = float(np.abs(np.median(_labels(rows["train"])) - labels).mean())
    found = {
        "ceiling": {"mae": {str(rate): error for rate, error in errors.items()}, "probe": probe, "constant": constant}
    }
    ordered = 0 < errors[0.0] < errors[0.5] < errors[0.9] < constant and errors[0.0] < probe
    return found, [] if ordered else [f"the ceiling's errors are out of order: {found['ceiling']}"]


def _check_recordings(folder: Path, planted: _Planted) -> _Found:
    manifest, facts = read_manifest(folder), read_planted_recordings(folder)
    if not manifest and not facts:
        return {"recordings": None}, []
    clips = list(spoken_clips(planted["train"].config, len(facts)))
    described = [[str(value) for value in manifest_row(*clip)] for clip in clips]
    if [list(row.values()) for row in manifest] != described:
        return {}, ["the manifest of the recordings does not name the clips that the corpus has"]
    told = [{"id": sample.row["id"], "split": split, **asdict(voice)} for split, sample, voice in clips]
    if [{key: value for key, value in row.items() if key != "synthesizer"} for row in facts] != told:
        return {}, ["the generator does not reproduce what was planted in the recordings"]
    heard = [asdict(voice) for voice in measure_recordings(folder)]
    correlations = {
        name: _correlation([row[name] for row in facts], [row[name] for row in heard]) for name in heard[0]
    }
    found = {"recordings": {"count": len(facts), "correlations": correlations}}
    if len(facts) < _FEWEST_TO_HEAR:
        return found, []
    return found, [
        f"the {name} heard in the recordings correlates {value:.2f} with what was planted"
        for name, value in correlations.items()
        if not value > _HEARD
    ]


def _correlation(planted: list[float], heard: list[float]) -> float:
    """Correlation of two lists; 0 where one of them does not vary or holds NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.nan_to_num(np.corrcoef(planted, heard)[0, 1])) if len(planted) > 1 else 0.0


def _enough(rows: _Rows) -> bool:
    return len(rows["train"]) >= _FEWEST_TO_FIT and len(rows["test"]) >= _FEWEST_TO_JUDGE


def _labels(rows: list[dict[str, Any]]) -> Floats:
    return np.array([row["label"] for row in rows], dtype=np.float64)


def _probe(rows: _Rows, planted: _Planted, modalities: tuple[str, ...]) -> Floats:
    """Fit a ridge regression on the training split and predict the test split."""
    seen = {
        split: np.concatenate([_averages(modality, rows[split], planted[split]) for modality in modalities], axis=1)
        for split in ("train", "test")
    }
    return ridge(seen["train"], _labels(rows["train"]), seen["test"], _RIDGE)


def _averages(modality: str, rows: list[dict[str, Any]], planted: PlantedSplit) -> Floats:
    if modality == "text":
        return np.array([[facts["latent_text"]] for facts in planted.rows[: len(rows)]])
    return np.array([np.mean(row[modality], axis=0) for row in rows])


def ridge(inputs: Floats, targets: Floats, queries: Floats, penalty: float) -> NDArray[np.float64]:
    """Fit a ridge regression on standardised inputs and predict.

    Args:
        inputs: (N, d).
        targets: (N,).
        queries: (M, d).
        penalty: Weight of the squared coefficients.

    Returns:
        (M,) predictions.
    """
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    rows = np.concatenate([(inputs - mean) / scale, math.sqrt(penalty) * np.eye(inputs.shape[1])])
    sides = np.concatenate([targets - targets.mean(), np.zeros(inputs.shape[1])])
    predictions: NDArray[np.float64] = (queries - mean) / scale @ np.linalg.lstsq(rows, sides)[0] + targets.mean()
    return predictions
