"""Feature sets of others: registered by a call, made of recordings, refused where the name is taken."""

from pathlib import Path

import numpy as np
import pytest

from hf_msa import FEATURE_SETS, register_feature_set
from hf_msa.errors import MsaError
from hf_msa.models import msa_feature_sets
from hf_msa.models.feature_extraction_msa import MsaFeatureExtractor
from hf_msa.models.msa_feature_sets import FeatureSet
from made_recordings import write_sound


def test_a_set_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
    monkeypatch.setattr(FEATURE_SETS, "_entries", dict(FEATURE_SETS._entries))
    monkeypatch.setattr(msa_feature_sets, "FEATURE_SETS", dict(msa_feature_sets.FEATURE_SETS))

    def peaks(waveform: np.ndarray) -> np.ndarray:
        padded = np.pad(np.abs(waveform), (0, -len(waveform) % 160))
        return padded.reshape(-1, 160).max(axis=1, keepdims=True)

    made = FeatureSet("peaks", 1, "audio", ("peak",), rate=16_000, compute=peaks, frames_per_second=100)
    assert register_feature_set(made) is FEATURE_SETS["peaks"]
    extractor = MsaFeatureExtractor(audio_dim=1, audio_set="peaks@1")
    found, _ = extractor.sequence("audio", str(write_sound(tmp_path / "a.wav", seconds=0.5)))
    assert found.shape == (50, 1) and found == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(MsaError, match="There is a feature set 'peaks' already"):
        register_feature_set(made)


def test_all_that_come_with_hf_msa_are_there() -> None:
    assert set(FEATURE_SETS) == set(msa_feature_sets.FEATURE_SETS) >= {"prosody", "librosa33", "face", "openface709"}
