"""The sample corpus's options and videos, and the story of its version 1: latent sentiment and the clips that show it.

Every row is a pure function of (seed, video, clip). Nothing here is estimated: `ceiling.py` inverts the same story. Version
2 is told in `clips.py`; what both share stands here.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.sample_corpus import lexicon
from hf_msa.data.sample_corpus.grammar import HIGHEST, LOWEST, MAX_WORDS, MIN_WORDS, TONES, grammar_for, score_tokens
from hf_msa.data.schema import ID_SEPARATOR, SPLITS
from hf_msa.errors import MsaError, unknown_name
from hf_msa.models.msa_schema import FEATURE_MODALITIES, MODALITIES

Floats = NDArray[np.float64]

#: What a clip's modalities have to do with each other. "neutral": no cue in the text, nothing in voice and face;
#: "silent": no cue in the text, but voice and face agree on a sentiment; "conflicting": one modality lies.
KINDS = ("consistent", "neutral", "silent", "conflicting")

SILENT = TONES.index("silent")
#: How likely each of `TONES` is in a clip that says something.
SPEAKING_TONES = np.array([0, 0.16, 0.2, 0.16, 0.15, 0.18, 0.15])
#: Size of a sentiment that no words express: 3 times a Beta variable, so many weak ones and some strong.
MAGNITUDE_BETA = (1.5, 2.0)
#: Which modality lies where one does, in the order of `MODALITIES`: words are the easiest to bend.
LIAR_SHARES = (0.44, 0.28, 0.28)
#: A lie has the opposite sign this often; otherwise it is unrelated, its sign a coin's.
OPPOSITE_SHARE = 0.6
#: The label is the mean of this many annotators' whole numbers, each with this noise: multiples of 0.2.
ANNOTATORS = 5
ANNOTATOR_NOISE = 0.7

#: Frames: correlation of neighbouring noise, and how much of the sentiment shows off and on a cue word.
NOISE_MEMORY = 0.8
OFF_CUE, ON_CUE = 0.5, 1.5
#: Voice and face swell around a cue word: standard deviation of the bump, in seconds.
SWELL_SECONDS = 0.4
#: Speakers: standard deviation of a channel's offset (in units of the frame noise) and of its log gain.
SPEAKER_OFFSET = 0.35
SPEAKER_GAIN = 0.2
#: Share of frames that a tracker lost. COVAREP writes -inf there, which every reader sets to 0; so does this one.
LOST_FRAMES = 0.02

#: Seconds: a word of average length, a pause, and how likely a pause is before a word.
WORD_SECONDS = 0.27
PAUSE_SECONDS = 0.4
PAUSE_CHANCE = 0.15
#: Natural logarithm of a clip's words: mean and standard deviation, as in CMU-MOSI.
LOG_WORDS = (2.33, 0.62)

#: What a draw is for: the first number of its key.
_WORLD, _VIDEO, CLIP, SPEAKER_VOICE, CLIP_VOICE, CLIP_SOUND, CODES, PERSONAS, CALIBRATION = range(9)

VERSIONS = (1, 2)
#: What a linear probe on time-averaged audio, and on vision, correlates with the label, by the command line's names.
SENTIMENTS = {"weak": (0.18, 0.25), "normal": (0.45, 0.40), "strong": (0.65, 0.60)}


@dataclass(frozen=True)
class SampleCorpusConfig:
    """Everything that decides a sample corpus.

    Strengths of 0 turn a part off. Shares of variance are means over the channels that vary at all, each standardised, as a
    model sees them that standardises its inputs. Heavy-tailed channels count and hold nothing.

    Attributes:
        version: 2, or 1 for the corpus as it was first published.
        seed: The one seed of all draws.
        train: Clips in the training split.
        validation: Clips in the validation split.
        test: Clips in the test split.
        audio_dim: Width of an audio frame.
        vision_dim: Width of a vision frame.
        conflict_rate: Share of clips in which one modality lies.
        neutral_rate: Share of clips without any sentiment.
        silent_rate: Share of clips whose text has no cue although voice and face show a sentiment.
        contrast_rate: Share of contrasts ("but") among sentences with a cue and at least seven words.
        clips_per_video: Mean clips of a video; a video has between half and one and a half of it.
        audio_fps: Audio frames per second; a word with its share of pauses takes about a third of a second.
        vision_fps: Vision frames per second.
        audio_articulation: Version 2: share of the audio frames' variance within a clip that the words spoken explain.
        vision_articulation: The same for vision.
        persona: Version 2: share of the variance of frames, and of the clips' tempo, that the persona explains.
        personas: Version 2: how many there are.
        persona_gain: Version 2: standard deviation of the logarithm of how strongly a persona shows sentiment, per modality.
        persona_flips: Version 2: share of the personas with a flipped sign in audio or in vision; at most a half.
        audio_sentiment: Version 2: correlation with the label of a linear probe on time-averaged audio.
        vision_sentiment: The same for vision.
        audio_signal: Version 1: sentiment 1 moves an audio frame this far, in units of the frame noise, where a frame on a
            cue counts 1.5 and any other 0.5.
        vision_signal: The same for vision.
    """

    version: int = 2
    seed: int = 0
    train: int = 600
    validation: int = 150
    test: int = 200
    audio_dim: int = 5
    vision_dim: int = 20
    conflict_rate: float = 0.2
    neutral_rate: float = 0.06
    silent_rate: float = 0.07
    contrast_rate: float = 0.12
    clips_per_video: int = 10
    audio_fps: float = 9.0
    vision_fps: float = 10.0
    audio_articulation: float = 0.35
    vision_articulation: float = 0.20
    persona: float = 0.25
    personas: int = 400
    persona_gain: float = 0.35
    persona_flips: float = 0.2
    audio_sentiment: float = SENTIMENTS["normal"][0]
    vision_sentiment: float = SENTIMENTS["normal"][1]
    audio_signal: float = 0.27
    vision_signal: float = 0.28

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise MsaError(f"The sample corpus has no version {self.version!r}; give 1 or 2.")
        for name in _FIELDS_OF[3 - self.version]:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise MsaError(
                    f"The sample corpus's version {self.version} has no {name}; give "
                    f"{', '.join(_FIELDS_OF[self.version])}, or version={3 - self.version}."
                )
        sizes = {
            name: getattr(self, name) for name in (*SPLITS, "audio_dim", "vision_dim", "clips_per_video", "personas")
        }
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise MsaError(f"The sample corpus's {name} is {value!r}; give a whole number of at least 1.")
        for name in ("conflict_rate", "neutral_rate", "silent_rate", "contrast_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise MsaError(f"The sample corpus's {name} is {getattr(self, name)}; give a share from 0 to 1.")
        if self.conflict_rate + self.neutral_rate + self.silent_rate > 1:
            raise MsaError("The sample corpus's conflict, neutral and silent rates sum to more than 1; lower one.")
        for name in ("audio_fps", "vision_fps", "audio_signal", "vision_signal"):
            if not 0 < getattr(self, name) < math.inf:
                raise MsaError(f"The sample corpus's {name} is {getattr(self, name)}; give a positive number.")
        for modality in FEATURE_MODALITIES:
            for name in (f"{modality}_articulation", f"{modality}_sentiment"):
                if not 0 <= getattr(self, name) < 1:
                    raise MsaError(
                        f"The sample corpus's {name} is {getattr(self, name)}; give a number from 0 to below 1."
                    )
        if self.personas == 1 and self.persona:
            raise MsaError("One persona explains no variance; give the sample corpus more personas, or persona=0.")
        if not 0 <= self.persona < 1:
            raise MsaError(f"The sample corpus's persona is {self.persona}; give a share from 0 to below 1.")
        if not 0 <= self.persona_gain <= 1:
            raise MsaError(f"The sample corpus's persona_gain is {self.persona_gain}; give a number from 0 to 1.")
        if not 0 <= self.persona_flips <= 0.5:
            raise MsaError(f"The sample corpus's persona_flips is {self.persona_flips}; give a share from 0 to 0.5.")
        if self.seed < 0:
            raise MsaError(f"The sample corpus's seed is {self.seed}; give a whole number of at least 0.")

    def size(self, split: str) -> int:
        """Return the number of clips in `split`."""
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return int(getattr(self, split))

    def kind_prior(self) -> dict[str, float]:
        """Return the share of each of `KINDS`."""
        spoken = 1 - self.conflict_rate - self.neutral_rate - self.silent_rate
        return dict(zip(KINDS, (spoken, self.neutral_rate, self.silent_rate, self.conflict_rate), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the version's fields as plain JSON values; those of version 1 do not name it."""
        others = {*_FIELDS_OF[3 - self.version], *(["version"] if self.version == 1 else [])}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in others}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SampleCorpusConfig":
        """Rebuild the configuration from `to_dict`."""
        return cls(**{"version": 1, **values})


_FIELDS_OF: dict[int, tuple[str, ...]] = {
    1: tuple(f"{modality}_signal" for modality in FEATURE_MODALITIES),
    2: (
        *(f"{modality}_articulation" for modality in FEATURE_MODALITIES),
        *("persona", "personas", "persona_gain", "persona_flips"),
        *(f"{modality}_sentiment" for modality in FEATURE_MODALITIES),
    ),
}
"""The options that one version has and the other has not."""


PRESETS: dict[str, SampleCorpusConfig] = {
    "tiny": SampleCorpusConfig(train=96, validation=32, test=32, clips_per_video=6),
    "small": SampleCorpusConfig(),
    "mosi": SampleCorpusConfig(
        train=1284, validation=229, test=686, clips_per_video=22, audio_fps=12.5, vision_fps=15.0
    ),
    "study": SampleCorpusConfig(train=4000, validation=800, test=4000),
}
"""Ready configurations: for tests, for the demo, with the sizes, widths and lengths of CMU-MOSI, and for comparisons: with
4000 test clips a difference of .01 in mean absolute error has an interval that excludes zero."""


def preset(name: str, *, sentiment: str | None = None, **overrides: Any) -> SampleCorpusConfig:
    """Return a preset with some fields changed.

    Args:
        name: A key of `PRESETS`.
        sentiment: A key of `SENTIMENTS`, which sets `audio_sentiment` and `vision_sentiment` where they are not given.
        **overrides: Fields of `SampleCorpusConfig`.

    Raises:
        MsaError: If the preset, the sentiment or a field is unknown, or a value is not allowed.
    """
    if sentiment is not None:
        if sentiment not in SENTIMENTS:
            raise unknown_name("sentiment", sentiment, SENTIMENTS)
        named = (f"{modality}_sentiment" for modality in FEATURE_MODALITIES)
        overrides = dict(zip(named, SENTIMENTS[sentiment], strict=True)) | overrides
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    fields = [field.name for field in dataclasses.fields(SampleCorpusConfig)]
    for key in overrides:
        if key not in fields:
            raise unknown_name("sample corpus option", key, fields)
    return dataclasses.replace(PRESETS[name], **overrides)


@dataclass(frozen=True)
class SampleRow:
    """One clip.

    Attributes:
        row: What every data set has: `id`, `video_id`, `clip_id`, `text`, `audio` and `vision` (T, d) float32,
            `label`, `label_text`, `label_audio`, `label_vision`, `annotation`.
        planted: What only this data set knows, and no model may see. `tokens`, `roles`, `contributions` per word;
            `kind` (one of `KINDS`), `lying_modality` ("none" or a modality), `hard_no_cue`, `hard_sarcasm`,
            `hard_contrast`, `hard` (any of the three); `latent_text`, `latent_audio`, `latent_vision`, `consensus`
            in label units; `arousal` in [0, 1]; `topic`, `speaker`; and per frame of audio and vision `*_word` (the
            word spoken, -1 in a pause), `*_strength` (how much of the latent shows) and `*_evidence` (the frame
            along the modality's hidden direction, without the speaker's gain; NaN where the frame was lost).
    """

    row: dict[str, Any]
    planted: dict[str, Any]


def clip_numbers(config: SampleCorpusConfig, split: str) -> Iterator[tuple[int, int]]:
    """Yield the numbers of video and clip of each row of a split.

    Videos of the three splits are interleaved, so no video is in two of them. Sizes only cut the stream: a larger split
    begins with the rows of a smaller one.
    """
    wanted = config.size(split)
    video = SPLITS.index(split)
    while wanted > 0:
        clips = min(video_of(config, video).clips, wanted)
        yield from ((video, clip) for clip in range(clips))
        wanted -= clips
        video += len(SPLITS)


def make_row(config: SampleCorpusConfig, video: int, clip: int) -> SampleRow:
    """Make one clip of version 1: a pure function of the configuration, the video's number and the clip's number in it."""
    generator = generator_of(config.seed, CLIP, video, clip)
    scene = video_of(config, video)
    kind = KINDS[_choose(generator, list(config.kind_prior().values()))]
    tone = SILENT if kind in ("neutral", "silent") else draw_tone(generator)
    tokens = write_sentence(generator, config.contrast_rate, tone, scene.topic)
    score, roles, contributions = score_tokens(tokens)

    lying = MODALITIES[_choose(generator, LIAR_SHARES)] if kind == "conflicting" else "none"
    consensus = score
    if kind == "silent":
        consensus = _magnitude(generator) * _coin(generator)
    elif lying == "text":
        consensus = _lie_about(score, generator)
    latents = {"text": score, "audio": consensus, "vision": consensus}
    if lying in FEATURE_MODALITIES:
        latents[lying] = _lie_about(score, generator)
    ratings = np.rint(consensus + ANNOTATOR_NOISE * generator.standard_normal(ANNOTATORS))
    # Summed as whole numbers, so that equal labels are equal floats.
    label = float(np.clip(ratings, LOWEST, HIGHEST).sum()) / ANNOTATORS

    arousal = float(generator.random())
    timing = _timing(tokens, generator)
    video_id, clip_id = f"video{video:06d}", str(clip)
    row: dict[str, Any] = {
        "id": f"{video_id}{ID_SEPARATOR}{clip_id}",
        "video_id": video_id,
        "clip_id": clip_id,
        "text": " ".join(tokens),
    }
    no_cue = "cue" not in roles
    sarcasm = lying == "text" and score > 0 > consensus
    contrast = "contrast" in roles
    planted: dict[str, Any] = {
        "id": row["id"],
        "tokens": tokens,
        "roles": roles,
        "contributions": contributions,
        "kind": kind,
        "lying_modality": lying,
        "hard": no_cue or sarcasm or contrast,
        "hard_no_cue": no_cue,
        "hard_sarcasm": sarcasm,
        "hard_contrast": contrast,
        **{f"latent_{modality}": latents[modality] for modality in MODALITIES},
        "consensus": consensus,
        "arousal": arousal,
        "topic": scene.topic,
        "speaker": f"speaker{video:06d}",
    }
    for modality in FEATURE_MODALITIES:
        fps = float(getattr(config, f"{modality}_fps"))
        word = timing.word_per_frame(fps)
        strength = timing.strength_per_frame(fps, [i for i, role in enumerate(roles) if role == "cue"])
        frames, evidence = _show(config, modality, scene, latents[modality], strength, arousal, generator)
        row[modality] = frames
        planted[f"{modality}_word"] = word.tolist()
        planted[f"{modality}_strength"] = strength.tolist()
        planted[f"{modality}_evidence"] = evidence.tolist()
    row["label"] = label
    row |= {f"label_{modality}": latents[modality] for modality in MODALITIES}
    row["annotation"] = "Neutral" if label == 0 else "Positive" if label > 0 else "Negative"
    return SampleRow(row, planted)


def draw_tone(generator: np.random.Generator) -> int:
    """Return the tone of a clip that says something, an index into `TONES`."""
    return _choose(generator, SPEAKING_TONES)


def write_sentence(generator: np.random.Generator, contrast_rate: float, tone: int, topic: str) -> list[str]:
    """Write what a clip says; its length is drawn first.

    Args:
        generator: Where the draws come from.
        contrast_rate: See `SampleCorpusConfig`.
        tone: Index into `TONES`.
        topic: A key of `lexicon.TOPICS`.
    """
    words = round(math.exp(generator.normal(*LOG_WORDS)))
    return grammar_for(contrast_rate).write(generator, tone, min(max(words, MIN_WORDS), MAX_WORDS), topic)


def expected_label(sentiment: Floats) -> Floats:
    """Return the mean label that annotators give to a true sentiment: near it, drawn inwards at the ends.

    Args:
        sentiment: Any shape, in label units.
    """
    points, values = _annotators_curve()
    return np.interp(sentiment, points, values)


@functools.cache
def _annotators_curve() -> tuple[Floats, Floats]:
    points = np.linspace(LOWEST, HIGHEST, 601)
    # E[clip(round(x))] = lowest + the sum over the half-way points above it of P(x > half-way point).
    edges = np.arange(LOWEST, HIGHEST) + 0.5
    above = [[0.5 * math.erfc((e - p) / (ANNOTATOR_NOISE * math.sqrt(2))) for e in edges] for p in points]
    return points, LOWEST + np.array(above).sum(axis=1)


def _lie_about(truth: float, generator: np.random.Generator) -> float:
    sign = _coin(generator)
    if generator.random() < OPPOSITE_SHARE and truth != 0:
        sign = -1 if truth > 0 else 1
    return sign * _magnitude(generator)


def _magnitude(generator: np.random.Generator) -> float:
    return HIGHEST * float(generator.beta(*MAGNITUDE_BETA))


def _coin(generator: np.random.Generator) -> int:
    return 1 if generator.random() < 0.5 else -1


def _choose(generator: np.random.Generator, chances: Floats | Sequence[float]) -> int:
    return min(int(np.searchsorted(np.cumsum(chances), generator.random(), side="right")), len(chances) - 1)


def generator_of(seed: int, *key: int) -> np.random.Generator:
    """Return where the draws of one thing come from, whatever else is drawn."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


# --- videos and speakers ---


@dataclass(frozen=True)
class Video:
    """What a video's clips share: its length, topic, and per modality the speaker's offset and gain per channel."""

    clips: int
    topic: str
    offset: Mapping[str, Floats]
    gain: Mapping[str, Floats]


@functools.lru_cache(maxsize=64)
def video_of(config: SampleCorpusConfig, video: int) -> Video:
    """Return what the clips of a video share, a function of the seed and the video's number."""
    generator = generator_of(config.seed, _VIDEO, video)
    few, many = -(-config.clips_per_video // 2), config.clips_per_video * 3 // 2
    topics = list(lexicon.TOPICS)
    clips, topic = int(generator.integers(few, many + 1)), topics[generator.integers(len(topics))]
    width = {modality: getattr(config, f"{modality}_dim") for modality in FEATURE_MODALITIES}
    offset = {m: SPEAKER_OFFSET * generator.standard_normal(width[m]) for m in FEATURE_MODALITIES}
    gain = {m: np.exp(SPEAKER_GAIN * generator.standard_normal(width[m])) for m in FEATURE_MODALITIES}
    return Video(clips, topic, offset, gain)


# --- audio and vision ---


@dataclass(frozen=True)
class Channels:
    """A modality's fixed make-up, all (d,): unit directions of sentiment and arousal, level, scale, which are dead."""

    sentiment: Floats
    arousal: Floats
    level: Floats
    scale: Floats
    dead: NDArray[np.bool_]
    heavy: NDArray[np.bool_]

    @property
    def live(self) -> NDArray[np.bool_]:
        """Those that show something: neither dead nor heavy-tailed."""
        return ~(self.dead | self.heavy)


@functools.lru_cache(maxsize=8)
def make_up(config: SampleCorpusConfig, modality: str) -> Channels:
    """Return the make-up of a modality's channels, a function of the seed and its width."""
    width = int(getattr(config, f"{modality}_dim"))
    generator = generator_of(config.seed, _WORLD, FEATURE_MODALITIES.index(modality))
    # A feature set of fewer than four channels has none to waste.
    dead, heavy = (max(1, width // 10), max(1, width // 5)) if width >= 4 else (0, 0)
    order = generator.permutation(width)
    is_dead, is_heavy = np.zeros(width, dtype=bool), np.zeros(width, dtype=bool)
    is_dead[order[:dead]], is_heavy[order[dead : dead + heavy]] = True, True
    live = ~(is_dead | is_heavy)
    sentiment = np.where(live, generator.standard_normal(width), 0.0)
    sentiment /= np.sqrt((sentiment**2).sum())
    arousal = np.where(live, generator.standard_normal(width), 0.0)
    arousal -= (arousal * sentiment).sum() * sentiment
    length = np.sqrt((arousal**2).sum())
    # With a single live channel nothing is left beside the sentiment.
    arousal = arousal / length if length > 1e-9 else np.zeros(width)
    return Channels(
        sentiment, arousal, generator.standard_normal(width), np.exp(0.5 * generator.standard_normal(width)),
        is_dead, is_heavy,
    )  # fmt: skip


@dataclass(frozen=True)
class _Timing:
    """When each word is spoken, in seconds: starts (n,), ends (n,), and the clip's length."""

    starts: Floats
    ends: Floats
    seconds: float

    def word_per_frame(self, fps: float) -> NDArray[np.int64]:
        """Return (T,): the word spoken in the middle of each frame, -1 in a pause."""
        times = self._frame_times(fps)
        word = np.searchsorted(self.starts, times, side="right") - 1
        return np.where((word >= 0) & (times < self.ends[np.maximum(word, 0)]), word, -1)

    def strength_per_frame(self, fps: float, cues: list[int]) -> Floats:
        """Return (T,): how much of the latent each frame shows; it swells towards the middle of a cue word."""
        times = self._frame_times(fps)
        swell = np.zeros(len(times))
        for cue in cues:
            middle = (self.starts[cue] + self.ends[cue]) / 2
            swell = np.maximum(swell, np.exp(-(((times - middle) / SWELL_SECONDS) ** 2) / 2))
        return OFF_CUE + (ON_CUE - OFF_CUE) * swell

    def _frame_times(self, fps: float) -> Floats:
        times = np.arange(max(1, round(self.seconds * fps)), dtype=np.float64)
        return (times + 0.5) / fps


def _timing(tokens: list[str], generator: np.random.Generator) -> _Timing:
    letters = np.array([len(token) for token in tokens])
    spoken = WORD_SECONDS * (0.5 + letters / 9) * np.exp(0.25 * generator.standard_normal(len(tokens)))
    # One pause more than words: the last is what the clip's cut leaves at its end.
    pauses = generator.exponential(PAUSE_SECONDS, len(tokens) + 1)
    pauses *= generator.random(len(tokens) + 1) < PAUSE_CHANCE
    ends = np.cumsum(spoken + pauses[:-1])
    return _Timing(ends - spoken, ends, float(ends[-1] + pauses[-1]))


def _show(
    config: SampleCorpusConfig,
    modality: str,
    scene: Video,
    latent: float,
    strength: Floats,
    arousal: float,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the frames (T, d) that show a latent sentiment, and what a frame says along the hidden direction (T,)."""
    channels = make_up(config, modality)
    frames, width = len(strength), len(channels.level)
    signal = getattr(config, f"{modality}_signal") * latent * strength
    envelope = arousal * np.sin(np.pi * (np.arange(frames) + 0.5) / frames)
    noise = _remembered(generator.standard_normal((frames, width)))
    heavy = np.clip(generator.standard_t(2, (frames, int(channels.heavy.sum()))), -50, 50)
    values = scene.offset[modality] + signal[:, None] * channels.sentiment + noise
    evidence = (values * channels.sentiment).sum(axis=1)
    values += envelope[:, None] * channels.arousal
    values[:, channels.heavy] = heavy
    shown = channels.level + channels.scale * scene.gain[modality] * values
    shown[:, channels.dead] = 0.0
    lost = generator.random(frames) < LOST_FRAMES
    shown[lost] = 0.0
    evidence[lost] = np.nan
    return shown.astype(np.float32), evidence.astype(np.float32)


def _remembered(shocks: Floats) -> Floats:
    """Turn independent unit shocks (T, d) into AR(1) noise of unit variance along T, by elementwise doubling."""
    noise = shocks * math.sqrt(1 - NOISE_MEMORY**2)
    noise[0] = shocks[0]
    shift = 1
    while shift < len(noise):
        noise[shift:] = noise[shift:] + NOISE_MEMORY**shift * noise[:-shift]
        shift *= 2
    return noise


def tone_prior(config: SampleCorpusConfig) -> Floats:
    """Return (7,): the share of each of `TONES` before a word is seen."""
    kinds = config.kind_prior()
    prior: Floats = SPEAKING_TONES / SPEAKING_TONES.sum() * (kinds["consistent"] + kinds["conflicting"])
    prior[SILENT] = kinds["neutral"] + kinds["silent"]
    return prior
