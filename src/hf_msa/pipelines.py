"""From utterances to scores: the pipeline of a run or checkpoint, and what the command line does with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .data.feature_files import SUFFIXES, read_feature_file
from .errors import MsaError, as_msa_errors
from .evaluation.checkpoints import find_model, load_checkpoint
from .models.feature_extraction_msa import MsaFeatureExtractor
from .models.msa_openface import select_columns
from .models.msa_pipeline import TASK, MsaPipeline


def read_features(path: str | Path, columns: Sequence[str] | None = None) -> np.ndarray | None:
    """Read one feature sequence `(frames, width)`; NaN and infinity become 0, as in a prepared data set.

    A table of OpenFace in which no face was found gives None: the modality is missing.

    Args:
        path: See `hf_msa.data.feature_files.read_feature_file`.
        columns: Which features to take of a table that names them; by default all.

    Raises:
        MsaError: If the file is not there, is of another kind, does not hold a table of numbers, or lacks a column.
    """
    table = read_feature_file(path)
    values = table.values
    if columns is not None and table.names is not None:
        with as_msa_errors():
            values = select_columns(table.names, values, columns)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) if len(values) else None


def load_pipeline(
    model: str,
    *,
    transcribe: str | None = None,
    language: str | None = None,
    changes: Mapping[str, Any] | None = None,
    **options: Any,
) -> MsaPipeline:
    """Load the pipeline of a model; also what `transformers.pipeline("multimodal-sentiment-analysis", model)` gives.

    Args:
        model: A run folder (of one seed), a saved model or a Hub name.
        transcribe: Whisper model for recordings without a text, see `hf_msa.recordings.transcripts.load_transcriber`.
        language: Of the speech, for the transcriber.
        changes: Values of the model's configuration to be used instead of those it was saved with.
        **options: See `MsaPipeline`.

    Raises:
        MsaError: If there is no such model, or there are several.

    Example:
        ```python
        from hf_msa import load_pipeline

        score = load_pipeline("runs/text")  # or a Hub name
        score({"text": "a wonderful film", "audio": None})  # {"score": 1.9, "polarity": "positive", ...}
        ```
    """
    network, processor = load_checkpoint(find_model(model), changes)
    if transcribe is not None:
        from .recordings.transcripts import load_transcriber

        options["transcriber"] = load_transcriber(transcribe, language)
    return MsaPipeline(network, processor=processor, task=TASK, device=network.device, **options)


def read_utterance(
    extractor: MsaFeatureExtractor,
    text: str | None = None,
    audio: str | None = None,
    vision: str | None = None,
    video: str | None = None,
) -> dict[str, Any]:
    """An utterance as the pipeline takes it, of files.

    Args:
        extractor: The checkpoint's; of tables the columns of its feature sets are taken by their names.
        text: The transcript.
        audio: A feature file, see `read_features`, or a recording.
        vision: A feature file.
        video: A recording, of whose sound and pictures the features are made that are not given.

    Raises:
        MsaError: If nothing is given, or a feature file cannot be read.
    """
    given: dict[str, Any] = {"text": text, "audio": audio, "vision": vision, "video": video}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        raise MsaError("There is nothing to score; give recordings, --text, --audio, --vision or --video.")
    for name in given.keys() & {"audio", "vision"}:
        if name == "vision" or Path(given[name]).suffix.lower() in SUFFIXES:
            is_known = getattr(extractor, f"{name}_set") is not None
            with as_msa_errors():
                columns = extractor.feature_set(name).columns if is_known else None
            given[name] = read_features(given[name], columns)
    return given
