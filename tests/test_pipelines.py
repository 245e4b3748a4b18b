"""One utterance in, a score out: what is read from files, what the predictor returns, what it refuses."""

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import pipeline

import hf_msa
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.models.feature_extraction_msa import MsaFeatureExtractor
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis
from hf_msa.models.msa_feature_sets import FeatureSet
from hf_msa.models.msa_openface import OPENFACE_AU_COLUMNS
from hf_msa.models.msa_pipeline import MsaPipeline
from hf_msa.pipelines import load_pipeline, read_features, read_utterance
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import prepare_run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained TCMR, saved as a run of one seed."""
    folder = tmp_path_factory.mktemp("pipelines")
    corpus = write_sample_corpus(folder / "corpus", preset="tiny", seed=7, version=1)
    context = prepare_run(load_recipe("tcmr/sample"), str(corpus), folder / "run" / "seed-1", 1, {"use_cpu": True})
    context.new_model(TcmrForSentimentAnalysis).save_pretrained(context.folder)
    context.processor.save_pretrained(context.folder)
    return context.folder


@pytest.fixture(scope="module")
def predict(checkpoint: Path) -> MsaPipeline:
    return load_pipeline(str(checkpoint))


def utterances(texts: list[str | None], **given: list[Any]) -> list[dict[str, Any]]:
    return [
        {"text": text, **{name: values[index] for name, values in given.items()}} for index, text in enumerate(texts)
    ]


def features(predict: MsaPipeline, frames: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    config, generator = predict.model.config, np.random.default_rng(seed)
    widths = {"audio": config.audio_dim, "vision": config.vision_dim}
    return {name: generator.normal(size=(frames, width)).astype(np.float32) for name, width in widths.items()}


# --- Files ---


def test_an_array_is_read_as_float32_with_its_gaps_at_zero(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.0, np.nan], [np.inf, -np.inf]]))
    values = read_features(tmp_path / "a.npy")
    assert values.dtype == np.float32 and values.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    for frames in ([[1, 2]], [1, 2]):
        np.save(tmp_path / "b.npy", np.array(frames, dtype=np.int16))
        assert read_features(tmp_path / "b.npy").tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("pitch,energy\n1,2\n", [[1, 2]]),
        ("\ufeff1,2\n", [[1, 2]]),
        ("1\n2\n", [[1], [2]]),
        ("nan,2\n", [[0, 2]]),
        ("frame; timestamp; AU01_r; AU02_r\n1; 0.04; 0.5; 1.5\n2; 0.08; 0.25; 0\n", [[0.5, 1.5], [0.25, 0]]),
        ("name,frameTime,F0\n'clip',0.0,120\n'clip',0.01,121\n", [[120], [121]]),
    ],
)
def test_a_table_is_read_with_or_without_a_header(tmp_path: Path, text: str, values: list[list[float]]) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert read_features(tmp_path / "a.csv").tolist() == values


def test_a_table_without_a_face_is_a_missing_modality(tmp_path):
    (tmp_path / "a.csv").write_text("frame, success, AU01_r\n1, 0, 0\n")
    assert read_features(tmp_path / "a.csv") is None


class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("hostile-ran"),))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npy", None, "No such file"),
        ("a.txt", "1,2", r"give a \.npy, \.csv or \.mat"),
        ("a.npy", np.zeros((3, 0)), r"of shape \(3, 0\); a feature sequence is"),
        ("a.npy", np.array([["x"]]), "table of numbers"),
        ("a.npy", np.zeros((2, 2), dtype=np.complex64), "table of numbers"),
        ("a.npy", np.array([[Hostile()]], dtype=object), "cannot be read as a feature sequence"),
        ("a.npy", "no array", "cannot be read as a feature sequence"),
        ("a.csv", "1,x\n2,3\n4,y\n", "1, x, has both numbers and words"),
        ("a.csv", "1,2\n3\n", "cannot be read as a feature sequence"),
        ("a.csv", "pitch,energy\n", "it has no frames"),
        ("a.csv", "", "it has no frames"),
        ("a.csv", "pitch,energy\n1\n", "its header has 2 cells, but row 2 1"),
    ],
)
def test_a_file_that_holds_no_features_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    elif content is not None:
        np.save(tmp_path / name, content, allow_pickle=True)
    with pytest.raises(MsaError, match=words) as error:
        read_features(tmp_path / name)
    assert "\n" not in str(error.value) and not (tmp_path / "hostile-ran").exists()


def test_of_a_table_the_columns_of_the_checkpoint_s_set_are_taken(predict: MsaPipeline, tmp_path: Path) -> None:
    values = np.arange(72, dtype=np.float32).reshape(2, 36)
    names = ("gaze_0_x", *OPENFACE_AU_COLUMNS)
    table = "\n".join([", ".join(names), *(", ".join(map(str, row)) for row in values.tolist())])
    (tmp_path / "a.csv").write_text(table)
    extractor = MsaFeatureExtractor(vision_dim=35, vision_set="openface35@1")
    read = read_utterance(extractor, vision=str(tmp_path / "a.csv"))
    assert np.array_equal(read["vision"], values[:, 1:])
    (tmp_path / "a.csv").write_text("gaze_0_x,b\n1,2\n")
    with pytest.raises(MsaError, match="AU01_r"):
        read_utterance(extractor, vision=str(tmp_path / "a.csv"))


# --- The predictor ---


@torch.inference_mode()
def test_the_score_is_the_model_s(predict: MsaPipeline) -> None:
    given = features(predict)
    texts = ["a wonderful film", "the worst of all films"]
    found = predict(utterances([*texts], audio=[given["audio"], None], vision=[None, given["vision"]]), batch_size=2)
    inputs = predict.processor(texts, audio=[given["audio"], None], vision=[None, given["vision"]])
    outputs = predict.model(**inputs)
    assert [one["score"] for one in found] == pytest.approx(outputs.logits.reshape(-1).tolist())
    assert [one["confidence"] for one in found] == pytest.approx(outputs.confidence.reshape(-1).tolist())
    for one in found:
        sign = "positive" if one["score"] > 0 else "negative" if one["score"] < 0 else "neutral"
        assert one["polarity"] == sign and one["range"] == [-3.0, 3.0]


def test_zero_is_neutral(predict: MsaPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {name: torch.zeros_like(value) for name, value in predict.model.regressor.state_dict().items()}
    before = {name: value.clone() for name, value in predict.model.regressor.state_dict().items()}
    predict.model.regressor.load_state_dict(weights)
    try:
        assert predict(["a film"])[0]["polarity"] == "neutral"
    finally:
        predict.model.regressor.load_state_dict(before)


def test_what_is_left_out_counts_as_missing(predict: MsaPipeline) -> None:
    left_out = predict(["a wonderful film"])[0]["score"]
    assert left_out == predict({"text": "a wonderful film", "audio": None, "vision": None})["score"]
    heard = predict({"text": "a wonderful film", "audio": features(predict)["audio"]})
    assert left_out != heard["score"] and heard["present"] == {"text": True, "audio": True, "vision": False}
    assert heard["share"] == {"text": 1.0, "audio": 1.0, "vision": 0.0}
    assert math.isfinite(predict([""])[0]["score"])


def test_what_is_too_long_or_without_a_face_was_seen_in_part(
    predict: MsaPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = predict.processor.feature_extractor.audio_max_length
    found = predict({"text": "good " * 500, "audio": np.ones((4 * longest, 5), dtype=np.float32)})
    # [CLS] and [SEP] are two of the tokens.
    assert found["share"]["text"] == predict.processor.text_max_length / 502
    assert found["share"]["audio"] == 0.25

    def drop_every_second(pictures: Any, **_: Any) -> Any:
        times = [time for index, (time, _) in enumerate(pictures) if index % 2]
        return np.ones((len(times), 20), dtype=np.float32), np.array(times)

    made = FeatureSet(
        "halved", 1, "vision", tuple("abcdefghijklmnopqrst"), "pictures", rate=10, compute=drop_every_second
    )
    monkeypatch.setattr("hf_msa.models.msa_feature_sets.FEATURE_SETS", {"halved": made})
    monkeypatch.setattr(predict.processor.feature_extractor, "vision_set", "halved@1")
    seen = predict({"video": np.zeros((6, 8, 8, 3), dtype=np.uint8), "frames_per_second": 10})
    assert seen["share"] == {"text": 0.0, "audio": 0.0, "vision": 0.5}


def test_a_single_text_is_one_utterance(predict: MsaPipeline) -> None:
    assert [predict("great film")] == predict(["great film"]) == list(predict(iter([{"text": "great film"}])))


def test_features_with_gaps_are_read_as_preparation_reads_them(predict: MsaPipeline) -> None:
    gaps, zeros = np.ones((4, 5), dtype=np.float32), np.ones((4, 5), dtype=np.float32)
    gaps[0], zeros[0] = [np.nan, np.inf, -np.inf, 1, 1], [0, 0, 0, 1, 1]
    assert predict({"text": "great film", "audio": gaps}) == predict({"text": "great film", "audio": zeros})


def test_neighbours_do_not_matter(predict: MsaPipeline) -> None:
    short, long = features(predict, 3), features(predict, 40, seed=1)
    rows = [{"text": "a film", **short}, {"text": "a much longer text about a film " * 3, **long}]
    alone = predict(rows[0])["score"]
    batch = predict(rows, batch_size=2)
    assert batch[0]["score"] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (np.zeros((4, 99), np.float32), r"\(4, 99\), but this checkpoint reads \(frames, 5\)"),
        (np.zeros(99, np.float32), "pass sampling_rate"),
        ("a.wav", "Nothing says how the 5 audio features of this checkpoint were made"),
        ("https://example.org/a.wav", "is an address, which is not fetched"),
    ],
)
def test_features_that_do_not_fit_are_one_sentence(predict: MsaPipeline, audio: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        predict({"text": "a film", "audio": audio})


@pytest.mark.parametrize(
    ("utterance", "words"),
    [
        ({"texts": "x"}, "An utterance has 'texts'; give text, audio"),
        ({}, "An utterance has nothing"),
        ({"id": 1}, "'id'"),
    ],
)
def test_what_is_no_utterance_is_refused(predict: MsaPipeline, utterance: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        predict(utterance)
    with pytest.raises(TypeError, match="takes no argument 'top_k'; it takes batch_size, transcriber"):
        predict("good", top_k=2)


def test_a_generator_is_read_as_its_results_are_taken(predict: MsaPipeline) -> None:
    taken = []

    def texts() -> Any:
        for number in range(5):
            taken.append(number)
            yield f"film {number}"

    scores = predict(texts(), batch_size=2)
    assert next(scores)["score"] and taken == [0, 1]
    assert len(list(scores)) == 4


def test_threads_may_share_it(predict: MsaPipeline) -> None:
    texts = [f"film {number} was good" for number in range(12)]
    expected = predict(texts)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(predict, texts)) == expected


def test_the_library_finds_it_by_its_task(predict: MsaPipeline, checkpoint: Path) -> None:
    found = pipeline("multimodal-sentiment-analysis", model=str(checkpoint), device="cpu")
    assert type(found) is MsaPipeline and found("a film") == predict("a film")


def test_files_give_the_same_score(predict: MsaPipeline, checkpoint: Path, tmp_path: Path) -> None:
    given = features(predict)
    np.save(tmp_path / "audio.npy", given["audio"])
    np.savetxt(tmp_path / "vision.csv", given["vision"], delimiter=",")
    files = {"audio": str(tmp_path / "audio.npy"), "vision": str(tmp_path / "vision.csv")}
    found = hf_msa.predict(checkpoint, text="a film", **files)
    expected = predict({"text": "a film", **given})
    assert found["score"] == pytest.approx(expected["score"], abs=1e-6)


def test_a_folder_of_one_seed_is_that_seed_and_of_several_asks_for_one(checkpoint: Path, tmp_path: Path) -> None:
    assert hf_msa.predict(checkpoint.parent, text="a film") == hf_msa.predict(checkpoint, text="a film")
    for seed in (1, 2):
        shutil.copytree(checkpoint, tmp_path / f"seed-{seed}")
    with pytest.raises(MsaError, match="several training seeds; give one of them, e.g. '.*seed-1'"):
        load_pipeline(str(tmp_path))


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MsaError, match="no finished checkpoint"):
        load_pipeline(str(tmp_path))
    with pytest.raises(MsaError, match="No checkpoint can be loaded from"):
        load_pipeline(str(tmp_path / "nothing"))


# --- The rows ---


def test_a_method_that_reads_rows_gets_them(predict: MsaPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    forward = predict.model.predict_rows

    def read(inputs: Any, rows: list[dict[str, Any]], processor: Any) -> Any:
        seen.extend(rows)
        assert processor is predict.processor
        out = forward(inputs, rows, processor)
        out["asked"] = torch.tensor([[math.nan], [1.0]])
        return out

    monkeypatch.setattr(predict.model, "predict_rows", read)
    given, sound = features(predict), np.zeros(16, dtype=np.float32)
    monkeypatch.setattr(type(predict.model.config), "asks_language_model", True)
    scored = predict(utterances(["one", "two"], audio=[None, given["audio"]], waveform=[sound, None]), batch_size=2)
    assert [(row["text"], row["audio"] is None, row["waveform"] is None) for row in seen] == [
        ("one", True, False),
        ("two", False, True),
    ]
    assert seen[0]["vision"] is None
    assert [row["asked"] for row in scored] == [None, 1.0]


@pytest.mark.parametrize("error", [ValueError, ImportError, ConnectionError])
def test_what_a_method_cannot_have_is_said(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(*_: object) -> None:
        raise error("There is no expert; give one.")

    monkeypatch.setattr(TcmrForSentimentAnalysis, "predict_rows", refuse)
    with pytest.raises(MsaError, match="There is no expert; give one"):
        hf_msa.predict(checkpoint, text="one")
