"""The demo page: what it answers, and that the page itself says so."""

import hashlib
import os
import queue
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hf_msa import demo_page
from hf_msa.demo_page import (
    CURVE_RATES,
    DRAWS,
    EXAMPLE,
    answer,
    build_page,
    example_recording,
    export_space,
    plot_curve,
    serve,
)
from hf_msa.errors import MsaError
from hf_msa.models import msa_feature_sets
from hf_msa.models.msa_feature_sets import PICTURES, FeatureSet
from hf_msa.models.msa_pipeline import MsaPipeline
from hf_msa.pipelines import load_pipeline
from hf_msa_cli import main
from made_recordings import save_listener, write_sound, write_video

pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
pytest.importorskip("librosa", reason="librosa is not installed: pip install 'hf-msa[audio]'")

# Gradio's queue, where pandas is new; as an error it would stop the queue.
pytestmark = pytest.mark.filterwarnings("ignore:(.*no_silent_downcasting|The copy keyword):DeprecationWarning")


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

    def test_what_a_browser_records_is_seen_and_heard(self, seeing: MsaPipeline, tmp_path: Path) -> None:
        recorded = write_video(tmp_path / "sample.webm", seconds=1.0).read_bytes()
        found = answer(seeing, {"text": "great film", "video": recorded}, curve=False)
        assert found["present"] == {"text": True, "audio": True, "vision": True}
        assert found["score"] == pytest.approx(seeing({"text": "great film", "video": recorded})["score"], abs=1e-6)
        assert found["score"] != pytest.approx(seeing("great film")["score"], abs=1e-3)

    def test_the_curve_is_drawn(self, pipeline: MsaPipeline) -> None:
        pytest.importorskip("matplotlib")
        (axes,) = plot_curve(answer(pipeline, {"text": "good film"})).axes
        assert axes.get_ylim() == (-3, 3) and np.allclose(axes.lines[0].get_xdata(), CURVE_RATES)


def _files(folder: str | Path) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file()]


@pytest.fixture
def seeing(pipeline: MsaPipeline, monkeypatch: pytest.MonkeyPatch) -> MsaPipeline:
    """The model with a set that is made of pictures: how bright they are."""

    def brightness(pictures: Iterable[tuple[float, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        times, means = zip(*((time, picture.mean() / 255) for time, picture in pictures), strict=True)
        return np.tile(np.float32(means)[:, None], width), np.array(times)

    width = pipeline.model.config.vision_dim
    made = FeatureSet("grey", 1, "vision", ("brightness",) * width, PICTURES, rate=5, compute=brightness)
    monkeypatch.setitem(msa_feature_sets.FEATURE_SETS, "grey", made)
    monkeypatch.setattr(pipeline.processor.feature_extractor, "vision_set", made.id)
    return pipeline


@pytest.fixture
def page(seeing: MsaPipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The page as `hf-msa demo` serves it, with a limit of 1 MB."""
    gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hf-msa[demo]'")
    started: queue.Queue[Any] = queue.Queue()
    block = gradio.Blocks.block_thread
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: (started.put(page), block(page)))
    monkeypatch.setattr(demo_page, "_LARGEST_UPLOAD", "1mb")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "set by serve")
    thread = threading.Thread(target=serve, args=(seeing, "tiny"))
    thread.start()
    page = started.get(timeout=60)
    yield page
    page.close()
    thread.join()
    assert not Path(page.GRADIO_CACHE).exists()


class TestPage:
    def test_it_answers_and_keeps_nothing(self, page: Any, seeing: MsaPipeline, clip: str) -> None:
        client = pytest.importorskip("gradio_client")
        assert stat.S_IMODE(os.stat(page.GRADIO_CACHE).st_mode) == 0o700
        asked = client.Client(page.local_url, verbose=False)
        everything = ["text", "audio", "vision"]
        score, _, details, text = asked.predict(
            EXAMPLE, client.handle_file(clip), None, everything, 0, 0, 0, api_name="/score"
        )
        expected = answer(seeing, {"text": EXAMPLE, "audio": clip}, curve=False)
        assert score.startswith(f"## {expected['score']:+.2f}") and text == EXAMPLE
        assert details["score"] == pytest.approx(expected["score"], abs=1e-6) and details["present"]["audio"]
        # One session: what was uploaded outlives an error, and is on the disk no more.
        upload = client.handle_file(clip)
        (refused, *_), (again, *_) = (
            asked.predict(EXAMPLE, upload, None, on, 0, 0, 0, api_name="/score") for on in ([], ["audio"])
        )
        assert refused == "**Nothing is left to score; type a text, give a recording, or switch a modality on.**"
        assert again.startswith("## ")
        assert _files(page.GRADIO_CACHE) == []
        content = hashlib.sha256(Path(clip).read_bytes()).hexdigest()
        assert not (Path(page.GRADIO_CACHE) / content).exists()

    def test_an_upload_beyond_the_limit_is_refused(self, page: Any) -> None:
        httpx = pytest.importorskip("httpx")
        files = {"files": ("a.wav", b"RIFF" + bytes(1 << 20))}
        reply = httpx.post(f"{page.local_url}gradio_api/upload", files=files)
        assert reply.status_code == 413 and "exceeded maximum allowed size of 1048576 bytes." in reply.text
        assert _files(page.GRADIO_CACHE) == []

    @pytest.mark.parametrize("name", ["a.wav", "a.txt"])
    def test_what_is_no_recording_is_refused_in_one_sentence(self, page: Any, tmp_path: Path, name: str) -> None:
        client = pytest.importorskip("gradio_client")
        (tmp_path / name).write_text("great film")
        asked = client.Client(page.local_url, verbose=False)
        upload = client.handle_file(str(tmp_path / name))
        for given in ((upload, None), (None, upload)):
            said, curve, *_ = asked.predict(EXAMPLE, *given, ["text", "audio"], 0, 0, 0, api_name="/score")
            assert said.startswith("**The recording cannot be read as sound or video: ") and curve is None
            assert _files(page.GRADIO_CACHE) == []

    def test_a_file_that_was_not_uploaded_stays(self, page: Any, clip: str) -> None:
        httpx = pytest.importorskip("httpx")
        file = {"path": clip, "meta": {"_type": "gradio.FileData"}}
        call = f"{page.local_url}gradio_api/call/score"
        event = httpx.post(call, json={"data": [EXAMPLE, file, None, ["text", "audio"], 0, 0, 0]}).json()
        assert httpx.get(f"{call}/{event['event_id']}", timeout=60).text.startswith("event: error")
        assert Path(clip).exists()

    def test_of_a_modality_that_cannot_be_given_there_is_no_control(self, pipeline: MsaPipeline) -> None:
        pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hf-msa[demo]'")
        parts = [part["props"] for part in build_page(pipeline, "tiny").config["components"]]
        labels = [part["label"] for part in parts if str(part.get("label")).startswith("Missing share")]
        assert labels == ["Missing share of the text", "Missing share of the audio"]


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium with a camera and a microphone that are made up, and allowed to be used."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium on the PATH")
    options = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


class _Visit:
    """The page, opened; everything but its own address and its own words is a fault."""

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 900) -> None:
        self.width, self.faults = width, list[str]()
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        outside = re.compile(f"^(?!{re.escape(address)}|data:|blob:)")
        self.page.on("request", lambda sent: self.faults.append(sent.url) if outside.match(sent.url) else None)
        self.page.goto(address)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def uploading(self) -> Any:
        """Wait at the end of the block for what it uploads; the page shows a recording before the server has it."""
        return self.page.expect_response(lambda got: got.request.method == "POST" and "/upload" in got.url)

    def tab_to(self, role: str, name: str) -> None:
        wanted = self.page.get_by_role(role, name=name, exact=True)
        for _ in range(40):
            self.page.keyboard.press("Tab")
            if wanted.evaluate("element => element === document.activeElement"):
                return
        pytest.fail(f"The keyboard does not reach the {role} {name}.")

    def score(self, names: str) -> str:
        """Wait for an answer that was made from these."""
        self.page.get_by_text(f"from {names}.").wait_for(timeout=60_000)
        return str(self.page.get_by_role("heading", level=2).inner_text())


@pytest.mark.slow
class TestBrowser:
    def test_the_command_serves_screens_of_any_width_and_the_keyboard(
        self, browser: Any, tmp_path: Path, clip: str
    ) -> None:
        pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hf-msa[demo]'")
        (temporary := tmp_path / "temporary").mkdir()
        command = [sys.executable, "-m", "hf_msa_cli", "demo", save_listener(tmp_path / "model")]
        server = subprocess.Popen(
            command, env={**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)}, stdout=subprocess.PIPE
        )
        try:
            assert server.stdout is not None
            address = next(line for line in server.stdout if b"local URL" in line).decode().split()[-1]
            visits = [_Visit(browser, address, *size) for size in ((1280, 900), (390, 844))]
            for visit in visits:
                visit.press("Speak the example")
                visit.page.get_by_label("Play", exact=True).wait_for()
            for visit in visits:
                visit.press("Score")
            first, second = (visit.score("text, audio") for visit in visits)
            assert first == second and re.match(r"[+-]\d\.\d\d — ", first)
            for visit in visits:
                visit.press("Clear")
                with visit.uploading():
                    visit.page.locator("input[type=file]").set_input_files(clip)
                visit.page.get_by_label("Play", exact=True).wait_for()
                visit.page.get_by_label("Transcript").focus()
                visit.page.keyboard.type(" indeed")
                visit.tab_to("checkbox", "text")
                visit.page.keyboard.press("Space")
                visit.tab_to("button", "Score")
                visit.page.keyboard.press("Enter")
                visit.score("audio")
                assert _files(temporary) == [] and visit.faults == []
                assert visit.page.evaluate("document.documentElement.scrollWidth") <= visit.width
                visit.page.screenshot(path=tmp_path / f"{visit.width}.png", full_page=True)
        finally:
            server.kill()
            server.communicate()

    def test_the_microphone_reaches_the_score(self, browser: Any, page: Any) -> None:
        visit = _Visit(browser, page.local_url)
        visit.page.get_by_label("Record audio").click()
        visit.press("Record")
        visit.page.wait_for_timeout(1500)
        with visit.uploading():
            visit.press("Stop")
        visit.page.get_by_label("Play", exact=True).wait_for()
        visit.press("Score")
        visit.score("text, audio")
        assert _files(page.GRADIO_CACHE) == [] and visit.faults == []

    def test_the_webcam_reaches_the_score(self, browser: Any, page: Any) -> None:
        visit = _Visit(browser, page.local_url)
        visit.page.get_by_label("Capture from camera").click()
        visit.page.get_by_text("Click to Access Webcam").click()
        visit.page.wait_for_function("document.querySelector('video')?.videoWidth > 0")
        visit.press("start recording")
        visit.page.wait_for_timeout(3000)
        with visit.uploading():
            visit.press("start recording")  # Now it stops.
        visit.page.get_by_label("Clear").wait_for()
        visit.press("Score")
        visit.score("text, audio, vision")
        assert _files(page.GRADIO_CACHE) == [] and visit.faults == []

    def test_an_upload_beyond_the_limit_is_one_sentence(self, browser: Any, page: Any, tmp_path: Path) -> None:
        (tmp_path / "large.wav").write_bytes(b"RIFF" + bytes(1 << 20))
        visit = _Visit(browser, page.local_url)
        visit.page.locator("input[type=file]").first.set_input_files(tmp_path / "large.wav")
        visit.page.get_by_text('exceed the maximum allowed size of 1.0 Mb: "large.wav"').wait_for()
        assert _files(page.GRADIO_CACHE) == []


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
