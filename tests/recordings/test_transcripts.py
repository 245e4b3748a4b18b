import json
import os
import sys
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hf_msa.errors import MsaError
from hf_msa.recordings import transcripts
from hf_msa.recordings.transcripts import Transcript, Word, load_transcriber
from word_errors import word_error_rate

SPOKEN = Transcript("It was good.", (Word("It", 0.1, 0.3, 0.9), Word("was", 0.3, 0.5), Word("good.", 0.5, 1.0)), "en")


@pytest.mark.parametrize("transcript", [SPOKEN, Transcript(), Transcript("很好", (Word("很好", 0, 1),), "zh")])
def test_json_gives_the_transcript_back(transcript: Transcript) -> None:
    assert Transcript.from_json(transcript.to_json()) == transcript


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"text": 1, "words": [], "language": null}', "[" * 100_000]
    + [f'{{"text": "a", "language": null, "words": {words}}}' for words in ("3", "[3]", '[{"text": "a"}]')]
    + ['{"text": "a", "language": 3, "words": []}']
    + [
        f'{{"text": "a", "language": null, "words": [{{"text": "a", {word}}}]}}'
        for word in (
            '"start": 2, "end": 1',
            '"start": NaN, "end": 1',
            '"start": "0", "end": 1',
            '"start": 0, "end": Infinity',
        )
    ],
)
def test_what_is_no_transcript_is_refused(text: str) -> None:
    with pytest.raises(MsaError, match="not a transcript"):
        Transcript.from_json(text)


@pytest.mark.parametrize("arguments", [(-0.1, 1), (1, 0.5), (0, float("nan")), (0, 1, 1.5), (0, 1, float("nan"))])
def test_a_word_has_times_and_a_probability_that_can_be(arguments: tuple[float, ...]) -> None:
    with pytest.raises(MsaError, match="The word 'a'"):
        Word("a", *arguments)


class TestWordErrorRate:
    def test_hand_counted(self) -> None:
        assert word_error_rate("Anyhow, it was good!", "anyhow it WAS good") == 0
        # One other word, one left out, one added, of four.
        assert word_error_rate("it was really good", "it is really good") == 0.25
        assert word_error_rate("it was really good", "it was good") == 0.25
        assert word_error_rate("it was really good", "so it was really good") == 0.25
        assert word_error_rate("it was really good", "") == 1
        with pytest.raises(ValueError, match="nothing was said"):
            word_error_rate("", "a")


# --- A library that hears what the test says ---


@dataclass
class FakeLibrary:
    """What stands for faster-whisper: what it hears, and what it was asked."""

    segments: list[SimpleNamespace] = field(default_factory=list)
    voices: list[dict[str, int]] = field(default_factory=lambda: [{"start": 0, "end": 16_000}])
    loaded: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    sounds: list[np.ndarray] = field(default_factory=list)
    failure: Exception | None = None


def heard(*words: tuple[str, float, float, float], compression_ratio: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(
        text="".join(word[0] for word in words),
        words=[
            SimpleNamespace(word=text, start=np.float64(start), end=np.float64(end), probability=np.float64(sure))
            for text, start, end, sure in words
        ],
        compression_ratio=compression_ratio,
    )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeLibrary:
    fake = FakeLibrary()

    class WhisperModel:
        supported_languages = ["en", "zh"]

        def __init__(self, folder: str, **options: Any) -> None:
            fake.loaded.append((folder, options))

        def transcribe(self, sound: np.ndarray, **options: Any) -> tuple[Iterator[SimpleNamespace], SimpleNamespace]:
            fake.sounds.append(sound)
            fake.asked.append(options)
            if fake.failure is not None:
                raise fake.failure
            return iter(fake.segments), SimpleNamespace(language=options["language"] or "en")

    def download_model(name: str) -> str:
        return str(make_whisper(tmp_path / f"hub-{name.replace('/', '-')}"))

    def voices(sound: np.ndarray) -> list[dict[str, int]]:
        return fake.voices

    for name, content in {
        "faster_whisper": {
            "WhisperModel": WhisperModel,
            "download_model": download_model,
            "available_models": lambda: ["tiny.en", "small", "large-v3"],
        },
        "faster_whisper.vad": {"get_speech_timestamps": voices},
    }.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return fake


def make_whisper(folder: Path, without: str = "") -> Path:
    folder.mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        if name != without:
            (folder / name).write_text("{}")
    return folder


SOUND = np.sin(np.arange(16_000, dtype=np.float32))


def test_whisper_gives_text_and_words(library: FakeLibrary, tmp_path: Path) -> None:
    library.segments = [heard((" It", 0.1, 0.3, 0.9)), heard((" was", 0.3, 0.5, 0.8), (" good.", 0.5, 1.2, 1.0))]
    transcriber = load_transcriber(str(make_whisper(tmp_path / "model")))
    assert (transcriber.name, transcriber.language) == (str(tmp_path / "model"), None)
    # The recording ends at 1 s, and so does its last word.
    words = (Word("It", 0.1, 0.3, 0.9), Word("was", 0.3, 0.5, 0.8), Word("good.", 0.5, 1.0, 1.0))
    assert transcriber(SOUND) == Transcript("It was good.", words, "en")
    assert transcriber(SOUND).to_json()  # plain numbers


def test_decoding_is_deterministic(library: FakeLibrary, tmp_path: Path) -> None:
    load_transcriber(str(make_whisper(tmp_path / "model")), "zh")(SOUND)
    (_, options), asked = library.loaded[0], library.asked[0]
    assert options == {"device": "auto", "cpu_threads": 1, "num_workers": 1}
    assert (asked["temperature"], asked["condition_on_previous_text"], asked["vad_filter"]) == (0.0, False, True)
    assert asked["language"] == "zh"


@pytest.mark.parametrize("sound", [np.zeros(0), np.zeros(1), np.zeros(16_000), np.full(16_000, 3e-5)])
def test_silence_is_not_asked_about(library: FakeLibrary, tmp_path: Path, sound: np.ndarray) -> None:
    library.segments = [heard((" you", 0.0, 0.1, 0.9))]
    assert load_transcriber(str(make_whisper(tmp_path / "model")), "en")(sound) == Transcript(language="en")
    assert not library.asked


def test_sound_without_a_voice_is_not_asked_about(library: FakeLibrary, tmp_path: Path) -> None:
    library.segments, library.voices = [heard((" beep", 0.0, 0.1, 0.9))], []
    assert load_transcriber(str(make_whisper(tmp_path / "model")))(SOUND) == Transcript()
    assert not library.asked


def test_volume_makes_no_difference(library: FakeLibrary, tmp_path: Path) -> None:
    transcriber = load_transcriber(str(make_whisper(tmp_path / "model")))
    for volume in (1.0, 0.01, 0.5):
        transcriber((SOUND * np.float32(volume)).astype(np.float32))
    assert [float(np.abs(sound).max()) for sound in library.sounds] == pytest.approx([0.5] * 3)
    assert float(np.abs(SOUND).max()) == pytest.approx(1, rel=1e-4)  # the caller's array is as it was


def test_a_decoder_that_does_not_stop_is_left_out(library: FakeLibrary, tmp_path: Path) -> None:
    transcriber = load_transcriber(str(make_whisper(tmp_path / "model")))
    beeps = [(" beep", 0.1, 0.2, 1.0), (" beep", 0.2, 0.2, 1.0), (" beep", 0.2, 0.2, 1.0)]
    library.segments = [heard((" Good.", 0.0, 0.1, 0.9)), heard(*beeps, compression_ratio=9.0)]
    assert transcriber(SOUND).text == "Good."
    # Who repeats himself takes his time; and words may be short where nothing is repeated.
    library.segments = [heard((" no", 0.0, 0.1, 1.0), (" no", 0.1, 0.2, 1.0), compression_ratio=9.0)]
    assert transcriber(SOUND).text == "no no"
    library.segments = [heard(*beeps, compression_ratio=2.4)]
    assert transcriber(SOUND).text == "beep beep beep"


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros((2, 8), np.float32), r"mono at 16000 Hz, and this is float32 of shape \(2, 8\)"),
        (np.zeros(8, np.int16), "and this is int16"),
        (np.array([0.0, np.nan]), "NaN or infinity"),
        (np.array([0.0, np.inf]), "NaN or infinity"),
    ],
)
def test_what_is_no_waveform_is_refused(library: FakeLibrary, tmp_path: Path, sound: np.ndarray, message: str) -> None:
    with pytest.raises(MsaError, match=message):
        load_transcriber(str(make_whisper(tmp_path / "model")))(sound)


def test_a_recogniser_that_fails_is_one_sentence(library: FakeLibrary, tmp_path: Path) -> None:
    library.failure = RuntimeError("CUDA failed with error out of memory\nat line 3")
    with pytest.raises(MsaError, match="cannot transcribe this recording: CUDA failed with error out of memory.$"):
        load_transcriber(str(make_whisper(tmp_path / "model")))(SOUND)


class TestWhichLibrary:
    """It follows from what lies there."""

    @pytest.mark.parametrize("without", ["model.bin", "config.json", "tokenizer.json"])
    def test_a_folder_that_lacks_a_file(self, library: FakeLibrary, tmp_path: Path, without: str) -> None:
        with pytest.raises(MsaError, match=f"it has no {without}, and its config.json names no architectures"):
            load_transcriber(str(make_whisper(tmp_path / "model", without)))
        assert not library.loaded

    @pytest.mark.parametrize("config", ["{", "[" * 100_000, '{"a": "' + "a" * 2_000_000 + '"}'])
    def test_a_damaged_configuration(self, library: FakeLibrary, tmp_path: Path, config: str) -> None:
        (make_whisper(tmp_path / "model") / "config.json").write_text(config)
        with pytest.raises(MsaError, match="is no configuration of a model"):
            load_transcriber(str(tmp_path / "model"))

    def test_a_size(self, library: FakeLibrary) -> None:
        load_transcriber("tiny.en")
        assert library.loaded[0][0].endswith("hub-tiny.en")

    @pytest.mark.parametrize("name", ["tiny.fr", "model"])
    def test_no_size(self, library: FakeLibrary, name: str) -> None:
        with pytest.raises(MsaError, match=f"Unknown speech recogniser {name!r}.*tiny.en"):
            load_transcriber(name)

    @pytest.mark.parametrize("name", ["./model", "/nowhere/model", "a/b/c", "~/model", "a\\b"])
    def test_a_path_is_never_looked_for_on_the_hub(self, library: FakeLibrary, name: str) -> None:
        with pytest.raises(MsaError, match="There is no folder"):
            load_transcriber(name)

    @pytest.mark.parametrize(("config", "kind"), [("{}", "Whisper"), ('{"architectures": ["X"]}', "Pipeline")])
    def test_a_name_on_the_hub(
        self, library: FakeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, kind: str
    ) -> None:
        (tmp_path / "config.json").write_text(config)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(tmp_path / file))
        made = SimpleNamespace(name="PipelineTranscriber")
        monkeypatch.setattr(transcripts, "PipelineTranscriber", lambda name, language: made)
        found = load_transcriber("org/model")
        assert (found is made) == (kind == "Pipeline")
        assert bool(library.loaded) == (kind == "Whisper")

    def test_offline_is_one_sentence(self, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub.errors import OfflineModeIsEnabled

        def refuse(name: str, file: str) -> str:
            raise OfflineModeIsEnabled("Cannot reach it: offline mode is enabled.")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
        with pytest.raises(MsaError, match="recogniser 'org/model' cannot be loaded: the Hub cannot be used offline"):
            load_transcriber("org/model")

    def test_a_language_that_it_does_not_know(self, library: FakeLibrary, tmp_path: Path) -> None:
        with pytest.raises(MsaError, match="Unknown language of .*model' 'xx'. Known: en, zh."):
            load_transcriber(str(make_whisper(tmp_path / "model")), "xx")

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MsaError, match=r"pip install 'hf-msa\[asr\]'"):
            load_transcriber(str(make_whisper(tmp_path / "model")))


# --- transformers ---


@pytest.fixture
def make_pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[str, list[Any]]]:
    """A folder of a transformers model, whose pipeline hears what the test says and writes down what it was asked."""

    def make(heard: dict[str, Any], kind: str = "seq2seq_whisper", rate: int = 16_000) -> tuple[str, list[Any]]:
        asked: list[Any] = []

        class Pipeline:
            type = kind
            feature_extractor = SimpleNamespace(sampling_rate=rate)
            model = SimpleNamespace(
                config=SimpleNamespace(model_type="whisper"),
                generation_config=SimpleNamespace(is_multilingual=True, lang_to_id={"<|en|>": 1, "<|zh|>": 2}),
            )

            def __call__(self, sound: np.ndarray, **options: Any) -> dict[str, Any]:
                asked.append((sound, options))
                return heard

        def pipeline(task: str, **options: Any) -> Pipeline:
            asked.append((task, options))
            return Pipeline()

        monkeypatch.setattr("transformers.pipeline", pipeline)
        (tmp_path / "config.json").write_text('{"architectures": ["X"]}')
        return str(tmp_path), asked

    return make


def test_a_pipeline_hears_from_the_first_voice_to_the_last(library: FakeLibrary, make_pipeline: Any) -> None:
    library.voices = [{"start": 16_000, "end": 24_000}, {"start": 40_000, "end": 48_000}]
    name, asked = make_pipeline(
        {
            "text": " Very good.",
            "chunks": [
                {"text": " Very", "timestamp": (0.25, 0.5), "language": "english"},
                {"text": " ", "timestamp": (0.5, 0.6), "language": "english"},
                {"text": " good.", "timestamp": (0.75, None), "language": "english"},
            ],
        }
    )
    transcriber = load_transcriber(name)
    sound = np.sin(np.arange(64_000, dtype=np.float32))
    # It hears the part that begins at 1 s and ends at 3 s, where the last word, which has no end, ends.
    assert transcriber(sound) == Transcript("Very good.", (Word("Very", 1.25, 1.5), Word("good.", 1.75, 3.0)), "en")
    (task, loading), (part, options) = asked
    assert (task, loading["trust_remote_code"]) == ("automatic-speech-recognition", False)
    assert loading["model_kwargs"] == {"use_safetensors": True}
    assert len(part) == 32_000 and "chunk_length_s" not in options
    assert options["generate_kwargs"] == {"do_sample": False, "temperature": None, "task": "transcribe"}


def test_a_pipeline_is_told_the_language(library: FakeLibrary, make_pipeline: Any) -> None:
    name, asked = make_pipeline({"text": "", "chunks": []})
    assert load_transcriber(name, "zh")(SOUND) == Transcript(language="zh")
    assert asked[1][1]["generate_kwargs"]["language"] == "zh"
    with pytest.raises(MsaError, match="'fr'. Known: en, zh"):
        load_transcriber(name, "fr")


def test_a_pipeline_must_tell_the_time(library: FakeLibrary, make_pipeline: Any) -> None:
    with pytest.raises(MsaError, match="does not say when a word is spoken"):
        load_transcriber(make_pipeline({}, kind="seq2seq")[0])
    with pytest.raises(MsaError, match="hears 8000 Hz"):
        load_transcriber(make_pipeline({}, rate=8000)[0])


def test_a_real_ctc_model_of_transformers(library: FakeLibrary, tmp_path: Path) -> None:
    folder = make_ctc_model(tmp_path / "ctc")
    library.voices = [{"start": 8000, "end": 24_000}]
    transcriber = load_transcriber(str(folder), "en")
    sound = np.random.default_rng(0).normal(size=40_000).astype(np.float32)
    found = transcriber(sound)
    assert found == transcriber(sound)
    assert found.words and "".join(word.text for word in found.words) == found.text.replace(" ", "")
    assert all(0.5 <= word.start <= word.end <= 1.5 and word.probability is None for word in found.words)
    assert found.language == "en"


def make_ctc_model(folder: Path) -> Path:
    """A wav2vec 2.0 of chance, which hears two letters and spaces."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4}))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), bos_token=None, eos_token=None).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=5,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(8, 8),
        conv_kernel=(10, 4),
        conv_stride=(160, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    model = Wav2Vec2ForCTC(config)
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(folder)
    return folder


# --- The real one ---


@pytest.fixture(scope="module")
def whisper() -> transcripts.Transcriber:
    """Whisper tiny.en in the form of CTranslate2, from the folder that HF_MSA_WHISPER names."""
    folder = os.environ.get("HF_MSA_WHISPER")
    if not folder:
        pytest.skip("HF_MSA_WHISPER is not set: it names a folder with an English Whisper model of CTranslate2")
    pytest.importorskip("faster_whisper", reason="pip install 'hf-msa[asr]'")
    return load_transcriber(folder)


def read_wave(file: Path) -> np.ndarray:
    with wave.open(str(file)) as recording:
        assert (recording.getframerate(), recording.getsampwidth()) == (16_000, 2)
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2")
        channels = recording.getnchannels()
    return (samples.reshape(-1, channels).mean(axis=1) / 32_768).astype(np.float32)


RECORDINGS = {
    "mosi_03bSnISJMiM_1_stereo.wav": "Anyhow it was really good",
    "arctic_a0007.wav": "And you always want to see it in the superlative degree",
}


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("volume", [1.0, 0.01])
def test_real_speech_without_an_error(
    whisper: transcripts.Transcriber, real_data: Path, name: str, volume: float
) -> None:
    sound = read_wave(real_data / "media" / name)
    found = whisper(sound * np.float32(volume))
    assert word_error_rate(RECORDINGS[name], found.text) == 0
    assert [word.text for word in found.words] == found.text.split()
    assert 0 <= found.words[0].start < found.words[-1].end <= len(sound) / 16_000
    assert found.language == "en"


def test_real_speech_in_silence_keeps_its_times(whisper: transcripts.Transcriber, real_data: Path) -> None:
    sound = read_wave(real_data / "media" / "arctic_a0007.wav")
    silence = np.zeros(80_000, np.float32)
    found, plain = whisper(np.concatenate([silence, sound, silence])), whisper(sound)
    assert found.text.lower() == plain.text.lower()
    # All but the first word, whose start is lost in the silence before it.
    for later, word in zip(found.words[1:], plain.words[1:], strict=True):
        assert later.start == pytest.approx(word.start + 5, abs=0.2)


@pytest.mark.parametrize("name", ["zeros", "faint noise", "noise", "tone", "clicks"])
def test_real_sound_without_speech_has_no_words(whisper: transcripts.Transcriber, name: str) -> None:
    noise = np.random.default_rng(0).normal(size=48_000)
    sounds = {
        "zeros": np.zeros(48_000),
        "faint noise": 0.001 * noise,
        "noise": 0.3 * noise,
        "tone": 0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 16_000),
        "clicks": (np.arange(48_000) % 8000 == 0).astype(float),
    }
    assert whisper(sounds[name]) == Transcript()


def test_real_transcripts_are_the_same_every_time(whisper: transcripts.Transcriber, real_data: Path) -> None:
    sound = read_wave(real_data / "media" / "arctic_a0007.wav")
    first = whisper(sound)
    whisper(sound[:20_000])
    assert whisper(sound) == first
