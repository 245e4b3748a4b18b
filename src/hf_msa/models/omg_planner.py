"""OMG-Agent's planner: a plan of who does what with which sentiment, from those modalities of a clip that are observed.

Candidates are drawn, those that break the schema are dropped, and of the others the one wins that is probable and close in
meaning to what was observed (paper, eqs. 5 and 6). `MllmPlanner` asks a multimodal language model; `LightPlanner`, in a file
of its own, needs none. Both give plans and vectors in the same form.
"""

import dataclasses
import hashlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .configuration_omg import OmgConfig
from .msa_answer_store import AnswerStore, content_hash
from .msa_mllm import Mllm, MllmRequest, taken_modalities
from .msa_mllm_answers import MllmAnswer
from .msa_mllm_forms import AnswerForm
from .msa_observed import in_usual_case
from .msa_remembering import EnduringMllm, known_identity
from .msa_schema import MODALITIES, SENTIMENT_SCALE
from .msa_verbalizer import MsaVerbalizer
from .omg_observation import Observation
from .omg_plan import FALLBACK_PLAN, PLAN_FORM, Plan, read_plan

Proposals = tuple[tuple[str, float], ...]
"""What was written, and its log-probability, for each candidate."""


class Proposed(NamedTuple):
    """What was proposed for an observation, and what it cost when it was.

    Args:
        candidates: What was written, none where a language model failed to answer.
        calls: Questions to a language model.
        prompt_tokens: Of the question; NaN where the model does not say.
        tokens: That it wrote, in all candidates.
        seconds: See `GivenAnswer`.
        remembered: Questions that were not asked again.
    """

    candidates: Proposals
    calls: int = 0
    prompt_tokens: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    remembered: int = 0

    def to_bytes(self) -> bytes | None:
        """As it is kept; None where there is nothing to keep."""
        return json.dumps(self).encode() if self.candidates else None

    @classmethod
    def from_bytes(cls, kept: bytes) -> "Proposed":
        """The reverse of `to_bytes`."""
        candidates, *costs = json.loads(kept)
        return cls(tuple((text, number) for text, number in candidates), *costs)


Found = TypeVar("Found")
Encode = Callable[[Sequence[str]], np.ndarray]
"""A text encoder: texts -> their vectors `(texts, width)`, a function of each text alone."""

# What tells text encoders apart: a short text, and one that reaches beyond what most of them read.
_ENCODER_TEXTS = ("what a film", " ".join(map(str, range(600))))
# Stands for a clip of which nothing was observed: no network has a vector for no words at all.
NOTHING_OBSERVED = "Nothing of this clip was observed."
_SOURCES = {"text": "its words", "audio": "its sound", "vision": "its pictures"}


class Centering(NamedTuple):
    """Moves vectors to where cosines tell them apart: mean-pooled vectors of language models are close to parallel.

    Args:
        plan_mean: `(width,)`, mean of the plans' vectors on the training split.
        observation_mean: `(width,)`, mean of the observations' vectors there.
    """

    plan_mean: np.ndarray
    observation_mean: np.ndarray


def to_half(vectors: np.ndarray) -> np.ndarray:
    """Round vectors to the half precision in which they are kept; what is too large becomes the largest half."""
    largest = float(np.finfo(np.float16).max)
    half: np.ndarray = np.clip(vectors, -largest, largest).astype("<f2")
    return half


def normalize(vectors: np.ndarray, mean: np.ndarray | None = None) -> np.ndarray:
    """Subtract a mean `(width,)`, if any, from vectors `(rows, width)` and scale to length 1; zeros stay zeros."""
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


@dataclass(eq=False)
class PlanChoice:
    """The plan of one observation, and how it came about.

    Args:
        plan: The winner.
        candidates: All that were proposed.
        chosen: Index of the winner; None where every candidate broke the schema or there is none, and the plan is
            `FALLBACK_PLAN`.
        plan_vector: c_S `(width,)`: g(plan), centred, of length 1.
        observation_vector: u_X `(width,)`: psi(observation), centred, of length 1.
        score: The sentiment that the candidates expect, from -3 to 3.
        proposed: What the candidates have cost.
        seconds: What it took to propose, judge and embed them; without vectors that are remembered.
        constraint_vectors: `(3, width)`: g of entity, action and sentiment by themselves, each centred, of length 1; None
            unless the configuration's `plan_tokens` are those.
    """

    plan: Plan
    candidates: tuple[Candidate, ...]
    chosen: int | None
    plan_vector: np.ndarray
    observation_vector: np.ndarray
    score: float = 0.0
    proposed: Proposed = Proposed(())
    seconds: float = 0.0
    constraint_vectors: np.ndarray | None = None

    @property
    def is_fallback(self) -> bool:
        """Whether no candidate kept to the schema, or there is none."""
        return self.chosen is None


class Planner(ABC):
    """Judging candidates, choosing, and vectors: what all planners share.

    Answers are looked up in `store` before anything is asked. Vectors are rounded to half precision, whether they come from
    there or not, so that a plan does not depend on it.

    Args:
        config: How plans are drawn and chosen.
        verbalizer: Says features in words where raw media are absent; None leaves them unsaid.
        centering: Means of the training split; None, before they are known, only scales vectors to length 1.
        store: Earlier answers; by default those of this planner.
    """

    def __init__(
        self,
        config: OmgConfig,
        verbalizer: MsaVerbalizer | None = None,
        centering: Centering | None = None,
        store: AnswerStore | None = None,
    ) -> None:
        self.config = config
        self.verbalizer = verbalizer
        self.centering = centering
        self.store = AnswerStore() if store is None else store
        self._has_looked_up = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Which planner this is, for results."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All that a training split was needed for, as plain JSON values; a class method `from_dict` rebuilds it."""
        means, said = self.centering, self.verbalizer
        return {
            "centering": None if means is None else {name: mean.tolist() for name, mean in means._asdict().items()},
            "verbalizer": None if said is None else said.to_dict(),
        }

    @staticmethod
    def _shared_parts(values: Mapping[str, Any]) -> tuple[MsaVerbalizer | None, Centering | None]:
        """Verbalizer and centering out of `to_dict`."""
        said, means = values["verbalizer"], values["centering"]
        return (
            None if said is None else MsaVerbalizer.from_dict(said),
            None if means is None else Centering(**{name: np.array(mean, np.float32) for name, mean in means.items()}),
        )

    @abstractmethod
    def content(self, observation: Observation) -> Any:
        """What is observed, as `vectors` reads it."""

    @abstractmethod
    def _embed(self, contents: Sequence[Any]) -> np.ndarray:
        """Vectors of texts or `content`, `(contents, width)`, not centred; NaN where there is none."""

    @abstractmethod
    def _propose(self, observations: Sequence[Observation]) -> Sequence[Proposed]:
        """For each observation the candidates."""

    @abstractmethod
    def _question(self, observation: Observation) -> str:
        """What candidates are asked for by, or a hash of it."""

    @abstractmethod
    def _identity(self, proposing: bool) -> Mapping[str, Any]:
        """What vectors, or candidates, depend on beside the question, as plain JSON values."""

    def propose(self, observations: Sequence[Observation]) -> list[Proposed]:
        """As `_propose`, but looked up first; what failed is not kept."""
        questions = [self._question(seen) for seen in observations]
        return self._answers(True, questions, observations, self._propose, Proposed.to_bytes, _remembered)

    def vectors(self, contents: Sequence[Any]) -> np.ndarray:
        """Vectors of texts (g: plans, their constraints, transcripts) or of `content` (psi), not centred; float32.

        That of a clip of which nothing was observed stands for one that there is none of.
        """
        return self._vectors(contents)[0]

    def _vectors(self, contents: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """As `vectors`, and True where there was none `(contents,)`; such a one is not kept."""
        questions = [one if isinstance(one, str) else one.digest for one in contents]
        rows = self._answers(False, questions, contents, lambda some: to_half(self._embed(some)), _kept_vector, _half)
        found = np.stack(rows).astype(np.float32)
        failed = np.asarray(np.isnan(found).any(axis=1))
        if failed.any():
            found[failed] = to_half(self._embed([NOTHING_OBSERVED]))[0]
        return found, failed

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts, centred and of length 1."""
        return normalize(self.vectors(texts), None if self.centering is None else self.centering.plan_mean)

    def embed_observations(self, observations: Sequence[Observation]) -> np.ndarray:
        """Vectors of observations, centred and of length 1."""
        return self._observed(observations)[0]

    def _observed(self, observations: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray]:
        """As `embed_observations`, and True where there was no vector `(observations,)`."""
        mean = None if self.centering is None else self.centering.observation_mean
        vectors, failed = self._vectors([self.content(seen) for seen in observations])
        return normalize(vectors, mean), failed

    def plan(self, observations: Sequence[Observation]) -> list[PlanChoice]:
        """Plan for each observation; its plan depends on it alone, as far as the model's numbers do."""
        if not observations:
            return []
        proposals = self.propose(observations)
        started = time.perf_counter()
        read = {text: read_plan(text) for one in proposals for text, _ in one.candidates}
        plans = [FALLBACK_PLAN, *(plan for plan, _ in read.values() if plan is not None)]
        texts = list(dict.fromkeys(plan.to_text() for plan in plans))
        vectors = dict(zip(texts, self.embed_texts(texts), strict=True))

        def judge(text: str, log_prob: float, seen: np.ndarray) -> Candidate:
            plan, violations = read[text]
            if plan is None:
                return Candidate(text, log_prob, None, violations)
            cost = float(semantic_cost(vectors[plan.to_text()][None], seen[None])[0])
            return Candidate(text, log_prob, plan, (), cost, log_prob - self.config.semantic_weight * cost)

        choices = []
        for proposed, seen, failed in zip(proposals, *self._observed(observations), strict=True):
            # Without a vector of the observation candidates cannot be judged: that is a fallback, too.
            judged = () if failed else proposed.candidates
            candidates = tuple(judge(text, log_prob, seen) for text, log_prob in judged)
            valid = [index for index, candidate in enumerate(candidates) if candidate.plan is not None]
            if self.config.reranking:
                # A stable order: the first of equals wins.
                valid.sort(key=lambda index: -candidates[index].utility)
            chosen = next(iter(valid), None)
            best = FALLBACK_PLAN if chosen is None else candidates[chosen].plan or FALLBACK_PLAN
            score = self._expected_score(candidates)
            choices.append(PlanChoice(best, candidates, chosen, vectors[best.to_text()], seen, score, proposed))
        if self.config.plan_tokens == "per_constraint":
            parts = self.embed_texts([text for choice in choices for text in choice.plan.constraints])
            for choice, three in zip(choices, parts.reshape(len(choices), 3, -1), strict=True):
                choice.constraint_vectors = three
        each = (time.perf_counter() - started) / len(choices)
        for choice in choices:
            choice.seconds = choice.proposed.seconds + each
        return choices

    def _expected_score(self, candidates: Sequence[Candidate]) -> float:
        """Mean sentiment of candidates that were drawn; 0 where none keeps to the schema."""
        scores = [candidate.plan.score for candidate in candidates if candidate.plan is not None]
        return float(np.mean(scores)) if scores else 0.0

    def _answers(
        self,
        proposing: bool,
        questions: Sequence[str],
        asked: Sequence[Any],
        find: Callable[[Any], Iterable[Found]],
        to_bytes: Callable[[Found], bytes | None],
        from_bytes: Callable[[bytes], Found],
    ) -> list[Found]:
        """Answers out of the store; what is not in it is found, equal questions once, and kept."""
        identity = content_hash(self._identity(proposing))
        kind = "proposed" if proposing else False
        keys = [content_hash([kind, identity, question]) for question in questions]
        known = {key: from_bytes(kept) for key, kept in self.store.read(keys).items()}
        self._has_looked_up |= proposing and bool(known)
        unknown = {key: one for key, one in zip(keys, asked, strict=True) if key not in known}
        if unknown:
            found = dict(zip(unknown, find(list(unknown.values())), strict=True))
            self.store.write({key: kept for key, one in found.items() if (kept := to_bytes(one)) is not None})
            known |= found
        return [known[key] for key in keys]

    def _describe(self, observation: Observation) -> tuple[str, tuple[str, ...]]:
        """Features in words where the media are absent, and the names of all modalities that are given in any form."""
        raw = {"text": observation.transcript, "audio": observation.audio, "vision": observation.frames}
        given = {name for name, value in raw.items() if value is not None}
        spoken = {name: values for name, values in observation.features.items() if name not in given}
        description = ""
        if self.verbalizer is not None:
            description = self.verbalizer.describe(spoken)
            given |= spoken.keys() & set(self.verbalizer.modalities)
        return description, tuple(name for name in MODALITIES if name in given)

    def _seen_text(self, observation: Observation) -> str:
        """What is observed, as far as it can be read, with no instruction."""
        description, _ = self._describe(observation)
        return "\n".join(part for part in (observation.transcript, description) if part)

    def _in_words(self, observation: Observation) -> str:
        """All that is observed, for what cannot hear or see: features are said even where there are recordings."""
        return self._seen_text(dataclasses.replace(observation, audio=None, frames=None)) or NOTHING_OBSERVED


def _remembered(kept: bytes) -> Proposed:
    proposed = Proposed.from_bytes(kept)
    return proposed._replace(remembered=proposed.calls)


def _kept_vector(vector: np.ndarray) -> bytes | None:
    return None if np.isnan(vector).any() else vector.tobytes()


def _half(kept: bytes) -> np.ndarray:
    return np.frombuffer(kept, "<f2")


def encoder_digest(encode: Encode) -> str:
    """A hash of what a text encoder makes of two texts."""
    vectors = to_half(np.asarray(encode(_ENCODER_TEXTS), dtype=np.float32))
    return hashlib.blake2b(repr(vectors.shape).encode() + vectors.tobytes(), digest_size=16).hexdigest()


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
    # What is the same for all clips comes first: it is computed once for a batch.
    lines = [
        "Parts of a video clip may have been lost. Sum up in three fields what happens in it: who or what it is about, "
        "what they do, and the sentiment that is expressed.",
        f"The sentiment must be one of: {', '.join(SENTIMENT_SCALE)}. Entity and action are a few words each.",
        "Reply with one line and nothing else, in this form:",
        "Entity: ...; Action: ...; Sentiment: ...",
        state,
        description,
        "" if transcript is None else f'Words: "{in_usual_case(transcript)}"',
    ]
    return "\n".join(line for line in lines if line)


class MllmPlanner(Planner):
    """Asks a multimodal language model for plans, and reads their vectors off its final layer.

    A server gives texts and log-probabilities, but no layer of its model. Plans and observations are then embedded as for
    the light planner: by the text encoder, and of sound and pictures the verbaliser's words.

    Args:
        mllm: The model, with its adapter where it has one.
        config, verbalizer, centering, store: See `Planner`.
        adapter: Hash of the weights of the model's adapter (`adapter_digest`), where the model itself does not know it: an
            adapter that was trained in place.
        encode: The text encoder; used where the configuration says that the model is on a server, and only there.
    """

    def __init__(
        self,
        mllm: Mllm,
        config: OmgConfig,
        verbalizer: MsaVerbalizer | None = None,
        centering: Centering | None = None,
        store: AnswerStore | None = None,
        adapter: str | None = None,
        encode: Encode | None = None,
    ) -> None:
        super().__init__(config, verbalizer, centering, store)
        self._asker = EnduringMllm(mllm)
        self.adapter = adapter
        self.encode = encode if config.planner_kind == "endpoint" else None

    @property
    def mllm(self) -> Mllm:
        """The model."""
        return self._asker.mllm

    @property
    def identity(self) -> dict[str, str | None]:
        """The model, its adapter, and how its weights are read, see `LocalMllm.identity`; of other models the name."""
        known = {"adapter": None, **known_identity(self.mllm)}
        return known if self.adapter is None else {**known, "adapter": self.adapter}

    @property
    def name(self) -> str:
        """That of the model, and the beginning of its adapter's hash or name."""
        model, adapter = self.identity["model"], self.identity["adapter"]
        return str(model) if adapter is None else f"{model}+{adapter[:8]}"

    def _taken(self, observation: Observation) -> Observation:
        """The same clip without the sound and the pictures that the model does not take, or is not to be given."""
        if observation.audio is observation.frames is None:
            return observation
        settings = self.config.language_model
        taken = taken_modalities(self.mllm, "auto" if settings is None else settings.modalities)
        return dataclasses.replace(
            observation,
            audio=observation.audio if "audio" in taken else None,
            frames=observation.frames if "vision" in taken else None,
        )

    def request(self, observation: Observation) -> MllmRequest:
        """The question for a plan; its digest changes with anything that the model sees."""
        observation = self._taken(observation)
        description, modalities = self._describe(observation)
        return _request(plan_prompt(observation.transcript, modalities, description), observation)

    def to_dict(self) -> dict[str, Any]:
        """Model, adapter, what vectors are made by, centring and verbaliser."""
        known = {name: self.identity[name] for name in ("model", "adapter")}
        vectors = "planner" if self.encode is None else "text_encoder"
        return {"kind": "mllm", **known, "vectors": vectors, **super().to_dict()}

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        mllm: Mllm,
        config: OmgConfig,
        store: AnswerStore | None = None,
        encode: Encode | None = None,
    ) -> "MllmPlanner":
        """Rebuild the planner from `to_dict`, with the model, its adapter where it was saved with one, and the encoder.

        Raises:
            ValueError: If the model is known to have another adapter than the one with which the planner was fitted.
        """
        known = known_identity(mllm)
        if known.get("adapter", values["adapter"]) != values["adapter"]:
            raise ValueError(
                f"The planner was fitted with the adapter {values['adapter']}, but its language model has "
                f"{known['adapter']}; load the model with the adapter that lies beside the planner, or fit the planner anew."
            )
        adapter = None if "adapter" in known else values["adapter"]
        return cls(mllm, config, *cls._shared_parts(values), store, adapter, encode)

    def _identity(self, proposing: bool) -> Mapping[str, Any]:
        if proposing:
            form = {} if self._form is None else {"form": self._form.regex}
            return {**self.identity, **self._draws(), **form, "log_prob": self.config.log_prob}
        return self.identity if self.encode is None else {"encoder": self._encoder}

    @cached_property
    def _encoder(self) -> str:
        assert self.encode is not None
        return encoder_digest(self.encode)

    def _question(self, observation: Observation) -> str:
        return self.request(observation).digest

    def _propose(self, observations: Sequence[Observation]) -> list[Proposed]:
        """Draw candidates: each one string, its fields in fixed order, so that each is drawn given those before it.

        Raises:
            OSError, ValueError: See `EnduringMllm.ask`.
        """
        self._asker.has_answered |= self._has_looked_up
        requests = [self.request(observation) for observation in observations]
        options = self._draws() if self._form is None else {**self._draws(), "form": self._form}
        return [
            Proposed(
                tuple((answer.text, self._log_prob(answer)) for answer in given.candidates),
                1,
                given.prompt_tokens,
                given.tokens,
                given.seconds,
            )
            for given in self._asker.ask(requests, **options)
        ]

    @property
    def _form(self) -> AnswerForm | None:
        return PLAN_FORM if self.config.planner_constrained else None

    def _draws(self) -> dict[str, Any]:
        """How candidates are drawn, as `Mllm.generate` takes it."""
        config = self.config
        return {
            "num_candidates": config.num_candidates,
            "temperature": config.plan_temperature,
            "top_p": config.plan_top_p,
            "max_new_tokens": config.plan_max_new_tokens,
            "seed": config.generation_seed,
        }

    def _log_prob(self, answer: MllmAnswer) -> float:
        if self.config.log_prob == "sum" or not answer.token_logprobs:
            return answer.logprob
        return answer.logprob / len(answer.token_logprobs)

    def _embed(self, contents: Sequence[str | MllmRequest]) -> np.ndarray:
        if self.encode is not None:
            return np.asarray(self.encode([str(one) for one in contents]), dtype=np.float32)
        return self._asker.embed([MllmRequest(one) if isinstance(one, str) else one for one in contents])

    def content(self, observation: Observation) -> str | MllmRequest:
        """All that is observed and taken by the model, without a question; in words where the text encoder reads it."""
        if self.encode is not None:
            return self._in_words(observation)
        observation = self._taken(observation)
        text = self._seen_text(observation)
        if not text and observation.audio is None and observation.frames is None:
            text = NOTHING_OBSERVED
        return _request(text, observation)


def _request(prompt: str, observation: Observation) -> MllmRequest:
    return MllmRequest(prompt, observation.audio, observation.frames, frames_per_second=observation.frames_per_second)
