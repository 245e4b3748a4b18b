"""A language model that says what it is told to, for planners."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_msa.models.msa_mllm import MllmRequest
from hf_msa.models.msa_mllm_answers import MllmAnswer


class ScriptedMllm:
    """An `Mllm` that says what it is told to, and whose vectors are given by a function.

    Args:
        script: For a request the candidates: text and log-probability of each of its tokens.
        vector: The vector of a request.
    """

    name = "scripted"

    def __init__(
        self,
        script: Callable[[MllmRequest], Sequence[tuple[str, Sequence[float]]]],
        vector: Callable[[MllmRequest], Sequence[float]] = lambda request: (1.0, 0.0),
    ) -> None:
        self._script = script
        self._vector = vector
        self.options: list[dict[str, Any]] = []
        self.asked: list[MllmRequest] = []
        self.embedded: list[MllmRequest] = []

    def generate(self, requests: Sequence[MllmRequest], max_new_tokens: int, **options: Any) -> list[list[MllmAnswer]]:
        self.options.append({"max_new_tokens": max_new_tokens, **options})
        self.asked += requests
        return [
            [
                MllmAnswer(
                    text, (text, *[""] * len(logprobs))[: len(logprobs)], (0.0,) * len(logprobs), tuple(logprobs)
                )
                for text, logprobs in self._script(request)
            ]
            for request in requests
        ]

    def embed(self, requests: Sequence[MllmRequest]) -> np.ndarray:
        self.embedded += requests
        return np.array([self._vector(request) for request in requests], dtype=np.float32)


def says(*candidates: tuple[str, Sequence[float]]) -> Callable[[MllmRequest], Sequence[tuple[str, Sequence[float]]]]:
    return lambda request: candidates
