"""Audio feature sets: what each computes of a waveform.

Every function takes a mono waveform, `(samples,)` float32 with full scale at 1, at the set's own sampling rate, and returns
`(frames, width)` float32: finite numbers, of one frame at least, also for silence and for a single sample. The same waveform
gives the same numbers. `librosa33` takes the most memory, about 1 GB for 10 minutes.
"""

import functools
from typing import Any

import numpy as np

from .msa_packages import optional_package

LIBROSA33_SAMPLING_RATE = 22_050
LIBROSA33_HOP = 512
LIBROSA33_FRAMES_PER_SECOND = LIBROSA33_SAMPLING_RATE / LIBROSA33_HOP
LIBROSA33_COLUMNS = (
    "log_f0",
    *(f"mfcc_{index}" for index in range(20)),
    *(f"chroma_{note}" for note in ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")),
)

LOGMEL_SAMPLING_RATE = 16_000
LOGMEL_HOP = 160
LOGMEL_FRAMES_PER_SECOND = 100.0
LOGMEL_COLUMNS = tuple(f"log_mel_{index}" for index in range(80))

PROSODY_SAMPLING_RATE = 16_000
PROSODY_HOP = 160
PROSODY_FRAMES_PER_SECOND = 100.0
PROSODY_COLUMNS = ("pitch", "voicing", "energy", "spectral_tilt", "speaking_rate")

EGEMAPS25_SAMPLING_RATE = 16_000
EGEMAPS25_FRAMES_PER_SECOND = 100.0
EGEMAPS25_COLUMNS = (
    *("Loudness_sma3", "alphaRatio_sma3", "hammarbergIndex_sma3", "slope0-500_sma3", "slope500-1500_sma3"),
    *("spectralFlux_sma3", "mfcc1_sma3", "mfcc2_sma3", "mfcc3_sma3", "mfcc4_sma3", "F0semitoneFrom27.5Hz_sma3nz"),
    *("jitterLocal_sma3nz", "shimmerLocaldB_sma3nz", "HNRdBACF_sma3nz"),
    *("logRelF0-H1-H2_sma3nz", "logRelF0-H1-A3_sma3nz"),
    *(f"F{number}{of}_sma3nz" for number in (1, 2, 3) for of in ("frequency", "bandwidth", "amplitudeLogRelF0")),
)

COVAREP74_COLUMNS = (
    *("F0", "VUV", "NAQ", "QOQ", "H1H2", "PSP", "MDQ", "peakSlope", "Rd", "Rd_conf", "creak"),
    *(f"MCEP_{index}" for index in range(25)),
    *(f"HMPDM_{index}" for index in range(25)),
    *(f"HMPDD_{index}" for index in range(13)),
)
"""What COVAREP writes; its files are read, it is not run."""

_LOWEST_F0, _HIGHEST_F0 = 60.0, 500.0
_VOICED = 0.5
"""Least correlation of a voiced frame with itself one period later."""
_FLOOR_DB = -80.0
"""Of full scale: what is below is silence."""
_FRAMES_AT_ONCE = 1024
_LOUDEST = 16.0


def librosa33(waveform: np.ndarray) -> np.ndarray:
    """Compute the 33 features of CH-SIMS: logarithm of F0, 20 MFCC, 12 chroma of a constant-Q transform.

    As the paper names them. The public script of that data set puts the zero-crossing rate in the place of the logarithm of
    F0; the other 32 columns are as there, by librosa's defaults with HTK's mel scale.

    F0 (natural logarithm of Hz) is found by YIN between 60 and 500 Hz over frames of 2048 samples. A frame without voice has
    0: one whose correlation with itself one period later is below 0.5, or that lies below -80 dB of full scale.

    Args:
        waveform: Float32 `(samples,)` at 22.05 kHz. What is shorter than 3 s is followed by silence, which the lowest bands
            of the transform need; its frames are not returned.

    Returns:
        Float32 `(1 + samples // 512, 33)`.

    Raises:
        ImportError: If librosa is not installed.
        ValueError: If it is no waveform.
    """
    librosa = _librosa()
    rate, hop = LIBROSA33_SAMPLING_RATE, LIBROSA33_HOP
    padded = _checked(waveform, at_least=3 * rate)
    count = 1 + len(waveform) // hop
    f0, voicing = _pitch(padded, rate, hop, length=2048, count=count)
    spectrum = np.abs(librosa.stft(padded, n_fft=2048, hop_length=hop))[:, :count]
    mel = librosa.feature.melspectrogram(S=spectrum**2, sr=rate, htk=True)
    mfcc = librosa.feature.mfcc(S=librosa.power_to_db(mel), n_mfcc=20)
    chroma = librosa.feature.chroma_cqt(y=padded, sr=rate, hop_length=hop, tuning=_tuning(spectrum, rate))[:, :count]
    return _table(np.where(voicing >= _VOICED, np.log(f0), 0.0), mfcc, chroma)


def logmel(waveform: np.ndarray) -> np.ndarray:
    """Compute 80 log-mel bands: natural logarithm of power, never below that of 1e-10, every 10 ms over 25 ms.

    Args:
        waveform: Float32 `(samples,)` at 16 kHz.

    Returns:
        Float32 `(1 + samples // 160, 80)`.

    Raises:
        ImportError: If librosa is not installed.
        ValueError: If it is no waveform.
    """
    librosa = _librosa()
    power = librosa.feature.melspectrogram(
        y=_checked(waveform, at_least=400), sr=LOGMEL_SAMPLING_RATE, n_fft=400, hop_length=LOGMEL_HOP, n_mels=80
    )
    return _table(np.log(np.maximum(power[:, : 1 + len(waveform) // LOGMEL_HOP], 1e-10)))


def prosody(waveform: np.ndarray) -> np.ndarray:
    """Compute what the ear hears in the tone of a voice, every 10 ms.

    - `pitch`: semitones above 27.5 Hz, by YIN between 60 and 500 Hz; straight lines where there is no voice (less than 0.5),
      and 0 if there is none at all.
    - `voicing`: from 0 to 1, correlation of a frame of 64 ms with itself one period later.
    - `energy`: dB of full scale over 25 ms, never below -80.
    - `spectral_tilt`: dB by which the band from 50 Hz to 1 kHz is above the one from 1 to 5 kHz, neither below -80; a dark,
      soft voice has a high one, a bright, pressed one a low one.
    - `speaking_rate`: syllables per second, within about a second: voiced peaks of the energy, smoothed over 50 ms, that
      rise 2 dB out of their surroundings and lie within 25 dB of the recording's highest. Syllables that run into each other
      count as one.

    Args:
        waveform: Float32 `(samples,)` at 16 kHz.

    Returns:
        Float32 `(1 + samples // 160, 5)`.

    Raises:
        ImportError: If librosa is not installed.
        ValueError: If it is no waveform.
    """
    librosa = _librosa()
    rate, hop = PROSODY_SAMPLING_RATE, PROSODY_HOP
    padded = _checked(waveform, at_least=1024)
    count = 1 + len(waveform) // hop
    f0, voicing = _pitch(padded, rate, hop, length=1024, count=count)
    semitones = 12 * np.log2(f0 / 27.5)
    frames, voiced = np.arange(count), voicing >= _VOICED
    pitch = np.interp(frames, frames[voiced], semitones[voiced]) if voiced.any() else np.zeros(count)
    power = librosa.feature.rms(y=padded, frame_length=400, hop_length=hop)[0, :count].astype(np.float64) ** 2
    energy = _decibels(power)
    # Scaled to the mean square of the samples: the window's squares have a mean of 3/8, half of the spectrum is not there.
    spectrum = np.abs(librosa.stft(padded, n_fft=512, win_length=400, hop_length=hop)[:, :count]) ** 2
    spectrum = spectrum * (2 / (512 * 400 * 3 / 8))
    bands = librosa.fft_frequencies(sr=rate, n_fft=512)
    low, high = (spectrum[(bands >= start) & (bands < end)].sum(axis=0) for start, end in ((50, 1000), (1000, 5000)))
    return _table(pitch, voicing, energy, _decibels(low) - _decibels(high), _speaking_rate(energy, voiced))


def egemaps25(waveform: np.ndarray) -> np.ndarray:
    """Compute the 25 low-level descriptors of eGeMAPS v02 by openSMILE, every 10 ms, as CH-SIMS v2 has them.

    openSMILE's licence allows research, and no use in products. Where there is no voice, pitch, jitter and shimmer are 0 and
    the levels of formants -201, as openSMILE gives them.

    Args:
        waveform: Float32 `(samples,)` at 16 kHz; what is above full scale is clipped, and what is shorter than 60 ms is
            followed by silence.

    Returns:
        Float32 `(frames, 25)`, about `samples / 160 - 4` frames.

    Raises:
        ImportError: If opensmile is not installed.
        ValueError: If it is no waveform.
    """
    padded = _checked(waveform, at_least=960)
    # It takes integers of 16 bits, and full scale would become the lowest of them.
    table = _opensmile().process_signal(np.clip(padded, -1.0, 1 - 2.0**-15), EGEMAPS25_SAMPLING_RATE)
    return _table(table[list(EGEMAPS25_COLUMNS)].to_numpy().T)


def _pitch(waveform: np.ndarray, rate: int, hop: int, *, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """F0 in Hz by YIN, and how well a frame correlates with itself one period later (0 to 1), both `(count,)`."""
    librosa = _librosa()
    padded = np.pad(waveform, length // 2)
    f0, voicing = np.empty(count), np.zeros(count)
    for first in range(0, count, _FRAMES_AT_ONCE):
        part = slice(first, min(first + _FRAMES_AT_ONCE, count))
        block = padded[part.start * hop : (part.stop - 1) * hop + length]
        found = librosa.yin(
            block, fmin=_LOWEST_F0, fmax=_HIGHEST_F0, sr=rate, frame_length=length, hop_length=hop, center=False
        )
        f0[part] = np.clip(found, _LOWEST_F0, _HIGHEST_F0)
        frames = np.lib.stride_tricks.sliding_window_view(block, length)[::hop]
        frames = frames - frames.mean(axis=1, keepdims=True)
        later = np.arange(length) + np.round(rate / f0[part]).astype(int)[:, None]
        overlap = later < length
        shifted = np.take_along_axis(frames, np.minimum(later, length - 1), axis=1) * overlap
        early = frames * overlap
        energy = np.sqrt(_products(early, early) * _products(shifted, shifted))
        loud = energy > length * 10 ** (_FLOOR_DB / 10)
        voicing[part][loud] = np.clip(_products(early, shifted)[loud] / energy[loud], 0, 1)
    return f0, voicing


def _products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    sums: np.ndarray = np.einsum("ft,ft->f", one, other, dtype=np.float64)
    return sums


def _tuning(spectrum: np.ndarray, rate: int) -> float:
    """The deviation from 440 Hz that librosa estimates by default; 0 where nothing sounds, of which it warns."""
    librosa = _librosa()
    pitches, heights = librosa.piptrack(S=spectrum, sr=rate)
    sounding = pitches > 0
    if not sounding.any():
        return 0.0
    kept = sounding & (heights >= np.median(heights[sounding]))
    return float(librosa.pitch_tuning(pitches[kept], bins_per_octave=36))


def _speaking_rate(energy: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """Syllables per second around each frame of 10 ms."""
    smooth = np.convolve(np.pad(energy, 2, mode="edge"), np.full(5, 1 / 5), mode="valid")
    signal = optional_package("scipy.signal", "hf-msa[audio]", "The feature set prosody")
    places, _ = signal.find_peaks(smooth, prominence=2, height=max(smooth.max() - 25, _FLOOR_DB + 10), distance=8)
    peaks = np.zeros(len(energy))
    peaks[places[voiced[places]]] = 1
    window = np.hanning(203)[1:-1]
    seen = np.convolve(np.ones(len(energy)), window)[100:-100]
    rate: np.ndarray = np.convolve(peaks, window)[100:-100] / np.maximum(seen, window.sum() / 2) * 100
    return rate


def _decibels(power: np.ndarray) -> np.ndarray:
    level: np.ndarray = 10 * np.log10(np.maximum(power, 10 ** (_FLOOR_DB / 10)))
    return level


def _checked(waveform: np.ndarray, *, at_least: int) -> np.ndarray:
    """The waveform, followed by silence where it is shorter."""
    values = np.asarray(waveform, dtype=np.float32)
    height = float(np.abs(values).max(initial=0))
    if values.ndim != 1 or not height <= _LOUDEST:
        raise ValueError(
            f"A waveform of shape {values.shape} that goes up to {height:g} is none: give one channel, (samples,), of "
            "finite numbers with full scale at 1 (samples of 16 bits divided by 32768)."
        )
    return np.pad(values, (0, max(0, at_least - len(values))))


def _table(*parts: np.ndarray) -> np.ndarray:
    """Parts `(frames,)` or `(features, frames)` side by side: `(frames, width)`."""
    return np.ascontiguousarray(np.vstack(parts).T, dtype=np.float32)


def _librosa() -> Any:
    return optional_package("librosa", "hf-msa[audio]", "A feature set of sound")


@functools.cache
def _opensmile() -> Any:
    use = "The feature set egemaps25 (openSMILE, whose licence allows research only)"
    opensmile = optional_package("opensmile", "hf-msa[opensmile]", use)
    return opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
