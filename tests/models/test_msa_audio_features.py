"""Audio features: equal to librosa's and openSMILE's own functions, right for known sounds, and finite for all others."""

import sys
from collections.abc import Callable

import numpy as np
import pytest

from hf_msa.models import msa_audio_features as sounds

librosa = pytest.importorskip("librosa", reason="librosa is not installed: pip install 'hf-msa[audio]'")
SETS = ("librosa33", "logmel", "prosody", "egemaps25")


def constant(name: str, what: str):
    return getattr(sounds, f"{name.upper()}_{what}")


def tone(hertz, rate: int, seconds: float = 1.0, height: float = 0.5) -> np.ndarray:
    """A sine of a constant or, as an array of one value per sample, changing frequency."""
    phase = np.cumsum(np.broadcast_to(hertz, round(rate * seconds))) / rate
    return (height * np.sin(2 * np.pi * phase)).astype(np.float32)


def noise(samples: int, height: float = 0.3) -> np.ndarray:
    return np.random.default_rng(0).uniform(-height, height, samples).astype(np.float32)


SOUNDS: dict[str, Callable[[int], np.ndarray]] = {
    "no sample": lambda rate: np.zeros(0),
    "one sample": lambda rate: np.ones(1),
    "silence": lambda rate: np.zeros(rate),
    "hardly any": lambda rate: 1e-20 * noise(rate),
    "a constant": lambda rate: np.ones(rate // 3),
    "a click": lambda rate: np.eye(1, rate // 2, 500)[0],
    "clipped": lambda rate: np.sign(tone(99, rate, 0.7)),
    "beyond full scale": lambda rate: 20 * noise(rate),
    "noise": lambda rate: noise(rate // 7),
    "longer than 3 s": lambda rate: tone(150, rate, 3.1),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sound", SOUNDS)
@pytest.mark.parametrize("name", SETS)
def test_whatever_the_sound_the_numbers_are_finite_and_the_same_again(name, sound):
    if name == "egemaps25":
        pytest.importorskip("opensmile", reason="opensmile is not installed: pip install 'hf-msa[opensmile]'")
    compute, rate = getattr(sounds, name), constant(name, "SAMPLING_RATE")
    waveform = SOUNDS[sound](rate).astype(np.float32)
    made = compute(waveform)
    assert made.dtype == np.float32 and made.shape[1] == len(constant(name, "COLUMNS")) and len(made) >= 1
    assert np.isfinite(made).all() and np.array_equal(made, compute(waveform.copy()))
    expected = len(waveform) / rate * constant(name, "FRAMES_PER_SECOND")
    assert expected - 5 <= len(made) <= max(2, expected + 1)


def test_columns_are_as_many_as_the_names_say_and_each_once():
    widths = [len(constant(name, "COLUMNS")) for name in SETS]
    assert widths == [33, 80, 5, 25] == [len(set(constant(name, "COLUMNS"))) for name in SETS]


def test_librosa33_is_what_librosa_says():
    waveform = tone(np.linspace(110, 330, 70_000), 22_050, 70_000 / 22_050) + noise(70_000, 0.02)
    made = sounds.librosa33(waveform)
    f0 = librosa.yin(waveform, fmin=60, fmax=500, sr=22_050, frame_length=2048, hop_length=512)
    np.testing.assert_allclose(made[:, 0], np.log(f0), rtol=1e-5)
    mfcc = librosa.feature.mfcc(y=waveform, sr=22_050, n_mfcc=20, hop_length=512, htk=True)
    np.testing.assert_allclose(made[:, 1:21], mfcc.T, atol=1e-3)
    np.testing.assert_allclose(
        made[:, 21:], librosa.feature.chroma_cqt(y=waveform, sr=22_050, hop_length=512).T, atol=1e-5
    )


@pytest.mark.filterwarnings("ignore:n_fft:UserWarning")
def test_a_short_sound_has_librosas_numbers_but_for_edges_of_its_lowest_bands():
    waveform = tone(200, 22_050, 1.2) + noise(26_460, 0.1)
    made = sounds.librosa33(waveform)
    mfcc = librosa.feature.mfcc(y=waveform, sr=22_050, n_mfcc=20, hop_length=512, htk=True)
    np.testing.assert_allclose(made[:, 1:21], mfcc.T, atol=1e-3)
    chroma = librosa.feature.chroma_cqt(y=waveform, sr=22_050, hop_length=512)
    np.testing.assert_allclose(made[:, 21:], chroma.T, atol=0.05)


def test_logmel_is_what_librosa_says():
    waveform = tone(300, 16_000) + noise(16_000)
    power = librosa.feature.melspectrogram(y=waveform, sr=16_000, n_fft=400, hop_length=160, n_mels=80)
    np.testing.assert_allclose(sounds.logmel(waveform), np.log(power).T, rtol=1e-5)
    assert sounds.logmel(np.zeros(800, np.float32)) == pytest.approx(np.log(1e-10))


def test_a_tone_has_its_pitch_note_and_level():
    """220 Hz are three octaves above 27.5 Hz, 36 semitones, an A; a sine of half the full scale has -9.03 dB."""
    made = sounds.prosody(tone(220, 16_000))[10:-10]
    assert made[:, 0] == pytest.approx(36, abs=0.1) and made[:, 1] == pytest.approx(1, abs=0.005)
    # 25 ms are no whole number of periods.
    assert made[:, 2] == pytest.approx(-9.03, abs=0.35) and made[:, 2].mean() == pytest.approx(-9.03, abs=0.02)
    notes = sounds.librosa33(tone(220, 22_050))[5:-5]
    assert notes[:, 0] == pytest.approx(np.log(220), abs=0.003)
    assert {sounds.LIBROSA33_COLUMNS[21 + place] for place in notes[:, 21:].argmax(axis=1)} == {"chroma_A"}


def test_the_pitch_follows_a_chirp():
    hertz = np.linspace(100, 400, 48_000)
    pitch = sounds.prosody(tone(hertz, 16_000, 3))[:, 0]
    np.testing.assert_allclose(pitch[5:-6], 12 * np.log2(hertz[::160] / 27.5)[5:-5], atol=0.3)


def test_where_there_is_no_voice_pitch_goes_straight_on_and_log_f0_is_0():
    for rate, compute in ((16_000, sounds.prosody), (22_050, sounds.librosa33)):
        made = compute(np.concatenate([tone(110, rate), noise(rate), tone(220, rate)]))[:, 0]
        third = len(made) // 3
        if compute is sounds.prosody:
            # From 24 semitones to 36 along a line.
            assert made[third + 10 : 2 * third - 10] == pytest.approx(np.linspace(25.2, 34.8, third - 20), abs=0.7)
        else:
            assert (made[third + 3 : 2 * third - 3] == 0).mean() > 0.95
            assert made[:third].max() == pytest.approx(np.log(110), abs=0.02)


def test_silence_has_no_pitch_no_voice_and_the_lowest_energy():
    assert sounds.prosody(np.zeros(8_000, np.float32)).tolist() == [[0, 0, -80, 0, 0]] * 51
    silent = sounds.librosa33(np.zeros(8_000, np.float32))
    assert not silent[:, 0].any() and not silent[:, 21:].any()


def test_a_constant_offset_is_no_voice():
    assert sounds.prosody(0.5 + noise(16_000, 0.05))[10:-10, 1].max() < 0.5


def test_the_spectral_tilt_compares_a_low_with_a_high_band():
    """Heights of 0.5 at 200 Hz and 0.05 at 3 kHz are 20 dB apart, and no louder or softer sound is."""
    sound = tone(200, 16_000) + tone(3_000, 16_000, height=0.05)
    for loudness in (1, 0.03):
        assert sounds.prosody(loudness * sound)[10:-10, 3] == pytest.approx(20, abs=0.3)
    # A sine of -60 dB of power is 20 dB above the floor, where the other band is.
    quiet = tone(200, 16_000, height=2**0.5 / 1000)
    assert sounds.prosody(quiet)[10:-10, 3] == pytest.approx(20, abs=0.3)


@pytest.mark.parametrize("syllables", [2, 4, 6])
def test_the_speaking_rate_counts_voiced_rises_of_the_energy(syllables):
    swell = 0.01 + np.sin(np.pi * syllables * np.arange(64_000) / 16_000) ** 2
    voice = (swell * tone(150, 16_000, 4)).astype(np.float32)
    assert sounds.prosody(voice)[100:-100, 4] == pytest.approx(syllables, abs=0.6)
    hiss = (swell * noise(64_000)).astype(np.float32)
    assert sounds.prosody(hiss)[:, 4].max() < 1


def test_long_sounds_are_computed_block_by_block_with_equal_numbers(monkeypatch):
    waveform = tone(np.linspace(90, 300, 16_000), 16_000) + noise(16_000, 0.1)
    whole = sounds.prosody(waveform)
    monkeypatch.setattr(sounds, "_FRAMES_AT_ONCE", 7)
    np.testing.assert_allclose(sounds.prosody(waveform), whole, atol=1e-3)


def test_egemaps_is_what_opensmile_says():
    opensmile = pytest.importorskip("opensmile", reason="opensmile is not installed: pip install 'hf-msa[opensmile]'")
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
    assert tuple(smile.feature_names) == sounds.EGEMAPS25_COLUMNS
    waveform = tone(np.linspace(90, 300, 16_000), 16_000) + noise(16_000, 0.1)
    assert np.array_equal(sounds.egemaps25(waveform), smile.process_signal(waveform, 16_000).to_numpy(np.float32))


def test_full_scale_does_not_wrap_around_in_opensmile():
    """In integers of 16 bits 1.0 would be -32768: what is clipped must sound as what is just below."""
    pytest.importorskip("opensmile", reason="opensmile is not installed: pip install 'hf-msa[opensmile]'")
    waveform = np.sign(tone(99, 16_000, 0.5)).astype(np.float32)
    np.testing.assert_allclose(sounds.egemaps25(waveform), sounds.egemaps25(waveform * 0.9999), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("name", SETS[:3])
@pytest.mark.parametrize("waveform", [np.zeros((2, 9)), np.array([0, np.nan]), np.array([0, -32768.0])])
def test_what_is_no_waveform_is_refused(name, waveform):
    with pytest.raises(ValueError, match=r"^A waveform of shape .* divided by 32768\)\.$"):
        getattr(sounds, name)(waveform.astype(np.float32))


def test_without_the_package_the_extra_is_named(monkeypatch):
    sounds._opensmile.cache_clear()
    for package, extra in (("librosa", "audio"), ("opensmile", "opensmile")):
        monkeypatch.setitem(sys.modules, package, None)
        for name in SETS[:3] if package == "librosa" else SETS[3:]:
            with pytest.raises(ImportError, match=rf"pip install 'hf-msa\[{extra}\]'"):
                getattr(sounds, name)(np.zeros(9, np.float32))
    with pytest.raises(ImportError, match="research only"):
        sounds.egemaps25(np.zeros(9, np.float32))
