"""Speech for the sample corpus: waves of a wanted pitch, rate and energy, and what of these a wave has.

Where espeak-ng is installed, it speaks. Elsewhere a small formant synthesiser of numpy alone does: letters become voiced
and unvoiced sounds with the spectrum of a vowel or of a hiss. No one understands it, but it is voiced, slow or loud as
speech is.
"""

import math
import re
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_msa.data.media import SAMPLING_RATE
from hf_msa.data.sample_corpus.story import Floats
from hf_msa.errors import MsaError

ESPEAK = "espeak-ng"
FORMANTS = "formants"

#: Seconds of silence before and after the words, and the noise of the room in it (RMS, full scale is 1).
MARGIN_SECONDS = 0.1
ROOM_NOISE = 2.5e-4
#: Longest wait for espeak-ng, in seconds; a sentence takes it some hundredths.
_PATIENCE = 60
#: Speech is where a frame is at most this far below the loudest one (in decibels).
_SPEECH_RANGE = 35.0


@dataclass(frozen=True)
class Voice:
    """How a clip is spoken.

    Attributes:
        pitch: Median fundamental frequency of voiced frames in Hz.
        rate: Syllables per second from the first sound to the last.
        energy: Level (RMS) from the first sound to the last in decibels of full scale.
    """

    pitch: float
    rate: float
    energy: float


def synthesizer() -> str:
    """Return what speaks here: ``"espeak-ng"`` where it is on the PATH, else ``"formants"``."""
    return ESPEAK if shutil.which(ESPEAK) else FORMANTS


def speak(words: Sequence[str], voice: Voice, generator: np.random.Generator, speaker: str) -> Floats:
    """Speak a sentence.

    Args:
        words: The words, lower-case letters.
        voice: How to speak it.
        generator: Where noise is drawn from.
        speaker: ``"espeak-ng"`` or ``"formants"``, see `synthesizer`.

    Returns:
        (samples,) mono at 16 kHz, full scale is 1, with a moment of faint noise at both ends.

    Raises:
        MsaError: If espeak-ng fails.
    """
    spoken = _espeak(words, voice) if speaker == ESPEAK else _formants(words, voice, generator)
    gain = 10 ** (voice.energy / 20) / _root_mean_square(spoken)
    margin = np.zeros(round(MARGIN_SECONDS * SAMPLING_RATE))
    samples = np.concatenate([margin, spoken * gain, margin])
    samples += ROOM_NOISE * generator.standard_normal(len(samples))
    limited: Floats = np.clip(samples, -1.0, 1.0)
    return limited


def measure(samples: Floats, words: Sequence[str]) -> Voice:
    """Measure how a wave is spoken.

    Args:
        samples: (samples,) mono at 16 kHz.
        words: The words that are spoken.

    Returns:
        The voice; NaN where there is no sound, or no voiced one.
    """
    spoken = _trimmed(samples)
    if not spoken.any():
        return Voice(np.nan, np.nan, np.nan)
    rate = count_syllables(words) * SAMPLING_RATE / len(spoken)
    return Voice(_median_pitch(spoken), rate, 20 * float(np.log10(_root_mean_square(spoken))))


def count_syllables(words: Sequence[str]) -> int:
    """Count syllables by English spelling: groups of vowels without a silent e at the end; at least one per word."""
    return sum(max(1, len(re.findall("[aeiouy]+", re.sub("(?<=[^aeiouyl])e$", "", word)))) for word in words)


def write_wave(path: Path, samples: Floats) -> None:
    """Write samples (samples,) of full scale 1 as mono 16-bit PCM at 16 kHz."""
    values = np.rint(samples * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes(values.tobytes())


def read_wave(path: Path) -> tuple[Floats, int]:
    """Read mono 16-bit PCM: (samples,) of full scale 1, and the sampling rate.

    Raises:
        MsaError: If it is something else, or damaged.
    """
    try:
        with wave.open(str(path), "rb") as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise MsaError(f"{path} is not mono with 16 bits; write the sample corpus again.")
            return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767, file.getframerate()
    except (wave.Error, EOFError, OSError, ValueError) as error:
        raise MsaError(f"{path} cannot be read as a wave: {error}; write the sample corpus again.") from error


# --- measuring ---

_FRAME, _HOP = round(0.04 * SAMPLING_RATE), round(0.01 * SAMPLING_RATE)
_LOWEST_PITCH, _HIGHEST_PITCH = 55.0, 400.0


def _frames(samples: Floats) -> Floats:
    """Cut into (frames, samples of 40 ms), 10 ms apart."""
    padded = np.pad(samples, (0, max(0, _FRAME - len(samples))))
    frames: Floats = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
    return frames


def _root_mean_square(samples: Floats) -> float:
    return float(np.sqrt(np.mean(samples**2)))


def _trimmed(samples: Floats) -> Floats:
    """Cut off what is silent at both ends."""
    step = _HOP // 4
    blocks = samples[: len(samples) // step * step].reshape(-1, step)
    level = (blocks**2).mean(axis=1)
    loud = np.flatnonzero(level > level.max(initial=0.0) * 10 ** (-_SPEECH_RANGE / 10))
    return samples[loud[0] * step : (loud[-1] + 1) * step] if len(loud) else samples[:0]


def _median_pitch(samples: Floats) -> float:
    """Median over voiced frames of the lag at which a frame is most like itself (autocorrelation)."""
    frames = _frames(samples)
    level = (frames**2).mean(axis=1)
    frames = frames[level > level.max() * 0.02]
    window = np.hanning(_FRAME)
    frames = (frames - frames.mean(axis=1, keepdims=True)) * window
    lags = slice(int(SAMPLING_RATE / _HIGHEST_PITCH), int(SAMPLING_RATE / _LOWEST_PITCH) + 1)
    likeness = _autocorrelation(frames)[:, lags] / _autocorrelation(window)[lags]
    # The first lag that is nearly the best: twice a period fits as well as one.
    first = (likeness >= 0.9 * likeness.max(axis=1, keepdims=True)).argmax(axis=1)
    rows = np.arange(len(first))
    best = np.stack([likeness[rows, np.minimum(first + k, likeness.shape[1] - 1)] for k in range(20)])
    lag = lags.start + first + best.argmax(axis=0)
    voiced = best.max(axis=0) > 0.5
    return SAMPLING_RATE / float(np.median(lag[voiced])) if voiced.any() else np.nan


def _autocorrelation(frames: Floats) -> Floats:
    """Autocorrelation along the last axis, 1 at lag 0."""
    spectrum = np.fft.rfft(frames, 2 * _FRAME)
    products: Floats = np.fft.irfft(np.abs(spectrum) ** 2)[..., :_FRAME]
    return products / products[..., :1]


# --- espeak-ng ---

#: What espeak-ng's voice does of itself: its pitch at `-p 50` in Hz, and the change of ln(pitch) with each step.
_ESPEAK_PITCH = 101.0
_ESPEAK_PITCH_STEP = 0.0095
_ESPEAK_SPEED = 160
_ESPEAK_SPEEDS = (80, 450)


def _espeak(words: Sequence[str], voice: Voice) -> Floats:
    """Speak with espeak-ng, whose speed is set by how long it takes at its usual one."""
    pitch = round(50 + np.log(voice.pitch / _ESPEAK_PITCH) / _ESPEAK_PITCH_STEP)
    pitch = min(max(pitch, 0), 99)
    spoken, rate = _run_espeak(words, pitch, _ESPEAK_SPEED)
    speed = round(_ESPEAK_SPEED * len(spoken) / rate * voice.rate / count_syllables(words))
    return _resampled(*_run_espeak(words, pitch, min(max(speed, _ESPEAK_SPEEDS[0]), _ESPEAK_SPEEDS[1])))


def _run_espeak(words: Sequence[str], pitch: int, speed: int) -> tuple[Floats, int]:
    """Return what is spoken (samples,), without the silence around it, and its sampling rate."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spoken.wav"
        command = [ESPEAK, "-v", "en-us", "-p", str(pitch), "-s", str(speed), "-w", str(file), "--stdin"]
        try:
            subprocess.run(
                command, input=" ".join(words), text=True, check=True, capture_output=True, timeout=_PATIENCE
            )
            samples, rate = read_wave(file)
        except (OSError, subprocess.SubprocessError, MsaError) as error:
            said = (getattr(error, "stderr", None) or "").strip()
            raise MsaError(
                f"{ESPEAK} does not speak ({said or error}); mend it, or take it off the PATH to do without."
            ) from error
    spoken = _trimmed(samples)
    if not spoken.any():
        raise MsaError(f"{ESPEAK} gave no sound; mend it, or take it off the PATH to do without.")
    return spoken, rate


def _resampled(samples: Floats, rate: int) -> Floats:
    """Bring samples (samples,) from a rate of at least 16 kHz to 16 kHz by cutting their spectrum."""
    # Of whole blocks of a length whose transform is fast.
    taken = 32 * rate // math.gcd(rate, SAMPLING_RATE)
    blocks = -(-len(samples) // taken)
    before, after = blocks * taken, blocks * taken * SAMPLING_RATE // rate
    spectrum = np.fft.rfft(samples, before)[: after // 2 + 1]
    resampled: Floats = np.fft.irfft(spectrum, after) * (after / before)
    return resampled[: len(samples) * SAMPLING_RATE // rate]


# --- formants ---


class _Sound(NamedTuple):
    """A letter's sound: its length beside a vowel's, formants in Hz, loudness of voice and of hiss, and the hiss in Hz."""

    length: float
    first: float
    second: float
    third: float
    voice: float
    hiss: float = 0.0
    hiss_centre: float = 2000.0
    hiss_width: float = 1000.0


_PAUSE = _Sound(1.2, 500, 1500, 2500, 0.0)
_SOUNDS: dict[str, _Sound] = {
    "a": _Sound(1.0, 730, 1090, 2440, 1.0),
    "e": _Sound(0.9, 530, 1840, 2480, 1.0),
    "i": _Sound(0.9, 300, 2250, 3000, 0.9),
    "o": _Sound(1.0, 570, 840, 2410, 1.0),
    "u": _Sound(0.9, 320, 870, 2240, 0.9),
    "y": _Sound(0.8, 290, 2200, 2900, 0.8),
    "w": _Sound(0.6, 300, 650, 2200, 0.6),
    "j": _Sound(0.7, 280, 2000, 2700, 0.4, 0.15, 3000),
    "r": _Sound(0.6, 350, 1100, 1600, 0.6),
    "l": _Sound(0.6, 360, 1100, 2600, 0.6),
    "m": _Sound(0.6, 250, 1000, 2200, 0.5),
    "n": _Sound(0.6, 250, 1400, 2400, 0.5),
    "v": _Sound(0.6, 250, 1100, 2200, 0.3, 0.06, 4000, 2500),
    "z": _Sound(0.7, 250, 1600, 2500, 0.3, 0.15, 5500, 1200),
    "f": _Sound(0.7, 400, 1100, 2200, 0.0, 0.10, 4000, 2500),
    "s": _Sound(0.8, 400, 1600, 2500, 0.0, 0.30, 5500, 1200),
    "x": _Sound(0.8, 400, 1600, 2500, 0.0, 0.25, 4800, 1500),
    "h": _Sound(0.5, 500, 1500, 2500, 0.0, 0.12, 1500, 800),
    # Stops: their silence comes before the burst, see `_sounds`.
    "b": _Sound(0.3, 250, 900, 2200, 0.3, 0.10, 900, 600),
    "d": _Sound(0.3, 250, 1700, 2600, 0.3, 0.12, 3500, 1200),
    "g": _Sound(0.3, 250, 1800, 2300, 0.3, 0.12, 2000, 700),
    "p": _Sound(0.3, 400, 900, 2200, 0.0, 0.20, 900, 600),
    "t": _Sound(0.3, 400, 1700, 2600, 0.0, 0.30, 4200, 1200),
    "k": _Sound(0.3, 400, 1800, 2300, 0.0, 0.25, 2200, 700),
    "c": _Sound(0.3, 400, 1800, 2300, 0.0, 0.25, 2200, 700),
    "q": _Sound(0.3, 400, 1500, 2300, 0.0, 0.25, 1800, 700),
}  # fmt: skip
_STOPS = frozenset("bdgptkcq")
_VOWELS = frozenset("aeiouy")
_CLOSURE = _Sound(0.4, 300, 1500, 2500, 0.0)
_HESITATIONS = frozenset(("um", "uh", "er", "hmm", "ah", "erm"))

#: Spectra are set anew each 8 ms, in windows of three steps; a transform of four steps leaves room for what rings on.
_STEP = 128
_WINDOW, _TRANSFORM = 3 * _STEP, 4 * _STEP
_BANDWIDTHS = (80.0, 110.0, 160.0, 250.0)
_FOURTH_FORMANT = 3500.0
#: Semitones: how far pitch falls from the first word to the last, and how far the first vowel of a word stands out.
_FALL, _ACCENT = 3.0, 1.0


def _sounds(words: Sequence[str]) -> list[tuple[_Sound, float]]:
    """Spell words as sounds, each with its accent in semitones."""
    sounds: list[tuple[_Sound, float]] = []
    for position, word in enumerate(words):
        if position and word in _HESITATIONS:
            sounds.append((_PAUSE, 0.0))
        accent = _ACCENT
        for letter, before in zip(word, f" {word}", strict=False):
            if letter == before:
                continue
            if letter in _STOPS:
                sounds.append((_CLOSURE, 0.0))
            sounds.append((_SOUNDS[letter], accent if letter in _VOWELS else 0.0))
            accent = 0.0 if letter in _VOWELS else accent
    return sounds


def _formants(words: Sequence[str], voice: Voice, generator: np.random.Generator) -> Floats:
    """Synthesise: pulses and noise, each frame filtered by the spectrum of the sound that is spoken then."""
    sounds = _sounds(words)
    samples = round(count_syllables(words) / voice.rate * SAMPLING_RATE)
    steps = -(-samples // _STEP) + 2
    ends = np.cumsum([sound.length for sound, _ in sounds])
    times = np.clip((np.arange(steps) - 1) * _STEP / samples, 0, 1) * ends[-1]
    spoken = np.minimum(np.searchsorted(ends, times, side="right"), len(sounds) - 1)
    tracks = np.array([[*sound, accent] for sound, accent in sounds])[spoken]
    tracks = np.stack([_smoothed(track) for track in tracks.T])
    _, first, second, third, voiced, hiss, centre, width, accent = tracks[..., None]

    frequencies = np.fft.rfftfreq(_TRANSFORM, 1 / SAMPLING_RATE)
    formants = zip((first, second, third, np.full_like(first, _FOURTH_FORMANT)), _BANDWIDTHS, strict=True)
    vowel = (frequencies > 50) / (1 + frequencies / 500)
    for formant, bandwidth in formants:
        ratio = frequencies / formant
        vowel = vowel / np.hypot(1 - ratio**2, ratio * bandwidth / formant)
    noise = np.exp(-(((frequencies - centre) / width) ** 2) / 2)
    pulses = _cut(_pulses(_contour(accent[:, 0], voiced[:, 0], voice.pitch)))
    hisses = _cut(generator.standard_normal((steps + 2) * _STEP))
    spectra = pulses * vowel * (voiced / _size(pulses * vowel)) + hisses * noise * (hiss / _size(hisses * noise))
    frames = np.fft.irfft(spectra, _TRANSFORM)
    joined = np.zeros((steps + 3, _STEP))
    for part in range(4):
        joined[part : part + steps] += frames[:, part * _STEP : (part + 1) * _STEP]
    wanted: Floats = joined.reshape(-1)[2 * _STEP : 2 * _STEP + samples]
    return wanted


def _smoothed(track: Floats) -> Floats:
    """Average over three neighbouring steps."""
    padded = np.pad(track, 1, mode="edge")
    smoothed: Floats = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    return smoothed


def _contour(accent: Floats, voiced: Floats, pitch: float) -> Floats:
    """Return the pitch (steps,) in Hz; its median over what is voiced is `pitch`."""
    semitones = accent + np.linspace(_FALL / 2, -_FALL / 2, len(accent))
    heard = semitones[voiced > 0.3] if (voiced > 0.3).any() else semitones
    contour: Floats = pitch * 2 ** ((semitones - np.median(heard)) / 12)
    return contour


def _pulses(pitch: Floats) -> Floats:
    """Return (samples,) two steps more than `pitch` has: pulses without a harmonic beyond the highest frequency."""
    samples = (len(pitch) + 2) * _STEP
    every = np.interp(np.arange(samples) / _STEP - 1, np.arange(len(pitch)), pitch)
    phase = np.cumsum(every) / SAMPLING_RATE
    harmonics = int(SAMPLING_RATE / 2 / pitch.max())
    slope = np.sin(np.pi * phase)
    at_peak = np.abs(slope) < 1e-9
    kernel = np.sin((2 * harmonics + 1) * np.pi * phase) / np.where(at_peak, 1.0, slope)
    pulses: Floats = np.where(at_peak, 2 * harmonics + 1, kernel) - 1
    return pulses


def _cut(samples: Floats) -> "np.ndarray[tuple[int, ...], np.dtype[np.complex128]]":
    """Return the spectra (steps, frequencies) of windows in the middle of their transform."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_STEP]
    weighted = windows * np.hanning(_WINDOW + 1)[:-1]
    return np.fft.rfft(np.pad(weighted, ((0, 0), (_STEP // 2, _STEP // 2))))


def _size(spectra: "np.ndarray[tuple[int, ...], np.dtype[np.complex128]]") -> Floats:
    """Return the size (steps, 1) of each spectrum, never 0."""
    size: Floats = np.sqrt((np.abs(spectra) ** 2).mean(axis=1, keepdims=True)) + 1e-12
    return size
