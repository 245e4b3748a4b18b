"""Scores of many recordings, clip by clip: what `hf-msa predict` writes, and what each modality and word adds."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.utils import tqdm

from .errors import MsaError, as_msa_errors, reason, require_package
from .files import atomic_write, folder_lock
from .models.feature_extraction_msa import MsaFeatureExtractor
from .models.msa_feature_sets import TABLE
from .models.msa_pipeline import MsaPipeline
from .recordings.manifest import SOUND_SUFFIXES, Clip, find_file, read_manifest
from .recordings.openface import has_openface, openface_frames

ENDINGS = (".csv", ".jsonl", ".parquet")


def find_clips(clips: Sequence[str], manifest: str | None) -> list[Clip]:
    """Find the recordings of files, folders and a list.

    Args:
        clips: Files and folders of recordings.
        manifest: A list, see `hf_msa.recordings.manifest.read_manifest`.

    Raises:
        MsaError: If there is none, a list is wrong, or two have the same id.
    """
    found = [clip for source in (*clips, *([manifest] if manifest else [])) for clip in read_manifest(source)]
    ids = [clip.id for clip in found]
    doubled = next((one for one in ids if ids.count(one) > 1), None) if len(set(ids)) < len(ids) else None
    if doubled is not None:
        raise MsaError(f"Two recordings have the id {doubled!r}; list them in a manifest with ids of their own.")
    return found


def utterance(clip: Clip, extractor: MsaFeatureExtractor) -> dict[str, Any]:
    """A clip as the pipeline takes it; of a model that reads OpenFace's features, with those of its program.

    Raises:
        MsaError: If there is no such file, or OpenFace fails.
    """
    file = find_file(clip)
    given: dict[str, Any] = {"id": clip.id, "text": clip.text, "start": clip.start, "end": clip.end}
    if file.suffix.lower() in SOUND_SUFFIXES:
        return {**given, "audio": str(file)}
    if has_openface() and reads_openface(extractor):
        frames = openface_frames(extractor.feature_set("vision"), file, clip.start, clip.end)
        return {**given, "audio": str(file), "vision": None if frames is None else frames.values}
    return {**given, "video": str(file)}


def reads_openface(extractor: MsaFeatureExtractor) -> bool:
    """Whether a checkpoint's vision features are made by OpenFace."""
    is_known = "vision" in extractor.modalities and extractor.vision_set is not None
    return is_known and extractor.feature_set("vision").made_from == TABLE


def score_clips(pipeline: MsaPipeline, clips: Sequence[Clip], batch_size: int = 8) -> Iterator[dict[str, Any]]:
    """Score recordings in their order; of one that cannot be read comes the reason.

    Args:
        pipeline: See `hf_msa.pipelines.load_pipeline`.
        clips: See `find_clips`.
        batch_size: Clips at once.

    Yields:
        `id`, `path`, and what the pipeline says, or `error`.

    Raises:
        MsaError: If a package that is needed is not installed, or the model cannot predict.
    """
    for begin in range(0, len(clips), batch_size):
        some = clips[begin : begin + batch_size]
        rows: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for clip in some:
            try:
                rows[clip.id] = pipeline.preprocess(
                    utterance(clip, pipeline.processor.feature_extractor), **pipeline._preprocess_params
                )
            except ImportError as error:
                raise MsaError(reason(error)) from error
            except (MsaError, OSError, ValueError) as error:
                failed[clip.id] = reason(error)
        with as_msa_errors():
            scores = pipeline.postprocess(pipeline.forward({"rows": list(rows.values())})) if rows else []
        scored = dict(zip(rows, scores, strict=True))
        for clip in some:
            what = {"error": failed[clip.id]} if clip.id in failed else scored[clip.id]
            yield {"id": clip.id, "path": str(clip.path), **what}


def write_scores(
    pipeline: MsaPipeline, clips: Sequence[Clip], output: str | Path, *, model: str, batch_size: int = 8
) -> list[dict[str, Any]]:
    """Score recordings into a table; interrupted, it goes on where it was.

    Args:
        pipeline, clips, batch_size: See `score_clips`.
        output: The file, by its ending `.csv`, `.jsonl` or `.parquet`. Until all is done, what is there is kept beside it.
        model: Name of the model; what was begun with another one is begun anew.

    Returns:
        The rows of the table, see `score_clips`.

    Raises:
        MsaError: If the ending is another one, or the model cannot predict.
    """
    target = Path(output)
    if target.suffix.lower() not in ENDINGS:
        raise MsaError(f"The table {str(target)!r} must end in one of {', '.join(ENDINGS)}.")
    settings = [
        model,
        str(pipeline.model.config.to_dict()),
        [(c.id, str(c.path), c.start, c.end, c.text) for c in clips],
    ]
    begun = target.with_name(f"{target.name}.parts")
    with folder_lock(begun):
        part = begun / f"{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}.jsonl"
        done = _read_part(part)
        rest = [clip for clip in clips if clip.id not in done]
        with part.open("a", encoding="utf-8") as file:
            scores = score_clips(pipeline, rest, batch_size)
            for row in tqdm(scores, total=len(clips), initial=len(done), unit="clip", desc="Scoring", disable=None):
                file.write(json.dumps(row) + "\n")
                file.flush()
                done[row["id"]] = row
        rows = [done[clip.id] for clip in clips]
        _write_table(rows, target)
        part.unlink()
    return rows


def _read_part(part: Path) -> dict[str, dict[str, Any]]:
    """What was scored before; the last line of a run that was killed may be cut off."""
    done = {}
    for line in part.read_bytes().split(b"\n") if part.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        done[row["id"]] = row
    if done:
        part.write_text("".join(json.dumps(row) + "\n" for row in done.values()), encoding="utf-8")
    return done


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a table holds it: one value in a cell."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name == "range":
            found |= {"lowest": value[0], "highest": value[1]}
        elif name == "present":
            found |= {f"{modality}_present": there for modality, there in value.items()}
        elif name == "share":
            found |= {f"{modality}_share": share for modality, share in value.items()}
        elif name == "transcript":
            found["transcript"] = value["text"]
        else:
            found[name] = value
    return found


def _write_table(rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    with atomic_write(target) as temporary:
        if target.suffix.lower() == ".jsonl":
            temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            return
        table = [flat(row) for row in rows]
        columns = list(dict.fromkeys(name for row in table for name in row))
        if target.suffix.lower() == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(table)
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({name: [row.get(name) for row in table] for name in columns}), temporary)


# --- What each part adds ---


def explain(pipeline: MsaPipeline, given: Mapping[str, Any]) -> dict[str, Any]:
    """Say by how much the score of an utterance changes without each of its modalities, and each of its words.

    Args:
        pipeline: See `hf_msa.pipelines.load_pipeline`.
        given: An utterance, as the pipeline takes it.

    Returns:
        `score`; `modalities`, by name the score less that without it; `words`, pairs of each word of the transcript and the
        score less that without it. They need not add up to the score.

    Raises:
        ValueError: As the pipeline.
    """
    row = pipeline.preprocess(given, **pipeline._preprocess_params)
    words = (row["text"] or "").split()
    there = [
        name for name in pipeline.model.modalities if (row.get(name) if name != "text" else words or None) is not None
    ]
    without = [{**row, name: None} for name in there]
    fewer = [{**row, "text": " ".join(words[:place] + words[place + 1 :])} for place in range(len(words))]
    score, *others = (
        one["score"] for one in pipeline.postprocess(pipeline.forward({"rows": [row, *without, *fewer]}))
    )
    changes = [score - other for other in others]
    return {
        "score": score,
        "modalities": dict(zip(there, changes, strict=False)),
        "words": list(zip(words, changes[len(there) :], strict=True)),
    }


def plot_explanation(found: Mapping[str, Any], output: str | Path) -> None:
    """Draw what `explain` found: a bar for each modality, and one for each word.

    Args:
        found: See `explain`.
        output: The file, e.g. ``explanation.png``.

    Raises:
        MsaError: If matplotlib is not installed.
    """
    require_package("matplotlib", "plots")
    from matplotlib.figure import Figure

    bars = [*found["modalities"].items(), *found["words"]]
    figure = Figure(figsize=(6, 1 + 0.25 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(bars))
    colours = ["#2b6cb0" if change >= 0 else "#c05621" for _, change in bars]
    axes.barh(places, [change for _, change in bars], color=colours)
    axes.set_yticks(places, [name for name, _ in bars])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    if found["words"]:
        axes.axhline(len(found["modalities"]) - 0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("change of the score by it")
    axes.set_title(f"Score {found['score']:.2f}")
    target = Path(output)
    with atomic_write(target) as temporary:
        figure.savefig(temporary, format=target.suffix.removeprefix(".") or "png", dpi=150)
