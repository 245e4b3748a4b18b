"""From one utterance to a score: what an application calls."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data.feature_files import read_feature_file
from .errors import MsaError
from .evaluation.checkpoints import find_model, load_checkpoint
from .models.msa_schema import FEATURE_MODALITIES, SENTIMENT_CLASSES


def read_features(path: str | Path) -> np.ndarray | None:
    """Read one feature sequence `(frames, width)`; NaN and infinity become 0, as in a prepared data set.

    A table of OpenFace in which no face was found gives None: the modality is missing.

    Args:
        path: See `hf_msa.data.feature_files.read_feature_file`.

    Raises:
        MsaError: If the file is not there, is of another kind, or does not hold a table of numbers.
    """
    values = read_feature_file(path).values
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) if len(values) else None


class SentimentPredictor:
    """A trained model and its processor behind one call.

    Args:
        model: A run folder (of one seed), a saved model or a Hub name.

    Raises:
        MsaError: If there is no such model, or there are several.

    Example:
        ```python
        predict = SentimentPredictor("org/tcmr-mosi")
        predict(["a wonderful film"], audio=[features])  # [{"score": 1.9, "polarity": "positive", ...}]
        ```
    """

    def __init__(self, model: str) -> None:
        self.model, self.processor = load_checkpoint(find_model(model))

    @torch.inference_mode()
    def __call__(
        self,
        text: str | Sequence[str | None],
        audio: Any = None,
        vision: Any = None,
        waveform: Sequence[np.ndarray | None] | None = None,
        frames: Sequence[np.ndarray | None] | None = None,
    ) -> list[dict[str, Any]]:
        """Score utterances.

        Args:
            text: The transcripts, or a single one; None, or one without a word, is missing.
            audio, vision: Per utterance a sequence `(frames, width)`, or `None` where it is missing; see `MsaProcessor`.
            waveform: Per utterance the sound `(samples,)`, mono at 16 kHz, and
            frames: the pictures `(frames, height, width, 3)` of uint8; read by methods that ask a multimodal language model.

        Returns:
            Per utterance `score` (label units), `polarity`, and what the method says beside it (e.g. `confidence`), None
            for what it did not need to compute.

        Raises:
            MsaError: If the features do not fit the checkpoint, or another model that it asks cannot be reached.
        """
        texts = [text] if isinstance(text, str) else list(text)
        given = {"audio": audio, "vision": vision, "waveform": waveform, "frames": frames}
        try:
            inputs = self.processor(texts, audio=audio, vision=vision).to(self.model.device)
            rows = [
                {"text": words, **{name: values[index] for name, values in given.items() if values is not None}}
                for index, words in enumerate(texts)
            ]
            outputs = self.model.predict_rows(inputs, rows, self.processor)
        except (ImportError, OSError, ValueError) as error:
            raise MsaError(str(error)) from error
        family = self.model.config.family
        numbers = {name: value.float().tolist() for name, value in self.model.per_sample_outputs(outputs).items()}
        scores = numbers.pop("logits")
        polarity = family.polarity(np.array(scores))
        return [
            {
                "score": score,
                "range": [family.low, family.high],
                "polarity": SENTIMENT_CLASSES[int(polarity[index])],
                **{name: values[index] if math.isfinite(values[index]) else None for name, values in numbers.items()},
            }
            for index, score in enumerate(scores)
        ]


def predict_one(model: str, text: str, audio: str | None = None, vision: str | None = None) -> dict[str, Any]:
    """Score one utterance whose features lie in files.

    Args:
        model: A run folder (one seed), a saved model or a Hub name.
        text: The transcript.
        audio, vision: Feature files; see `read_features`. A modality left out counts as missing.

    Raises:
        MsaError: If the model or a file cannot be read, or does not fit.
    """
    files = dict(zip(FEATURE_MODALITIES, (audio, vision), strict=True))
    features = {name: [read_features(path)] for name, path in files.items() if path is not None}
    return SentimentPredictor(model)([text], **features)[0]
