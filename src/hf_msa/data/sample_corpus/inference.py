"""What can be known of version 2's clips from what is visible of them, by inverting `clips` with its true constants.

Given the words, the persona and the sentiment, a modality's live channels are Gaussian: AR(1) noise and the video's offset
around a mean that is linear in the words' codes, the persona's level and the sentiment shown. So:

1. *Words.* Hidden words are read from the visible frames, each given what is expected of its neighbours (mean field); with
   these hints whole sentences are sampled from the grammar, given the visible words.
2. *Persona.* Every persona is weighed by how well its level and tempo fit. What is known of it may be chosen: it is told
   (``"known"``), one of the corpus's (``"inferred"``, as by somebody who remembers all), or a stranger of the same
   population (``"unknown"``, all that a smooth map of the features can do).
3. *Sentiment.* Over kinds of clips, lies, personas and sampled sentences, everything is averaged on a grid.

It is told what no model can fully know, so it is a bound from above: all codes and directions, the video's gain, arousal,
and which frames belong to which word. Only step 1 is approximate where words are hidden.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.sample_corpus import clips, story
from hf_msa.data.sample_corpus.clips import Script, Shown, Strengths
from hf_msa.data.sample_corpus.grammar import HIGHEST, LOWEST, grammar_for
from hf_msa.data.sample_corpus.personas import personas_of, word_codes
from hf_msa.data.sample_corpus.story import Floats, SampleCorpusConfig, expected_label, make_up, tone_prior
from hf_msa.models.msa_schema import FEATURE_MODALITIES, MODALITIES

#: How much is known of a clip's persona.
PERSONA_KNOWLEDGE = ("known", "inferred", "unknown")

_GRID_STEP = 0.025
_SWEEPS = 3
#: Points of a stranger's gain: quantiles of its distribution.
_GAIN_POINTS = 7


@dataclass(frozen=True)
class Known:
    """What is inferred of one clip.

    Attributes:
        label: Mean of the label.
        lies: Per modality the probability that it lies.
        level: Per modality (L,), mean of the persona's level.
        shown: Per modality the mean of what one unit of strength shows along the hidden direction.
        words: Per modality (n, L), mean of the words' codes.
    """

    label: float
    lies: Mapping[str, float]
    level: Mapping[str, Floats]
    shown: Mapping[str, float]
    words: Mapping[str, Floats]


@dataclass(frozen=True)
class View:
    """One modality of one clip in units of the frame noise, without arousal: T frames, L live channels, n words.

    Attributes:
        values: (T, L).
        strength: (T,).
        sounding: (T, n) how much of each word sounds in each frame.
        kept: (T,) bool, what is visible.
        hidden: (T,) bool, what is to be foretold: neither visible nor lost.
    """

    values: Floats
    strength: Floats
    sounding: Floats
    kept: NDArray[np.bool_]
    hidden: NDArray[np.bool_]


def infer(
    config: SampleCorpusConfig,
    numbers: Sequence[tuple[int, int]],
    kept: Mapping[str, Sequence[NDArray[np.bool_]]],
    samples: int,
    seed: int = 0,
    persona: str = "inferred",
) -> Iterator[tuple[dict[str, View], Known]]:
    """Infer what can be known of clips.

    Args:
        config: The corpus, of version 2.
        numbers: Of the clips' videos and of the clips in them.
        kept: Per modality one bool array per clip, True = visible: per word, per frame.
        samples: Sentences that are drawn per clip with a hidden word.
        seed: Decides the sentences.
        persona: One of `PERSONA_KNOWLEDGE`.

    Yields:
        Of each clip what is shown of it per modality, and what is known.
    """
    script, shown = clips.make_clips(config, numbers)
    generator = np.random.default_rng(seed)
    for i in range(len(numbers)):
        views = {m: _view(config, m, script, shown[m], i, kept[m][i]) for m in FEATURE_MODALITIES}
        yield views, _Clip(config, script, i, views, persona).infer(kept["text"][i], samples, generator)


def _view(
    config: SampleCorpusConfig, modality: str, script: Script, shown: Shown, clip: int, kept: NDArray[np.bool_]
) -> View:
    channels, frames = make_up(config, modality), shown.frames
    here = slice(*frames.edges[clip : clip + 2])
    values = (
        shown.values[here] - (script.arousal[clip] * frames.envelope[here])[:, None] * channels.arousal[channels.live]
    )
    sounding = np.zeros((len(values), len(script.tokens[clip])))
    rows = np.arange(len(values))
    for k in range(3):
        np.add.at(sounding, (rows, frames.near[here, k]), frames.share[here, k])
    lost = shown.lost[here]
    return View(values, frames.strength[here], sounding, kept & ~lost, ~kept & ~lost)


class _Gaussian:
    """Inner products of functions of the visible frames under AR(1) noise and a constant offset that is not known."""

    def __init__(self, kept: NDArray[np.bool_], offset: float) -> None:
        self._seen = np.flatnonzero(kept)
        self._memory = story.NOISE_MEMORY ** np.diff(self._seen)[:, None]
        self._one = self._white(np.ones((len(kept), 1)))
        self._known = float((self._one**2).sum()) + 1 / offset

    def _white(self, values: Floats) -> Floats:
        # AR(1) noise is made white by subtracting from each frame what the one seen before it foretells.
        seen = values[self._seen]
        if len(seen) > 1:
            seen[1:] = (seen[1:] - self._memory * seen[:-1]) / np.sqrt(1 - self._memory**2)
        return seen

    def product(self, left: Floats, right: Floats) -> Floats:
        """Products (a, b) of (T, a) and (T, b)."""
        a, b = self._white(left), self._white(right)
        products: Floats = a.T @ b - (a.T @ self._one) @ (self._one.T @ b) / self._known
        return products


class _Clip:
    """One clip: statistics of its visible frames, and what follows from them."""

    def __init__(
        self, config: SampleCorpusConfig, script: Script, clip: int, views: Mapping[str, View], persona: str
    ) -> None:
        self._config, self._script, self._clip, self._views = config, script, clip, views
        self._strengths = clips.strengths_of(config)
        self._numbers = script.numbers[clip, : len(script.tokens[clip])]
        self._voices = voices_of(config, persona, int(script.persona[clip]))
        self._codes = {m: self._strengths[m].articulation * word_codes(config, m) for m in FEATURE_MODALITIES}
        self._toward = {m: make_up(config, m).sentiment[make_up(config, m).live] for m in FEATURE_MODALITIES}
        self._stats = {m: self._statistics(m) for m in FEATURE_MODALITIES}

    def infer(self, visible: NDArray[np.bool_], samples: int, generator: np.random.Generator) -> Known:
        means, hints = self._read_words(visible)
        if visible.all():
            text = np.array([self._script.latent["text"][self._clip]])
            silent = np.array(["cue" not in self._script.roles[self._clip]])
        else:
            filled = grammar_for(self._config.contrast_rate).complete(
                [self._script.tokens[self._clip]], [visible], tone_prior(self._config), samples, generator, [hints]
            )
            text, silent = filled.scores[0], filled.silent[0]
            means = {m: self._codes[m][filled.words[0]].mean(axis=0) for m in FEATURE_MODALITIES}
        weights, slopes, curvatures = self._weigh_voices(means)
        return self._average(text, silent, weights, slopes, curvatures, means)

    def _statistics(self, modality: str) -> dict[str, Floats]:
        view = self._views[modality]
        gaussian = _Gaussian(view.kept, self._voices.offset_variance[modality])
        toward = view.values @ self._toward[modality]
        across = view.values - toward[:, None] * self._toward[modality]
        one, shown = np.ones((len(toward), 1)), view.strength[:, None]
        return {
            "one one": gaussian.product(one, one)[0, 0],
            "one across": gaussian.product(one, across)[0],
            "one words": gaussian.product(one, view.sounding)[0],
            "words words": gaussian.product(view.sounding, view.sounding),
            "words across": gaussian.product(view.sounding, across),
            "one toward": gaussian.product(one, toward[:, None])[0, 0],
            "shown one": gaussian.product(shown, one)[0, 0],
            "shown shown": gaussian.product(shown, shown)[0, 0],
            "shown toward": gaussian.product(shown, toward[:, None])[0, 0],
        }

    def _read_words(self, visible: NDArray[np.bool_]) -> tuple[dict[str, Floats], Floats]:
        """Return the mean codes (n, L) per modality, and how likely the frames are under each word (n, W)."""
        means = {m: self._codes[m][self._numbers] for m in FEATURE_MODALITIES}
        hidden = np.flatnonzero(~visible)
        hints = np.ones((len(self._numbers), len(word_frequencies(self._config))))
        if not len(hidden):
            return means, hints
        frequencies = word_frequencies(self._config)
        for m in FEATURE_MODALITIES:
            means[m] = np.where(visible[:, None], means[m], frequencies @ self._codes[m])
        for _ in range(_SWEEPS):
            weights, _, _ = self._weigh_voices(means)
            for i in hidden:
                fit = np.zeros(len(frequencies))
                for m in FEATURE_MODALITIES:
                    stats, codes = self._stats[m], self._codes[m]
                    level = weights @ self._voices.across[m]
                    others = stats["words words"][i] @ means[m] - stats["words words"][i, i] * means[m][i]
                    pull = stats["words across"][i] - stats["one words"][i] * level - others
                    fit += codes @ pull - stats["words words"][i, i] * (codes**2).sum(axis=1) / 2
                hints[i] = np.exp(fit - fit.max())
                share = frequencies * hints[i]
                share /= share.sum()
                for m in FEATURE_MODALITIES:
                    means[m][i] = share @ self._codes[m]
        return means, hints

    def _weigh_voices(self, means: Mapping[str, Floats]) -> tuple[Floats, dict[str, Floats], dict[str, Floats]]:
        """Return the weights (K,) of who may speak, where nothing is shown, and what sentiment changes: see `_average`."""
        voices = self._voices
        log = np.log(voices.chances)
        slopes, curvatures = {}, {}
        for m in FEATURE_MODALITIES:
            stats = self._stats[m]
            across, toward = voices.across[m], voices.toward[m]
            log = log + across @ (stats["one across"] - stats["one words"] @ means[m])
            log = log + toward * stats["one toward"]
            log = log - ((across**2).sum(axis=1) + toward**2) * stats["one one"] / 2
            gain = self._strengths[m].signal * voices.gain[m]
            slopes[m] = gain * (stats["shown toward"] - toward * stats["shown one"])
            curvatures[m] = gain**2 * stats["shown shown"]
        if any(view.kept.any() for view in self._views.values()):
            log = log - (self._script.tempo[self._clip] - voices.tempo) ** 2 / 2 / voices.tempo_variance
        weights = np.exp(log - log.max())
        return weights / weights.sum(), slopes, curvatures

    def _average(
        self,
        text: Floats,
        silent: NDArray[np.bool_],
        weights: Floats,
        slopes: Mapping[str, Floats],
        curvatures: Mapping[str, Floats],
        means: Mapping[str, Floats],
    ) -> Known:
        """Average over voices (K), sampled sentences (M), kinds of clips and lies."""
        grid, positive, negative = _sizes()
        nodes = np.concatenate([grid, text, [0.0]])
        at_text = slice(len(grid), len(grid) + len(text))
        chance, log_weights = {}, np.log(np.maximum(weights, 1e-300))
        for m in FEATURE_MODALITIES:
            log = slopes[m][:, None] * nodes - curvatures[m][:, None] * nodes**2 / 2
            # A voice's factor moves into its weight, which keeps the exponentials in range.
            peak = log.max(axis=1)
            chance[m] = np.exp(log - peak[:, None])
            log_weights = log_weights + peak
        weights = np.exp(log_weights - log_weights.max())

        config = self._config
        kinds = config.kind_prior()
        spoken = kinds["consistent"] + kinds["conflicting"]
        conflict = kinds["conflicting"] / spoken if spoken else 0.0
        unspoken = kinds["neutral"] + kinds["silent"]
        neutral = kinds["neutral"] / unspoken if unspoken else 0.0
        liar = dict(zip(MODALITIES, story.LIAR_SHARES, strict=True))
        opposite = story.OPPOSITE_SHARE
        up = np.where(text == 0, 0.5, np.where(text < 0, opposite, 0.0) + (1 - opposite) / 2)
        labels = expected_label(nodes)
        speaks = ~silent

        def masses(first: Floats, second: Floats) -> dict[str, tuple[Floats, Floats]]:
            """Weights (K,) of each hypothesis, alone and times the label, under audio's and vision's (K, nodes)."""
            both = first * second
            lies = {
                name: ((part[:, : len(grid)] @ positive), (part[:, : len(grid)] @ negative))
                for name, part in (("text", both), ("label", both * labels), ("audio", first), ("vision", second))
            }
            said = {m: lies[m][0][:, None] * up + lies[m][1][:, None] * (1 - up) for m in lies}
            label = labels[at_text]
            parts = {
                "none": (1 - conflict) * both[:, at_text],
                "audio": conflict * liar["audio"] * second[:, at_text] * said["audio"],
                "vision": conflict * liar["vision"] * first[:, at_text] * said["vision"],
            }
            found = {name: (part @ speaks, (part * label) @ speaks) for name, part in parts.items()}
            found["text"] = (
                conflict * liar["text"] * (said["text"] @ speaks),
                conflict * liar["text"] * (said["label"] @ speaks),
            )
            quiet = float(silent.sum())
            found["quiet"] = (
                quiet * (neutral * both[:, -1] + (1 - neutral) * sum(lies["text"]) / 2),
                quiet * (1 - neutral) * sum(lies["label"]) / 2,
            )
            return found

        found = masses(chance["audio"], chance["vision"])
        total = sum(float(weights @ mass) for mass, _ in found.values())
        posterior = weights * sum(mass for mass, _ in found.values()) / total
        times_latent = {
            "audio": masses(chance["audio"] * nodes, chance["vision"]),
            "vision": masses(chance["audio"], chance["vision"] * nodes),
        }
        shown = {}
        for m in FEATURE_MODALITIES:
            latent = sum(mass for mass, _ in times_latent[m].values())
            shown[m] = self._strengths[m].signal * float((weights * self._voices.gain[m]) @ latent) / total
        return Known(
            label=sum(float(weights @ part) for _, part in found.values()) / total,
            lies={m: float(weights @ found[m][0]) / total for m in MODALITIES},
            level={
                m: posterior @ (self._voices.across[m] + self._voices.toward[m][:, None] * self._toward[m])
                for m in FEATURE_MODALITIES
            },
            shown=shown,
            words=means,
        )


@functools.cache
def _sizes() -> tuple[Floats, Floats, Floats]:
    """Return a grid of sentiments, and how likely each is if no words express it, given its sign: + and -."""
    grid = np.arange(LOWEST + _GRID_STEP / 2, HIGHEST, _GRID_STEP)
    a, b = story.MAGNITUDE_BETA
    size = np.abs(grid) / HIGHEST
    density = size ** (a - 1) * (1 - size) ** (b - 1)
    half = density / density[grid > 0].sum()
    return grid, np.where(grid > 0, half, 0.0), np.where(grid < 0, half, 0.0)


@functools.lru_cache(maxsize=8)
def word_frequencies(config: SampleCorpusConfig) -> Floats:
    """Return (W,): how often each word is said, from the clips that also decide the strengths."""
    numbers = clips.moment_script(config).numbers
    counts = np.bincount(numbers[numbers >= 0], minlength=len(word_codes(config, FEATURE_MODALITIES[0]))) + 0.5
    frequencies: Floats = counts / counts.sum()
    return frequencies


@dataclass(frozen=True)
class _Voices:
    """Who may speak: K candidates, with their level across and along the hidden direction of each modality."""

    chances: Floats
    across: Mapping[str, Floats]
    toward: Mapping[str, Floats]
    gain: Mapping[str, Floats]
    tempo: Floats
    tempo_variance: float
    offset_variance: Mapping[str, float]


def voices_of(config: SampleCorpusConfig, knowledge: str, persona: int) -> _Voices:
    """Return who may speak in a clip of a persona, as far as `knowledge` goes."""
    return _voices(config, knowledge, persona if knowledge == "known" else -1)


@functools.lru_cache(maxsize=512)
def _voices(config: SampleCorpusConfig, knowledge: str, persona: int) -> _Voices:
    personas, strengths = personas_of(config), clips.strengths_of(config)
    of_video = story.SPEAKER_OFFSET**2
    if knowledge == "unknown":
        return _strangers(config, strengths)
    chosen = slice(persona, persona + 1) if knowledge == "known" else slice(None)
    across, toward = {}, {}
    for m in FEATURE_MODALITIES:
        channels = make_up(config, m)
        level, direction = strengths[m].persona * personas.level[m][chosen], channels.sentiment[channels.live]
        toward[m] = level @ direction
        across[m] = level - toward[m][:, None] * direction
    return _Voices(
        chances=personas.chances[chosen] / personas.chances[chosen].sum(),
        across=across,
        toward=toward,
        gain={m: personas.gain[m][chosen] for m in FEATURE_MODALITIES},
        tempo=clips.TEMPO_SPREAD * np.sqrt(config.persona) * personas.tempo[chosen],
        tempo_variance=clips.TEMPO_SPREAD**2 * (1 - config.persona),
        offset_variance=dict.fromkeys(FEATURE_MODALITIES, of_video),
    )


def _strangers(config: SampleCorpusConfig, strengths: Mapping[str, Strengths]) -> _Voices:
    """Return candidates that stand for the population: gains and flipped signs; levels are one more unknown offset."""
    generator = np.random.default_rng(0)
    # Quantiles of a standard normal variable, without a library of distributions.
    normal = np.quantile(generator.standard_normal(100_000), (np.arange(_GAIN_POINTS) + 0.5) / _GAIN_POINTS)
    gains = np.exp(config.persona_gain * normal - config.persona_gain**2 / 2)
    flips = config.persona_flips
    signs = np.array([[1, 1], [-1, 1], [1, -1]])
    audio, vision, sign = (part.ravel() for part in np.meshgrid(gains, gains, np.arange(3), indexing="ij"))
    count = len(sign)
    widths = {m: int(make_up(config, m).live.sum()) for m in FEATURE_MODALITIES}
    chances = np.maximum(np.array([1 - flips, flips / 2, flips / 2])[sign], 1e-12)
    return _Voices(
        chances=chances / chances.sum(),
        across={m: np.zeros((count, widths[m])) for m in FEATURE_MODALITIES},
        toward={m: np.zeros(count) for m in FEATURE_MODALITIES},
        gain={"audio": audio * signs[sign, 0], "vision": vision * signs[sign, 1]},
        tempo=np.zeros(count),
        tempo_variance=clips.TEMPO_SPREAD**2,
        offset_variance={m: story.SPEAKER_OFFSET**2 + strengths[m].persona ** 2 for m in FEATURE_MODALITIES},
    )
