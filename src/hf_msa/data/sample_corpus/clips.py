"""The story of version 2 of the sample corpus, told of many clips at once.

Each clip has a generator of its own, so a row is a function of (seed, video, clip) alone. What is then made of the draws is
elementwise over clips laid end to end: no number depends on which clips are made together.

A frame's live channels are, in units of the frame noise::

    values = video's offset + persona's level + articulation of the words
             + signal * persona's gain * latent sentiment * strength * direction + AR(1) noise + arousal

`strengths_of` solves how large persona, articulation and signal must be for the shares that the configuration asks for.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.sample_corpus import lexicon, story
from hf_msa.data.sample_corpus.grammar import HIGHEST, LOWEST, MAX_WORDS, MIN_WORDS, grammar_for, score_tokens
from hf_msa.data.sample_corpus.personas import personas_of, word_codes
from hf_msa.data.sample_corpus.story import (
    KINDS,
    SILENT,
    SPEAKING_TONES,
    Floats,
    SampleCorpusConfig,
    SampleRow,
    generator_of,
    make_up,
    video_of,
)
from hf_msa.data.schema import ID_SEPARATOR
from hf_msa.errors import MsaError
from hf_msa.models.msa_schema import FEATURE_MODALITIES, MODALITIES

Ints = NDArray[np.int64]

#: Seconds over which one word's code gives way to the next.
COARTICULATION_SECONDS = 0.12
#: Standard deviation of the logarithm of a clip's tempo.
TEMPO_SPREAD = 0.15
#: Why a modality lies: it says the opposite, or something unrelated.
REASONS = ("none", "opposite", "unrelated")

_UNIFORMS = 10
_MOMENT_CLIPS = 600


@dataclass(frozen=True)
class Script:
    """What is said and shown in N clips, before there are frames.

    Attributes:
        tokens: The words of each clip.
        roles: Of each word, see `score_tokens`.
        contributions: Of each word.
        numbers: (N, W) of each word in `lexicon.all_words`, -1 beyond the end.
        kind: (N,) indices into `KINDS`.
        liar: (N,) indices into `MODALITIES`, -1 where nobody lies.
        reason: (N,) indices into `REASONS`.
        latent: Per modality (N,).
        consensus: (N,).
        label: (N,).
        arousal: (N,) in [0, 1].
        persona: (N,) indices.
        tempo: (N,) natural logarithm of how much faster than usual.
        starts: (N, W) seconds, infinite beyond the end.
        ends: (N, W) seconds, infinite beyond the end.
        seconds: (N,).
    """

    tokens: list[list[str]]
    roles: list[list[str]]
    contributions: list[list[float]]
    numbers: Ints
    kind: Ints
    liar: Ints
    reason: Ints
    latent: Mapping[str, Floats]
    consensus: Floats
    label: Floats
    arousal: Floats
    persona: Ints
    tempo: Floats
    starts: Floats
    ends: Floats
    seconds: Floats


@dataclass(frozen=True)
class Frames:
    """The time line of one modality in N clips, their M frames laid end to end.

    Attributes:
        edges: (N + 1,) first frame of each clip, and M.
        clip: (M,) which clip a frame is of.
        position: (M,) of the frame in its clip.
        word: (M,) position of the word that is spoken, -1 in a pause.
        strength: (M,) how much of the latent shows.
        envelope: (M,) of arousal.
        near: (M, 3) positions of the words whose codes sound in a frame: the one before, this one, the next.
        share: (M, 3) how much of each sounds.
    """

    edges: Ints
    clip: Ints
    position: Ints
    word: Ints
    strength: Floats
    envelope: Floats
    near: Ints
    share: Floats

    def articulate(self, numbers: Ints, codes: Floats) -> Floats:
        """Render codes (W, L) of the clips' words (N, words) with coarticulation: (M, L)."""
        sounding = numbers[self.clip[:, None], self.near]
        before, here, after = (self.share[:, i, None] * codes[sounding[:, i]] for i in range(3))
        rendered: Floats = before + here + after
        return rendered


@dataclass(frozen=True)
class Strengths:
    """How large the planted parts of one modality are, in units of the frame noise.

    Attributes:
        articulation: Factor of the words' codes.
        persona: Factor of the persona's level.
        signal: What sentiment 1 adds, as in version 1.
    """

    articulation: float
    persona: float
    signal: float


@dataclass(frozen=True)
class Shown:
    """What is planted in the frames of one modality, before each channel's level and scale: all (M, L) of live channels.

    Attributes:
        frames: The time line.
        articulation: What the words add.
        persona: What the persona's level adds.
        values: All of it, noise and arousal included.
        lost: (M,) whether the tracker lost the frame.
        heavy: (M, H) values of the heavy-tailed channels.
    """

    frames: Frames
    articulation: Floats
    persona: Floats
    values: Floats
    lost: NDArray[np.bool_]
    heavy: Floats


# --- what is said ---


def write_script(
    config: SampleCorpusConfig, generators: Sequence[np.random.Generator], topics: Sequence[str]
) -> Script:
    """Write what is said and shown in clips, each from its own generator.

    Args:
        config: The corpus.
        generators: N, one per clip.
        topics: N keys of `lexicon.TOPICS`.
    """
    clips = len(generators)
    uniform, normal = np.empty((clips, _UNIFORMS)), np.empty((clips, 2 + story.ANNOTATORS))
    size = np.empty((clips, 2))
    said, timed = np.zeros((clips, MAX_WORDS, 2)), np.full((clips, MAX_WORDS + 1, 3), 0.5)
    words = np.empty(clips, dtype=np.int64)
    for i, generator in enumerate(generators):
        generator.random(out=uniform[i])
        generator.standard_normal(out=normal[i])
        size[i] = generator.beta(*story.MAGNITUDE_BETA, 2)
        mean, spread = story.LOG_WORDS
        count = words[i] = min(max(round(math.exp(mean + spread * normal[i, 0])), MIN_WORDS), MAX_WORDS)
        generator.random(out=said[i, :count])
        timed[i, : count + 1, :2] = generator.random((count + 1, 2))
        timed[i, :count, 2] = generator.standard_normal(count)
    size *= HIGHEST
    kind = _choices(list(config.kind_prior().values()), uniform[:, 0])
    unspoken = (kind == KINDS.index("neutral")) | (kind == KINDS.index("silent"))
    tone = np.where(unspoken, SILENT, _choices(SPEAKING_TONES, uniform[:, 1]))
    numbers = grammar_for(config.contrast_rate).write_many(said, uniform[:, 2], tone, words, topics)
    tokens = [[_WORDS[n] for n in row[:count]] for row, count in zip(numbers.tolist(), words.tolist(), strict=True)]
    scored = [score_tokens(row) for row in tokens]
    score = np.array([found[0] for found in scored])

    liar = np.where(kind == KINDS.index("conflicting"), _choices(story.LIAR_SHARES, uniform[:, 3]), -1)
    opposite = (uniform[:, 4] < story.OPPOSITE_SHARE) & (score != 0)
    lie = np.where(opposite, -np.sign(score), np.where(uniform[:, 5] < 0.5, 1.0, -1.0)) * size[:, 0]
    felt = np.where(uniform[:, 6] < 0.5, 1.0, -1.0) * size[:, 1]
    consensus = np.where(kind == KINDS.index("silent"), felt, np.where(liar == MODALITIES.index("text"), lie, score))
    latent = {m: np.where(liar == MODALITIES.index(m), lie, consensus) for m in FEATURE_MODALITIES}
    ratings = np.rint(consensus[:, None] + story.ANNOTATOR_NOISE * normal[:, 2:])

    personas = personas_of(config)
    persona = _choices(personas.chances, uniform[:, 7])
    of_persona, of_clip = math.sqrt(config.persona), math.sqrt(1 - config.persona)
    tempo = TEMPO_SPREAD * (of_persona * personas.tempo[persona] + of_clip * normal[:, 1])
    starts, ends, seconds = _time_line(numbers, words, timed, tempo)
    return Script(
        tokens=tokens,
        roles=[found[1] for found in scored],
        contributions=[found[2] for found in scored],
        numbers=numbers,
        kind=kind,
        liar=liar,
        reason=np.where(liar < 0, 0, np.where(opposite, 1, 2)),
        latent={"text": score, **latent},
        consensus=consensus,
        label=np.clip(ratings, LOWEST, HIGHEST).sum(axis=1) / story.ANNOTATORS,
        arousal=uniform[:, 8],
        persona=persona,
        tempo=tempo,
        starts=starts,
        ends=ends,
        seconds=seconds,
    )


_WORDS = lexicon.all_words()
_LETTERS = np.array([len(word) for word in _WORDS])


def _choices(chances: Floats | Sequence[float], draws: Floats) -> Ints:
    edges = np.cumsum(chances)
    chosen: Ints = np.minimum(np.searchsorted(edges, draws * edges[-1], side="right"), len(edges) - 1)
    return chosen


def _time_line(numbers: Ints, words: Ints, timed: Floats, tempo: Floats) -> tuple[Floats, Floats, Floats]:
    """Return starts and ends (N, W) of words and the clips' lengths (N,), in seconds."""
    place = np.arange(MAX_WORDS + 1)
    said, paused = place[:-1] < words[:, None], place <= words[:, None]
    slowness = np.exp(-tempo)[:, None]
    spoken = story.WORD_SECONDS * (0.5 + _LETTERS[numbers] / 9) * np.exp(0.25 * timed[:, :-1, 2]) * said
    pauses = -story.PAUSE_SECONDS * np.log1p(-timed[..., 0]) * (timed[..., 1] < story.PAUSE_CHANCE) * paused
    spoken, pauses = spoken * slowness, pauses * slowness
    # The pause after the last word is what the clip's cut leaves at its end.
    last = np.take_along_axis(pauses, words[:, None], axis=1)[:, 0]
    ends = np.cumsum(spoken + np.where(said, pauses[:, :-1], 0.0), axis=1)
    seconds = ends[:, -1] + last
    return np.where(said, ends - spoken, np.inf), np.where(said, ends, np.inf), seconds


# --- when it is said ---


def time_frames(script: Script, fps: float) -> Frames:
    """Lay out the frames of clips."""
    counts = np.maximum(1, np.rint(script.seconds * fps)).astype(np.int64)
    edges = np.concatenate([[0], np.cumsum(counts)])
    clip = np.repeat(np.arange(len(counts)), counts)
    position = np.arange(edges[-1]) - edges[clip]
    time = (position + 0.5) / fps
    # In a pause at the very start the first word is the nearest.
    latest = np.maximum((script.starts[clip] <= time[:, None]).sum(axis=1) - 1, 0)
    begun = script.starts[clip, latest] <= time
    word = np.where(begun & (time < script.ends[clip, latest]), latest, -1)
    words = np.isfinite(script.ends).sum(axis=1)
    near = latest[:, None] + np.array([-1, 0, 1])
    here = (near >= 0) & (near < words[clip][:, None])
    near = np.where(here, near, 0)
    rows = clip[:, None]
    share = _ramp(time[:, None] - script.starts[rows, near]) - _ramp(time[:, None] - script.ends[rows, near])
    middles = np.full((len(counts), max(1, max(roles.count("cue") for roles in script.roles))), np.inf)
    for i, roles in enumerate(script.roles):
        if "cue" in roles:
            cues = [place for place, role in enumerate(roles) if role == "cue"]
            middles[i, : len(cues)] = (script.starts[i, cues] + script.ends[i, cues]) / 2
    swell = np.exp(-(((time[:, None] - middles[clip]) / story.SWELL_SECONDS) ** 2) / 2).max(axis=1)
    return Frames(
        edges=edges,
        clip=clip,
        position=position,
        word=word,
        strength=story.OFF_CUE + (story.ON_CUE - story.OFF_CUE) * swell,
        envelope=np.sin(np.pi * (position + 0.5) / counts[clip]),
        near=near,
        share=np.where(here, share, 0.0),
    )


def _ramp(seconds: Floats) -> Floats:
    return np.clip(seconds / COARTICULATION_SECONDS + 0.5, 0.0, 1.0)


# --- how it is shown ---


def show(
    config: SampleCorpusConfig,
    modality: str,
    script: Script,
    generators: Sequence[np.random.Generator],
    offset: Floats,
) -> Shown:
    """Show the sentiment of clips in the frames of a modality.

    Args:
        config: The corpus.
        modality: ``"audio"`` or ``"vision"``.
        script: N clips.
        generators: N, which have written the script.
        offset: (N, d) of the clips' videos.
    """
    channels, strengths = make_up(config, modality), strengths_of(config)[modality]
    live = channels.live
    frames = time_frames(script, float(getattr(config, f"{modality}_fps")))
    shocks = np.empty((frames.edges[-1], int(live.sum())))
    drawn = np.empty((frames.edges[-1], 1 + int(channels.heavy.sum())))
    for generator, first, last in zip(generators, frames.edges[:-1], frames.edges[1:], strict=True):
        generator.standard_normal(out=shocks[first:last])
        generator.random(out=drawn[first:last])
    personas = personas_of(config)
    clip = frames.clip
    articulation = strengths.articulation * frames.articulate(script.numbers, word_codes(config, modality))
    persona = (strengths.persona * personas.level[modality])[script.persona[clip]]
    shown = strengths.signal * personas.gain[modality][script.persona] * script.latent[modality]
    values = offset[:, live][clip] + persona + articulation + _remembered(shocks, frames.position)
    values += (shown[clip] * frames.strength)[:, None] * channels.sentiment[live]
    values += (script.arousal[clip] * frames.envelope)[:, None] * channels.arousal[live]
    return Shown(
        frames=frames,
        articulation=articulation,
        persona=persona,
        values=values,
        lost=drawn[:, 0] < story.LOST_FRAMES,
        heavy=_student_t2(drawn[:, 1:]),
    )


def _student_t2(uniform: Floats) -> Floats:
    """Turn uniform numbers into draws from Student's t with two degrees of freedom, cut at 50."""
    inside = np.clip(uniform, 1e-9, 1 - 1e-9)
    return np.clip((2 * inside - 1) / np.sqrt(2 * inside * (1 - inside)), -50, 50)


def _remembered(shocks: Floats, position: Ints) -> Floats:
    """Turn unit shocks (M, L) into AR(1) noise of unit variance within each clip, by elementwise doubling."""
    memory = story.NOISE_MEMORY
    noise = shocks * np.where(position == 0, 1.0, math.sqrt(1 - memory**2))[:, None]
    longest = int(position.max()) + 1
    shift = 1
    while shift < longest:
        earlier = noise[:-shift] * (memory**shift * (position[shift:] >= shift))[:, None]
        noise[shift:] += earlier
        shift *= 2
    return noise


# --- how large the parts are ---


@functools.lru_cache(maxsize=8)
def moment_script(config: SampleCorpusConfig) -> Script:
    """Return clips that are in no split, to take moments of text, timing and lies from."""
    generators = [generator_of(0, story.CALIBRATION, i) for i in range(_MOMENT_CLIPS)]
    topics = list(lexicon.TOPICS)
    return write_script(config, generators, [topics[i % len(topics)] for i in range(_MOMENT_CLIPS)])


@functools.lru_cache(maxsize=8)
def strengths_of(config: SampleCorpusConfig) -> dict[str, Strengths]:
    """Solve how large the planted parts must be for the shares and correlations that are asked for.

    Moments of text, timing and lies come from clips that are in no split; the rest is algebra.

    Raises:
        MsaError: If what is asked for cannot be had, such as a correlation beyond what lies and flipped signs allow.
    """
    script = moment_script(config)
    return {modality: _solve(config, modality, script) for modality in FEATURE_MODALITIES}


def _solve(config: SampleCorpusConfig, modality: str, script: Script) -> Strengths:
    channels, personas = make_up(config, modality), personas_of(config)
    live = channels.live
    varying = int((~channels.dead).sum())
    toward, along_arousal = channels.sentiment[live] ** 2, channels.arousal[live] ** 2
    wanted = {name: float(getattr(config, f"{modality}_{name}")) for name in ("articulation", "sentiment")}
    if wanted["articulation"] and live.sum() < 2:
        raise MsaError(
            f"{modality} has one channel, which shows sentiment, and no room for words; give {modality}_dim of at "
            f"least 2, or {modality}_articulation=0."
        )

    frames = time_frames(script, float(getattr(config, f"{modality}_fps")))
    gain, chances = personas.gain[modality], personas.chances
    gain_mean, gain_square = float(chances @ gain), float(chances @ gain**2)
    shown = script.latent[modality][frames.clip] * frames.strength
    words_within, words_total = _variances(frames.articulate(script.numbers, word_codes(config, modality)), frames)
    shown_within, shown_total = _variances(shown[:, None], frames)
    swell_within, swell_total = _variances((script.arousal[frames.clip] * frames.envelope)[:, None], frames)
    counts = np.diff(frames.edges)
    # Variance of the mean of a clip's AR(1) noise.
    memory = story.NOISE_MEMORY
    of_mean = ((1 + memory) / (1 - memory) - 2 * memory * (1 - memory**counts) / counts / (1 - memory) ** 2) / counts
    noise_within = 1 - float((of_mean * counts).sum() / counts.sum())

    mean_shown = np.add.reduceat(shown, frames.edges[:-1]) / counts
    covariance = gain_mean * float(np.cov(mean_shown, script.label)[0, 1])
    square = gain_square * float((mean_shown**2).mean()) - (gain_mean * float(mean_shown.mean())) ** 2
    label = float(script.label.var())
    level_toward = float(chances @ (personas.level[modality] @ channels.sentiment[live]) ** 2)

    correlation = wanted["sentiment"]
    room = covariance**2 - correlation**2 * label * square
    if correlation and (room <= 0 or covariance <= 0):
        most = covariance / math.sqrt(label * square) if covariance > 0 else 0.0
        raise MsaError(
            f"{modality}_sentiment is {correlation}, but with this share of lies and flipped signs no linear probe "
            f"reaches more than {most:.2f}; give less."
        )

    persona = articulation = signal = 0.0  # squares of the three strengths
    for _ in range(60):
        rest = persona * level_toward + story.SPEAKER_OFFSET**2 + float(of_mean.mean())
        signal = correlation**2 * label * rest / room if correlation else 0.0
        unspoken = signal * gain_square * shown_within * toward + swell_within * along_arousal + noise_within
        articulation = _root(words_within, unspoken, wanted["articulation"] * varying, f"{modality}_articulation")
        impersonal = (
            story.SPEAKER_OFFSET**2
            + articulation * words_total
            + signal * gain_square * shown_total * toward
            + swell_total * along_arousal
            + 1
        )
        persona = _root(np.ones(len(toward)), impersonal, config.persona * varying, "persona")
    return Strengths(math.sqrt(articulation), math.sqrt(persona), math.sqrt(signal))


def _variances(values: Floats, frames: Frames) -> tuple[Floats, Floats]:
    """Return the variance of (M, L) within clips and over all frames, each (L,)."""
    counts = np.diff(frames.edges)
    means = np.add.reduceat(values, frames.edges[:-1], axis=0) / counts[:, None]
    return ((values - means[frames.clip]) ** 2).mean(axis=0), values.var(axis=0)


def _root(own: Floats, other: Floats, wanted: float, name: str) -> float:
    """Solve sum of x own / (x own + other) = wanted for x, by bisection of its logarithm.

    Raises:
        MsaError: If no x is large enough.
    """
    if not wanted:
        return 0.0
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        part = math.exp(middle) * own
        low, high = (middle, high) if float((part / (part + other)).sum()) < wanted else (low, middle)
    if high > 15:
        raise MsaError(
            f"The sample corpus's {name} cannot be had: of the channels {wanted:.1f} would have to show nothing else; "
            "give less, or a wider modality."
        )
    return math.exp(high)


# --- rows ---


def make_rows(config: SampleCorpusConfig, numbers: Sequence[tuple[int, int]]) -> list[SampleRow]:
    """Make clips of version 2, each a pure function of the configuration, the video's number and the clip's number in it."""
    script, shown = make_clips(config, numbers)
    personas = personas_of(config)
    columns: dict[str, Any] = {}
    for modality in FEATURE_MODALITIES:
        channels, part = make_up(config, modality), shown[modality]
        frames, live = part.frames, channels.live
        gain = np.array([video_of(config, video).gain[modality] for video, _ in numbers])
        features = np.zeros((len(frames.clip), len(live)))
        features[:, live], features[:, channels.heavy] = part.values, part.heavy
        features = channels.level + channels.scale * gain[frames.clip] * features
        features[:, channels.dead] = 0.0
        features[part.lost] = 0.0
        evidence = (part.values * channels.sentiment[live]).sum(axis=1)
        evidence[part.lost] = np.nan
        columns[modality] = features.astype(np.float32)
        columns[f"{modality}_word"] = frames.word.tolist()
        columns[f"{modality}_strength"] = frames.strength.tolist()
        columns[f"{modality}_evidence"] = evidence.astype(np.float32).tolist()
    rows = []
    for i, (video, clip) in enumerate(numbers):
        video_id = f"video{video:06d}"
        label = float(script.label[i])
        latents = {modality: float(script.latent[modality][i]) for modality in MODALITIES}
        row: dict[str, Any] = {
            "id": f"{video_id}{ID_SEPARATOR}{clip}",
            "video_id": video_id,
            "clip_id": str(clip),
            "text": " ".join(script.tokens[i]),
        }
        roles, consensus, persona = script.roles[i], float(script.consensus[i]), int(script.persona[i])
        lying = "none" if script.liar[i] < 0 else MODALITIES[script.liar[i]]
        hard = {
            "no_cue": "cue" not in roles,
            "sarcasm": lying == "text" and latents["text"] > 0 > consensus,
            "contrast": "contrast" in roles,
        }
        planted: dict[str, Any] = {
            "id": row["id"],
            "tokens": script.tokens[i],
            "roles": roles,
            "contributions": script.contributions[i],
            "kind": KINDS[script.kind[i]],
            "lying_modality": lying,
            "lie": REASONS[script.reason[i]],
            "hard": any(hard.values()),
            **{f"hard_{name}": flag for name, flag in hard.items()},
            **{f"latent_{modality}": value for modality, value in latents.items()},
            "consensus": consensus,
            "arousal": float(script.arousal[i]),
            "topic": video_of(config, video).topic,
            "persona": f"persona{persona:04d}",
            "tempo": float(script.tempo[i]),
        }
        for modality in FEATURE_MODALITIES:
            first, last = shown[modality].frames.edges[i : i + 2]
            row[modality] = columns[modality][first:last]
            planted[f"{modality}_gain"] = float(personas.gain[modality][persona])
            for name in ("word", "strength", "evidence"):
                planted[f"{modality}_{name}"] = columns[f"{modality}_{name}"][first:last]
        row["label"] = label
        row |= {f"label_{modality}": latents[modality] for modality in MODALITIES}
        row["annotation"] = "Neutral" if label == 0 else "Positive" if label > 0 else "Negative"
        rows.append(SampleRow(row, planted))
    return rows


def make_clips(config: SampleCorpusConfig, numbers: Sequence[tuple[int, int]]) -> tuple[Script, dict[str, Shown]]:
    """Make what is planted in clips, given by the numbers of their videos and of the clips in these."""
    generators = [generator_of(config.seed, story.CLIP, video, clip) for video, clip in numbers]
    videos = [video_of(config, video) for video, _ in numbers]
    script = write_script(config, generators, [video.topic for video in videos])
    shown = {}
    for modality in FEATURE_MODALITIES:
        offset = np.array([video.offset[modality] for video in videos])
        shown[modality] = show(config, modality, script, generators, offset)
    return script, shown
