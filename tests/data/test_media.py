"""Sound and pictures of clips: what is found where, what comes out of a file, and what is refused."""

import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_msa.data.media import MediaFolder
from hf_msa.errors import MsaError
from hf_msa.models.msa_recordings import read_frames, read_sound
from made_recordings import write_sound, write_video

ROW = {"id": "v$_$1", "video_id": "v", "clip_id": "1"}


class TestFolder:
    def test_without_pyav_the_extra_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "v").mkdir()
        (tmp_path / "v" / "1.mp4").write_bytes(b"not opened")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "av" else object())
        monkeypatch.setitem(sys.modules, "av", None)
        for call in (lambda: MediaFolder(tmp_path).load(ROW), lambda: MediaFolder(tmp_path).check([ROW], "test")):
            with pytest.raises(MsaError, match=re.escape("pip install 'hf-msa[video]'")):
                call()

    @pytest.mark.parametrize("name", ["v/1.wav", "v$_$1.wav", "v/1.flac"])
    @pytest.mark.parametrize("row", [ROW, {"id": "v$_$1"}])
    def test_both_ways_to_name_a_file(self, tmp_path: Path, name: str, row: dict[str, Any]) -> None:
        write_sound(tmp_path / name)
        assert list(MediaFolder(tmp_path).load(row)) == ["waveform"]

    def test_data_without_clips_in_videos(self, tmp_path: Path) -> None:
        write_sound(tmp_path / "talk.wav")
        assert list(MediaFolder(tmp_path).load({"id": "talk", "video_id": "talk", "clip_id": ""})) == ["waveform"]

    def test_sound_of_its_own_goes_before_that_of_the_video(self, tmp_path: Path) -> None:
        write_video(tmp_path / "v" / "1.mp4", sound=(0.5,))
        write_sound(tmp_path / "v" / "1.wav", channels=(0.25,))
        found = MediaFolder(tmp_path).load(ROW)
        assert set(found) == {"waveform", "frames", "frames_per_second"}
        assert found["waveform"] == pytest.approx(0.25, abs=1e-3)

    def test_a_clip_without_a_file_lacks_media(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_sound(tmp_path / "v" / "1.wav")
        folder = MediaFolder(tmp_path)
        other = {"id": "v$_$2", "video_id": "v", "clip_id": "2"}
        assert folder.load(other) == {}
        with caplog.at_level(logging.WARNING):
            assert folder.check([ROW, other, ROW], "test") == {"clips": 3, "without_file": 1}
        assert [record.getMessage().split(" have")[0] for record in caplog.records] == [
            "1 of 3 clips of the split 'test'"
        ]
        caplog.clear()
        assert folder.check([ROW], "test") == {"clips": 1, "without_file": 0} and not caplog.records

    def test_a_folder_of_other_clips_is_refused(self, tmp_path: Path) -> None:
        write_sound(tmp_path / "w" / "1.wav")
        with pytest.raises(MsaError, match=r"No clip of the split 'test' has a file .*; v/1\.mp4, for example, was"):
            MediaFolder(tmp_path).check([ROW], "test")
        with pytest.raises(MsaError, match="There is no folder"):
            MediaFolder(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        "ids", [("..", "1"), ("v", ".."), ("../secret", "1"), ("v", "../../secret"), ("v\\..", "1"), (".", "1")]
    )
    def test_ids_that_lead_out_are_refused(self, tmp_path: Path, ids: tuple[str, str]) -> None:
        write_sound(tmp_path / "secret.wav")
        write_sound(tmp_path / "media" / "v" / "2.wav")
        row = {"id": "$_$".join(ids), "video_id": ids[0], "clip_id": ids[1]}
        for given in (row, {"id": row["id"]}):
            with pytest.raises(MsaError, match="cannot be part of a file name"):
                MediaFolder(tmp_path / "media").load(given)
            with pytest.raises(MsaError, match="cannot be part of a file name"):
                MediaFolder(tmp_path / "media").check([given], "test")

    def test_links_that_lead_out_are_refused(self, tmp_path: Path) -> None:
        secret = write_sound(tmp_path / "secret.wav")
        (tmp_path / "media" / "v").mkdir(parents=True)
        link = tmp_path / "media" / "v" / "1.wav"
        link.symlink_to(secret)
        with pytest.raises(MsaError, match=r"1\.wav leads out of .*media"):
            MediaFolder(tmp_path / "media").load(ROW)
        link.unlink()
        link.symlink_to(write_sound(tmp_path / "media" / "all" / "0001.wav"))
        assert list(MediaFolder(tmp_path / "media").load(ROW)) == ["waveform"], "a link within the folder is good"


class TestRealFiles:
    @pytest.mark.parametrize(
        ("name", "samples"), [("arctic_a0007.wav", 48_401), ("mosi_03bSnISJMiM_1_stereo.wav", 53_290)]
    )
    def test_speech(self, real_data: Path, name: str, samples: int) -> None:
        file = real_data / "media" / name
        waveform = read_sound(file)
        assert len(waveform) == samples and 0.01 < np.abs(waveform).max() <= 1

    def test_a_face(self, real_data: Path) -> None:
        pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
        file = real_data / "media" / "single_face.mp4"
        frames, rate = read_frames(file)
        assert frames.shape == (5, 252, 448, 3) and rate == pytest.approx(2, rel=0.01)
        assert frames.std() > 10 and np.abs(np.diff(frames.astype(int), axis=0)).mean() > 0
