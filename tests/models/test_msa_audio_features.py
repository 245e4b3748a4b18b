"""Audio features: equal to librosa's own functions, right for sounds that are known, and finite for all others."""

import numpy as np
import pytest

from hf_msa.models import msa_audio_features as sounds
from hf_msa.models.msa_feature_sets import FEATURE_SETS, SOUND, FeatureSet

librosa = pytest.importorskip("librosa", reason="librosa is not installed: pip install 'hf-msa[audio]'")
AUDIO_SETS = [one for one in FEATURE_SETS.values() if one.made_from == SOUND and one.name != "egemaps25"]
every_set = pytest.mark.parametrize("features", AUDIO_SETS, ids=lambda one: one.name)


def tone(hertz: float, rate: int, seconds: float = 1.0, height: float = 0.5) -> np.ndarray:
    return (height * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def speech_like(rate: int, syllables: int = 4, seconds: float = 1.0) -> np.ndarray:
    """A buzz of 120 Hz, loud and soft `syllables` times."""
    time = np.arange(int(rate * seconds)) / rate
    buzz = np.sign(np.sin(2 * np.pi * 120 * time)) * 0.3
    return (buzz * (0.02 + np.sin(np.pi * syllables * time) ** 2)).astype(np.float32)


@every_set
@pytest.mark.filterwarnings("error")
def test_whatever_the_sound_the_numbers_are_finite(features: FeatureSet) -> None:
    rate, compute = int(features.rate), features.compute
    assert compute is not None
    noise = np.random.default_rng(0).uniform(-1, 1, 3 * rate).astype(np.float32)
    for waveform in (np.zeros(1), np.zeros(rate), np.ones(3), np.sign(tone(99, rate)), noise, noise[: rate // 7]):
        made = compute(waveform.astype(np.float32))
        assert made.dtype == np.float32 and made.shape[1] == len(features.columns) and len(made) >= 1
        assert np.isfinite(made).all() and np.array_equal(made, compute(waveform.astype(np.float32)))
        assert features.frames_per_second is not None
        assert abs(len(made) - (1 + len(waveform) / rate * features.frames_per_second)) <= 1


def test_names_are_as_many_as_features_and_each_once() -> None:
    assert [len(one.columns) for one in FEATURE_SETS.values()][:4] == [33, 80, 5, 25]
    assert all(len(set(one.columns)) == len(one.columns) for one in FEATURE_SETS.values())


def test_librosa33_is_what_librosa_says() -> None:
    waveform = speech_like(22_050, seconds=1.3)
    made = sounds.librosa33(waveform)
    mfcc = librosa.feature.mfcc(y=waveform, sr=22_050, n_mfcc=20, hop_length=512).T
    chroma = librosa.feature.chroma_cqt(y=waveform, sr=22_050, hop_length=512).T
    assert np.allclose(made[:, 1:21], mfcc, atol=1e-3) and np.allclose(made[:, 21:], chroma, atol=1e-4)
    f0 = librosa.yin(waveform, fmin=60, fmax=500, sr=22_050, frame_length=2048, hop_length=512)
    voiced = made[:, 0] > 0
    assert voiced.mean() > 0.5 and np.allclose(made[voiced, 0], np.log(f0[voiced]), atol=1e-5)


def test_logmel_is_what_librosa_says() -> None:
    waveform = speech_like(16_000)
    power = librosa.feature.melspectrogram(y=waveform, sr=16_000, n_fft=400, hop_length=160, n_mels=80)
    assert np.allclose(sounds.logmel(waveform), np.log(np.maximum(power, 1e-10)).T, atol=1e-5)
    assert sounds.logmel(np.zeros(800, np.float32)) == pytest.approx(np.log(1e-10))


def test_the_pitch_of_a_tone() -> None:
    """220 Hz are three octaves above 27.5 Hz, 36 semitones, an A; half of full scale is -9.03 dB."""
    made = sounds.prosody(tone(220, 16_000))[20:80]
    assert made[:, 0] == pytest.approx(36, abs=0.1) and made[:, 1] == pytest.approx(1, abs=0.01)
    assert made[:, 2] == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.1)
    assert (made[:, 3] == 60).all() and (made[:, 4] == 0).all()
    notes = sounds.librosa33(tone(220, 22_050))[10:30]
    assert np.exp(notes[:, 0]) == pytest.approx(220, rel=0.01)
    assert {sounds.PITCH_CLASSES[index] for index in notes[:, 21:].argmax(axis=1)} == {"A"}


def test_silence_has_no_pitch_and_noise_no_voice() -> None:
    assert sounds.prosody(np.zeros(8_000, np.float32)).tolist()[10] == [0, 0, -80, 0, 0]
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    assert (sounds.prosody(noise)[:, 0] > 0).mean() < 0.1


@pytest.mark.parametrize("syllables", [2, 4, 7])
def test_the_speaking_rate_counts_what_rises_and_falls(syllables: int) -> None:
    rate = sounds.prosody(speech_like(16_000, syllables, 3.0))[100:200, 4]
    assert rate == pytest.approx(syllables, abs=1)


def test_a_brighter_sound_tilts_less() -> None:
    dark, bright = (sounds.prosody(tone(200, 16_000) + tone(3_000, 16_000, height=part)) for part in (0.01, 0.3))
    assert dark[50, 3] > bright[50, 3] + 20


def test_egemaps_is_what_opensmile_says() -> None:
    opensmile = pytest.importorskip("opensmile", reason="opensmile is not installed: pip install 'hf-msa[opensmile]'")
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
    assert tuple(smile.feature_names) == sounds.EGEMAPS25_COLUMNS
    waveform = speech_like(16_000)
    assert np.array_equal(sounds.egemaps25(waveform), smile.process_signal(waveform, 16_000).to_numpy(np.float32))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for compute, extra in ((sounds.prosody, "audio"), (sounds.egemaps25, "opensmile")):
        with pytest.raises(ImportError, match=rf"pip install 'hf-msa\[{extra}\]'"):
            compute(np.zeros(9, np.float32))
