"""Checks that a sample corpus on disk is what it claims to be."""

import heapq
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.sample_corpus import lexicon, story
from hf_msa.data.sample_corpus.ceiling import ceiling_predictions, clip_numbers_of
from hf_msa.data.sample_corpus.clips import TEMPO_SPREAD, make_clips
from hf_msa.data.sample_corpus.corpus_files import (
    TEXT_MODEL_FOLDER,
    PlantedSplit,
    planted_file,
    read_config,
    read_planted_recordings,
)
from hf_msa.data.sample_corpus.grammar import HIGHEST, LOWEST, score_tokens
from hf_msa.data.sample_corpus.mechanisms import mechanism_ceilings
from hf_msa.data.sample_corpus.personas import personas_of
from hf_msa.data.sample_corpus.recordings import manifest_row, measure_recordings, read_manifest, spoken_clips
from hf_msa.data.sample_corpus.rows import generate_rows
from hf_msa.data.sample_corpus.story import Floats, SampleCorpusConfig, make_up, video_of
from hf_msa.data.sample_corpus.text_model import planner_words
from hf_msa.data.schema import SPLITS
from hf_msa.errors import MsaError
from hf_msa.models.msa_schema import FEATURE_MODALITIES, MODALITIES

#: Rows per split that are compared one by one; of a larger split only this many are read whole.
_ROWS = 2000
#: Values of a column that are read at once.
_VALUES_AT_ONCE = 10_000
#: Test clips whose ceilings are computed in version 2, which takes some milliseconds each.
_ROWS_TO_INFER = 300
#: Below these sizes a correlation says too little to check.
_FEWEST_TO_FIT, _FEWEST_TO_JUDGE = 500, 150
#: What a linear probe on the time-averaged features, or the text's true sentiment, correlates with the label.
_CLAIMED = {"text": (0.75, 0.86), "audio": (0.35, 0.5), "vision": (0.35, 0.5)}
#: How far a probe of version 2 may be from what was asked for, beside the error of sampling.
_SENTIMENT_SLACK = 0.06
_RIDGE = 30.0
#: What is measured on recordings correlates with what was planted; fewer of them say too little to judge.
_HEARD, _FEWEST_TO_HEAR = 0.8, 10


def check_corpus(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Check a sample corpus against its own claims.

    The claims: rows are reproduced by the generator bit for bit; the data set holds no planted column; no clip, video
    or speaker is in two splits; text, roles, contributions and latents obey the scoring rule; kinds of clips have
    their shares and labels their distribution; every word is one token of the text model; linear probes correlate
    with the label as claimed, together more than any alone; and the ceiling lies between the probes and perfection
    and falls as more is hidden. In version 2, too: articulation, personas and lies have the shares asked for. These
    are judged only where train has 500 clips and test 150; there version 2 also tells what each kind of mechanism can
    reach (`mechanism_ceilings`). Recordings, if any, are of the corpus's clips; from ten on, pitch, rate and energy of the
    waves correlate with what was planted. Of larger splits the first 2,000 clips are read whole and ids, kinds and videos of
    all others; memory does not grow with the size.

    Args:
        folder: A folder that `write_sample_corpus` wrote.

    Returns:
        What was measured, as plain JSON values; None where there were too few clips to tell.

    Raises:
        MsaError: If the folder is not a sample corpus or a claim does not hold; all that failed are named.
    """
    folder = Path(folder)
    config = read_config(folder)
    planted = {split: PlantedSplit(config, _first(parquet_rows([planted_file(folder, split)]))) for split in SPLITS}
    rows = {split: _first(parquet_rows(_files(folder, split))) for split in SPLITS}
    failures: list[str] = []
    measured: dict[str, Any] = {"clips": {split: _count(planted_file(folder, split)) for split in SPLITS}}
    for split in SPLITS:
        if measured["clips"][split] != config.size(split):
            failures.append(f"the {split} split has {measured['clips'][split]} clips instead of {config.size(split)}")
        failures += _check_rows(split, rows[split], planted[split])
    failures += _check_splits(folder, config)
    failures += _check_text_model(folder, config)
    for found, wrong in (
        _check_shares(folder, config),
        *(check(rows, planted) for check in (_check_labels, _check_probes, _check_ceiling)),
        *([_check_strengths(rows, planted), _find_mechanisms(rows, planted)] if config.version > 1 else []),
        _check_recordings(folder, planted),
    ):
        measured |= found
        failures += wrong
    if failures:
        raise MsaError(f"The sample corpus in {folder} is not what it claims: {'; '.join(failures)}.")
    return measured


_Rows = dict[str, list[dict[str, Any]]]
_Planted = dict[str, PlantedSplit]
_Found = tuple[dict[str, Any], list[str]]


def _first(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(itertools.islice(rows, _ROWS))


def _count(file: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(file).metadata.num_rows)


def _files(folder: Path, split: str) -> list[Path]:
    from hf_msa.data.sources import parquet_files

    return parquet_files(folder).get(split, [])


def parquet_rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of Parquet files; features are float32 arrays (T, d)."""
    import pyarrow.parquet as pq

    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=200):
            for row in batch.to_pylist():
                for modality in FEATURE_MODALITIES:
                    if modality in row:
                        row[modality] = np.array(row[modality], dtype=np.float32)
                yield row


def _check_rows(split: str, rows: list[dict[str, Any]], planted: PlantedSplit) -> list[str]:
    """Compare rows with a fresh run of the generator, and each with its own planted facts."""
    unplanted = {"id", "video_id", "clip_id", "text", "audio", "vision", "label", "annotation"}
    unplanted |= {f"label_{modality}" for modality in MODALITIES}
    if rows and set(rows[0]) != unplanted:
        return [f"the {split} split has the columns {sorted(rows[0])}"]
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


class _Fault(Exception):
    """A claim that does not hold, found in a stream."""


def _check_splits(folder: Path, config: SampleCorpusConfig) -> list[str]:
    """Look for videos, clips and speakers in two splits, by merging what is in order: nothing is remembered of the rows."""
    try:
        for split in SPLITS:
            _check_ids(folder, split)
        for column in ("video_id", *(["speaker"] if config.version == 1 else [])):
            merged = heapq.merge(*(_names_in_order(folder, split, column) for split in SPLITS))
            for (key, split), (other, beside) in itertools.pairwise(merged):
                if key == other:
                    raise _Fault(f"{key[1]} is in {split} and in {beside}")
    except _Fault as fault:
        return [str(fault)]
    return []


def _check_ids(folder: Path, split: str) -> None:
    data, planted = _files(folder, split), [planted_file(folder, split)]
    columns = [_column(data, "id"), _column(data, "video_id"), _column(planted, "id")]
    video, clips = None, set[str | None]()
    for name, own_video, fact in itertools.zip_longest(*columns):
        if name is None or name != fact:
            raise _Fault(f"the planted facts of the {split} split are not in the order of its rows")
        if own_video != video:
            video, clips = own_video, set()
        if name in clips:
            raise _Fault(f"two clips of the {split} split have the same id")
        clips.add(name)


def _names_in_order(folder: Path, split: str, column: str) -> Iterator[tuple[tuple[int, str], str]]:
    """Yield the name of each new video or speaker of a split, behind its length, and the split."""
    files = _files(folder, split) if column == "video_id" else [planted_file(folder, split)]
    last = (0, "")
    for name in _column(files, column):
        # Numbers with more digits come later.
        key = (len(name), name)
        if key < last:
            raise _Fault(f"{name} comes after {last[1]} in the {split} split, whose clips are not in order")
        if key > last:
            yield key, split
        last = key


def _column(files: Iterable[Path], column: str) -> Iterator[str]:
    import pyarrow.parquet as pq

    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_VALUES_AT_ONCE, columns=[column]):
            yield from batch.column(0).to_pylist()


def _check_text_model(folder: Path, config: SampleCorpusConfig) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder / TEXT_MODEL_FOLDER))
    words = [*lexicon.all_words(), *(planner_words() if config.version > 1 else [])]
    broken = [word for word in words if tokenizer.tokenize(word) != [word]]
    return [f"the tokenizer breaks {len(broken)} words, such as {broken[0]!r}"] if broken else []


def _check_shares(folder: Path, config: SampleCorpusConfig) -> _Found:
    import pyarrow.parquet as pq

    counts: Counter[str] = Counter()
    names = ["kind", "lying_modality", "hard_no_cue", "hard_sarcasm", "hard_contrast"]
    names += ["lie"] if config.version > 1 else []
    for split in SPLITS:
        for batch in pq.ParquetFile(planted_file(folder, split)).iter_batches(_VALUES_AT_ONCE, columns=names):
            counts["clips"] += batch.num_rows
            for name in names:
                for found_value in batch.column(name).value_counts().to_pylist():
                    counts[f"{name} {found_value['values']}"] += found_value["counts"]
    total = counts["clips"]
    found: dict[str, Any] = {
        "kinds": {kind: counts[f"kind {kind}"] / total for kind in config.kind_prior()},
        "hard": {name: counts[f"hard_{name} True"] / total for name in ("no_cue", "sarcasm", "contrast")},
    }
    failures = []
    for kind, share in config.kind_prior().items():
        if _strays(found["kinds"][kind], share, total):
            failures.append(f"{found['kinds'][kind]:.3f} of the clips are {kind} instead of {share:.3f}")
    lying = counts["kind conflicting"]
    if config.version > 1 and lying:
        found["liars"] = {m: counts[f"lying_modality {m}"] / lying for m in MODALITIES}
        found["opposite"] = counts["lie opposite"] / lying
        for modality, share in zip(MODALITIES, story.LIAR_SHARES, strict=True):
            if _strays(found["liars"][modality], share, lying):
                failures.append(
                    f"{found['liars'][modality]:.3f} of the lies are told by {modality} instead of {share}"
                )
        if _strays(found["opposite"], story.OPPOSITE_SHARE, lying):
            failures.append(f"{found['opposite']:.3f} of the lies are the opposite instead of {story.OPPOSITE_SHARE}")
    return found, failures


def _strays(found: float, share: float, count: int) -> bool:
    """Whether a share is more than four standard errors off: one in some ten thousand is so by chance."""
    return abs(found - share) > 4 * math.sqrt(share * (1 - share) / count) + 1e-9


def _check_strengths(rows: _Rows, planted: _Planted) -> _Found:
    """Compare what words and personas explain of the frames on disk with what was asked for."""
    if not _enough(rows):
        return {"strengths": None}, []
    config, train = planted["train"].config, rows["train"]
    numbers = clip_numbers_of(train)
    script, shown = make_clips(config, numbers)
    personas = personas_of(config)
    found: dict[str, Any] = {}
    failures: list[str] = []

    def judge(name: str, value: float, wanted: float, slack: float) -> None:
        found[name] = value
        if abs(value - wanted) > slack:
            failures.append(f"{name} explains {value:.3f} instead of {wanted:.3f}")

    slack = 0.02 + 0.8 / math.sqrt(len(train))
    for modality in FEATURE_MODALITIES:
        channels, part = make_up(config, modality), shown[modality]
        frames, live = np.concatenate([row[modality] for row in train]).astype(np.float64), channels.live
        clip = part.frames.clip
        if len(frames) != len(clip):
            return {}, [f"the clips have {len(frames)} frames of {modality} instead of {len(clip)}"]
        gain = np.array([video_of(config, video).gain[modality] for video, _ in numbers])[clip][:, live]
        seen, varying = ~part.lost, int((~channels.dead).sum())
        values = ((frames[:, live] - channels.level[live]) / channels.scale[live])[seen]
        planted_part = {"articulation": part.articulation * gain, "persona": part.persona * gain}
        within = _within(values, clip[seen])
        left = _within(values - planted_part["articulation"][seen], clip[seen])
        articulated = 1 - (left**2).sum(axis=0) / (within**2).sum(axis=0)
        wanted = float(getattr(config, f"{modality}_articulation"))
        judge(f"{modality}_articulation", float(articulated.sum()) / varying, wanted, slack)
        personal = 1 - (values - planted_part["persona"][seen]).var(axis=0) / values.var(axis=0)
        judge(f"{modality}_persona", float(personal.sum()) / varying, config.persona, slack)
    tempo = np.array([facts["tempo"] for facts in planted["train"].rows[: len(train)]])
    told = TEMPO_SPREAD * math.sqrt(config.persona) * personas.tempo[script.persona]
    judge("tempo_persona", float(1 - (tempo - told).var() / tempo.var()), config.persona, 2 * slack)

    ten = min(10, config.personas)
    often = float((script.persona < ten).mean())
    found["clips of the ten most frequent personas"] = often
    if _strays(often, float(personas.chances[:ten].sum()), len(train)):
        failures.append(f"{often:.3f} of the clips are of the ten most frequent personas")
    met = np.bincount(script.persona, minlength=config.personas)
    found["personas met 2 to 6 times in train"] = float(((met >= 2) & (met <= 6)).mean())
    flipped = float(sum((personas.gain[m] < 0).sum() for m in FEATURE_MODALITIES)) / config.personas
    found["flipped personas"] = flipped
    if abs(flipped - config.persona_flips) > 1 / config.personas + 1e-9:
        failures.append(f"{flipped:.3f} of the personas have a flipped sign instead of {config.persona_flips}")
    return {"strengths": found}, failures


def _within(values: Floats, clip: NDArray[np.int64]) -> Floats:
    """Return values (M, L) less the mean of their clip (M,)."""
    counts = np.bincount(clip)
    sums = np.stack([np.bincount(clip, column) for column in values.T], axis=1)
    deviations: Floats = values - (sums / np.maximum(counts, 1)[:, None])[clip]
    return deviations


def _find_mechanisms(rows: _Rows, planted: _Planted) -> _Found:
    if not _enough(rows):
        return {"mechanisms": None}, []
    found = mechanism_ceilings(planted["test"].config, clip_numbers_of(rows["test"][:_ROWS_TO_INFER]))
    wrong = []
    for setting, gains in found["knowledge"].items():
        slack = 0.03 * found["label"][setting]["known"]["mse"]
        for names, gain in gains.items():
            if gain["mean"] < -slack - 3 * gain["standard_error"]:
                wrong.append(f"knowing the persona makes predictions worse ({setting}, {names}: {gain['mean']:.3f})")
    for modality, hidden in found["frames"].items():
        for name, settings in hidden.items():
            for words, errors in settings.items():
                if errors["posterior, persona unknown"] > errors["linear"] * 1.05:
                    wrong.append(
                        f"the posterior mean of {modality} ({name} hidden, {words}) is worse than a linear one"
                    )
    return {"mechanisms": found}, wrong


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
    for modality, (low, high) in _claims(planted["train"].config).items():
        if not low - slack < probes[modality] < high + slack:
            failures.append(f"{modality} alone correlates {probes[modality]:.2f} instead of {low} to {high}")
    if probes["all"] < max(probes[modality] for modality in MODALITIES) - slack / 5:
        failures.append(f"all modalities correlate {probes['all']:.2f}, less than one alone")
    return {"probes": probes}, failures


def _claims(config: SampleCorpusConfig) -> dict[str, tuple[float, float]]:
    if config.version == 1:
        return _CLAIMED
    wanted = {m: float(getattr(config, f"{m}_sentiment")) for m in FEATURE_MODALITIES}
    claims = {m: (value - _SENTIMENT_SLACK, value + _SENTIMENT_SLACK) for m, value in wanted.items()}
    # How well the text does depends on who lies and who says nothing; its claim is that of the default.
    usual = all(
        getattr(config, name) == getattr(SampleCorpusConfig, name)
        for name in ("conflict_rate", "neutral_rate", "silent_rate")
    )
    return claims | ({"text": _CLAIMED["text"]} if usual else {})


def _check_ceiling(rows: _Rows, planted: _Planted) -> _Found:
    if not _enough(rows):
        return {"ceiling": None}, []
    config = planted["test"].config
    first = _ROWS if config.version == 1 else _ROWS_TO_INFER
    labels = _labels(rows["test"][:first])
    facts = PlantedSplit(config, planted["test"].rows[: len(labels)])
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
        errors[rate] = float(
            np.abs(ceiling_predictions(facts, kept, samples=100 if config.version == 1 else 30) - labels).mean()
        )
    probe = float(np.abs(_probe(rows, planted, MODALITIES)[: len(labels)] - labels).mean())
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
