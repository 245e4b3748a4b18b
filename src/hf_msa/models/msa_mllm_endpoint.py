"""A multimodal language model on another machine: any server that speaks OpenAI's chat completions with log-probabilities.

That is vLLM, TGI, Hugging Face Inference Endpoints, and the inference providers of the Hub. A server is not trusted: it gets
no token but the one that is meant for it, is not followed to another place, and what it sends is bounded and checked.
"""

import base64
import io
import ipaddress
import json
import math
import os
import random
import re
import threading
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from huggingface_hub import get_session, get_token
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers.image_transforms import to_pil_image

from .msa_mllm import SAMPLING_RATE, MllmRequest, check_sampling
from .msa_mllm_answers import MllmAnswer

Answer = TypeVar("Answer")

# Of the Qwen2.5 family; only the upper bounds of entropies depend on it, and only by its logarithm.
VOCABULARY_SIZE = 152_064
HUB_ROUTER = "https://router.huggingface.co/v1"
"""Where the Hub takes requests for the models of its inference providers; the only address that gets the Hub's token."""

LARGEST_ANSWER = 32 * 2**20
"""Bytes of the longest answer that is read; a token with twenty others takes about three thousand."""

ALLOWED_VARIABLE = "HF_MSA_ENDPOINT"
TOKEN_VARIABLE = "HF_MSA_ENDPOINT_TOKEN"
_allowed: set[str] = set()

_TRANSIENT = {408, 429}
_LONGEST_WAIT = 60.0
_LONGEST_QUOTE = 200
# Servers round: a logarithm may lie this far above 0, and probabilities may add up to so much more than 1.
_ROUNDING = 0.02


def allow_endpoint(address: str) -> None:
    """Let checkpoints of this process ask a server that their configuration names: the caller's word for it.

    Args:
        address: URL, or Hub name, as the configuration has it.
    """
    _allowed.add(address)


def allowed_endpoint(address: str, role: str, without: str) -> "EndpointMllm":
    """The server that a checkpoint's configuration names, if the caller has allowed it.

    It is allowed by `allow_endpoint`, or by the environment variable HF_MSA_ENDPOINT, which holds its address. The token
    for it is that of the variable HF_MSA_ENDPOINT_TOKEN.

    Args:
        address: What the configuration names.
        role: What the method calls it, e.g. `"expert"`.
        without: What to set to do without it.

    Raises:
        ValueError: If it is not allowed, or cannot be asked.
    """
    if address not in {*_allowed, os.environ.get(ALLOWED_VARIABLE)}:
        raise ValueError(
            f"The checkpoint's {role} is a server, {address!r}, which would be sent the samples and has not been allowed; "
            f"if you trust it, set the environment variable {ALLOWED_VARIABLE} to this address, or do without it: {without}."
        )
    return EndpointMllm(address, token=os.environ.get(TOKEN_VARIABLE) or None)


class _Refusal(Exception):
    """An answer that is none: the status, what the server said, and how long it wants to be left alone."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers


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
        model_or_url: URL of a server (`https://host/v1`; without TLS only on this machine, `http://localhost:8000/v1`), or
            Hub name of a model that an inference provider runs.
        token: Sent to the server; by default none to a URL, and that of the Hub login for a Hub name.
        model: What the server calls the model, where it wants to be told and is given by URL.
        timeout: Seconds in which one answer has to be there, to its last byte.
        retries: Further attempts after a time-out, a broken connection, or status 408, 429 or 5xx.
        backoff: Seconds before the first of them, doubled for each further one and drawn within a half of it either way;
            a server's own Retry-After is followed. Never more than a minute.
        top_logprobs: Tokens to list at each position; servers allow 5 (TGI) to 20.
        vocabulary_size: Of the served model.
        concurrency: Requests under way at once.

    Raises:
        ValueError: If a setting makes no sense, or the address is not safe: without TLS, or with a password in it.
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
        self._is_url = "://" in model_or_url
        if self._is_url:
            _check_address(model_or_url)
        self._address = model_or_url
        self._token = token
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
        only_number: bool | tuple[float, float] = False,
    ) -> list[list[MllmAnswer]]:
        """Answer each request; see `Mllm.generate`. Every candidate is a call of its own, with the seed plus its number.

        Raises:
            TimeoutError: If the server does not answer in time, however often it is asked.
            ConnectionError: If it cannot be reached, or refuses.
            ValueError: If it gives no log-probabilities, or what it gives is no chat completion.
        """
        check_sampling(max_new_tokens, num_candidates, temperature, top_p)
        if only_number:
            raise ValueError(f"The server {self.name!r} is asked for free text only; leave only_number out.")

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
                content = _within(lambda: self._post(call), self._timeout)
            except Exception as error:
                if not _is_transient(error) or attempt == self._retries:
                    raise self._failure(error, attempt + 1) from None
                time.sleep(self._wait(error, attempt))
            else:
                return self._answer(content)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _post(self, call: Mapping[str, Any]) -> bytes:
        """Send one request, and read the answer as far as it is no longer than answers are.

        Raises:
            _Refusal: If the server answers with another status than success.
            ValueError: If the answer is too long, or the Hub is to be asked without a token.
        """
        token = self._token if self._is_url else self._token or get_token()
        if not self._is_url and not token:
            raise ValueError("There is no Hub token; `hf auth login` or set HF_TOKEN, or give the URL of a server")
        model = self._model if self._is_url else self._address
        body = {**call, "model": model, "logprobs": True, "top_logprobs": self._top_logprobs, "stream": False}
        received, deadline = bytearray(), time.monotonic() + self._timeout
        with get_session().stream(
            "POST",
            f"{(self._address if self._is_url else HUB_ROUTER).rstrip('/')}/chat/completions",
            json={name: value for name, value in body.items() if value is not None},
            headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})},
            timeout=self._timeout,
            # Wherever a server points to, nobody has allowed it.
            follow_redirects=False,
        ) as response:
            for part in response.iter_bytes():
                received += part
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(received) > LARGEST_ANSWER:
                    raise ValueError(f"it is longer than {LARGEST_ANSWER >> 20} MiB")
        if not response.is_success:
            raise _Refusal(response.status_code, received.decode(errors="replace"), response.headers)
        return bytes(received)

    def _wait(self, error: Exception, attempt: int) -> float:
        """Seconds before the next attempt."""
        wait: float = self._backoff * 2**attempt * random.uniform(0.5, 1.5)
        if isinstance(error, _Refusal):
            asked = error.headers.get("Retry-After", "")
            wait = max(wait, float(asked)) if asked.isdecimal() else wait
        return min(wait, _LONGEST_WAIT)

    def _failure(self, error: Exception, attempts: int) -> Exception:
        """What to raise in the place of what went wrong with a request."""
        times = "once" if attempts == 1 else f"{attempts} times"
        if isinstance(error, TimeoutError) or _is_a(error, "TimeoutException"):
            return TimeoutError(
                f"The server {self.name!r} did not answer within {self._timeout:g} s, asked {times}; raise the timeout, or "
                "ask for fewer answers at once."
            )
        quote = self._quoted(str(error))
        if isinstance(error, OfflineModeIsEnabled):
            return ConnectionError(f"The server {self.name!r} cannot be asked offline; unset HF_HUB_OFFLINE.")
        if isinstance(error, _Refusal) and 300 <= error.status < 400:
            place = self._quoted(error.headers.get("Location", "another place"))
            return ConnectionError(
                f"The server {self.name!r} sends us on to {place} (status {error.status}), where nothing is sent; give that "
                "address itself if you trust it."
            )
        if isinstance(error, _Refusal):
            return ConnectionError(
                f"The server {self.name!r} refused with status {error.status}, asked {times}: {quote}"
            )
        if _is_transient(error):
            return ConnectionError(
                f"The server {self.name!r} cannot be reached, tried {times} ({quote}); check the address, and that the "
                "server runs."
            )
        return ValueError(f"The server {self.name!r} sent no chat completion ({quote}).")

    def _answer(self, content: bytes) -> MllmAnswer:
        try:
            choice = _parsed(content)["choices"][0]
            text = choice["message"].get("content") or ""
            given = choice.get("logprobs")
            tokens = [] if given is None else given.get("content") or []
            if not isinstance(text, str) or not isinstance(tokens, list):
                raise TypeError("text or tokens are none")
            pieces = [_piece(token) for token in tokens]
            logprobs = [_logprob(token) for token in tokens]
            bounds = [self._bounds(token) for token in tokens]
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"The server {self.name!r} sent no chat completion that can be read ({self._quoted(repr(error))}); use a "
                "server that speaks OpenAI's chat completions with log-probabilities."
            ) from None
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

    def _quoted(self, text: str) -> str:
        """A text of the server's or of an error's in one short line, without what is secret."""
        for secret in filter(None, (self._token, get_token())):
            text = text.replace(secret, "[token]")
        line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split()) or "no reason given"
        return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}..."

    def _bounds(self, token: Mapping[str, Any]) -> tuple[float, float] | None:
        """Bounds of one position's entropy; None where the server lists nothing beside the token itself."""
        listed = {_piece(top): _logprob(top) for top in token.get("top_logprobs") or ()}
        total = math.fsum(map(math.exp, listed.values()))
        if total > 1 + _ROUNDING:
            raise ValueError(f"the probabilities of a token add up to {total:.3g}")
        return entropy_bounds(list(listed.values()), self._vocabulary_size) if listed else None


def _check_address(address: str) -> None:
    """Refuse a URL over which others could read along, or that holds a secret, which would get into results.

    Raises:
        ValueError: With what to give instead.
    """
    try:
        url = urlsplit(address)
        host, _ = url.hostname or "", url.port
    except ValueError:
        url, host = urlsplit(""), ""
    if url.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f]", address):
        raise ValueError(f"{address!r} is no address of a server; give https://host/v1, or http://localhost:PORT/v1.")
    if url.username is not None or url.password is not None or url.query or url.fragment:
        raise ValueError(
            f"The address of the server at {host!r} holds a password, a query or a fragment; give it without, and what is "
            "secret as the token."
        )
    if url.scheme == "http" and not _is_loopback(host):
        raise ValueError(
            f"{address!r} would send samples and answers in the clear; give an https:// address, or the local end of a "
            "tunnel (ssh -L 8000:localhost:8000 HOST, then http://localhost:8000/v1)."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parsed(content: bytes) -> Any:
    """Strict JSON: NaN and infinities are none."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    return json.loads(content, parse_constant=refuse)


def _piece(token: Mapping[str, Any]) -> str:
    piece = token["token"]
    if not isinstance(piece, str):
        raise TypeError(f"a token is {piece!r}")
    return piece


def _logprob(token: Mapping[str, Any]) -> float:
    """The logarithm of a token's probability, which rounding may have put a little above 0."""
    value = token["logprob"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value <= _ROUNDING:
        raise ValueError(f"a log-probability is {value!r}; it must be a number that is not above 0")
    return min(float(value), 0.0)


def _within(work: Callable[[], Answer], seconds: float) -> Answer:
    """Do some work, and give it up after a while.

    Reading has time limits of its own, but a server that sends a byte of its headers now and then stays within them: the
    thread is left to itself then.

    Raises:
        TimeoutError: If it is not done in time.
    """
    done: list[Answer] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError
    return done[0]


def _is_a(error: Exception, name: str) -> bool:
    """Whether an error is of a class of the HTTP library, which is not ours to import."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def _is_transient(error: Exception) -> bool:
    """Whether asking again may help."""
    if isinstance(error, _Refusal):
        return error.status in _TRANSIENT or error.status >= 500
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return _is_a(error, "TransportError") or isinstance(error, (TimeoutError, ConnectionError))


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
