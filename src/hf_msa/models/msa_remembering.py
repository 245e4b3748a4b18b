"""Asking a language model: what is known is looked up, what it costs is counted, and what fails costs itself alone."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .msa_answer_store import AnswerStore, content_hash
from .msa_mllm import Mllm, MllmRequest
from .msa_mllm_answers import MllmAnswer

# So many questions are answered before the answers are written: what a kill may lose.
_KEPT_TOGETHER = 32
# What a request can fail by; everything else is a bug.
_FAILURES = (OSError, ValueError, torch.OutOfMemoryError)
_PROBE = MllmRequest("Reply with the number 0.0 and nothing else.")


@dataclass(frozen=True)
class GivenAnswer:
    """The answer to a request and what it cost when it was given, which may be long ago.

    Args:
        candidates: As many as were asked for; none where the request failed: the model could not be given it, or a server
            refused it.
        seconds: Its share of the time of the requests that were answered together, reading and preparing them included,
            loading the model's weights not.
        is_remembered: Whether it was looked up.
    """

    candidates: tuple[MllmAnswer, ...]
    seconds: float
    is_remembered: bool = False

    @property
    def answer(self) -> MllmAnswer | None:
        """The first candidate; None where the request failed."""
        return next(iter(self.candidates), None)

    @property
    def tokens(self) -> int:
        """How many were written, in all candidates."""
        return sum(len(candidate.token_texts) for candidate in self.candidates)

    @property
    def prompt_tokens(self) -> float:
        """Length of the question, as the model read it, once for all candidates; NaN where the model does not say it."""
        found = next((one.prompt_tokens for one in self.candidates), None)
        return math.nan if found is None else found


class EnduringMllm:
    """Asks a language model so that a request which fails while others are answered costs no more than itself.

    It counts as unanswered, and is named in a warning. Where the model answers nothing any more, not even a plain question,
    and where it has failed at everything that it was asked, the error is raised.

    Args:
        mllm: The model.
    """

    def __init__(self, mllm: Mllm) -> None:
        self.mllm = mllm
        self.has_answered = False

    def ask(self, requests: Sequence[MllmRequest], max_new_tokens: int, **options: Any) -> list[GivenAnswer]:
        """Answer each request.

        Args:
            requests: What is asked.
            max_new_tokens: Longest answer.
            **options: Further settings of `Mllm.generate`.

        Raises:
            OSError: If the model is not there, or not any more.
            ValueError: If it cannot answer any of the requests, and has not answered earlier ones.
        """
        failures: list[Exception] = []
        # The clock runs for questions: the weights of a local model are read before.
        getattr(self.mllm, "model", None)
        found = self._answers(requests, failures, max_new_tokens, **options)
        if failures and not self.has_answered:
            raise failures[0]
        return found

    def embed(self, requests: Sequence[MllmRequest]) -> np.ndarray:
        """Vectors of requests `(requests, width)`; NaN for one that fails while a plain question has a vector.

        Raises:
            OSError, ValueError: If the model gives no vectors at all.
        """
        try:
            return self.mllm.embed(requests)
        except _FAILURES as error:
            plain = self.mllm.embed([_PROBE])
            if (half := len(requests) // 2) > 0:
                return np.concatenate([self.embed(part) for part in (requests[:half], requests[half:])])
            logging.getLogger(__name__).warning(
                "The language model gave no vector of an observation, which counts as unreadable: %s", error
            )
            return np.full_like(plain, np.nan)

    def _answers(
        self, requests: Sequence[MllmRequest], failures: list[Exception], max_new_tokens: int, **options: Any
    ) -> list[GivenAnswer]:
        """Ask together, and each half by itself where that fails; errors of single requests go into `failures`."""
        started = time.perf_counter()
        try:
            answers = self.mllm.generate(requests, max_new_tokens, **options)
        except _FAILURES as error:
            seconds = time.perf_counter() - started
            if not self._answers_at_all(max_new_tokens):
                raise
            if (half := len(requests) // 2) > 0:
                parts = (requests[:half], requests[half:])
                return [one for part in parts for one in self._answers(part, failures, max_new_tokens, **options)]
            failures.append(error)
            logging.getLogger(__name__).warning(
                "The language model gave no answer to a question, which counts as unreadable: %s", error
            )
            return [GivenAnswer((), seconds)]
        self.has_answered = True
        seconds = (time.perf_counter() - started) / len(requests)
        return [GivenAnswer(tuple(candidates), seconds) for candidates in answers]

    def _answers_at_all(self, max_new_tokens: int) -> bool:
        try:
            self.mllm.generate([_PROBE], max_new_tokens)
        except _FAILURES:
            return False
        return True


class RememberingMllm(EnduringMllm):
    """Asks a language model for its most probable answers, and remembers them; of what fails see `EnduringMllm`.

    Args:
        mllm: The model. What tells it apart from others is its `identity`, or its `name` where it has none.
        store: Where answers are kept.
    """

    def __init__(self, mllm: Mllm, store: AnswerStore) -> None:
        super().__init__(mllm)
        self.store = store

    def ask(
        self, requests: Sequence[MllmRequest], max_new_tokens: int, batch_size: int = 1, **options: Any
    ) -> list[GivenAnswer]:
        """Answer each request; equal ones are asked once.

        Args:
            requests: What is asked.
            max_new_tokens: Longest answer.
            batch_size: Requests that the model answers together; answers are written after a few such batches.
            **options: Further settings of `Mllm.generate` that answers depend on.

        Raises:
            OSError: If the model is not there, or not any more.
            ValueError: If none of the requests can be answered.
        """
        settings = {**known_identity(self.mllm), "max_new_tokens": max_new_tokens, **options}
        keys = [content_hash(["answer", settings, request.digest]) for request in requests]
        given = {key: answer for key, value in self.store.read(keys).items() if (answer := _restored(value))}
        self.has_answered |= bool(given)
        asked = {key: request for key, request in zip(keys, requests, strict=True) if key not in given}
        size = -(-_KEPT_TOGETHER // batch_size) * batch_size
        items, failures = list(asked.items()), list[Exception]()
        if items:
            # The clock runs for questions: the weights of a local model are read before.
            getattr(self.mllm, "model", None)
        for begin in range(0, len(items), size):
            chunk = items[begin : begin + size]
            found = self._answers([request for _, request in chunk], failures, max_new_tokens, **options)
            given.update(zip((key for key, _ in chunk), found, strict=True))
            self.store.write(
                {key: self._kept(request, given[key]) for key, request in chunk if given[key].answer is not None}
            )
        if failures and not self.has_answered:
            raise failures[0]
        return [given[key] for key in keys]

    def _kept(self, request: MllmRequest, given: GivenAnswer) -> bytes:
        """An answer as it is kept: in a file with the words of the question, for reading."""
        assert given.answer is not None
        words = {} if self.store.folder is None else {"model": self.mllm.name, "question": request.prompt}
        values = {**words, **dataclasses.asdict(given.answer)}
        return json.dumps({**values, "seconds": given.seconds}, ensure_ascii=False).encode("utf-8", "surrogatepass")


def known_identity(mllm: Mllm) -> dict[str, str | None]:
    """What a model says of itself; without ``adapter`` where it cannot know whether it has one."""
    known: dict[str, str | None] = getattr(mllm, "identity", {"model": mllm.name})
    return known


def _restored(value: bytes) -> GivenAnswer | None:
    """The reverse of `_kept`; None for what another version kept in another form."""
    names = {field.name for field in dataclasses.fields(MllmAnswer)}
    try:
        fields = json.loads(value.decode("utf-8", "surrogatepass"))
        answer = MllmAnswer(**{name: _as_tuple(given) for name, given in fields.items() if name in names})
        return GivenAnswer((answer,), float(fields["seconds"]), is_remembered=True)
    except (KeyError, TypeError, ValueError):
        return None


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
