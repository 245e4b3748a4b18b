"""OMG-Agent's planner: a plan of who does what with which sentiment, from those modalities of a clip that are observed.

`MllmPlanner` asks a multimodal language model; `LightPlanner` needs none, and is ours. Both give plans and vectors in the
same form. All names that a user of planners needs can be imported from here.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from .msa_mllm import Mllm, MllmAnswer, MllmRequest
from .msa_schema import MODALITIES, SENTIMENT_SCALE
from .msa_verbalizer import MsaVerbalizer
from .omg_light_planner import Lexicon, LightPlanner, RidgeProbe, rule_entity_action, tokenize
from .omg_observation import Observation, observe_rows
from .omg_plan import FALLBACK_PLAN, MAX_PHRASE, PLAN_FIELDS, Plan, parse_plan, schema_violations, sentiment_word
from .omg_plan_store import PlanStore, Proposals
from .omg_planner_base import (
    NOTHING_OBSERVED,
    Candidate,
    Centering,
    PlanChoice,
    Planner,
    PlannerSettings,
    choose,
    normalize,
    semantic_cost,
)

__all__ = [
    "FALLBACK_PLAN",
    "MAX_PHRASE",
    "PLANNER_KINDS",
    "PLAN_FIELDS",
    "SENTIMENT_SCALE",
    "Candidate",
    "Centering",
    "Lexicon",
    "LightPlanner",
    "MllmPlanner",
    "Observation",
    "Plan",
    "PlanChoice",
    "PlanStore",
    "Planner",
    "PlannerSettings",
    "Proposals",
    "RidgeProbe",
    "choose",
    "fit_centering",
    "normalize",
    "observe_rows",
    "parse_plan",
    "plan_prompt",
    "planner_from_dict",
    "planner_to_dict",
    "rule_entity_action",
    "schema_violations",
    "semantic_cost",
    "sentiment_word",
    "tokenize",
]

PLANNER_KINDS = ("mllm", "light")
_SOURCES = {"text": "its words", "audio": "its sound", "vision": "its pictures"}


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


class MllmPlanner(Planner):
    """Asks a multimodal language model for plans, and reads their vectors off its final layer.

    Args:
        mllm: The model, with its adapter where it has one.
        settings: How plans are drawn and chosen.
        verbalizer: Says features in words where raw media are absent; None leaves them unsaid.
        centering: Means of the training split, or None.
        store: What was found before.
        adapter: Hash of the weights of the model's adapter (`adapter_digest`), where the model itself does not know it: an
            adapter that was trained in place.
    """

    def __init__(
        self,
        mllm: Mllm,
        settings: PlannerSettings | None = None,
        verbalizer: MsaVerbalizer | None = None,
        centering: Centering | None = None,
        store: PlanStore | None = None,
        adapter: str | None = None,
    ) -> None:
        super().__init__(settings, verbalizer, centering, store)
        self.mllm = mllm
        self.adapter = adapter

    @property
    def identity(self) -> dict[str, str | None]:
        """The model, its adapter, and how its weights are read, see `LocalMllm.identity`; of other models the name."""
        return {
            "adapter": None,
            **_known_identity(self.mllm),
            **({} if self.adapter is None else {"adapter": self.adapter}),
        }

    @property
    def name(self) -> str:
        """That of the model, and the beginning of its adapter's hash or name."""
        model, adapter = self.identity["model"], self.identity["adapter"]
        return str(model) if adapter is None else f"{model}+{adapter[:8]}"

    def request(self, observation: Observation) -> MllmRequest:
        """The question for a plan; its digest changes with anything that the model sees.

        Args:
            observation: What is there of the clip.
        """
        description, modalities = self._describe(observation)
        return _request(plan_prompt(observation.transcript, modalities, description), observation)

    def to_dict(self) -> dict[str, Any]:
        """Model, adapter, centring and verbaliser; the settings are not in it."""
        return {
            "kind": "mllm",
            "model": self.identity["model"],
            "adapter": self.identity["adapter"],
            "centering": None if self.centering is None else self.centering.to_dict(),
            "verbalizer": None if self.verbalizer is None else self.verbalizer.to_dict(),
        }

    def _identity(self, kind: str) -> Mapping[str, Any]:
        if kind != "proposals":
            return self.identity
        settings = self.settings
        drawn = ("num_candidates", "log_prob", "temperature", "top_p", "max_new_tokens", "seed")
        # The wording is in each question as well; here it tells fingerprints apart.
        wording = [plan_prompt("words", MODALITIES), plan_prompt(None, (), "description")]
        return {**self.identity, **{name: getattr(settings, name) for name in drawn}, "wording": wording}

    def _question(self, kind: str, observation: Observation) -> str:
        return (self.request(observation) if kind == "proposals" else self._content(observation)).digest

    def _propose(self, observations: Sequence[Observation]) -> list[Proposals]:
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
        return [tuple((answer.text, self._log_prob(answer)) for answer in row) for row in answers]

    def _log_prob(self, answer: MllmAnswer) -> float:
        if self.settings.log_prob == "sum" or not answer.token_logprobs:
            return answer.logprob
        return answer.logprob / len(answer.token_logprobs)

    def _read(self, texts: Sequence[str]) -> np.ndarray:
        return self.mllm.embed([MllmRequest(text) for text in texts])

    def _perceive(self, observations: Sequence[Observation]) -> np.ndarray:
        return self.mllm.embed([self._content(observation) for observation in observations])

    def _content(self, observation: Observation) -> MllmRequest:
        """All that is observed, without a question."""
        text = self._seen_text(observation)
        if not text and observation.audio is None and observation.frames is None:
            text = NOTHING_OBSERVED
        return _request(text, observation)


def _request(prompt: str, observation: Observation) -> MllmRequest:
    return MllmRequest(prompt, observation.audio, observation.frames, frames_per_second=observation.frames_per_second)


def fit_centering(planner: Planner, observations: Iterable[Observation], seed: int = 0) -> None:
    """Take the means of the training split over its clips as they are and each once with some modalities missing.

    Plans are asked for in both states, so that is what vectors are centred on.

    Args:
        planner: Gets the means; a light planner is fitted already (`LightPlanner.fit`).
        observations: Of the training split alone, as complete as they are; read once, some at a time.
        seed: Of what is missing, see `Observation.randomly_restricted`.

    Raises:
        ValueError: If there is none.
    """
    bar = logging.tqdm(observations, desc="plans of training clips", leave=False, disable=None)
    planner.fit_centering(seen for whole in bar for seen in (whole, whole.randomly_restricted(seed)))


def planner_to_dict(planner: Planner) -> dict[str, Any]:
    """All of a planner that a training split was needed for, as plain JSON values.

    Args:
        planner: Its model or text encoder, its settings and its store are not in it.
    """
    return planner.to_dict()


def planner_from_dict(
    values: Mapping[str, Any],
    source: Mllm | Callable[[Sequence[str]], np.ndarray],
    settings: PlannerSettings | None = None,
    store: PlanStore | None = None,
) -> Planner:
    """Rebuild a planner.

    Args:
        values: What `planner_to_dict` gave; ``values["kind"]`` is one of `PLANNER_KINDS`.
        source: For "mllm" the model, with its adapter where it was saved with one; for "light" the text encoder.
        settings: How plans are drawn and chosen.
        store: What was found before.

    Raises:
        ValueError: If the kind is unknown, the source is not of the kind, or a language model is known to have another
            adapter than the one with which the planner was fitted.
    """
    kind = values.get("kind")
    if kind not in PLANNER_KINDS:
        raise ValueError(f"The planner is of the kind {kind!r}; it must be one of {', '.join(PLANNER_KINDS)}.")
    if callable(source):
        if kind == "mllm":
            raise ValueError(
                "A planner of the kind 'mllm' was saved; give its multimodal language model, not an encoder."
            )
        return LightPlanner.from_dict(values, source, settings, store)
    if kind == "light":
        raise ValueError("A planner of the kind 'light' was saved; give its text encoder, not a language model.")
    centering, verbalizer = values["centering"], values["verbalizer"]
    planner = MllmPlanner(
        source,
        settings,
        None if verbalizer is None else MsaVerbalizer.from_dict(verbalizer),
        None if centering is None else Centering.from_dict(centering),
        store,
    )
    known = _known_identity(source)
    if "adapter" not in known:
        planner.adapter = values["adapter"]
    elif known["adapter"] != values["adapter"]:
        raise ValueError(
            f"The planner was fitted with the adapter {values['adapter']}, but its language model has {known['adapter']}; "
            "load the model with the adapter that lies beside the planner, or fit the planner anew."
        )
    return planner


def _known_identity(mllm: Mllm) -> dict[str, str | None]:
    """What a model says of itself; without ``adapter`` where it cannot know whether it has one."""
    known: dict[str, str | None] = getattr(mllm, "identity", {"model": mllm.name})
    return known
