"""Transcripts of recordings with the time of every word, by faster-whisper or by a speech recogniser of transformers."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_msa.errors import MsaError, reason, require_package, unknown_name

SAMPLING_RATE = 16_000
EXTRA = "asr"

# Digital silence with its dither: the last bit of 16.
_SILENT_PEAK = 1e-4
_PEAK = 0.5
# The measure of Whisper's authors for a text that repeats itself.
_MAX_COMPRESSION = 2.4
_SECONDS_AT_ONCE = 30
_CTRANSLATE2_FILES = ("model.bin", "config.json", "tokenizer.json")
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class Word:
    """One spoken word.

    Attributes:
        text: The word as it is written, with its punctuation, without spaces around it.
        start, end: When it is spoken, in seconds from the start of the waveform; `start <= end`.
        probability: How sure the recogniser is of it, in [0, 1]; None where it does not say.
    """

    text: str
    start: float
    end: float
    probability: float | None = None

    def __post_init__(self) -> None:
        times = (self.start, self.end)
        if not isinstance(self.text, str) or not all(isinstance(time, int | float) for time in times):
            raise MsaError(f"A word is a text with its start and end in seconds, and this is {self!r:.100}.")
        if not (0 <= self.start <= self.end < math.inf):
            raise MsaError(
                f"The word {self.text!r:.60} is spoken from {self.start} to {self.end} s; times are 0 or more, start first."
            )
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise MsaError(f"The word {self.text!r:.60} has the probability {self.probability}; it lies in [0, 1].")


@dataclass(frozen=True)
class Transcript:
    """All that is said in a recording.

    Attributes:
        text: The whole text; empty where nobody speaks.
        words: Its words in the order in which they are spoken.
        language: ISO 639-1 code of the language that was given or recognised; None where neither is known.
    """

    text: str = ""
    words: tuple[Word, ...] = ()
    language: str | None = None

    def to_json(self) -> str:
        """The transcript as one line of JSON, which `from_json` reads."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Transcript":
        """Rebuild a transcript from `to_json`.

        Raises:
            MsaError: If the text is not what `to_json` writes.
        """
        try:
            found = json.loads(text)
            if not isinstance(found, Mapping) or not isinstance(found["text"], str):
                raise TypeError("it has no text")
            if not isinstance(found["language"], str | None):
                raise TypeError("its language is no text")
            return cls(found["text"], tuple(Word(**word) for word in found["words"]), found["language"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise MsaError(f"This is not a transcript ({reason(error)}): {text!r:.60}; transcribe anew.") from error


class Transcriber(ABC):
    """A speech recogniser: a callable that turns a waveform into a `Transcript`. `load_transcriber` makes it.

    A detector of voices (Silero's) looks at the waveform first: where it hears none, the transcript is empty and the
    recogniser, which would invent words, is not asked. Volume makes no difference: waveforms are scaled to one peak before.

    Attributes:
        name: The model, as it was given.
        language: The language that is spoken, as it was given.
    """

    def __init__(self, name: str, language: str | None) -> None:
        self.name = name
        self.language = language

    def __call__(self, waveform: np.ndarray) -> Transcript:
        """Transcribe a recording.

        Args:
            waveform: Float `(samples,)`, mono, 16 kHz; a recording of no samples or of silence has an empty transcript.

        Raises:
            MsaError: If it has another shape or type, holds NaN or infinity, or the recogniser fails.
        """
        sound = np.asarray(waveform)
        if sound.ndim != 1 or not np.issubdtype(sound.dtype, np.floating):
            raise MsaError(
                f"A waveform to transcribe is float of shape (samples,), mono at {SAMPLING_RATE} Hz, and this is "
                f"{sound.dtype} of shape {sound.shape}."
            )
        sound = sound.astype(np.float32)
        if not np.isfinite(sound).all():
            raise MsaError("The waveform to transcribe holds NaN or infinity; decode the recording anew.")
        peak = float(np.abs(sound).max(initial=0.0))
        if peak <= _SILENT_PEAK:
            return Transcript(language=self.language)
        sound *= _PEAK / peak
        voices = _voices(sound)
        if not voices:
            return Transcript(language=self.language)
        try:
            found = self._transcribe(sound, voices)
        except (OSError, RuntimeError, ValueError) as error:
            raise MsaError(f"{self.name!r} cannot transcribe this recording: {reason(error)}.") from error
        seconds = len(sound) / SAMPLING_RATE
        return Transcript(found.text, tuple(_within(word, seconds) for word in found.words), found.language)

    @abstractmethod
    def _transcribe(self, sound: np.ndarray, voices: list[tuple[int, int]]) -> Transcript:
        """Transcribe a waveform in which somebody speaks.

        Args:
            sound: Float32 `(samples,)`.
            voices: First sample and the one behind the last of each stretch with a voice, in order.
        """


def load_transcriber(model: str, language: str | None = None) -> Transcriber:
    """Load a speech recogniser.

    Which library reads it follows from what lies there, in a folder or on the Hub: a `config.json` that names
    `architectures` is a model of transformers (Whisper, or one with a CTC head such as wav2vec 2.0: they have word times);
    a `model.bin` with a `tokenizer.json` is Whisper in the form of CTranslate2, for faster-whisper. A name without a slash
    is a size of faster-whisper: `"tiny.en"`, `"small"`, `"large-v3"`.

    Decoding is deterministic (temperature 0, no text carried over from one half minute to the next), and CTranslate2 runs on
    one thread of a CPU, so that a transcript does not depend on how many processes work; where there is a CUDA device, that
    is used. The Hub is asked for a model only where `model` is no folder; code from it is never run, and weights of
    transformers are read from safetensors.

    Args:
        model: Folder, size name, or Hub name (`"org/name"`).
        language: ISO 639-1 code of what is spoken (`"en"`, `"zh"`); by default the model finds out, for each recording.

    Raises:
        MsaError: If a package is absent (`pip install 'hf-msa[asr]'`), there is no such model, it is of neither form, has no
            word times, or does not know the language.
    """
    # Its detector of voices serves both.
    require_package("faster_whisper", EXTRA)
    folder = Path(model)
    try:
        if folder.is_dir():
            is_transformers = "architectures" in _read_config(folder / "config.json")
        else:
            is_transformers = _is_transformers_on_hub(model, folder)
        kind = PipelineTranscriber if is_transformers else WhisperTranscriber
        return kind(model, language)
    except MsaError:
        raise
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise MsaError(f"The speech recogniser {model!r} cannot be loaded: {reason(error)}.") from error


class WhisperTranscriber(Transcriber):
    """Whisper in the form of CTranslate2, by faster-whisper; see `load_transcriber`."""

    def __init__(self, name: str, language: str | None) -> None:
        super().__init__(name, language)
        import faster_whisper

        folder = Path(name) if Path(name).is_dir() else Path(faster_whisper.download_model(name))
        absent = [file for file in _CTRANSLATE2_FILES if not (folder / file).is_file()]
        if absent:
            # Without its tokenizer the library would fetch another model's.
            raise MsaError(
                f"{name!r} is no speech recogniser: it has no {absent[0]}, and its config.json names no architectures; give "
                "a Whisper model of CTranslate2 or a model of transformers."
            )
        self._model = faster_whisper.WhisperModel(str(folder), device="auto", cpu_threads=1, num_workers=1)
        _check_language(name, language, self._model.supported_languages)

    def _transcribe(self, sound: np.ndarray, voices: list[tuple[int, int]]) -> Transcript:
        segments, found = self._model.transcribe(
            sound,
            language=self.language,
            temperature=0.0,
            condition_on_previous_text=False,
            word_timestamps=True,
            vad_filter=True,
        )
        kept = [segment for segment in segments if not _is_loop(segment)]
        words = tuple(
            Word(word.word.strip(), float(word.start), float(word.end), float(word.probability))
            for segment in kept
            for word in segment.words
        )
        return Transcript("".join(segment.text for segment in kept).strip(), words, found.language)


class PipelineTranscriber(Transcriber):
    """A speech recogniser of transformers; see `load_transcriber`."""

    def __init__(self, name: str, language: str | None) -> None:
        super().__init__(name, language)
        from transformers import pipeline

        self._pipeline = pipeline(
            "automatic-speech-recognition",
            model=name,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        self._is_whisper = self._pipeline.type == "seq2seq_whisper"
        if not self._is_whisper and self._pipeline.type != "ctc":
            raise MsaError(
                f"{name!r} ({self._pipeline.model.config.model_type}) does not say when a word is spoken; give a Whisper "
                "model, or one with a CTC head."
            )
        extractor: Any = self._pipeline.feature_extractor
        rate = extractor.sampling_rate
        if rate != SAMPLING_RATE:
            raise MsaError(f"{name!r} hears {rate} Hz; give a model for {SAMPLING_RATE} Hz.")
        self._options: dict[str, Any] = {"return_timestamps": "word"}
        if self._is_whisper:
            settings = self._pipeline.model.generation_config
            is_multilingual = getattr(settings, "is_multilingual", False)
            codes = getattr(settings, "lang_to_id", {}) if is_multilingual else ["<|en|>"]
            _check_language(name, language, [code.strip("<|>") for code in codes])
            self._options["generate_kwargs"] = {"do_sample": False, "temperature": None}
            if is_multilingual:
                self._options["return_language"] = True
                spoken = {} if language is None else {"language": language}
                self._options["generate_kwargs"] |= {"task": "transcribe", **spoken}
            else:
                self.language = "en"
        else:
            # Its memory grows with the square of the length.
            self._options["chunk_length_s"] = _SECONDS_AT_ONCE

    def _transcribe(self, sound: np.ndarray, voices: list[tuple[int, int]]) -> Transcript:
        first, last = voices[0][0], voices[-1][1]
        found: Any = self._pipeline(sound[first:last], **self._options)
        words, language = [], self.language
        for chunk in found["chunks"]:
            start, end = chunk["timestamp"]
            text = chunk["text"].strip()
            if text:
                # The last word of a cut recording has no end.
                end = (last - first) / SAMPLING_RATE if end is None else end
                words.append(Word(text, start + first / SAMPLING_RATE, max(start, end) + first / SAMPLING_RATE))
            language = language or _language_code(chunk.get("language"))
        return Transcript(found["text"].strip(), tuple(words), language)


def _is_loop(segment: Any) -> bool:
    """Whether a segment of faster-whisper is a decoder that did not stop: it repeats itself, and most words take no time."""
    lasting = sum(word.end > word.start for word in segment.words)
    return bool(segment.compression_ratio > _MAX_COMPRESSION and 2 * lasting < len(segment.words))


def _voices(sound: np.ndarray) -> list[tuple[int, int]]:
    from faster_whisper.vad import get_speech_timestamps

    return [(int(part["start"]), int(part["end"])) for part in get_speech_timestamps(sound)]


def _within(word: Word, seconds: float) -> Word:
    """A word whose times lie within the recording: recognisers go by windows that may end behind it."""
    return Word(word.text, min(word.start, seconds), min(word.end, seconds), word.probability)


def _check_language(name: str, language: str | None, known: list[str]) -> None:
    if language is not None and language not in known:
        raise unknown_name(f"language of {name!r}", language, known)


def _language_code(name: str | None) -> str | None:
    """The code of a language that transformers gives by its English name."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return None if name is None else TO_LANGUAGE_CODE.get(name, name)


def _read_config(file: Path) -> Mapping[str, Any]:
    """The configuration of a model; an empty one where there is none."""
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("it is too long")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MsaError(f"{file} is no configuration of a model ({reason(error)}); fetch the model anew.") from error
    return found if isinstance(found, Mapping) else {}


def _is_transformers_on_hub(model: str, path: Path) -> bool:
    """Whether a model on the Hub is one of transformers; a size of faster-whisper is not.

    Raises:
        MsaError: If the name is that of a path, or no name that there is.
    """
    import faster_whisper
    from huggingface_hub import hf_hub_download

    sizes = faster_whisper.available_models()
    if model in sizes:
        return False
    if path.exists() or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or "\\" in model:
        raise MsaError(f"There is no folder {model!r}; give the folder of a speech recogniser, a size, or a Hub name.")
    if "/" not in model:
        raise unknown_name("speech recogniser", model, sizes)
    return "architectures" in _read_config(Path(hf_hub_download(model, "config.json")))
