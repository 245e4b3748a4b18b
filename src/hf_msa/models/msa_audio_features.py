"""Audio features of a waveform: what each feature set computes.

Every function takes a mono waveform `(samples,)` float32 at the set's own sampling rate and gives float32 `(frames, width)`:
one frame at least, finite numbers, also of silence and of a single sample.
"""

import importlib
import importlib.util
import warnings
from typing import Any

import numpy as np

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")

LIBROSA33_RATE = 22_050
LIBROSA33_HOP = 512
LIBROSA33_COLUMNS = (
    "log_f0",
    *(f"mfcc_{index}" for index in range(20)),
    *(f"chroma_cqt_{name}" for name in PITCH_CLASSES),
)

LOGMEL_RATE = 16_000
LOGMEL_HOP = 160
LOGMEL_COLUMNS = tuple(f"log_mel_{index}" for index in range(80))

PROSODY_RATE = 16_000
PROSODY_HOP = 160
PROSODY_COLUMNS = ("pitch_semitones", "voicing", "loudness_db", "spectral_tilt_db", "speaking_rate")

EGEMAPS25_RATE = 16_000
EGEMAPS25_COLUMNS = (
    *("Loudness_sma3", "alphaRatio_sma3", "hammarbergIndex_sma3", "slope0-500_sma3", "slope500-1500_sma3"),
    *("spectralFlux_sma3", "mfcc1_sma3", "mfcc2_sma3", "mfcc3_sma3", "mfcc4_sma3", "F0semitoneFrom27.5Hz_sma3nz"),
    *(
        "jitterLocal_sma3nz",
        "shimmerLocaldB_sma3nz",
        "HNRdBACF_sma3nz",
        "logRelF0-H1-H2_sma3nz",
        "logRelF0-H1-A3_sma3nz",
    ),
    *(f"F{number}{what}_sma3nz" for number in (1, 2, 3) for what in ("frequency", "bandwidth", "amplitudeLogRelF0")),
)

_LOWEST_F0, _HIGHEST_F0 = 60.0, 500.0
_VOICED = 0.5  # Correlation of a frame with itself, one period later.
_FLOOR_DB = -80.0
_F0_ZERO_SEMITONES = 27.5  # A0, as in eGeMAPS.


def librosa33(waveform: np.ndarray) -> np.ndarray:
    """The 33 features of CH-SIMS: logarithm of F0 (by YIN; 0 where there is no voice), 20 MFCC, chroma of constant Q.

    Raises:
        ImportError: If librosa is not installed.
    """
    librosa = _librosa()
    # A frame is as long as the lowest notes of the transform need; what is shorter is filled up with silence.
    padded = _at_least(waveform, LIBROSA33_RATE)
    settings: dict[str, Any] = {"sr": LIBROSA33_RATE, "hop_length": LIBROSA33_HOP}
    f0, voicing = _pitch(padded, LIBROSA33_RATE, LIBROSA33_HOP)
    log_f0 = np.where(voicing >= _VOICED, np.log(f0), 0.0)[None]
    mfcc = librosa.feature.mfcc(y=padded, n_mfcc=20, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of silence, which is in no tuning, and of short clips.
        chroma = librosa.feature.chroma_cqt(y=padded, **settings)
    return _frames(waveform, LIBROSA33_HOP, log_f0, mfcc, chroma)


def logmel(waveform: np.ndarray) -> np.ndarray:
    """Natural logarithm of 80 mel bands, every 10 ms over 25 ms, with a floor of 1e-10 (as Whisper's).

    Raises:
        ImportError: If librosa is not installed.
    """
    power = _librosa().feature.melspectrogram(
        y=_at_least(waveform, 400), sr=LOGMEL_RATE, n_fft=400, hop_length=LOGMEL_HOP, n_mels=80
    )
    return _frames(waveform, LOGMEL_HOP, np.log(np.maximum(power, 1e-10)))


def prosody(waveform: np.ndarray) -> np.ndarray:
    """What the ear hears in the tone of a voice, every 10 ms.

    Pitch in semitones above 27.5 Hz (0 where there is no voice); voicing, the correlation with itself one period later;
    loudness in dB of full scale, from -80; spectral tilt, the dB by which the band from 50 to 1000 Hz is above that from 1
    to 5 kHz, within 60; and speaking rate, syllable-like peaks of energy per second within a second around.

    Raises:
        ImportError: If librosa is not installed.
    """
    librosa = _librosa()
    padded = _at_least(waveform, 1024)
    f0, voicing = _pitch(padded, PROSODY_RATE, PROSODY_HOP)
    pitch = np.where(voicing >= _VOICED, 12 * np.log2(f0 / _F0_ZERO_SEMITONES), 0.0)
    rms = librosa.feature.rms(y=padded, frame_length=400, hop_length=PROSODY_HOP)[0]
    loudness = np.maximum(20 * np.log10(np.maximum(rms, 1e-10)), _FLOOR_DB)
    power = np.abs(librosa.stft(padded, n_fft=512, hop_length=PROSODY_HOP)) ** 2
    bands = np.fft.rfftfreq(512, 1 / PROSODY_RATE)
    low, high = (power[(bands >= a) & (bands < b)].mean(axis=0) for a, b in ((50, 1000), (1000, 5000)))
    tilt = np.clip(10 * np.log10((low + 1e-10) / (high + 1e-10)), -60, 60)
    rate = _speaking_rate(loudness)
    count = min(len(pitch), len(loudness), len(tilt))
    return _frames(waveform, PROSODY_HOP, *(one[None, :count] for one in (pitch, voicing, loudness, tilt, rate)))


def egemaps25(waveform: np.ndarray) -> np.ndarray:
    """The 25 low-level descriptors of eGeMAPS v02 by openSMILE, every 10 ms; CH-SIMS v2 has them.

    openSMILE may be used for research and by individuals, not in products; see its licence.

    Raises:
        ImportError: If opensmile is not installed.
    """
    if importlib.util.find_spec("opensmile") is None:
        raise ImportError(
            "The feature set egemaps25 needs opensmile, which is not installed: pip install 'hf-msa[opensmile]' (its "
            "licence allows research, not products)."
        )
    opensmile = importlib.import_module("opensmile")
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
    table = smile.process_signal(_at_least(waveform, EGEMAPS25_RATE // 5), EGEMAPS25_RATE)
    descriptors: np.ndarray = np.nan_to_num(table[list(EGEMAPS25_COLUMNS)].to_numpy(dtype=np.float32))
    return descriptors


def _pitch(waveform: np.ndarray, rate: int, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """F0 in Hz by YIN, and how well a frame correlates with itself one period later, both `(frames,)`."""
    librosa = _librosa()
    length = 2048 if rate > 20_000 else 1024
    f0 = librosa.yin(waveform, fmin=_LOWEST_F0, fmax=_HIGHEST_F0, sr=rate, frame_length=length, hop_length=hop)
    framed = librosa.util.frame(np.pad(waveform, length // 2), frame_length=length, hop_length=hop).T
    periods = np.round(rate / f0).astype(int)
    voicing = np.zeros(len(f0))
    for index, (frame, period) in enumerate(zip(framed, periods, strict=False)):
        before, after = frame[:-period], frame[period:]
        energy = float(before @ before) * float(after @ after)
        if energy > (length * 10 ** (_FLOOR_DB / 10)) ** 2:
            voicing[index] = max(0.0, float(before @ after) / energy**0.5)
    return f0, voicing


def _speaking_rate(loudness: np.ndarray) -> np.ndarray:
    """Peaks of the loudness per second, within half a second before and after each frame."""
    smooth = np.convolve(np.pad(loudness, 5, mode="edge"), np.ones(11) / 11, mode="valid")
    peak = np.zeros(len(smooth))
    # A syllable rises 2 dB out of what lies between it and the last one, and no more than ten go into a second.
    valley, last = smooth[0], -10
    for index in range(1, len(smooth) - 1):
        valley = min(valley, smooth[index])
        is_peak = smooth[index - 1] < smooth[index] >= smooth[index + 1]
        if is_peak and smooth[index] - valley >= 2 and smooth[index] > _FLOOR_DB + 20 and index - last >= 10:
            peak[index], valley, last = 1.0, smooth[index], index
    counts = np.concatenate([[0.0], np.cumsum(peak)])
    places = np.arange(len(smooth))
    begin, end = np.maximum(places - 50, 0), np.minimum(places + 50, len(smooth))
    rate: np.ndarray = (counts[end] - counts[begin]) / np.maximum(end - begin, 50) * 100
    return rate


def _at_least(waveform: np.ndarray, samples: int) -> np.ndarray:
    values = np.asarray(waveform, dtype=np.float32)
    return np.pad(values, (0, max(0, samples - len(values))))


def _frames(waveform: np.ndarray, hop: int, *parts: np.ndarray) -> np.ndarray:
    """Parts of shape `(features, frames)` side by side, as many frames as the waveform itself has."""
    count = min(1 + len(waveform) // hop, *(part.shape[1] for part in parts))
    table = np.concatenate([part[:, :count] for part in parts]).T
    return np.ascontiguousarray(np.nan_to_num(table), dtype=np.float32)


def _librosa() -> Any:
    if importlib.util.find_spec("librosa") is None:
        raise ImportError("Audio features need librosa, which is not installed: pip install 'hf-msa[audio]'.")
    return importlib.import_module("librosa")
