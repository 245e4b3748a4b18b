"""A scripted expert: what it answers to a question, how sure it is, and noisy experts whose error depends on the sample."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_msa.models.msa_mllm import MllmRequest
from hf_msa.models.msa_mllm_answers import MllmAnswer
from hf_msa.models.uacs_prompts import SECOND_OPINION, answer_text


@dataclass(frozen=True)
class Says:
    """An answer.

    Args:
        text: Its words; a number is taken for the score.
        entropy: Of every token of it, in nats.
    """

    text: str | float
    entropy: float = 0.1


def answer(says: Says) -> MllmAnswer:
    """One token per character, and the end of text, which is as unsure as can be: it must not count."""
    text = says.text if isinstance(says.text, str) else answer_text(says.text)
    tokens = (*text, "")
    entropies = (*[says.entropy] * len(text), 9.0)
    return MllmAnswer(text, tokens, entropies, tuple(-entropy for entropy in entropies))


class StubExpert:
    """An `Mllm` that answers by a script and counts how often it is asked.

    Args:
        first: The answer to a first question, by its request.
        second: The answer to a second one, by the request that it is the second question of.

    Attributes:
        asked: The requests of each call, in their order.
    """

    def __init__(
        self, first: Callable[[MllmRequest], Says], second: Callable[[MllmRequest], Says] | None = None
    ) -> None:
        self._first = first
        self._second = second or first
        self.asked: list[list[MllmRequest]] = []

    name = "stub"

    @property
    def calls(self) -> int:
        """Questions so far."""
        return sum(map(len, self.asked))

    def generate(
        self, requests: Sequence[MllmRequest], max_new_tokens: int, num_candidates: int = 1, **_: Any
    ) -> list[list[MllmAnswer]]:
        """Answer by the script."""
        assert num_candidates == 1 and max_new_tokens >= 4
        self.asked.append(list(requests))
        return [[answer(self._answer(request))] for request in requests]

    def _answer(self, request: MllmRequest) -> Says:
        question, separator, _ = request.prompt.partition(SECOND_OPINION)
        given = MllmRequest(question, request.audio, request.frames, request.system, request.frames_per_second)
        return self._second(given) if separator else self._first(given)

    def embed(self, requests: Sequence[MllmRequest]) -> np.ndarray:
        """Not scripted."""
        raise NotImplementedError


def scripted(
    requests: Sequence[MllmRequest], first: Sequence[Says], second: Sequence[Says] | None = None
) -> StubExpert:
    """An expert with one answer for each of some known requests.

    Args:
        requests: What it may be asked first, e.g. from `UacsForSentimentAnalysis.expert_requests`.
        first: The answers.
        second: The answers to the second questions; default: the first ones again.
    """

    def by_digest(answers: Sequence[Says]) -> Callable[[MllmRequest], Says]:
        table: Mapping[str, Says] = {request.digest: says for request, says in zip(requests, answers, strict=True)}
        return lambda request: table[request.digest]

    return StubExpert(by_digest(first), by_digest(first if second is None else second))


def noisy_answers(
    labels: Sequence[float],
    keys: Sequence[str],
    *,
    spread: float,
    label_range: tuple[float, float] = (-3.0, 3.0),
    honesty: float = 1.0,
    seed: int = 0,
) -> list[Says]:
    """Answers of an expert that finds some samples hard: there it errs more, and is less sure.

    A sample's difficulty is uniform from 0 to 1. The error is normal with a deviation of difficulty * `spread`, and the
    entropy `honesty` * difficulty + (1 - `honesty`) * noise, times ln 10: the entropy of a digit that could be any.

    Args:
        labels: True scores.
        keys: What tells samples apart; all draws of a sample depend on its key and the seed alone.
        spread: Deviation of the error on the hardest samples, in label units.
        label_range: Scores are clipped to it.
        honesty: From 0, entropy without any relation to error, to 1.
        seed: Of the draws.
    """
    says = []
    for label, key in zip(labels, keys, strict=True):
        digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "little"))
        difficulty, noise = generator.uniform(size=2)
        score = float(np.clip(label + generator.normal() * difficulty * spread, *label_range))
        entropy = (honesty * difficulty + (1 - honesty) * noise) * math.log(10)
        says.append(Says(score, float(entropy)))
    return says
