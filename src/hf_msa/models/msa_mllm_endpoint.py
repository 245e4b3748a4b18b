"""A multimodal language model on another machine: any server that speaks OpenAI's chat completions with log-probabilities.

That is vLLM, TGI, Hugging Face Inference Endpoints, and the inference providers of the Hub.
"""

import base64
import io
import math
import random
import time
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError
from transformers.image_transforms import to_pil_image

from .msa_mllm import SAMPLING_RATE, MllmAnswer, MllmRequest, check_sampling

Answer = TypeVar("Answer")

# Of the Qwen2.5 family; only the upper bounds of entropies depend on it, and only by its logarithm.
VOCABULARY_SIZE = 152_064
_TRANSIENT = {408, 429}
_LONGEST_WAIT = 60.0
_LONGEST_QUOTE = 200


def entropy_bounds(logprobs: Sequence[float], vocabulary_size: int) -> tuple[float, float]:
    """Lowest and highest entropy of a distribution of which only the most probable tokens are known.

    The rest of the probability has the highest entropy spread evenly over all other tokens, and the lowest on as few as
    can be: on one, unless the rest is more than the least probable listed token has, as no other token has more than it.

    Args:
        logprobs: Natural logarithms of the probabilities of the listed tokens, which are the most probable ones.
        vocabulary_size: Number of tokens there are.

    Returns:
        Nats.
    """
    listed = np.exp(np.asarray(logprobs, dtype=np.float64))
    known = float(-(listed * np.log(np.maximum(listed, np.finfo(np.float64).tiny))).sum())
    rest, others = 1.0 - float(listed.sum()), vocabulary_size - len(listed)
    if rest <= 0 or others <= 0:
        return known, known
    # With rounding errors more can be left than the other tokens may hold: then they are all equal.
    most = max(float(listed.min()), rest / others)
    full, left = divmod(rest, most)
    low = known - full * most * math.log(most) - (left * math.log(left) if left > 0 else 0.0)
    high = known - rest * math.log(rest / others)
    return min(low, high), high


class EndpointMllm:
    """Asks a server.

    Entropies are those that the server's `top_logprobs` allow: each token's bounds are kept, and their middle is taken for
    its entropy (see `entropy_bounds`). Whether log-probabilities are given before or after temperature is up to the
    server; at the most probable tokens, without a temperature, it makes no difference.

    Args:
        model_or_url: URL of a server (`http://host:port/v1`), or Hub name of a model that an inference provider runs.
        token: Sent to the server; by default that of the Hub login for a Hub name.
        model: What the server calls the model, where it wants to be told and is given by URL.
        timeout: Seconds to wait for one answer.
        retries: Further attempts after a time-out, a broken connection, or status 408, 429 or 5xx.
        backoff: Seconds before the first of them, doubled for each further one and drawn within a half of it either way;
            a server's own Retry-After is followed. Never more than a minute.
        top_logprobs: Tokens to list at each position; servers allow 5 (TGI) to 20.
        vocabulary_size: Of the served model.
        concurrency: Requests under way at once.
    """

    def __init__(
        self,
        model_or_url: str,
        token: str | None = None,
        model: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        backoff: float = 1.0,
        top_logprobs: int = 20,
        vocabulary_size: int = VOCABULARY_SIZE,
        concurrency: int = 4,
    ) -> None:
        if timeout <= 0 or retries < 0 or backoff < 0 or top_logprobs < 1 or concurrency < 1:
            raise ValueError(
                f"timeout is {timeout}, retries {retries}, backoff {backoff}, top_logprobs {top_logprobs} and concurrency "
                f"{concurrency}; timeout must be above 0, retries and backoff not below 0, and the others at least 1."
            )
        is_url = model_or_url.startswith(("http://", "https://"))
        where: dict[str, Any] = {"base_url" if is_url else "model": model_or_url}
        self._client = InferenceClient(**where, token=token, timeout=timeout)
        self._address = model_or_url
        self._model = model
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff
        self._top_logprobs = top_logprobs
        self._vocabulary_size = vocabulary_size
        self._concurrency = concurrency

    @property
    def name(self) -> str:
        """Address, and model where one was named."""
        return self._address if self._model is None else f"{self._address}#{self._model}"

    def generate(
        self,
        requests: Sequence[MllmRequest],
        max_new_tokens: int,
        num_candidates: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[list[MllmAnswer]]:
        """Answer each request; see `Mllm.generate`. Every candidate is a call of its own, with the seed plus its number.

        Raises:
            TimeoutError: If the server does not answer in time, however often it is asked.
            ConnectionError: If it cannot be reached, or refuses.
            ValueError: If it gives no log-probabilities, or what it gives is no chat completion.
        """
        check_sampling(max_new_tokens, num_candidates, temperature, top_p)

        def ask(row: tuple[list[dict[str, Any]], int]) -> MllmAnswer:
            messages, number = row
            return self._ask(
                messages=messages,
                max_tokens=max_new_tokens,
                temperature=0.0 if temperature is None else temperature,
                top_p=top_p,
                seed=seed + number,
            )

        rows = [(messages, number) for messages in map(_messages, requests) for number in range(num_candidates)]
        answers = _map(ask, rows, self._concurrency)
        return [answers[begin : begin + num_candidates] for begin in range(0, len(answers), num_candidates)]

    def embed(self, requests: Sequence[MllmRequest]) -> np.ndarray:
        """Refuse: a server of chat completions cannot do this.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"The server {self.name!r} gives no hidden states, so it cannot embed requests; use a local model for that."
        )

    def _ask(self, **call: Any) -> MllmAnswer:
        for attempt in range(self._retries + 1):
            try:
                completion = self._client.chat_completion(
                    **call, model=self._model, logprobs=True, top_logprobs=self._top_logprobs
                )
            except Exception as error:
                if not _is_transient(error) or attempt == self._retries:
                    raise self._failure(error, attempt + 1) from error
                time.sleep(self._wait(error, attempt))
            else:
                return self._answer(completion)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _wait(self, error: Exception, attempt: int) -> float:
        """Seconds before the next attempt."""
        wait: float = self._backoff * 2**attempt * random.uniform(0.5, 1.5)
        if isinstance(error, HfHubHTTPError):
            asked = error.response.headers.get("Retry-After", "")
            wait = max(wait, float(asked)) if asked.isdigit() else wait
        return min(wait, _LONGEST_WAIT)

    def _failure(self, error: Exception, attempts: int) -> Exception:
        """What to raise in the place of the client's error."""
        times = "once" if attempts == 1 else f"{attempts} times"
        if isinstance(error, InferenceTimeoutError):
            return TimeoutError(
                f"The server {self.name!r} did not answer within {self._timeout:g} s, asked {times}; raise the timeout, or "
                "ask for fewer answers at once."
            )
        if isinstance(error, HfHubHTTPError):
            status, quote = error.response.status_code, _shortened(error.response.text)
            return ConnectionError(f"The server {self.name!r} refused with status {status}, asked {times}: {quote}")
        if _is_transient(error):
            return ConnectionError(
                f"The server {self.name!r} cannot be reached, tried {times} ({_shortened(str(error))}); check the address, "
                "and that the server runs."
            )
        return ValueError(f"The server {self.name!r} sent no chat completion ({_shortened(repr(error))}).")

    def _answer(self, completion: Any) -> MllmAnswer:
        try:
            choice = completion.choices[0]
            text = choice.message.content or ""
            given = choice.logprobs
            tokens = [] if given is None else list(given.content or ())
            pieces = [str(token.token) for token in tokens]
            logprobs = [float(token.logprob) for token in tokens]
            bounds = [self._bounds(token) for token in tokens]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"The server {self.name!r} sent no chat completion that can be read ({_shortened(repr(error))})."
            ) from error
        if not tokens and (text or given is None):
            raise ValueError(
                f"The server {self.name!r} gave no log-probabilities, without which an answer has no uncertainty; start it "
                "with log-probabilities allowed (vLLM: --max-logprobs 20), or use another server."
            )
        if any(low is None for low in bounds):
            raise ValueError(
                f"The server {self.name!r} gave log-probabilities of its own tokens only; it must support top_logprobs "
                f"(asked for {self._top_logprobs})."
            )
        known = [bound for bound in bounds if bound is not None]
        return MllmAnswer(
            text,
            tuple(_placed(pieces, text)),
            tuple((low + high) / 2 for low, high in known),
            tuple(logprobs),
            tuple(known),
        )

    def _bounds(self, token: Any) -> tuple[float, float] | None:
        """Bounds of one position's entropy; None where the server lists nothing beside the token itself."""
        listed = {str(top.token): float(top.logprob) for top in token.top_logprobs or ()}
        return entropy_bounds(list(listed.values()), self._vocabulary_size) if listed else None


def _is_transient(error: Exception) -> bool:
    """Whether asking again may help."""
    if isinstance(error, HfHubHTTPError):
        status: int = error.response.status_code
        return status in _TRANSIENT or status >= 500
    # The client's HTTP library is not ours to import; all its failures to reach a server derive from this class.
    broken = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
    return broken or isinstance(error, (TimeoutError, ConnectionError))


def _shortened(text: str) -> str:
    line = " ".join(text.split()) or "no reason given"
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}..."


def _placed(pieces: Sequence[str], text: str) -> list[str]:
    """What each token adds to the text.

    Servers list the end of text, which is not in the text, name parts of a character in ways of their own, and may strip
    the text: a token that does not go on where the text is adds nothing.
    """
    placed, begin = [], 0
    for given in pieces:
        piece = given if begin or text.startswith(given) else given.lstrip()
        goes_on = bool(piece) and text.startswith(piece, begin)
        placed.append(piece if goes_on else "")
        begin += len(piece) if goes_on else 0
    return placed


def _map(ask: Callable[[Any], Answer], rows: Sequence[Any], concurrency: int) -> list[Answer]:
    """`map` over a few threads, in order; the first failure stops what has not begun."""
    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(ask, row) for row in rows]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _messages(request: MllmRequest) -> list[dict[str, Any]]:
    """A request as chat messages: sound as one WAV file, frames as PNG images, then the prompt."""
    parts: list[dict[str, Any]] = []
    if request.audio is not None:
        parts.append({"type": "input_audio", "input_audio": {"data": _wav(request.audio), "format": "wav"}})
    for frame in () if request.frames is None else request.frames:
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(frame)}"}})
    content: Any = [*parts, {"type": "text", "text": request.prompt}] if parts else request.prompt
    turns = [{"role": "user", "content": content}]
    return turns if request.system is None else [{"role": "system", "content": request.system}, *turns]


def _wav(audio: np.ndarray) -> str:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes((np.clip(audio, -1, 1) * 32767).round().astype("<i2").tobytes())
    return base64.b64encode(buffer.getvalue()).decode()


def _png(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    to_pil_image(frame, input_data_format="channels_last").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
