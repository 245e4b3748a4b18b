"""What OMG-Agent's planners share: candidates are judged, one is chosen, and everything gets a vector.

Candidates are drawn, those that break the schema are dropped, and of the others the one wins that is probable and close in
meaning to what was observed (paper, eqs. 5 and 6).
"""

import dataclasses
import hashlib
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .msa_mllm import check_sampling
from .msa_schema import MODALITIES
from .msa_verbalizer import MsaVerbalizer
from .omg_observation import Observation
from .omg_plan import FALLBACK_PLAN, Plan, parse_plan, schema_violations
from .omg_plan_store import PlanStore, Proposals, to_half

LOG_PROBS = ("sum", "mean")
KINDS = ("proposals", "text", "observation")
"""What planners are asked for: proposals for an observation, the vector of a text, the vector of an observation."""
# Stands for a clip of which nothing was observed: no network has a vector for no words at all.
NOTHING_OBSERVED = "Nothing of this clip was observed."

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
# So many observations are planned for together where there are very many: their media need not all be in memory.
_AT_ONCE = 64


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
        constraint_vectors: `(3, width)`: g of entity, action and sentiment by themselves, each centred, of length 1; None
            where they were not asked for.
    """

    plan: Plan
    candidates: tuple[Candidate, ...]
    chosen: int | None
    plan_vector: np.ndarray
    observation_vector: np.ndarray
    constraint_vectors: np.ndarray | None = None

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

    What was found once is looked up in `store`. Vectors are rounded to half precision, whether they come from there or not,
    so that a plan does not depend on it.

    Args:
        settings: How plans are drawn and chosen.
        verbalizer: Says features in words where raw media are absent; None leaves them unsaid.
        centering: Means of the training split; None, before they are known, only scales vectors to length 1.
        store: What was found before; by default what this planner has found.
    """

    def __init__(
        self,
        settings: PlannerSettings | None = None,
        verbalizer: MsaVerbalizer | None = None,
        centering: Centering | None = None,
        store: PlanStore | None = None,
    ) -> None:
        self.settings = settings or PlannerSettings()
        self.verbalizer = verbalizer
        self.centering = centering
        self.store = PlanStore() if store is None else store

    @property
    @abstractmethod
    def name(self) -> str:
        """Which planner this is, for results."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All that a training split was needed for, as plain JSON values; see `planner_from_dict`."""

    @abstractmethod
    def _identity(self, kind: str) -> Mapping[str, Any]:
        """What an answer of a kind of `KINDS` depends on beside what is asked, as JSON values."""

    @abstractmethod
    def _question(self, kind: str, observation: Observation) -> str:
        """What is asked about an observation, or a hash of it."""

    @abstractmethod
    def _propose(self, observations: Sequence[Observation]) -> Sequence[Proposals]:
        """For each observation the candidates: what was written, and its log-probability."""

    @abstractmethod
    def _read(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of bare texts, `(texts, width)`, not centred."""

    @abstractmethod
    def _perceive(self, observations: Sequence[Observation]) -> np.ndarray:
        """Vectors of observations, `(observations, width)`, not centred."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that what it finds depends on, beside the observation: with its digest a key for caches.

        That is the model, how it is asked and how it draws, but neither how plans are chosen nor the centring.
        """
        said = None if self.verbalizer is None else self.verbalizer.to_dict()
        return _hash({"verbalizer": said, **{kind: self._identity(kind) for kind in KINDS}})

    def propose(self, observations: Sequence[Observation]) -> list[Proposals]:
        """For each observation the candidates: what was written, and its log-probability."""
        return self._look_up(
            "proposals",
            observations,
            [self._question("proposals", seen) for seen in observations],
            self.store.proposals,
            self.store.add_proposals,
            self._propose,
        )

    def fit_centering(self, observations: Iterable[Observation]) -> None:
        """Take the means of the training split.

        Args:
            observations: Of the training split alone; read once, some at a time. The plans' mean is that of all their
                candidates that keep to the schema.

        Raises:
            ValueError: If there is none.
        """
        plans, seen = _Mean(), _Mean()
        for chunk in _chunks(observations):
            texts = [
                parse_plan(text).to_text()
                for proposed in self.propose(chunk)
                for text, _ in proposed
                if not schema_violations(text)
            ]
            if texts:
                plans.add(self._text_vectors(texts))
            seen.add(self._observation_vectors(chunk))
        if not seen.count:
            raise ValueError("No observations were given; the means are taken over those of the training split.")
        if not plans.count:
            plans.add(self._text_vectors([FALLBACK_PLAN.to_text()]))
        self.centering = Centering(plans.value, seen.value)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors g of plans, of their single constraints or of transcripts: centred, of length 1.

        Args:
            texts: None of them empty.

        Returns:
            `(texts, width)` float32.
        """
        return normalize(self._text_vectors(texts), None if self.centering is None else self.centering.plan_mean)

    def embed_observations(self, observations: Sequence[Observation]) -> np.ndarray:
        """Vectors psi of observations: centred, of length 1; `(observations, width)` float32."""
        mean = None if self.centering is None else self.centering.observation_mean
        return normalize(self._observation_vectors(observations), mean)

    def plan(self, observations: Sequence[Observation], constraints: bool = False) -> list[PlanChoice]:
        """Plan for each observation.

        Args:
            observations: What is there of each clip.
            constraints: Also give the vectors of the plans' single constraints.

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
        found = []
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
            found.append(PlanChoice(best, tuple(candidates), chosen, vectors[best.to_text()], seen))
        if not constraints:
            return found
        parts = self.embed_texts([text for choice in found for text in choice.plan.constraints])
        return [
            dataclasses.replace(choice, constraint_vectors=three)
            for choice, three in zip(found, parts.reshape(len(found), 3, -1), strict=True)
        ]

    def _text_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of bare texts as they are stored, `(texts, width)` float32."""
        return self._vectors("text", texts, texts, self._read)

    def _observation_vectors(self, observations: Sequence[Observation]) -> np.ndarray:
        """Vectors of observations as they are stored, `(observations, width)` float32."""
        questions = [self._question("observation", seen) for seen in observations]
        return self._vectors("observation", observations, questions, self._perceive)

    def _vectors(
        self,
        kind: str,
        asked: Sequence[Asked],
        questions: Sequence[str],
        find: Callable[[Sequence[Asked]], np.ndarray],
    ) -> np.ndarray:
        store = self.store
        rows: list[np.ndarray] = self._look_up(
            kind, asked, questions, store.vectors, store.add_vectors, lambda unknown: to_half(find(unknown))
        )
        return np.stack(rows).astype(np.float32)

    def _look_up(
        self,
        kind: str,
        asked: Sequence[Asked],
        questions: Sequence[str],
        known: Callable[[Iterable[str]], dict[str, Answer]],
        keep: Callable[[Mapping[str, Answer]], None],
        find: Callable[[Sequence[Asked]], Iterable[Answer]],
    ) -> list[Answer]:
        """Answers out of the store; what is not in it is found, equal questions once, and kept."""
        identity = _hash(self._identity(kind))
        keys = [_hash([kind, identity, question]) for question in questions]
        answers = known(dict.fromkeys(keys))
        unknown = {key: value for key, value in zip(keys, asked, strict=True) if key not in answers}
        if unknown:
            found = dict(zip(unknown, find(list(unknown.values())), strict=True))
            keep(found)
            answers |= found
        return [answers[key] for key in keys]

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


class _Mean:
    """The mean of vectors that come some at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: np.ndarray | float = 0.0

    def add(self, vectors: np.ndarray) -> None:
        """Count in `(rows, width)`."""
        self.count += len(vectors)
        self._sum = self._sum + vectors.sum(0, dtype=np.float64)

    @property
    def value(self) -> np.ndarray:
        """`(width,)` float32."""
        return np.asarray(self._sum / self.count, dtype=np.float32)


def _chunks(observations: Iterable[Observation]) -> Iterator[list[Observation]]:
    rest = iter(observations)
    while chunk := list(itertools.islice(rest, _AT_ONCE)):
        yield chunk


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
