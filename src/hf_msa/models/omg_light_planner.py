"""OMG-Agent's planner for machines that cannot run a language model of many billion weights: rules, words and ridge probes.

It is ours, not the paper's, and named in every result. It knows no language's grammar but English: see `rule_entity_action`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .configuration_omg import OmgConfig
from .msa_answer_store import AnswerStore, content_hash
from .msa_schema import FEATURE_MODALITIES, SENTIMENT_SCALE
from .msa_verbalizer import MsaVerbalizer, summarize
from .omg_observation import Observation
from .omg_plan import FALLBACK_PLAN, MAX_PHRASE, Plan
from .omg_planner import Candidate, Centering, Encode, Planner, Proposed, encoder_digest

# Counts the changes of what is proposed for equal observations by an equal fit.
_RULES = 1

# Words, the second halves of contractions, and single Chinese characters.
_TOKEN = re.compile(r"[\u4e00-\u9fff]|'?[^\W\d_\u4e00-\u9fff]+")
# Where a clause ends, in any script; a gap of dropped words ends one too.
_CLAUSE_END = re.compile(r"[.,;:!?\n\u2026\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]+")
_PRONOUNS = frozenset("he she it they this that these those everyone everybody someone nobody who you".split())
_SPEAKER = frozenset(("i", "we"))
_DETERMINERS = frozenset("the a an my your his her its our their every each some no".split())
_BE = frozenset("is are was were be been am 's 're 'm".split())
_HAVE = frozenset("has have had 've".split())
_MODAL = frozenset("do does did can ca could will wo would should may might must 'll 'd".split())
_ADVERBS = frozenset("not never just also so too very really always still even only pretty quite".split())
_OTHER = frozenset(
    "and or but if because of in on at to for with from by about as than then there when while me him them us".split()
)
_CLOSED = _PRONOUNS | _SPEAKER | _DETERMINERS | _BE | _HAVE | _MODAL | _ADVERBS | _OTHER


def tokenize(text: str) -> list[str]:
    """Lower-case words, halves of contractions ("do", "not"; "it", "'s") and single Chinese characters."""
    return _TOKEN.findall(text.lower().replace("\u2019", "'").replace("n't", " not").replace("'", " '"))


def rule_entity_action(text: str | None) -> tuple[str, str]:
    """Guess subject and verb of an English sentence by word lists and endings, without a tagger.

    The entity is the first pronoun that can be a subject, or what follows the first article or possessive; the action is
    the verb behind it. Where the rules find nothing, or the text is missing, the words of `FALLBACK_PLAN` stand in. Of a
    text without any Latin letter, which the rules cannot read, the action is the first clause as it stands.
    """
    words = tokenize(text or "")
    if text and not re.search("[a-z]", text.lower()):
        clauses = (" ".join(clause.split())[:MAX_PHRASE].strip(" \"'.") for clause in _CLAUSE_END.split(text))
        said = (clause for clause in clauses if any(letter.isalpha() for letter in clause))
        return FALLBACK_PLAN.entity, next(said, FALLBACK_PLAN.action)
    for start, word in enumerate(words):
        if word in _SPEAKER or word in _PRONOUNS:
            return "the speaker" if word in _SPEAKER else word, _rule_action(words[start + 1 :])
        if word in _DETERMINERS:
            end = start + 1
            while (
                end < len(words)
                and words[end] not in _CLOSED
                and end - start <= 3
                and not (end > start + 1 and words[end].endswith(("ed", "ing")))
            ):
                end += 1
            if end > start + 1:
                return " ".join(words[start:end])[:MAX_PHRASE].strip(" '"), _rule_action(words[end:])
    return FALLBACK_PLAN.entity, FALLBACK_PLAN.action


def _rule_action(words: Sequence[str]) -> str:
    """The verb at the beginning of what follows a subject."""
    helper = ""
    for word in words:
        if word in _ADVERBS or word.endswith("ly"):
            continue
        if word in _BE | _HAVE | _MODAL:
            helper = word
        elif word in _CLOSED:
            break
        elif helper in _BE | _HAVE and not word.endswith(("ed", "ing", "en")):
            break
        else:
            return word[:MAX_PHRASE].strip("'")
    return "has" if helper in _HAVE else "is" if helper in _BE else FALLBACK_PLAN.action


class Lexicon(NamedTuple):
    """Words with the sentiment of the training transcripts that they stand in: for any language, and nobody's list.

    Args:
        mean: Mean training label.
        words: Word -> (transcripts that hold it, sum of their labels' differences from the mean).
        prior: A word's weight is that sum over the count plus this number: rare words say little.
    """

    mean: float
    words: Mapping[str, Sequence[float]]
    prior: float = 5.0

    def score(self, text: str) -> float:
        """Mean weight of a text's different words, 0 where it has none; unknown words weigh 0."""
        counts = [self.words.get(word, (0, 0.0)) for word in sorted(set(tokenize(text)))]
        return float(np.mean([total / (count + self.prior) for count, total in counts])) if counts else 0.0


class RidgeProbe(NamedTuple):
    """A linear map from features to a score.

    Args:
        center: `(features,)`, training means.
        scale: `(features,)`, training deviations; 1 for a feature that never differs.
        weights: `(features,)`, on standardised features.
        bias: Mean training label.
        deviation: Root mean square of the training residuals.
    """

    center: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: float
    deviation: float

    def predict(self, features: np.ndarray) -> float:
        """The score of one row `(features,)`."""
        return float((features - self.center) / self.scale @ self.weights + self.bias)


class LightPlanner(Planner):
    """Plans without a language model of many billion weights, for machines that cannot run one.

    The sentiment comes from a ridge probe for the modalities that are observed: on text from a lexicon and the text
    encoder's vector, on audio and vision from mean, spread and trend of each feature. Candidates are the most probable
    words of the scale under a normal distribution around the probe's score. Entity and action come from rules. Vectors are
    the text encoder's; of sound and pictures it reads the verbaliser's words.

    Args:
        encode: The text encoder: texts -> `(texts, width)`, a function of each text alone.
        config: How plans are chosen; the settings of draws do not apply.
        lexicon: Of the training split.
        probes: Modalities, in the order of `MODALITIES` -> their probe.
        verbalizer, centering, store: See `Planner`.
    """

    def __init__(
        self,
        encode: Encode,
        config: OmgConfig,
        lexicon: Lexicon,
        probes: Mapping[tuple[str, ...], RidgeProbe],
        verbalizer: MsaVerbalizer | None = None,
        centering: Centering | None = None,
        store: AnswerStore | None = None,
    ) -> None:
        super().__init__(config, verbalizer, centering, store)
        self.encode = encode
        self.lexicon = lexicon
        self.probes = dict(probes)

    @property
    def name(self) -> str:
        """Says in every result that no language model planned."""
        return "light planner"

    def predict(self, observations: Sequence[Observation]) -> list[tuple[float, float]]:
        """Score and its deviation, in label units, for each observation.

        Without anything that the planner reads the score is 0 without a deviation, so that re-ranking among words that
        nothing speaks for leaves it neutral.

        Raises:
            ValueError: If a set of modalities is observed that no training sample had.
        """
        found = []
        for row in self.probe_inputs(observations):
            probe = self.probes.get(tuple(row))
            if row and probe is None:
                raise ValueError(
                    f"The light planner has no probe for {' and '.join(row)}; fit it on samples that have them together."
                )
            values = list(row.values())
            found.append((0.0, 0.0) if probe is None else (probe.predict(np.concatenate(values)), probe.deviation))
        return found

    def probe_inputs(self, observations: Sequence[Observation]) -> list[dict[str, np.ndarray]]:
        """What the probes read of each modality of an observation, in the order of `MODALITIES`; of text first a score."""
        texts = [seen.transcript for seen in observations if seen.transcript]
        vectors = iter(self.vectors(texts) if texts else ())
        rows = []
        for seen in observations:
            row = {}
            if seen.transcript:
                score = self.lexicon.score(seen.transcript)
                row["text"] = np.concatenate([[score], np.asarray(next(vectors), dtype=np.float64)])
            for name in FEATURE_MODALITIES:
                if name in seen.features:
                    row[name] = summarize(seen.features[name]).ravel()
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """All that was fitted; the encoder is not in it."""
        return {"kind": "light", **self._fitted(), **super().to_dict()}

    def _fitted(self) -> dict[str, Any]:
        words = {word: list(counts) for word, counts in self.lexicon.words.items()}
        probes = [
            {"modalities": list(pattern), **{name: np.asarray(one).tolist() for name, one in probe._asdict().items()}}
            for pattern, probe in self.probes.items()
        ]
        return {"lexicon": {**self.lexicon._asdict(), "words": words}, "probes": probes}

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        encode: Encode,
        config: OmgConfig,
        store: AnswerStore | None = None,
    ) -> "LightPlanner":
        """Rebuild the planner from `to_dict`, with the text encoder that it was fitted with.

        Raises:
            ValueError: If a number is none, or numbers do not fit each other; so other errors of values of any form.
        """
        probes = {}
        for probe in values["probes"]:
            center, scale, weights = (np.array(probe[name], np.float64) for name in ("center", "scale", "weights"))
            bias, deviation = float(probe["bias"]), float(probe["deviation"])
            sound = center.ndim == 1 and center.shape == scale.shape == weights.shape
            if not sound or not np.isfinite([*center, *scale, *weights, bias, deviation]).all():
                raise ValueError("the numbers of a probe are none, or do not fit each other")
            probes[tuple(map(str, probe["modalities"]))] = RidgeProbe(center, scale, weights, bias, deviation)
        lexicon = Lexicon(**values["lexicon"])
        counts = [number for count, total in lexicon.words.values() for number in (count, total)]
        if not np.isfinite(np.array([lexicon.mean, lexicon.prior, *counts], np.float64)).all():
            raise ValueError("a number of the lexicon is none")
        return cls(encode, config, lexicon, probes, *cls._shared_parts(values), store)

    def _propose(self, observations: Sequence[Observation]) -> list[Proposed]:
        """The most probable words of the scale around the predicted score, most probable first."""
        proposed: list[Proposed] = []
        family = self.config.family
        unit = (family.high - family.neutral) / 3
        for observation, (score, deviation) in zip(observations, self.predict(observations), strict=True):
            entity, action = rule_entity_action(observation.transcript)
            # A tenth of a class at least: a probe that fits its training rows exactly is not certain of others.
            distances = (np.arange(-3, 4) - (score - family.neutral) / unit) / max(deviation / unit, 0.1)
            log_probs = -(distances**2) / 2
            log_probs -= np.logaddexp.reduce(log_probs)
            best = np.argsort(-log_probs, kind="stable")[: self.config.num_candidates]
            proposed.append(
                Proposed(
                    tuple(
                        (Plan(entity, action, SENTIMENT_SCALE[word]).to_text(), float(log_probs[word]))
                        for word in best
                    )
                )
            )
        return proposed

    def _expected_score(self, candidates: Sequence[Candidate]) -> float:
        """Mean sentiment of the most probable words, weighted by their probabilities."""
        scores = [0 if candidate.plan is None else candidate.plan.score for candidate in candidates]
        return float(np.average(scores, weights=np.exp([candidate.log_prob for candidate in candidates])))

    def _embed(self, contents: Sequence[str]) -> np.ndarray:
        return np.asarray(self.encode(contents), dtype=np.float32)

    def content(self, observation: Observation) -> str:
        """All that is observed in words."""
        return self._in_words(observation)

    def _question(self, observation: Observation) -> str:
        return dataclasses.replace(observation, audio=None, frames=None).digest

    def _identity(self, proposing: bool) -> Mapping[str, Any]:
        if not proposing:
            return {"encoder": self._encoder}
        return {
            "rules": _RULES,
            "encoder": self._encoder,
            "fitted": self._fit_digest,
            "label_range": list(self.config.label_range),
            "num_candidates": self.config.num_candidates,
        }

    @cached_property
    def _fit_digest(self) -> str:
        return content_hash(self._fitted())

    @cached_property
    def _encoder(self) -> str:
        return encoder_digest(self.encode)
