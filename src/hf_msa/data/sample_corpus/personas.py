"""Who and what recurs in version 2 of the sample corpus: personas, and the codes of words in voice and face.

A persona fixes the level of the voice, the geometry of the face and the tempo by independent random codes, and how sentiment
shows: a gain of its own per modality and, for some, a flipped sign in one. Who has met a persona can read it; nothing
smooth in the features tells which sign it has. A few personas are in every tenth clip, most in a few.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.sample_corpus import lexicon
from hf_msa.data.sample_corpus.story import (
    CODES,
    PERSONAS,
    Floats,
    SampleCorpusConfig,
    generator_of,
    make_up,
)
from hf_msa.models.msa_schema import FEATURE_MODALITIES

_ENDINGS = re.compile("(?<=...)(?:ing|ed|ly|es|s)$")


def stem(word: str) -> str:
    """Return what a word's code hangs on: the word without -ing, -ed, -ly, -es or -s where three letters stay."""
    return _ENDINGS.sub("", word)


@functools.cache
def stems() -> tuple[NDArray[np.int64], int]:
    """Return the number of the stem of each word of `lexicon.all_words` (W,), and how many stems there are."""
    names = [stem(word) for word in lexicon.all_words()]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names]), len(number)


@functools.lru_cache(maxsize=8)
def word_codes(config: SampleCorpusConfig, modality: str) -> Floats:
    """Return (W, L): the fixed code of each word of `lexicon.all_words` along the live channels.

    Codes are standard normal and orthogonal to the hidden direction of sentiment: words do not sound positive.
    """
    numbers, count = stems()
    channels = make_up(config, modality)
    direction = channels.sentiment[channels.live]
    generator = generator_of(config.seed, CODES, FEATURE_MODALITIES.index(modality))
    codes = generator.standard_normal((count, len(direction)))
    codes -= (codes * direction).sum(axis=1)[:, None] * direction
    return codes[numbers]


@dataclass(frozen=True)
class Personas:
    """All personas of a corpus; the most frequent is the first.

    Attributes:
        chances: (P,) share of the clips in which each speaks: Zipf, one over its rank.
        level: Per modality (P, L), the code along the live channels: mean 0 and variance 1 over clips.
        tempo: (P,) of mean 0 and variance 1 over clips.
        gain: Per modality (P,), what sentiment is multiplied by before it shows; negative where the sign is flipped.
    """

    chances: Floats
    level: Mapping[str, Floats]
    tempo: Floats
    gain: Mapping[str, Floats]


@functools.lru_cache(maxsize=8)
def personas_of(config: SampleCorpusConfig) -> Personas:
    """Return the personas of a corpus, a function of its seed and options."""
    count = config.personas
    generator = generator_of(config.seed, PERSONAS)
    chances = 1 / np.arange(1, count + 1)
    chances /= chances.sum()

    def standardized(codes: Floats) -> Floats:
        codes = codes - (chances[:, None] * codes).sum(axis=0)
        spread = np.sqrt((chances[:, None] * codes**2).sum(axis=0))
        return codes / np.where(spread > 0, spread, 1.0)

    level = {}
    for modality in FEATURE_MODALITIES:
        level[modality] = standardized(generator.standard_normal((count, int(make_up(config, modality).live.sum()))))
    tempo = standardized(generator.standard_normal((count, 1)))[:, 0]
    spread = config.persona_gain
    gain = {
        modality: np.exp(spread * generator.standard_normal(count) - spread**2 / 2) for modality in FEATURE_MODALITIES
    }
    for modality, flipped in _flipped(count, config.persona_flips, generator).items():
        gain[modality][flipped] *= -1
    return Personas(chances, level, tempo, gain)


def _flipped(count: int, share: float, generator: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Choose who has a flipped sign: one of each `1 / share` neighbours in rank, in audio and in vision by turns.

    So the flipped are a `share` of the clips, too, nearly. Of the most frequent group it is the last.
    """
    block = 1 / share if share else np.inf
    edges = np.floor(np.arange(int(count / block) + 1) * block).astype(int) if share else np.zeros(1, dtype=int)
    chosen = [int(generator.integers(first, last)) for first, last in zip(edges[:-1], edges[1:], strict=True)]
    if chosen:
        chosen[0] = int(edges[1]) - 1
    return {
        modality: np.array(chosen[i :: len(FEATURE_MODALITIES)], dtype=np.int64)
        for i, modality in enumerate(FEATURE_MODALITIES)
    }
