"""The adversarial folder is what it says: enough, small, quickly made, and each file has its fault."""

import os
import stat
import time
import wave
from pathlib import Path

import pytest

import adversarial
from adversarial import Expectation, encode, speech, write_adversarial


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Expectation], float]:
    folder = tmp_path_factory.mktemp("adversarial") / "clips"
    start = time.process_time()
    expected = write_adversarial(folder)
    return folder, expected, time.process_time() - start


def decoded(file: Path) -> dict[str, int]:
    """Frames of pictures and samples of sound, as FFmpeg reads them if it is trusted."""
    import av

    found = {"audio": 0, "video": 0}
    with av.open(str(file)) as container:
        for frame in container.decode(*(stream for stream in container.streams if stream.type in found)):
            found["audio" if isinstance(frame, av.AudioFrame) else "video"] += getattr(frame, "samples", 1)
    return found


def test_there_are_enough_and_they_are_small(made) -> None:  # noqa: ANN001
    folder, expected, seconds = made
    assert len(expected) >= 30 and seconds < 20
    assert {path.name for path in folder.iterdir()} == set(expected)
    assert set(expected.values()) == {"read", "refused"}
    assert sum(os.lstat(path).st_size for path in folder.iterdir()) < 30_000_000


def test_without_pyav_there_are_still_thirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "find_spec", lambda name: None)
    expected = write_adversarial(tmp_path / "clips")
    assert len(expected) >= 30 and "film.mp4" not in expected
    with wave.open(str(tmp_path / "clips/hour_of_silence.wav")) as file:
        assert file.getnframes() / file.getframerate() == adversarial.HOUR


def test_what_is_no_file_is_none(made) -> None:  # noqa: ANN001
    folder, expected, _ = made
    assert stat.S_ISFIFO(os.stat(folder / "fifo.wav").st_mode)
    assert (folder / "folder.wav").is_dir()
    assert not (folder / "link_nowhere.wav").exists()
    assert (folder / "link_out.wav").is_file()
    assert not (folder / "link_out.wav").resolve().is_relative_to(folder.resolve())
    assert stat.S_ISCHR(os.stat(folder / "link_device.wav").st_mode)
    with pytest.raises(OSError, match="symbolic links"):
        os.stat(folder / "link_itself.wav")
    assert {expected[name] for name in expected if name.startswith(("link", "fifo", "folder"))} == {"refused"}


def test_what_ought_to_be_read_can_be(made) -> None:  # noqa: ANN001
    pytest.importorskip("av")
    folder, expected, _ = made
    found = {name: decoded(folder / name) for name, expectation in expected.items() if expectation == "read"}
    assert all(sum(counts.values()) for counts in found.values())
    assert found["mute.mp4"] == {"audio": 0, "video": 10}
    assert found["sound_only.mp4"]["video"] == 0 < found["sound_only.mp4"]["audio"]
    assert found["4k.mp4"] == {"audio": 0, "video": 2}
    assert found["streamed.wav"]["audio"] == 16_000


def test_what_ffmpeg_reads_although_it_ought_to_be_refused(made) -> None:  # noqa: ANN001
    """These are why a decoder needs checks of its own; most others FFmpeg refuses, too."""
    av = pytest.importorskip("av")
    folder, expected, _ = made
    trusted = set()
    for name, expectation in expected.items():
        if expectation == "refused" and (folder / name).is_file() and not (folder / name).is_symlink():
            try:
                decoded(folder / name)
            except av.FFmpegError:
                continue
            trusted.add(name)
    assert trusted >= {
        *("header_only.wav", "one_sample.wav", "nan.wav", "hour_of_silence.flac"),
        *("truncated.wav", "truncated.mkv", "picture_named.mp4", "concat_named.mp4"),
    }


def test_what_is_encoded_has_what_was_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("av")
    file = tmp_path / "film.mp4"
    file.write_bytes(encode(tmp_path, "mp4", pictures=3, sound=speech(0.5)))
    counts = decoded(file)
    assert counts["video"] == 3 and counts["audio"] >= 8000
    first = encode(tmp_path, "mp4", pictures=3, index_first=True)
    assert first.index(b"moov") < first.index(b"mdat")
    assert file.read_bytes().index(b"moov") > file.read_bytes().index(b"mdat")
