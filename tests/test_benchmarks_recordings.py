"""The benchmark of recordings runs, and its numbers hang together."""

import json
from pathlib import Path

import pytest
from benchmarks import recordings

from made_recordings import save_listener, write_sound

pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
pytest.importorskip("librosa", reason="librosa is not installed: pip install 'hf-msa[audio]'")


def test_a_small_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_listener(tmp_path / "model")
    clip = write_sound(tmp_path / "a.wav", seconds=2.0)
    recordings.main(
        [str(clip), "--model", str(tmp_path / "model"), "--repeats", "2", "--output", str(tmp_path / "out")]
    )
    content = json.loads((tmp_path / "out" / "recordings.json").read_text())
    measured = content["clips"]["a.wav"]
    assert measured["seconds"] == 2.0 and {"prosody", "librosa33", "logmel"} <= measured["times_real_time"].keys()
    assert all(0 < one["low"] <= one["median"] <= one["high"] for one in measured["times_real_time"].values())
    assert content["prediction"].keys() == {"decode", "audio", "model"}
    text = (tmp_path / "out" / "recordings.md").read_text()
    assert text in capsys.readouterr().out and "| prosody |" in text
