"""From utterances to scores: the pipeline of a run or checkpoint, and what the command line does with it."""

from pathlib import Path
from typing import Any

import numpy as np

from .data.feature_files import SUFFIXES, read_feature_file
from .errors import MsaError, as_msa_errors
from .evaluation.checkpoints import find_model, load_checkpoint
from .models.msa_pipeline import TASK, MsaPipeline


def read_features(path: str | Path) -> np.ndarray:
    """Read one feature sequence `(frames, width)`; NaN and infinity become 0, as in a prepared data set.

    Args:
        path: See `hf_msa.data.feature_files.read_feature_file`.

    Raises:
        MsaError: If the file is not there, is of another kind, or does not hold a table of numbers.
    """
    return np.nan_to_num(read_feature_file(path)[0], nan=0.0, posinf=0.0, neginf=0.0)


def load_pipeline(
    model: str, *, transcribe: str | None = None, language: str | None = None, **options: Any
) -> MsaPipeline:
    """Load the pipeline of a model; also what `transformers.pipeline("multimodal-sentiment-analysis", model)` gives.

    Args:
        model: A run folder (of one seed), a saved model or a Hub name.
        transcribe: Whisper model for recordings without a text, see `hf_msa.recordings.transcripts.load_transcriber`.
        language: Of the speech, for the transcriber.
        **options: See `MsaPipeline`.

    Raises:
        MsaError: If there is no such model, or there are several.

    Example:
        ```python
        score = load_pipeline("org/tcmr-mosi")
        score({"text": "a wonderful film", "audio": "clip.wav"})  # {"score": 1.9, "polarity": "positive", ...}
        ```
    """
    network, processor = load_checkpoint(find_model(model))
    if transcribe is not None:
        from .recordings.transcripts import load_transcriber

        options["transcriber"] = load_transcriber(transcribe, language)
    return MsaPipeline(network, processor=processor, task=TASK, device=network.device, **options)


def predict_one(
    model: str,
    text: str | None = None,
    audio: str | None = None,
    vision: str | None = None,
    video: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score one utterance whose features or recordings lie in files.

    Args:
        model: A run folder (one seed), a saved model or a Hub name.
        text: The transcript.
        audio: A feature file, see `read_features`, or a recording.
        vision: A feature file.
        video: A recording, of whose sound and pictures the features are made that are not given.
        **options: See `load_pipeline`.

    Raises:
        MsaError: If the model or a file cannot be read, or does not fit.
    """
    given: dict[str, Any] = {"text": text, "video": video}
    for name, path in (("audio", audio), ("vision", vision)):
        if path is not None:
            is_table = name == "vision" or Path(path).suffix.lower() in SUFFIXES
            given[name] = read_features(path) if is_table else path
    if not any(given.values() if not {"audio", "vision"} & given.keys() else [True]):
        raise MsaError("There is nothing to score; give --text, --audio, --vision or --video.")
    with as_msa_errors():
        found: dict[str, Any] = load_pipeline(model, **options)(given)
    return found
