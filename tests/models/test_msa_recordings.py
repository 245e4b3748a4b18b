"""Sound and pictures of recordings: what comes out of a file, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from hf_msa.models.msa_recordings import read_frames, read_pictures, read_sound
from made_recordings import write_sound, write_video

pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")


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
        with pytest.raises(ValueError, match=r"^.*a\.wav cannot be read as sound or video: [^\n]*\.$"):
            read_sound(tmp_path / "a.wav")

    @pytest.mark.parametrize(
        ("values", "words"), [([], "no sound"), ([0.1, float("nan")], "values that are no numbers")]
    )
    def test_a_file_without_numbers_is_refused(self, tmp_path: Path, values: list[float], words: str) -> None:
        soundfile.write(tmp_path / "a.wav", np.array(values, dtype=np.float32), 16_000, subtype="FLOAT")
        with pytest.raises(ValueError, match=rf"a\.wav cannot be read as sound or video: .*{words}"):
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
        waveform = read_sound(file)
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
        assert read_sound(file) is None

    @pytest.mark.parametrize("part", [0, 100, 0.5])
    def test_a_damaged_file_is_named_in_one_sentence(self, tmp_path: Path, part: float) -> None:
        content = write_video(tmp_path / "whole.mp4").read_bytes()
        (tmp_path / "a.mp4").write_bytes(content[: int(part * len(content)) if 0 < part < 1 else int(part)])
        for read in (read_frames, read_sound):
            with pytest.raises(ValueError, match=r"^.*a\.mp4 cannot be read as sound or video: [^\n]*[^.]\.$"):
                read(tmp_path / "a.mp4")

    def test_a_list_of_other_files_is_no_video(self, tmp_path: Path) -> None:
        """FFmpeg goes by content, and would open what such a list names."""
        write_video(tmp_path / "secret.mp4")
        (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
        with pytest.raises(ValueError, match="cannot be read as sound or video"):
            read_frames(tmp_path / "a.mp4")

    def test_pictures_have_their_times(self, tmp_path: Path) -> None:
        file = write_video(tmp_path / "a.mp4", seconds=3)
        assert [time for time, _ in read_pictures(file)] == pytest.approx(np.arange(30) / 10, abs=1e-3)
        part = [(time, int(one[0, 0, 0])) for time, one in read_pictures(file, 5, start=1.5, end=2.5)]
        assert [time for time, _ in part] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8], abs=1e-3)
        assert [level for _, level in part] == pytest.approx([120, 136, 152, 168, 184], abs=12)

    def test_pictures_too_long_are_refused_on_the_way(self, tmp_path: Path) -> None:
        pictures = read_pictures(write_video(tmp_path / "a.mp4", seconds=3), max_seconds=1)
        with pytest.raises(
            ValueError, match=r"a\.mp4 cannot .* it has more than 1 s of video; cut it into utterances"
        ):
            list(pictures)


class TestParts:
    def test_a_part_of_the_sound_is_that_part(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).uniform(-1, 1, 32_000).astype(np.float32)
        soundfile.write(tmp_path / "a.wav", values, 16_000, subtype="FLOAT")
        assert np.array_equal(read_sound(tmp_path / "a.wav", start=0.5, end=1.25), values[8_000:20_000])
        assert np.array_equal(read_sound(tmp_path / "a.wav", start=1.0), values[16_000:])
        assert np.array_equal(read_sound((tmp_path / "a.wav").read_bytes(), end=9.0), values)
        with pytest.raises(ValueError, match="no sound from 3 s on"):
            read_sound(tmp_path / "a.wav", start=3)

    @pytest.mark.parametrize(("start", "end"), [(-1, None), (1, 1), (2, 1), (float("nan"), None), (0, float("nan"))])
    def test_a_part_that_cannot_be_is_refused(self, start: float, end: float | None) -> None:
        with pytest.raises(ValueError, match="give 0 <= start < end"):
            read_sound("a.wav", start=start, end=end)

    def test_too_much_is_refused_and_what_is_asked_for_of_it_is_not(self, tmp_path: Path) -> None:
        file = write_sound(tmp_path / "a.flac", seconds=3)
        with pytest.raises(
            ValueError, match=r"a\.flac cannot .* it has more than 2 s of sound; cut it into utterances"
        ):
            read_sound(file, max_seconds=2)
        assert len(read_sound(file, start=1, end=3, max_seconds=2)) == 32_000

    def test_other_rates_are_those_of_librosa(self, tmp_path: Path) -> None:
        librosa = pytest.importorskip("librosa")
        values = np.random.default_rng(0).uniform(-1, 1, 22_050).astype(np.float32)
        soundfile.write(tmp_path / "a.wav", values, 22_050, subtype="FLOAT")
        expected = librosa.resample(values, orig_sr=22_050, target_sr=16_000)
        assert np.allclose(read_sound(tmp_path / "a.wav"), expected, atol=1e-6)

    def test_endings_in_capitals_and_of_another_kind(self, tmp_path: Path) -> None:
        file = write_sound(tmp_path / "a.wav")
        for name in ("A.WAV", "a.mp4"):
            (tmp_path / name).write_bytes(file.read_bytes())
            assert np.array_equal(read_sound(tmp_path / name), read_sound(file))

    def test_what_is_no_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="cannot be read as sound or video: it is not a regular file"):
            read_sound(tmp_path)
        with pytest.raises(ValueError, match="No such file"):
            list(read_pictures(tmp_path / "none.mp4"))
