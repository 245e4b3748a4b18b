"""The pipeline of transformers for this task: utterances, of text, features or recordings, to scores."""

import math
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .feature_extraction_msa import as_sound, is_recording
from .msa_feature_sets import as_waveform
from .msa_outputs import MsaOutput
from .msa_recordings import read_frames, read_sound, resample
from .msa_schema import SENTIMENT_CLASSES

TASK = "multimodal-sentiment-analysis"
_KEYS = (
    *("text", "audio", "vision", "video", "waveform", "frames", "sampling_rate", "frames_per_second", "start", "end"),
    "id",
)
_MOST_BYTES = 1 << 28
_TIMEOUT = 60.0


class MsaPipeline(Pipeline):
    """Scores utterances; of what is missing the model gets what it was trained and measured with.

    Call it with one utterance, a list of them, or a generator, which is read as the results are taken. An utterance is a
    text, or a mapping of any of `text`, `audio` (features `(frames, width)`, or a recording: a path, the content of a file,
    samples with `sampling_rate`, or `{"array", "sampling_rate"}`), `vision` (features), `video` (a path, the content of a
    file, or pictures `(frames, height, width, 3)` with `frames_per_second`), `start` and `end` (the part of a file, in
    seconds), and for methods that ask a language model
    `waveform` (mono at 16 kHz) and `frames`.

    Args of a call, or of the pipeline:
        batch_size (`int`): Utterances at once; the scores do not depend on it.
        transcriber (*optional*): Called with a waveform at 16 kHz where an utterance has sound and no text; gives an object
            with `text`, and `words` with `text`, `start` and `end`.
        face_model (`str`, *optional*): Path of a face landmark model, for vision features that are made with one.
        allow_urls (`bool`): Whether a recording may be an address, which is then fetched; they are refused otherwise.

    Returns of each utterance `score` and its `range`, in label units, `label`, `polarity`, which modalities were `present`,
    the `share` of each that the model saw (of pictures those with the face, of what is longer than it reads the beginning),
    the `transcript` where one was made, and what the method says beside it, e.g. `confidence`; None for what it had no need
    of.

    Example:
        ```python
        import hf_msa
        from transformers import pipeline

        score = pipeline("multimodal-sentiment-analysis", model="runs/text/seed-1")  # an MsaPipeline
        score(["a wonderful film", {"text": "a dull plot", "audio": None}], batch_size=2)
        ```
    """

    model: Any
    processor: Any

    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = ("transcriber", "face_model", "allow_urls")
        unknown = given.keys() - {*known, "batch_size", "num_workers"}
        if unknown:
            raise TypeError(
                f"{type(self).__name__} takes no argument {min(unknown)!r}; it takes batch_size, {', '.join(known)}."
            )
        return {name: given[name] for name in known if name in given}, {}, {}

    def __call__(self, inputs: Any, *args: Any, batch_size: int | None = None, **given: Any) -> Any:
        """Score utterances; see the class.

        Raises:
            ImportError: If a package that is needed for a recording is not installed.
            TypeError: For an argument that there is not.
            ValueError: If an utterance cannot be read, or does not fit the checkpoint.
        """
        parameters = {**self._preprocess_params, **self._sanitize_parameters(**given)[0]}
        size = batch_size or self._batch_size or 1
        if isinstance(inputs, str | Mapping):
            return next(self._scores([inputs], 1, parameters))
        scores = self._scores(inputs, size, parameters)
        return list(scores) if isinstance(inputs, list | tuple) else scores

    def _scores(self, inputs: Iterable[Any], size: int, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
        rows = (self.preprocess(one, **parameters) for one in inputs)
        while batch := list(islice(rows, size)):
            yield from self.postprocess(self.forward({"rows": batch}))

    def preprocess(  # type: ignore[override]  # Its parameters are those of `_sanitize_parameters`.
        self,
        input_: Any,
        transcriber: Callable[[np.ndarray], Any] | None = None,
        face_model: str | None = None,
        allow_urls: bool = False,
    ) -> dict[str, Any]:
        """Turn one utterance into a row of features; see the class for the arguments."""
        given: dict[str, Any] = {"text": input_} if input_ is None or isinstance(input_, str) else dict(input_)
        unknown = [name for name in given if name not in _KEYS]
        if unknown or not given.keys() & {"text", "audio", "vision", "video"}:
            raise ValueError(
                f"An utterance has {', '.join(map(repr, given)) or 'nothing'}; give text, audio, vision or video "
                f"({', '.join(_KEYS[4:])} beside them)."
            )
        audio, video = (_local(given.get(name), allow_urls) for name in ("audio", "video"))
        rates = {name: given.get(name) for name in ("sampling_rate", "frames_per_second")}
        part: dict[str, Any] = {"start": given.get("start") or 0.0, "end": given.get("end")}
        extractor = self.processor.feature_extractor
        row: dict[str, Any] = {"text": given.get("text"), "looked_at": {}}
        for modality in extractor.modalities:
            options = {} if modality == "audio" or face_model is None else {"face_model": face_model}
            features = audio if modality == "audio" else given.get("vision")
            row[modality], row["looked_at"][modality] = extractor.sequence(
                modality, features, video, **rates, **part, **options
            )
        wants_sound = transcriber is not None and not (row["text"] or "").strip()
        sound = given.get("waveform")
        if sound is None and (wants_sound or self.model.config.asks_language_model):
            sound = _waveform(audio, video, given.get("sampling_rate"), part)
        if self.model.config.asks_language_model:
            row["waveform"], row["frames"] = sound, given.get("frames")
            if row["frames"] is None and is_recording(video):
                frames, rate = read_frames(video, **part)
                row |= {"frames": frames, "frames_per_second": rate} if len(frames) else {}
        if wants_sound and sound is not None and transcriber is not None:
            row["transcript"] = transcriber(np.asarray(sound))
            row["text"] = row["transcript"].text
        if "id" in given:
            row["id"] = given["id"]
        return row

    @torch.inference_mode()
    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> Any:
        rows = input_tensors["rows"]
        sequences = {name: [row[name] for row in rows] for name in self.processor.feature_extractor.modalities}
        inputs = self.processor([row["text"] for row in rows], **sequences).to(self.model.device)
        return {"outputs": self.model.predict_rows(inputs, rows, self.processor), "rows": rows}

    def forward(self, model_inputs: dict[str, Any], **forward_params: Any) -> dict[str, Any]:
        """Predict a batch of rows; see `preprocess`."""
        found: dict[str, Any] = self._forward(model_inputs)
        return found

    def postprocess(self, model_outputs: Any, **postprocess_parameters: Any) -> Any:
        """Say what was predicted of each row of a batch; see the class."""
        outputs: MsaOutput = model_outputs["outputs"]
        family = self.model.config.family
        numbers = {name: value.float().tolist() for name, value in self.model.per_sample_outputs(outputs).items()}
        scores = numbers.pop("logits")
        polarity, classes = family.polarity(np.array(scores)), family.class_index(np.array(scores))
        names = list(family.classes)
        found = []
        for index, (score, row) in enumerate(zip(scores, model_outputs["rows"], strict=True)):
            shares = {name: self._share(name, row) for name in self.model.modalities}
            one: dict[str, Any] = {
                "score": score,
                "range": [family.low, family.high],
                "label": names[int(classes[index])],
                "polarity": SENTIMENT_CLASSES[int(polarity[index])],
                "present": {name: share > 0 for name, share in shares.items()},
                "share": shares,
                **{name: self._said(name, values[index]) for name, values in numbers.items()},
            }
            if not math.isfinite(score):
                raise ValueError("The score is not a finite number; the weights of the checkpoint are damaged.")
            if (transcript := row.get("transcript")) is not None:
                words = [{"text": word.text, "start": word.start, "end": word.end} for word in transcript.words]
                one["transcript"] = {"text": transcript.text, "words": words}
            found.append(one)
        return found

    def _said(self, name: str, value: float) -> float | str | None:
        """A number of a sample, by its name where it stands for a choice; None for what was not needed."""
        if not math.isfinite(value):
            return None
        names = self.model.value_names.get(name)
        return value if names is None else str(names[int(value)])

    def _share(self, modality: str, row: Mapping[str, Any]) -> float:
        """Which part of a modality the model saw: 0 where there is none."""
        if modality == "text":
            text, longest = (row["text"] or "").strip(), self.processor.text_max_length
            length = looked_at = len(self.processor.tokenizer(text, verbose=False)["input_ids"]) if text else 0
        else:
            values, longest = row.get(modality), getattr(self.processor.feature_extractor, f"{modality}_max_length")
            length = 0 if values is None else len(values)
            looked_at = row.get("looked_at", {}).get(modality, length)
        return min(length, longest) / looked_at if length else 0.0


def _waveform(audio: Any, video: Any, sampling_rate: int | None, part: dict[str, Any]) -> np.ndarray | None:
    """The sound of an utterance at 16 kHz, if there is any."""
    found = None if audio is None else as_sound(audio, sampling_rate)
    if found is None and is_recording(video):
        found = video
    if isinstance(found, tuple):
        return resample(as_waveform(found[0]), found[1], 16_000)
    return None if found is None else read_sound(found, **part)


def _local(recording: Any, allow_urls: bool) -> Any:
    """A recording that is at hand: the content of an address, where that is allowed."""
    if not isinstance(recording, str) or not recording.lower().startswith(("http://", "https://")):
        return recording
    if not allow_urls:
        raise ValueError(
            f"{recording:.100} is an address, which is not fetched; download the file, or pass allow_urls=True."
        )
    try:
        with urllib.request.urlopen(recording, timeout=_TIMEOUT) as answer:
            content: bytes = answer.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{recording:.100} cannot be fetched: {error}.") from error
    if len(content) > _MOST_BYTES:
        raise ValueError(
            f"{recording:.100} has more than {_MOST_BYTES} bytes; download it and cut it into utterances."
        )
    return content
