"""The demo page: what it answers, and that the page itself says so."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hf_msa.demo_page import (
    CURVE_RATES,
    DRAWS,
    EXAMPLE,
    answer,
    build_page,
    example_recording,
    export_space,
    plot_curve,
)
from hf_msa.errors import MsaError
from hf_msa.models.msa_pipeline import MsaPipeline
from hf_msa.pipelines import load_pipeline
from hf_msa_cli import main
from made_recordings import save_listener, write_sound

pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
pytest.importorskip("librosa", reason="librosa is not installed: pip install 'hf-msa[audio]'")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> MsaPipeline:
    return load_pipeline(save_listener(tmp_path_factory.mktemp("model")))


@pytest.fixture
def clip(tmp_path: Path) -> str:
    return str(write_sound(tmp_path / "a.wav", seconds=0.5))


class TestAnswer:
    def test_with_nothing_taken_away_it_is_the_pipeline_s(self, pipeline: MsaPipeline, clip: str) -> None:
        given = {"text": "great film", "audio": clip}
        found = answer(pipeline, given)
        assert found["score"] == pipeline(given)["score"] and found["interval"] == [found["score"]] * 2
        rates, means, low, high = zip(*found["curve"], strict=True)
        assert rates == CURVE_RATES and means[0] == pytest.approx(found["score"], abs=1e-5)
        assert all(a <= mean + 1e-9 and mean <= b + 1e-9 for a, mean, b in zip(low, means, high, strict=True))
        assert high[5] > low[5], "draws differ"

    def test_a_modality_that_is_off_was_never_recorded(self, pipeline: MsaPipeline, clip: str) -> None:
        found = answer(pipeline, {"text": "great film", "audio": clip}, off=["audio"], curve=False)
        assert found["score"] == pytest.approx(pipeline({"text": "great film"})["score"], abs=1e-6)
        assert not found["present"]["audio"] and "curve" not in found
        silent = answer(pipeline, {"text": "great film", "audio": clip}, off=["text"], curve=False)
        assert silent["score"] == pytest.approx(pipeline({"audio": clip})["score"], abs=1e-6)

    def test_the_same_input_gives_the_same_answer(self, pipeline: MsaPipeline, clip: str) -> None:
        asked: dict[str, Any] = {"rates": {"text": 0.5, "audio": 0.3}, "curve": False}
        given = {"text": "great film good bad", "audio": clip}
        found = answer(pipeline, given, **asked)
        assert found == answer(pipeline, given, **asked)
        low, high = found["interval"]
        assert low < found["score"] < high and found["score"] != answer(pipeline, given, curve=False)["score"]

    @pytest.mark.parametrize(
        ("given", "asked", "message"),
        [
            ({"text": "good"}, {"off": ["text"]}, "Nothing is left to score"),
            ({"text": None}, {}, "Nothing is left to score"),
            ({"text": "good"}, {"rates": {"text": 1.5}}, "1.5"),
            ({"audio": "none.wav"}, {}, "none.wav"),
        ],
    )
    def test_what_cannot_be_is_one_sentence(self, pipeline: MsaPipeline, given: Any, asked: Any, message: str) -> None:
        with pytest.raises(MsaError, match=message):
            answer(pipeline, given, **asked)

    def test_the_curve_is_drawn(self, pipeline: MsaPipeline) -> None:
        pytest.importorskip("matplotlib")
        (axes,) = plot_curve(answer(pipeline, {"text": "good film"})).axes
        assert axes.get_ylim() == (-3, 3) and np.allclose(axes.lines[0].get_xdata(), CURVE_RATES)


class TestPage:
    def test_it_answers_and_keeps_nothing(self, pipeline: MsaPipeline, clip: str) -> None:
        pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hf-msa[demo]'")
        client = pytest.importorskip("gradio_client")
        page = build_page(pipeline, "tiny")
        _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
        try:
            asked = client.Client(address, verbose=False)
            score, _, details, text = asked.predict(
                EXAMPLE, client.handle_file(clip), None, ["text", "audio", "vision"], 0, 0, 0, api_name="/score"
            )
            expected = answer(pipeline, {"text": EXAMPLE, "audio": clip}, curve=False)
            assert score.startswith(f"## {expected['score']:+.2f}") and text == EXAMPLE
            assert details["score"] == pytest.approx(expected["score"], abs=1e-6) and details["present"]["audio"]
            # One session: what was uploaded outlives an error, and is on the disk no more.
            upload = client.handle_file(clip)
            (refused, *_), (again, *_) = (
                asked.predict(EXAMPLE, upload, None, on, 0, 0, 0, api_name="/score") for on in ([], ["audio"])
            )
            assert refused == "**Nothing is left to score; type a text, give a recording, or switch a modality on.**"
            assert again.startswith("## ")
            left = [name for _, _, names in os.walk(page.GRADIO_CACHE) for name in names if name.endswith(".wav")]
            assert left == []
        finally:
            page.close()


class TestSpace:
    def test_it_names_the_model_and_holds_no_weights(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demo", "org/tcmr-mosi", "--export", str(tmp_path / "space"), "--transcribe", "tiny.en"]) == 0
        files = {path.name: path.read_text() for path in (tmp_path / "space").iterdir()}
        assert files.keys() == {"app.py", "requirements.txt", "README.md"}
        compile(files["app.py"], "app.py", "exec")
        assert "load_pipeline('org/tcmr-mosi', transcribe='tiny.en')" in files["app.py"]
        card = yaml.safe_load(files["README.md"].split("---")[1])
        assert (card["title"], card["sdk"], card["models"]) == ("tcmr-mosi", "gradio", ["org/tcmr-mosi"])
        assert "asr" in files["requirements.txt"]

    def test_a_name_is_no_number_and_no_option_is_dropped(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        export_space("org/123", tmp_path / "space")
        assert yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---")[1])["title"] == "123"
        for option in (["--port", "1"], ["--face-model", "x"]):
            assert main(["demo", "org/model", "--export", str(tmp_path / "other"), *option]) == 2
            assert f"{option[0]} is for the page on this machine" in capsys.readouterr().err

    @pytest.mark.parametrize(("model", "message"), [("tcmr", "no name there"), ("a/b/c", "no name there")])
    def test_a_model_that_is_not_on_the_hub_is_refused(self, tmp_path: Path, model: str, message: str) -> None:
        with pytest.raises(MsaError, match=message):
            export_space(model, tmp_path / "space")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").touch()
        with pytest.raises(MsaError, match="is not empty"):
            export_space("org/model", tmp_path / "full")


def test_the_example_can_be_heard(pipeline: MsaPipeline) -> None:
    rate, samples = example_recording()
    assert rate == 16_000 and samples.dtype == np.int16 and len(samples) > rate
    found = answer(pipeline, {"audio": {"array": samples, "sampling_rate": rate}}, curve=False)
    assert found["present"]["audio"] and 5 <= DRAWS <= 20
