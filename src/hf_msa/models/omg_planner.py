"""OMG-Agent's planner: a plan of who does what with which sentiment, from those modalities of a clip that are observed.

A plan is a triplet (paper, Sec. 3.3 and appendix A). Candidates are drawn, those that break the schema are dropped, and
of the others the one wins that is probable and close in meaning to what was observed (eqs. 5 and 6). `MllmPlanner` asks a
multimodal language model; `LightPlanner` needs none, and is ours. Both give plans and vectors in the same form.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from .msa_mllm import Mllm, MllmAnswer, MllmRequest, check_sampling
from .msa_schema import FEATURE_MODALITIES, MODALITIES, SENTIMENT_SCALE
from .msa_verbalizer import MsaVerbalizer, summarize

PLAN_FIELDS = ("entity", "action", "sentiment")
MAX_PHRASE = 60
"""Longest entity or action, in characters."""
LOG_PROBS = ("sum", "mean")
# Stands for a clip of which nothing was observed: no network has a vector for no words at all.
_NOTHING_OBSERVED = "Nothing of this clip was observed."
_SOURCES = {"text": "its words", "audio": "its sound", "vision": "its pictures"}


def sentiment_word(label: float, label_range: tuple[float, float] = (-3.0, 3.0)) -> str:
    """The word for a score.

    Args:
        label: In label units; clipped to the range, then rounded to the nearest of seven classes (half to even).
        label_range: Lowest and highest label, as far from 0 as each other.
    """
    return SENTIMENT_SCALE[round(min(max(label / label_range[1] * 3, -3.0), 3.0)) + 3]


@dataclass(frozen=True)
class Plan:
    """What is thought to happen in a clip.

    Args:
        entity: Who or what it is about.
        action: What they do.
        sentiment: One of `SENTIMENT_SCALE`.

    Raises:
        ValueError: If the triplet breaks the schema.
    """

    entity: str
    action: str
    sentiment: str

    def __post_init__(self) -> None:
        if problems := _violations(self.to_dict()):
            raise ValueError(
                f"A plan was given in which {'; '.join(problems)}; give an entity and an action of at most {MAX_PHRASE} "
                f"characters each, and a sentiment out of {', '.join(SENTIMENT_SCALE)}."
            )

    @property
    def score(self) -> int:
        """The sentiment as a number from -3 to 3."""
        return SENTIMENT_SCALE.index(self.sentiment) - 3

    def to_text(self) -> str:
        """One line, as models are asked to write it: what g reads, and what `parse_plan` reads back."""
        return "; ".join(f"{name.capitalize()}: {value}" for name, value in self.to_dict().items())

    def to_dict(self) -> dict[str, str]:
        """Plain JSON values."""
        return {"entity": self.entity, "action": self.action, "sentiment": self.sentiment}

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> "Plan":
        """Rebuild a plan from `to_dict`."""
        return cls(**{name: values[name] for name in PLAN_FIELDS})


def parse_plan(text: str) -> Plan:
    """Read a plan that a model wrote: three fields in their order, on one line or one on each.

    Capitals, spaces around words, quotation marks around a value and a full stop at its end make no difference.

    Args:
        text: The answer.

    Raises:
        ValueError: If it breaks the schema; `schema_violations` says how.
    """
    fields = _read_fields(text)
    if fields is None:
        raise ValueError(
            f"{text!r} is no plan; the three fields {', '.join(PLAN_FIELDS)} are needed, once each, in this order."
        )
    return Plan(**fields)


def schema_violations(text: str) -> tuple[str, ...]:
    """In which ways an answer breaks the schema, empty where it is a plan.

    Args:
        text: The answer.
    """
    fields = _read_fields(text)
    if fields is None:
        return (f"the fields are not {', '.join(PLAN_FIELDS)}",)
    return _violations(fields)


def _read_fields(text: str) -> dict[str, str] | None:
    """Values by field name; None unless there are just the three fields in their order."""
    parts = [part.partition(":") for part in re.split(r"[;\n]", text) if part.strip()]
    if tuple(name.strip().lower() for name, _, _ in parts) != PLAN_FIELDS:
        return None
    fields = {
        name: " ".join(value.split()).strip(" \"'.") for name, (_, _, value) in zip(PLAN_FIELDS, parts, strict=True)
    }
    fields["sentiment"] = fields["sentiment"].lower()
    return fields


def _violations(fields: Mapping[str, str]) -> tuple[str, ...]:
    found = []
    for name in ("entity", "action"):
        value = fields[name]
        if not value:
            found.append(f"the {name} is empty")
        elif len(value) > MAX_PHRASE:
            found.append(f"the {name} has {len(value)} characters")
        elif value != " ".join(value.split()).strip(" \"'.") or ";" in value:
            found.append(f"the {name} {value!r} is not a bare phrase on one line")
    if fields["sentiment"] not in SENTIMENT_SCALE:
        found.append(f"the sentiment is {fields['sentiment']!r}")
    return tuple(found)


FALLBACK_PLAN = Plan("a speaker", "speaks", "neutral")
"""Takes the place of a plan where no candidate keeps to the schema."""


@dataclass(frozen=True, eq=False)
class Observation:
    """Those modalities of a clip that are there; what is missing must not be in it.

    Args:
        transcript: What is said; None where text is missing.
        audio: Mono waveform `(samples,)` at 16 kHz, or None.
        frames: Video frames `(frames, height, width, 3)` of uint8, or None.
        features: "audio" and "vision" -> feature frames `(time, features)` without padding, those only that are observed.
    """

    transcript: str | None = None
    audio: np.ndarray | None = None
    frames: np.ndarray | None = None
    features: Mapping[str, np.ndarray] = field(default_factory=dict)

    def restricted(self, available: Collection[str]) -> "Observation":
        """The same clip with some modalities missing.

        Args:
            available: Names of the modalities that stay where they are there.
        """
        return Observation(
            self.transcript if "text" in available else None,
            self.audio if "audio" in available else None,
            self.frames if "vision" in available else None,
            {name: values for name, values in self.features.items() if name in available},
        )


def plan_prompt(transcript: str | None, modalities: Collection[str], description: str = "") -> str:
    """Ask for a plan.

    Args:
        transcript: What is said; None where it is missing.
        modalities: Names of the modalities that the model is given in any form.
        description: Sound and pictures in words, where they are not given themselves.
    """
    given = [_SOURCES[name] for name in MODALITIES if name in modalities]
    lost = [_SOURCES[name] for name in MODALITIES if name not in modalities]
    state = f"Given of the clip: {', '.join(given) or 'nothing'}."
    if lost:
        state += f" Lost: {', '.join(lost)}; infer what was in them as well as the rest allows."
    lines = [
        "Parts of a video clip may have been lost. Sum up in three fields what happens in it: who or what it is about, "
        "what they do, and the sentiment that is expressed.",
        state,
        "" if transcript is None else f'Words: "{transcript}"',
        description,
        f"The sentiment must be one of: {', '.join(SENTIMENT_SCALE)}. Entity and action are a few words each.",
        "Reply with one line and nothing else, in this form:",
        "Entity: ...; Action: ...; Sentiment: ...",
    ]
    return "\n".join(line for line in lines if line)


@dataclass(frozen=True, eq=False)
class Centering:
    """Moves vectors to where cosines tell them apart: mean-pooled vectors of language models are close to parallel.

    Args:
        plan_mean: `(width,)`, mean of the plans' vectors on the training split.
        observation_mean: `(width,)`, mean of the observations' vectors there.
    """

    plan_mean: np.ndarray
    observation_mean: np.ndarray

    def to_dict(self) -> dict[str, list[float]]:
        """Plain JSON values."""
        return {"plan_mean": self.plan_mean.tolist(), "observation_mean": self.observation_mean.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> "Centering":
        """Rebuild from `to_dict`."""
        return cls(np.array(values["plan_mean"], np.float32), np.array(values["observation_mean"], np.float32))


def normalize(vectors: np.ndarray, mean: np.ndarray | None = None) -> np.ndarray:
    """Subtract a mean and scale to length 1; a vector of zeros stays one.

    Args:
        vectors: `(rows, width)`.
        mean: `(width,)`; None subtracts nothing.
    """
    centred = np.asarray(vectors, dtype=np.float64) - (0.0 if mean is None else mean)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: np.ndarray = (centred / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    return unit


def semantic_cost(plans: np.ndarray, observations: np.ndarray) -> np.ndarray:
    """1 - cosine of plans and what was observed (eq. 6).

    Args:
        plans: Vectors `(rows, width)`.
        observations: Vectors of the same shape, or one row for all.

    Returns:
        `(rows,)` from 0, parallel, to 2, opposite; 1 where a vector is zero.
    """
    cosines = (normalize(plans) * normalize(observations)).sum(1)
    cost: np.ndarray = 1.0 - np.clip(cosines, -1.0, 1.0)
    return cost


@dataclass(frozen=True)
class PlannerSettings:
    """How plans are drawn and chosen.

    Args:
        num_candidates: Drawn for each observation (paper: 5).
        semantic_weight: lambda_s of eq. 5 (paper: 0.3).
        log_prob: "sum" over tokens, which is eq. 5 to the letter, or "mean".
        reranking: False takes the first candidate that keeps to the schema (ablation "w/o Re-ranking").
        temperature: Of the draws (the paper gives none, nor the next two).
        top_p: Draw only from the most probable tokens that together have this probability.
        max_new_tokens: Longest answer.
        seed: Of the draws.

    Raises:
        ValueError: If a value is out of its range.
    """

    num_candidates: int = 5
    semantic_weight: float = 0.3
    log_prob: str = "sum"
    reranking: bool = True
    temperature: float = 0.8
    top_p: float = 0.9
    max_new_tokens: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        check_sampling(self.max_new_tokens, self.num_candidates, self.temperature, self.top_p)
        if self.log_prob not in LOG_PROBS:
            raise ValueError(f"log_prob is {self.log_prob!r}; give one of {', '.join(LOG_PROBS)}.")
        if not self.semantic_weight >= 0:
            raise ValueError(f"semantic_weight is {self.semantic_weight}; it must not be negative.")


@dataclass(frozen=True)
class Candidate:
    """A plan that was proposed, and how it was judged.

    Args:
        text: What was written.
        log_prob: Sum or mean over its tokens.
        plan: None where it breaks the schema.
        violations: How it does; empty where it does not.
        cost: C_sem, from 0 to 2; nan where it breaks the schema.
        utility: What eq. 5 maximises; minus infinity where it breaks the schema.
    """

    text: str
    log_prob: float
    plan: Plan | None
    violations: tuple[str, ...] = ()
    cost: float = math.nan
    utility: float = -math.inf


@dataclass(frozen=True, eq=False)
class PlanChoice:
    """The plan of one observation, and how it came about.

    Args:
        plan: The winner.
        candidates: All that were proposed.
        chosen: Index of the winner; None where every candidate broke the schema, and the plan is `FALLBACK_PLAN`.
        plan_vector: c_S `(width,)`: g(plan), centred, of length 1.
        observation_vector: u_X `(width,)`: psi(observation), centred, of length 1.
    """

    plan: Plan
    candidates: tuple[Candidate, ...]
    chosen: int | None
    plan_vector: np.ndarray
    observation_vector: np.ndarray

    @property
    def is_fallback(self) -> bool:
        """Whether no candidate kept to the schema."""
        return self.chosen is None


def choose(candidates: Sequence[Candidate], reranking: bool = True) -> int | None:
    """Index of the candidate with the highest utility, the first of equals; None where all break the schema.

    Args:
        candidates: With costs and utilities.
        reranking: False takes the first that keeps to the schema.
    """
    valid = [index for index, candidate in enumerate(candidates) if candidate.plan is not None]
    if not valid:
        return None
    return max(valid, key=lambda index: candidates[index].utility) if reranking else valid[0]


class Planner(ABC):
    """What both planners share: judging candidates, choosing, and vectors.

    Args:
        settings: How plans are drawn and chosen.
        verbalizer: Says features in words where raw media are absent; None leaves them unsaid.
        centering: Means of the training split; None, before they are known, only scales vectors to length 1.
    """

    def __init__(
        self,
        settings: PlannerSettings | None = None,
        verbalizer: MsaVerbalizer | None = None,
        centering: Centering | None = None,
    ) -> None:
        self.settings = settings or PlannerSettings()
        self.verbalizer = verbalizer
        self.centering = centering

    @property
    @abstractmethod
    def name(self) -> str:
        """Which planner this is, for caches and results."""

    @abstractmethod
    def propose(self, observations: Sequence[Observation]) -> list[list[tuple[str, float]]]:
        """For each observation the candidates: what was written, and its log-probability."""

    @abstractmethod
    def _read(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of bare texts, `(texts, width)`, not centred."""

    @abstractmethod
    def _perceive(self, observations: Sequence[Observation]) -> np.ndarray:
        """Vectors of observations, `(observations, width)`, not centred."""

    def fit_centering(self, observations: Sequence[Observation]) -> None:
        """Take the means of the training split.

        Args:
            observations: Of the training split alone. The plans' mean is that of all their candidates that keep to the
                schema.

        Raises:
            ValueError: If there is none.
        """
        if not observations:
            raise ValueError("No observations were given; the means are taken over those of the training split.")
        plans = [
            parse_plan(text).to_text()
            for proposed in self.propose(observations)
            for text, _ in proposed
            if not schema_violations(text)
        ]
        self.centering = Centering(
            self._read_unique(plans or [FALLBACK_PLAN.to_text()]).mean(0), self._perceive(observations).mean(0)
        )

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors g of plans, of their single constraints or of transcripts: centred, of length 1.

        Args:
            texts: None of them empty.

        Returns:
            `(texts, width)` float32.
        """
        return normalize(self._read_unique(texts), None if self.centering is None else self.centering.plan_mean)

    def embed_observations(self, observations: Sequence[Observation]) -> np.ndarray:
        """Vectors psi of observations: centred, of length 1; `(observations, width)` float32."""
        mean = None if self.centering is None else self.centering.observation_mean
        return normalize(self._perceive(observations), mean)

    def plan(self, observations: Sequence[Observation]) -> list[PlanChoice]:
        """Plan for each observation.

        Args:
            observations: What is there of each clip.

        Returns:
            One choice for each. It depends on its own observation alone, as far as the model's numbers do.
        """
        if not observations:
            return []
        fallback = FALLBACK_PLAN.to_text()
        parsed = [
            [
                (text, log_prob, None if (problems := schema_violations(text)) else parse_plan(text), problems)
                for text, log_prob in proposed
            ]
            for proposed in self.propose(observations)
        ]
        texts = [fallback] + [plan.to_text() for row in parsed for _, _, plan, _ in row if plan is not None]
        vectors = dict(zip(texts, self.embed_texts(texts), strict=True))
        choices = []
        for row, seen in zip(parsed, self.embed_observations(observations), strict=True):
            candidates = []
            for text, log_prob, plan, problems in row:
                if plan is None:
                    candidates.append(Candidate(text, log_prob, None, problems))
                    continue
                cost = float(semantic_cost(vectors[plan.to_text()][None], seen[None])[0])
                utility = log_prob - self.settings.semantic_weight * cost
                candidates.append(Candidate(text, log_prob, plan, (), cost, utility))
            chosen = choose(candidates, self.settings.reranking)
            best = FALLBACK_PLAN if chosen is None else candidates[chosen].plan or FALLBACK_PLAN
            choices.append(PlanChoice(best, tuple(candidates), chosen, vectors[best.to_text()], seen))
        return choices

    def _read_unique(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts, equal ones read once: candidates repeat each other."""
        unique = list(dict.fromkeys(texts))
        rows = {text: row for row, text in enumerate(unique)}
        return self._read(unique)[[rows[text] for text in texts]]

    def _describe(self, observation: Observation) -> tuple[str, tuple[str, ...]]:
        """Features in words where the media are absent, and the names of all modalities that are given in any form."""
        raw = {"text": observation.transcript, "audio": observation.audio, "vision": observation.frames}
        there = {name for name, value in raw.items() if value is not None}
        spoken = {name: values for name, values in observation.features.items() if name not in there}
        description = self.verbalizer.describe(spoken) if self.verbalizer is not None and spoken else ""
        if description:
            there |= set(spoken)
        return description, tuple(name for name in MODALITIES if name in there)

    def _seen_text(self, observation: Observation) -> str:
        """What is observed, as far as it can be read, with no instruction."""
        description, _ = self._describe(observation)
        return "\n".join(part for part in (observation.transcript, description) if part)


class MllmPlanner(Planner):
    """Asks a multimodal language model for plans, and reads their vectors off its final layer.

    Args:
        mllm: The model, with its adapter where it has one.
        settings: How plans are drawn and chosen.
        verbalizer: Says features in words where raw media are absent; None leaves them unsaid.
        centering: Means of the training split, or None.
    """

    def __init__(
        self,
        mllm: Mllm,
        settings: PlannerSettings | None = None,
        verbalizer: MsaVerbalizer | None = None,
        centering: Centering | None = None,
    ) -> None:
        super().__init__(settings, verbalizer, centering)
        self.mllm = mllm

    @property
    def name(self) -> str:
        """That of the model."""
        return self.mllm.name

    def request(self, observation: Observation) -> MllmRequest:
        """The question for a plan; its digest changes with anything that the model sees.

        Args:
            observation: What is there of the clip.
        """
        description, modalities = self._describe(observation)
        prompt = plan_prompt(observation.transcript, modalities, description)
        return MllmRequest(prompt, observation.audio, observation.frames)

    def propose(self, observations: Sequence[Observation]) -> list[list[tuple[str, float]]]:
        """Draw candidates: each one string, its fields in fixed order, so that each is drawn given those before it."""
        settings = self.settings
        answers = self.mllm.generate(
            [self.request(observation) for observation in observations],
            max_new_tokens=settings.max_new_tokens,
            num_candidates=settings.num_candidates,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
        )
        return [[(answer.text, self._log_prob(answer)) for answer in row] for row in answers]

    def _log_prob(self, answer: MllmAnswer) -> float:
        if self.settings.log_prob == "sum" or not answer.token_logprobs:
            return answer.logprob
        return answer.logprob / len(answer.token_logprobs)

    def _read(self, texts: Sequence[str]) -> np.ndarray:
        return self.mllm.embed([MllmRequest(text) for text in texts])

    def _perceive(self, observations: Sequence[Observation]) -> np.ndarray:
        requests = []
        for observation in observations:
            text = self._seen_text(observation)
            if not text and observation.audio is None and observation.frames is None:
                text = _NOTHING_OBSERVED
            requests.append(MllmRequest(text, observation.audio, observation.frames))
        return self.mllm.embed(requests)


# Words, the second halves of contractions, and single Chinese characters.
_TOKEN = re.compile(r"'?[a-z]+|[\u4e00-\u9fff]")
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
    the verb behind it. Where the rules find nothing, the words of `FALLBACK_PLAN` stand in.

    Args:
        text: The transcript; None where it is missing.
    """
    words = tokenize(text or "")
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
            for word in set(tokenize(text)):
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
    ) -> None:
        super().__init__(settings, verbalizer, centering)
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

        Raises:
            ValueError: If there is no observation.
        """
        if not observations:
            raise ValueError("No observations were given; the light planner is fitted on those of the training split.")
        spoken = [(seen.transcript, label) for seen, label in zip(observations, labels, strict=True)]
        known = [(text, label) for text, label in spoken if text is not None]
        lexicon = Lexicon.fit([text for text, _ in known], [label for _, label in known])
        planner = cls(encode, lexicon, {}, settings, verbalizer, None, label_range)
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

    def propose(self, observations: Sequence[Observation]) -> list[list[tuple[str, float]]]:
        """The most probable words of the scale around the predicted score, most probable first."""
        proposed = []
        unit = self.label_range[1] / 3
        for observation, (score, deviation) in zip(observations, self.predict(observations), strict=True):
            entity, action = rule_entity_action(observation.transcript)
            # A tenth of a class at least: a probe that fits its training rows exactly is not certain of others.
            distances = (np.arange(-3, 4) - score / unit) / max(deviation / unit, 0.1)
            log_probs = -(distances**2) / 2
            log_probs -= np.logaddexp.reduce(log_probs)
            best = np.argsort(-log_probs, kind="stable")[: self.settings.num_candidates]
            proposed.append(
                [(Plan(entity, action, SENTIMENT_SCALE[word]).to_text(), float(log_probs[word])) for word in best]
            )
        return proposed

    def _parts(
        self, observations: Sequence[Observation], labels: Sequence[float] | None = None
    ) -> list[dict[str, np.ndarray]]:
        """For each observation what the probes read of each modality, in the order of `MODALITIES`.

        Labels are given in fitting only, for the lexicon to leave each transcript's own part out.
        """
        texts = [seen.transcript for seen in observations if seen.transcript]
        vectors = iter(self.encode(texts) if texts else ())
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
        return self._read_unique([self._seen_text(seen) or _NOTHING_OBSERVED for seen in observations])

    def to_dict(self) -> dict[str, Any]:
        """All that was fitted, as plain JSON values; the encoder, the verbaliser and the settings are not in it."""
        return {
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
        }

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        encode: Callable[[Sequence[str]], np.ndarray],
        settings: PlannerSettings | None = None,
        verbalizer: MsaVerbalizer | None = None,
    ) -> "LightPlanner":
        """Rebuild the planner from `to_dict`.

        Args:
            values: What `to_dict` gave.
            encode: The text encoder that it was fitted with.
            settings: How plans are chosen.
            verbalizer: The verbaliser that it was fitted with.
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
        low, high = values["label_range"]
        return cls(encode, lexicon, probes, settings, verbalizer, centering, (low, high))


def _array(values: Iterable[float]) -> np.ndarray:
    return np.array(list(values), dtype=np.float64)
