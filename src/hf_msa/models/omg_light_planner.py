"""OMG-Agent's planner for machines that cannot run a language model of many billion weights: rules, words and ridge probes.

It is ours, not the paper's, and named in every result. It knows no language's grammar but English: see `rule_entity_action`.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from .msa_schema import FEATURE_MODALITIES, MODALITIES, SENTIMENT_SCALE
from .msa_verbalizer import MsaVerbalizer, summarize
from .omg_observation import Observation
from .omg_plan import FALLBACK_PLAN, MAX_PHRASE, Plan
from .omg_plan_store import PlanStore, Proposals, to_half
from .omg_planner_base import NOTHING_OBSERVED, Centering, Planner, PlannerSettings

# Counts the changes of what is proposed for equal observations by an equal fit.
_RULES = 1
# What tells text encoders apart: a short text, and one that reaches beyond what most of them read.
_ENCODER_TEXTS = ("what a film", " ".join(map(str, range(600))))

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
    the verb behind it. Where the rules find nothing, the words of `FALLBACK_PLAN` stand in. Of a text without any Latin
    letter, which the rules cannot read, the action is the first clause as it stands.

    Args:
        text: The transcript; None where it is missing.
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


@dataclass(frozen=True)
class Lexicon:
    """Words with the sentiment of the training transcripts that they stand in: for any language, and nobody's list.

    Args:
        mean: Mean training label.
        words: Word -> (transcripts that hold it, sum of their labels' differences from the mean).
        prior: A word's weight is that sum over the count plus this number: rare words say little.
    """

    mean: float
    words: Mapping[str, tuple[int, float]]
    prior: float = 5.0

    @cached_property
    def digest(self) -> str:
        """A hash of all of it."""
        words = sorted((word, *counts) for word, counts in self.words.items())
        return hashlib.blake2b(repr((self.mean, self.prior, words)).encode(), digest_size=16).hexdigest()

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[float], prior: float = 5.0) -> "Lexicon":
        """Count the words of the training split.

        Args:
            texts: Transcripts.
            labels: Their scores.
            prior: How many neutral transcripts each word begins with; above 0.
        """
        mean = float(np.mean(labels)) if len(labels) else 0.0
        words: dict[str, tuple[int, float]] = {}
        for text, label in zip(texts, labels, strict=True):
            for word in sorted(set(tokenize(text))):
                count, total = words.get(word, (0, 0.0))
                words[word] = (count + 1, total + label - mean)
        return cls(mean, words, prior)

    def score(self, text: str, own_label: float | None = None) -> float:
        """Mean weight of a text's different words, 0 where it has none; unknown words weigh 0.

        Args:
            text: The transcript.
            own_label: Label of a training transcript, whose own part is then left out of its words' weights: a probe
                that is fitted on the scores would otherwise trust them too much.
        """
        weights = []
        for word in sorted(set(tokenize(text))):
            count, total = self.words.get(word, (0, 0.0))
            if own_label is not None:
                count, total = count - 1, total - (own_label - self.mean)
            weights.append(total / (count + self.prior))
        return float(np.mean(weights)) if weights else 0.0


@dataclass(frozen=True, eq=False)
class RidgeProbe:
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

    @cached_property
    def digest(self) -> str:
        """A hash of all of it."""
        parts = hashlib.blake2b(repr((self.bias, self.deviation)).encode(), digest_size=16)
        for array in (self.center, self.scale, self.weights):
            parts.update(np.ascontiguousarray(array, dtype=np.float64).tobytes())
        return parts.hexdigest()

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, ridge: float = 1.0) -> "RidgeProbe":
        """Minimise mean squared error + ridge * |weights|^2 in closed form.

        Args:
            features: `(rows, features)`.
            labels: `(rows,)`.
            ridge: Strength, above 0; independent of the number of rows.
        """
        center, scale = features.mean(0), features.std(0)
        scale = np.where(scale > 1e-9 * np.maximum(1.0, np.abs(center)), scale, 1.0)
        x, bias = (features - center) / scale, float(labels.mean())
        y = labels - bias
        weights = np.linalg.solve(x.T @ x + ridge * len(x) * np.eye(x.shape[1]), x.T @ y)
        return cls(center, scale, weights, bias, float(np.sqrt(np.mean((y - x @ weights) ** 2))))

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
        lexicon: Of the training split.
        probes: Modalities, in the order of `MODALITIES` -> their probe.
        settings: How plans are chosen; the settings of draws do not apply.
        verbalizer: Says features in words; None leaves them unsaid.
        centering: Means of the training split, or None.
        label_range: Lowest and highest label.
        store: What was found before.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str]], np.ndarray],
        lexicon: Lexicon,
        probes: Mapping[tuple[str, ...], RidgeProbe],
        settings: PlannerSettings | None = None,
        verbalizer: MsaVerbalizer | None = None,
        centering: Centering | None = None,
        label_range: tuple[float, float] = (-3.0, 3.0),
        store: PlanStore | None = None,
    ) -> None:
        super().__init__(settings, verbalizer, centering, store)
        self.encode = encode
        self.lexicon = lexicon
        self.probes = dict(probes)
        self.label_range = label_range

    @classmethod
    def fit(
        cls,
        observations: Sequence[Observation],
        labels: Sequence[float],
        encode: Callable[[Sequence[str]], np.ndarray],
        settings: PlannerSettings | None = None,
        verbalizer: MsaVerbalizer | None = None,
        label_range: tuple[float, float] = (-3.0, 3.0),
        ridge: float = 1.0,
        store: PlanStore | None = None,
    ) -> "LightPlanner":
        """Fit lexicon, a probe for each set of modalities, and the means of the vectors.

        Args:
            observations: Of the training split, as complete as they are.
            labels: Their scores, in label units.
            encode: The text encoder.
            settings: How plans are chosen.
            verbalizer: Says features in words.
            label_range: Lowest and highest label.
            ridge: Strength of the probes.
            store: What was found before.

        Raises:
            ValueError: If there is no observation.
        """
        if not observations:
            raise ValueError("No observations were given; the light planner is fitted on those of the training split.")
        spoken = [(seen.transcript, label) for seen, label in zip(observations, labels, strict=True)]
        known = [(text, label) for text, label in spoken if text is not None]
        lexicon = Lexicon.fit([text for text, _ in known], [label for _, label in known])
        planner = cls(encode, lexicon, {}, settings, verbalizer, None, label_range, store)
        parts = planner._parts(observations, labels)
        for count in range(1, len(MODALITIES) + 1):
            for pattern in combinations(MODALITIES, count):
                rows = [index for index, row in enumerate(parts) if set(pattern) <= set(row)]
                if rows:
                    table = np.stack([np.concatenate([parts[index][name] for name in pattern]) for index in rows])
                    planner.probes[pattern] = RidgeProbe.fit(table, np.array([labels[i] for i in rows]), ridge)
        planner.fit_centering(observations)
        return planner

    @property
    def name(self) -> str:
        """Says in every result that no language model planned."""
        return "light planner"

    def predict(self, observations: Sequence[Observation]) -> list[tuple[float, float]]:
        """Score and its deviation, in label units, for each observation.

        Args:
            observations: What is there of each clip. With nothing that the planner reads the score is 0 without
                a deviation, so that re-ranking among words that nothing speaks for leaves it neutral.

        Raises:
            ValueError: If a set of modalities is observed that no training sample had.
        """
        found = []
        for row in self._parts(observations):
            pattern = tuple(row)
            if not pattern:
                found.append((0.0, 0.0))
                continue
            if pattern not in self.probes:
                raise ValueError(
                    f"The light planner has no probe for {' and '.join(pattern)}; fit it on samples that have them together."
                )
            probe = self.probes[pattern]
            found.append((probe.predict(np.concatenate(list(row.values()))), probe.deviation))
        return found

    def _propose(self, observations: Sequence[Observation]) -> list[Proposals]:
        """The most probable words of the scale around the predicted score, most probable first."""
        proposed: list[Proposals] = []
        unit = self.label_range[1] / 3
        for observation, (score, deviation) in zip(observations, self.predict(observations), strict=True):
            entity, action = rule_entity_action(observation.transcript)
            # A tenth of a class at least: a probe that fits its training rows exactly is not certain of others.
            distances = (np.arange(-3, 4) - score / unit) / max(deviation / unit, 0.1)
            log_probs = -(distances**2) / 2
            log_probs -= np.logaddexp.reduce(log_probs)
            best = np.argsort(-log_probs, kind="stable")[: self.settings.num_candidates]
            proposed.append(
                tuple((Plan(entity, action, SENTIMENT_SCALE[word]).to_text(), float(log_probs[word])) for word in best)
            )
        return proposed

    def _parts(
        self, observations: Sequence[Observation], labels: Sequence[float] | None = None
    ) -> list[dict[str, np.ndarray]]:
        """For each observation what the probes read of each modality, in the order of `MODALITIES`.

        Labels are given in fitting only, for the lexicon to leave each transcript's own part out.
        """
        texts = [seen.transcript for seen in observations if seen.transcript]
        vectors = iter(self._text_vectors(texts) if texts else ())
        rows = []
        for index, seen in enumerate(observations):
            row = {}
            if seen.transcript:
                score = self.lexicon.score(seen.transcript, None if labels is None else labels[index])
                row["text"] = np.concatenate([[score], np.asarray(next(vectors), dtype=np.float64)])
            for name in FEATURE_MODALITIES:
                if name in seen.features:
                    row[name] = summarize(seen.features[name]).ravel()
            rows.append(row)
        return rows

    def _read(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(self.encode(texts), dtype=np.float32)

    def _perceive(self, observations: Sequence[Observation]) -> np.ndarray:
        return self._text_vectors([self._content(seen) for seen in observations])

    def _content(self, observation: Observation) -> str:
        # It cannot hear or see, so features are said in words even where there are recordings.
        return self._seen_text(_without_media(observation)) or NOTHING_OBSERVED

    def _question(self, kind: str, observation: Observation) -> str:
        return _without_media(observation).digest if kind == "proposals" else self._content(observation)

    def _identity(self, kind: str) -> Mapping[str, Any]:
        if kind != "proposals":
            return {"encoder": self._encoder_digest}
        return {
            "rules": _RULES,
            "encoder": self._encoder_digest,
            "lexicon": self.lexicon.digest,
            "probes": [["+".join(pattern), probe.digest] for pattern, probe in self.probes.items()],
            "label_range": list(self.label_range),
            "num_candidates": self.settings.num_candidates,
        }

    @cached_property
    def _encoder_digest(self) -> str:
        """A hash of what the text encoder makes of two texts."""
        vectors = to_half(np.asarray(self.encode(_ENCODER_TEXTS), dtype=np.float32))
        return hashlib.blake2b(repr(vectors.shape).encode() + vectors.tobytes(), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """All that was fitted, as plain JSON values; the encoder and the settings are not in it."""
        return {
            "kind": "light",
            "label_range": list(self.label_range),
            "lexicon": {
                "mean": self.lexicon.mean,
                "prior": self.lexicon.prior,
                "words": {word: list(counts) for word, counts in self.lexicon.words.items()},
            },
            "probes": [
                {
                    "modalities": list(pattern),
                    "center": probe.center.tolist(),
                    "scale": probe.scale.tolist(),
                    "weights": probe.weights.tolist(),
                    "bias": probe.bias,
                    "deviation": probe.deviation,
                }
                for pattern, probe in self.probes.items()
            ],
            "centering": None if self.centering is None else self.centering.to_dict(),
            "verbalizer": None if self.verbalizer is None else self.verbalizer.to_dict(),
        }

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        encode: Callable[[Sequence[str]], np.ndarray],
        settings: PlannerSettings | None = None,
        store: PlanStore | None = None,
    ) -> "LightPlanner":
        """Rebuild the planner from `to_dict`.

        Args:
            values: What `to_dict` gave.
            encode: The text encoder that it was fitted with.
            settings: How plans are chosen.
            store: What was found before.
        """
        known = values["lexicon"]
        lexicon = Lexicon(
            known["mean"], {word: (count, total) for word, (count, total) in known["words"].items()}, known["prior"]
        )
        probes = {
            tuple(probe["modalities"]): RidgeProbe(
                _array(probe["center"]),
                _array(probe["scale"]),
                _array(probe["weights"]),
                probe["bias"],
                probe["deviation"],
            )
            for probe in values["probes"]
        }
        centering = None if values["centering"] is None else Centering.from_dict(values["centering"])
        said = values["verbalizer"]
        verbalizer = None if said is None else MsaVerbalizer.from_dict(said)
        low, high = values["label_range"]
        return cls(encode, lexicon, probes, settings, verbalizer, centering, (low, high), store)


def _without_media(observation: Observation) -> Observation:
    return dataclasses.replace(observation, audio=None, frames=None)


def _array(values: Iterable[float]) -> np.ndarray:
    return np.array(list(values), dtype=np.float64)
