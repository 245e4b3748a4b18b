"""OpenFace's program, by a script in its place."""

import os
import time

import pytest

from hf_msa.errors import MsaError
from hf_msa.recordings.openface import has_openface, openface_table

# Its arguments are those of OpenFace: what comes after -out_dir and -of is folder and name of the table.
SCRIPT = """#!/bin/sh
printf '%s\\n' "$@" > "{log}"
while [ $# -gt 0 ]; do
  case "$1" in -out_dir) out="$2";; -of) name="$2";; esac
  shift
done
{body}
"""
TABLE = r"frame, face_id, timestamp, confidence, success, AU01_r\n1, 0, 0, 0.9, 1, 0.5\n2, 0, 0.1, 0, 0, 0\n"


@pytest.fixture
def openface(tmp_path, monkeypatch):
    """Put a shell script by OpenFace's name first on the PATH; gives a function that says what it does."""

    def install(body):
        program = tmp_path / "bin" / "FeatureExtraction"
        program.parent.mkdir(exist_ok=True)
        program.write_text(SCRIPT.format(log=tmp_path / "arguments", body=body))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        return tmp_path / "arguments"

    return install


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "-f a clip; $(x).mp4"
    path.write_bytes(b"video")
    return path


def test_a_video_becomes_its_table(openface, clip, tmp_path, monkeypatch):
    arguments = openface(f'printf \'{TABLE}\' > "$out/$name.csv"; touch "$out/faces.txt"')
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    table = openface_table(clip.name)
    assert has_openface()
    assert table.values.tolist() == [[0.5]] and table.names == ("AU01_r",)
    assert table.faces.share == 0.5
    # The name is one argument, whatever is in it, and never looks like an option.
    assert str(clip) in arguments.read_text().splitlines()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'Failed to open the video'; exit 3", r"with status 3 \(Failed to open the video\)"),
        ("echo done", r"wrote no table for .* \(done\)"),
        ("printf 'a,b\\n1\\n' > $out/$name.csv", "its header has 2 cells"),
        ("kill -9 $$", "with status -9"),
    ],
)
def test_a_failure_is_one_sentence(openface, clip, body, message):
    openface(body)
    with pytest.raises(MsaError, match=message) as error:
        openface_table(clip)
    assert "\n" not in str(error.value)


def test_it_is_stopped_with_all_that_it_started(openface, clip, tmp_path):
    openface(f"(sleep 2; touch {tmp_path}/late) & wait")
    start = time.perf_counter()
    with pytest.raises(MsaError, match="took more than 0.3 s"):
        openface_table(clip, seconds=0.3)
    assert time.perf_counter() - start < 2
    time.sleep(2.2 - (time.perf_counter() - start))
    assert not (tmp_path / "late").exists()


def test_without_openface_or_without_the_file(openface, clip, tmp_path, monkeypatch):
    openface("exit 0")
    with pytest.raises(MsaError, match="No such file"):
        openface_table(tmp_path / "no.mp4")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not has_openface()
    with pytest.raises(MsaError, match="'FeatureExtraction' is not on the PATH"):
        openface_table(clip)
