"""Sound and pictures of clips: what is found where, what comes out of a file, and what is refused."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hf_msa.data.media import MediaFolder, read_frames, read_sound, read_sound_of_video
from hf_msa.errors import MsaError

ROW = {"id": "v$_$1", "video_id": "v", "clip_id": "1"}


def write_sound(file: Path, rate: int = 16_000, seconds: float = 1.0, channels: tuple[float, ...] = (0.5,)) -> Path:
    """Constant sound, each channel at its own height."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.tile(np.float32(channels), (int(rate * seconds), 1)), rate)
    return file


def write_video(
    file: Path,
    seconds: float = 3.0,
    size: tuple[int, int] = (64, 48),
    rate: int = 10,
    sound: tuple[float, ...] | None = (0.5,),
) -> Path:
    """Pictures that grow brighter, 8 levels per tenth of a second up to 255, and constant sound of 22.05 kHz."""
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        layout = "stereo" if sound and len(sound) == 2 else "mono"
        codec = "pcm_s16le" if file.suffix == ".mkv" else "aac"
        track = container.add_stream(codec, rate=22_050, layout=layout) if sound else None
        for index in range(int(seconds * rate)):
            picture = np.full((size[1], size[0], 3), min(255, index * 80 // rate), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
        if track is not None and sound is not None:
            values = np.tile(np.float32(sound), int(22_050 * seconds))[None]
            frame = av.AudioFrame.from_ndarray((values * 32767).astype(np.int16), format="s16", layout=layout)
            frame.sample_rate = 22_050
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return file


class TestSound:
    @pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
    def test_every_kind_and_rate_becomes_mono_of_16_khz(self, tmp_path: Path, suffix: str) -> None:
        waveform = read_sound(write_sound(tmp_path / f"a{suffix}", rate=44_100, channels=(0.5, 0.1)))
        assert waveform.dtype == np.float32 and waveform.ndim == 1 and abs(len(waveform) - 16_000) < 1_200
        if suffix != ".mp3":
            assert len(waveform) == 16_000 and waveform[4_000:12_000] == pytest.approx(0.3, abs=1e-3)

    def test_16_khz_is_left_as_it_is(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).uniform(-1, 1, 700).astype(np.float32)
        soundfile.write(tmp_path / "a.wav", values, 16_000, subtype="FLOAT")
        assert np.array_equal(read_sound(tmp_path / "a.wav"), values)

    @pytest.mark.parametrize("content", [b"", b"RIFF and no more", b"\0" * 3000])
    def test_a_damaged_file_is_named_in_one_sentence(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.wav").write_bytes(content)
        with pytest.raises(MsaError, match=r"^.*a\.wav cannot be read as sound: [^\n]*\.$"):
            read_sound(tmp_path / "a.wav")

    @pytest.mark.parametrize("values", [[], [0.1, float("nan")]])
    def test_a_file_without_numbers_is_refused(self, tmp_path: Path, values: list[float]) -> None:
        soundfile.write(tmp_path / "a.wav", np.array(values, dtype=np.float32), 16_000, subtype="FLOAT")
        with pytest.raises(MsaError, match=r"a\.wav is empty or holds no numbers"):
            read_sound(tmp_path / "a.wav")


class TestVideo:
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
    def test_two_pictures_per_second_and_the_sound(self, tmp_path: Path, suffix: str) -> None:
        """3 seconds at 10 per second, brighter by 8 levels each: every fifth is brighter by 40."""
        file = write_video(tmp_path / f"a{suffix}", sound=(0.5, 0.1))
        frames, rate = read_frames(file)
        assert frames.shape == (6, 48, 64, 3) and frames.dtype == np.uint8
        assert rate == pytest.approx(2, rel=0.05)
        assert frames[:, 24, 32, 0].astype(float) == pytest.approx(np.arange(6) * 40, abs=12)
        waveform = read_sound_of_video(file)
        assert waveform is not None and waveform.dtype == np.float32
        assert abs(len(waveform) - 48_000) < 2_500 and np.median(waveform) == pytest.approx(0.3, abs=0.02)

    def test_a_long_clip_gives_fewer_per_second(self, tmp_path: Path) -> None:
        frames, rate = read_frames(write_video(tmp_path / "a.mp4", seconds=3), max_frames=4)
        brightness = frames[:, 0, 0, 0].astype(int)
        assert 3 <= len(frames) <= 4 and (np.diff(brightness) > 40).all()
        assert rate == pytest.approx(4 / 3, rel=0.1)

    def test_large_pictures_are_made_smaller_and_keep_their_shape(self, tmp_path: Path) -> None:
        frames, _ = read_frames(write_video(tmp_path / "a.mp4", seconds=1, size=(640, 320)), max_side=64)
        assert frames.shape[1:] == (32, 64, 3)

    def test_pictures_without_sound(self, tmp_path: Path) -> None:
        file = write_video(tmp_path / "v" / "1.mp4", sound=None)
        assert read_sound_of_video(file) is None
        assert set(MediaFolder(tmp_path).load(ROW)) == {"frames", "frames_per_second"}

    @pytest.mark.parametrize("part", [0, 100, 0.5])
    def test_a_damaged_file_is_named_in_one_sentence(self, tmp_path: Path, part: float) -> None:
        content = write_video(tmp_path / "whole.mp4").read_bytes()
        (tmp_path / "a.mp4").write_bytes(content[: int(part * len(content)) if 0 < part < 1 else int(part)])
        for read in (read_frames, read_sound_of_video):
            with pytest.raises(MsaError, match=r"^.*a\.mp4 cannot be read as a video: [^\n]*[^.]\.$"):
                read(tmp_path / "a.mp4")

    def test_a_list_of_other_files_is_no_video(self, tmp_path: Path) -> None:
        """FFmpeg goes by content, and would open what such a list names."""
        write_video(tmp_path / "secret.mp4")
        (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
        with pytest.raises(MsaError, match="cannot be read as a video"):
            read_frames(tmp_path / "a.mp4")

    def test_without_pyav_the_extra_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "v").mkdir()
        (tmp_path / "v" / "1.mp4").write_bytes(b"not opened")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "av" else object())
        for call in (lambda: MediaFolder(tmp_path).load(ROW), lambda: MediaFolder(tmp_path).check([ROW], "test")):
            with pytest.raises(MsaError, match=re.escape("pip install 'hf-msa[video]'")):
                call()


class TestFolder:
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
