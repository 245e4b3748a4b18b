"""A folder of files wrong in every way: each is read or refused in one sentence, and a run over all of them ends."""

import csv
import resource
import sys
from pathlib import Path

import pytest

from adversarial import write_adversarial
from hf_msa.data.loading import load_msa
from hf_msa.errors import MsaError
from hf_msa.models.msa_recordings import read_pictures, read_sound
from hf_msa.recordings.extract import extract
from hf_msa.recordings.manifest import Clip, find_file

pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
pytest.importorskip("librosa", reason="librosa is not installed: pip install 'hf-msa[audio]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adversarial") / "clips"
    place.mkdir()
    return place


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, str]:
    return write_adversarial(folder)


def test_each_is_read_or_refused_in_one_sentence(folder: Path, expected: dict[str, str]) -> None:
    found = {}
    for name in expected:
        try:
            file = find_file(Clip("x", folder / name, folder))
            sound, pictures = read_sound(file), sum(1 for _ in read_pictures(file))
            found[name] = "read" if pictures or sound is not None else "refused"
        except (MsaError, ValueError) as error:
            assert "\n" not in str(error) and str(error).endswith("."), name
            assert folder.name in str(error), f"{name}: the sentence names the file"
            found[name] = "refused"
    assert found == expected and len(expected) >= 30


def test_a_run_over_all_of_them_ends_with_those_that_can_be_read(
    folder: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["path", "id", "label"], *([name, f"v_{place}", 0] for place, name in enumerate(expected))]
        )
    made = extract(folder / "list.csv", tmp_path / "out", label_family="mosi", audio_set="prosody")
    refused = {f"v_{place}" for place, name in enumerate(expected) if expected[name] == "refused"}
    # Pictures without sound have nothing of what is asked for.
    silent = {f"v_{place}" for place, name in enumerate(expected) if name in ("mute.mp4", "4k.mp4")}
    assert set(made.failed) == refused | silent
    assert load_msa(tmp_path / "out")["train"].num_rows == len(expected) - len(made.failed)
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 2**20, "kilobytes"
