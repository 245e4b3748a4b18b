"""A language model on another machine: any server that speaks OpenAI's chat completions with log-probabilities.

That is vLLM, llama.cpp, TGI, Hugging Face Inference Endpoints, and the inference providers of the Hub. What goes to a server
and what is taken from it is in `msa_mllm_server` and `msa_mllm_completion`.
"""

import base64
import io
import json
import logging
import os
import re
import threading
import wave
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from huggingface_hub import get_token
from transformers.image_transforms import to_pil_image

from .configuration_msa import ServerSettings
from .msa_mllm import SAMPLING_RATE, MllmRequest, check_sampling
from .msa_mllm_answers import MllmAnswer
from .msa_mllm_completion import Completion, read_completion
from .msa_mllm_forms import AnswerForm
from .msa_mllm_numbers import WIDEST_RANGE, check_room, writable_numbers
from .msa_mllm_server import Refused, Server, check_address

logger = logging.getLogger(__name__)

# Of the Qwen2.5 family; only the upper bounds of entropies depend on it, and only by its logarithm.
VOCABULARY_SIZE = 152_064
HUB_ROUTER = "https://router.huggingface.co/v1"
"""Where the Hub takes requests for the models of its inference providers; the only address that gets the Hub's token."""

ALLOWED_VARIABLE = "HF_MSA_ENDPOINT"
TOKEN_VARIABLE = "HF_MSA_ENDPOINT_TOKEN"
# The variable of the key that each address may be sent; None where the caller named none.
_allowed: dict[str, str | None] = {}

# Servers penalise repetitions and cut tails unless they are told not to, some in all answers (llama-cpp-python), some as the
# model's own settings say (vLLM): what they then answer is not what their log-probabilities say. Names differ by server.
_PLAIN = {"repetition_penalty": 1.0, "repeat_penalty": 1.0, "min_p": 0.0, "top_p": 1.0}
# What servers allow that refuse more and do not say how many.
_FEWEST_LOGPROBS = 5
_JPEG_QUALITY = 90


def allow_endpoint(address: str, key_variable: str | None = None) -> None:
    """Let checkpoints of this process ask a server that their configuration names: the caller's word for it.

    Args:
        address: URL, or Hub name, as the configuration has it.
        key_variable: Environment variable whose content the server may be sent as its key.
    """
    _allowed[address] = key_variable


def allowed_endpoint(address: str, role: str, without: str, settings: ServerSettings) -> "EndpointMllm":
    """The server that a checkpoint's configuration names, if the caller has allowed it.

    It is allowed by `allow_endpoint`, or by the environment variable HF_MSA_ENDPOINT, which holds its address. Its key is
    that of the variable which was allowed with it, else of HF_MSA_ENDPOINT_TOKEN: a checkpoint does not choose what is read
    of the environment.

    Args:
        address: What the configuration names.
        role: What the method calls it, e.g. `"expert"`.
        without: What to set to do without it.
        settings: How the configuration wants it asked.

    Raises:
        ValueError: If it is not allowed, its key is not there, or it cannot be asked.
    """
    if address not in {*_allowed, os.environ.get(ALLOWED_VARIABLE)}:
        raise ValueError(
            f"The checkpoint's {role} is a server, {address!r}, which would be sent the samples and has not been allowed; "
            f"if you trust it, set the environment variable {ALLOWED_VARIABLE} to this address, or do without it: {without}."
        )
    variable, key = _allowed.get(address), os.environ.get(TOKEN_VARIABLE) or None
    if variable is not None:
        key = os.environ.get(variable)
        if not key:
            raise ValueError(
                f"The {role}'s key is to be in the environment variable {variable}, which is not set; set it, or name none."
            )
        if "://" in address and key == get_token():
            raise ValueError(
                f"The environment variable {variable} holds the token of the Hub login, which goes to the Hub only; give "
                f"the server {address!r} a key of its own."
            )
    elif settings.key_variable is not None and key is None:
        raise ValueError(
            f"The checkpoint wants the content of the environment variable {settings.key_variable} sent to its {role}, "
            f"{address!r}; if it may have it, set {TOKEN_VARIABLE} to it, or name the server and the variable yourself "
            f"(--set {role}_model=... {role}_key_variable=...)."
        )
    return EndpointMllm(
        address,
        token=key,
        model=settings.served_model,
        timeout=settings.timeout,
        retries=settings.retries,
        top_logprobs=settings.top_logprobs,
        concurrency=settings.concurrency,
    )


class EndpointMllm:
    """Asks a server.

    Entropies are those that the server's `top_logprobs` allow: each token's bounds are kept, and their middle is taken for
    its entropy (see `entropy_bounds`). A server that refuses to list so many is asked for as many as it allows.
    The penalties and warpers of the server or of the model's own settings are turned off as far as it lets them be. Whether
    log-probabilities are given before or after temperature, and before or after a constraint, is up to the server;
    at the most probable tokens, without a constraint, it makes no difference. Of a model that thinks before it answers the
    thoughts count against the longest length, but are no part of the answer.

    Args:
        model_or_url: URL of a server (`https://host/v1`; without TLS only on this machine, `http://localhost:8000/v1`), or
            Hub name of a model that an inference provider runs.
        token: Sent to the server; by default none to a URL, and that of the Hub login for a Hub name.
        model: What the server calls the model; by default the only one that it serves.
        timeout: Seconds in which one answer has to be there, to its last byte.
        retries: Further attempts after a time-out, a broken connection, or status 408, 429 or 5xx.
        backoff: Seconds before the first of them; see `Server`.
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
            check_address(model_or_url)
        self._address = model_or_url
        self._token = token
        self._model = model if self._is_url else model_or_url
        self._limits: dict[str, Any] = {"timeout": timeout, "retries": retries, "backoff": backoff}
        self._asked_logprobs = self._top_logprobs = top_logprobs
        self._vocabulary_size = vocabulary_size
        self._concurrency = concurrency
        self._plain = dict(_PLAIN)
        self._form_way = 0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Address, and model where one was named."""
        return self._address if self._model in (None, self._address) else f"{self._address}#{self._model}"

    @property
    def identity(self) -> dict[str, str | None]:
        """What answers depend on beside the request, for caches; see `LocalMllm.identity`.

        Asks the server for its model where none was named. Whether that has an adapter only the server knows.

        Raises:
            ConnectionError, TimeoutError, ValueError: As `generate`.
        """
        return {
            "model": self.name,
            "served_model": self._served_model,
            "top_logprobs": str(self._asked_logprobs),
        }

    def generate(
        self,
        requests: Sequence[MllmRequest],
        max_new_tokens: int,
        num_candidates: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        only_number: bool | tuple[float, float] = False,
        form: AnswerForm | None = None,
    ) -> list[list[MllmAnswer]]:
        """Answer each request; see `Mllm.generate`. Every candidate is a call of its own, with the seed plus its number.

        Raises:
            TimeoutError: If the server does not answer in time, however often it is asked.
            ConnectionError: If it cannot be reached, or refuses.
            ValueError: If it gives no log-probabilities, what it gives is no chat completion, it serves several models and
                none was named, or it does not keep to the number or form that is wanted.
        """
        check_sampling(max_new_tokens, num_candidates, temperature, top_p)
        call = {
            "max_tokens": max_new_tokens,
            "temperature": 0.0 if temperature is None else temperature,
            "top_p": top_p,
        }
        if only_number is not False:
            numbers = writable_numbers(*(WIDEST_RANGE if only_number is True else only_number))
            check_room(numbers, max_new_tokens)
            form = AnswerForm((numbers,))

        def ask(messages: "Future[list[dict[str, Any]]]", number: int) -> MllmAnswer:
            asked = {**call, "messages": messages.result(), "seed": seed + number}
            completion = self._ask(asked) if form is None else self._ask_in_form(asked, form)
            return completion.answer()

        with ThreadPoolExecutor(self._concurrency) as pool:
            answers: list[Future[MllmAnswer]] = []
            for request in requests:
                # Threads take what was submitted first, so that media are encoded before they are waited for.
                messages = pool.submit(_messages, request)
                answers += [pool.submit(ask, messages, number) for number in range(num_candidates)]
            try:
                found = [answer.result() for answer in answers]
            except BaseException:
                # The first failure stops what has not begun.
                pool.shutdown(cancel_futures=True)
                raise
        return [found[begin : begin + num_candidates] for begin in range(0, len(found), num_candidates)]

    def embed(self, requests: Sequence[MllmRequest]) -> np.ndarray:
        """Refuse: a server of chat completions cannot do this.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"The server {self.name!r} gives no hidden states, so it cannot embed requests; use a local model for that."
        )

    @cached_property
    def _server(self) -> Server:
        token = self._token if self._is_url else self._token or get_token()
        if not self._is_url and not token:
            raise ValueError(
                f"There is no Hub token to ask {self.name!r} with; `hf auth login` or set HF_TOKEN, or give the URL of a "
                "server."
            )
        return Server(self.name, self._address if self._is_url else HUB_ROUTER, token, **self._limits)

    @property
    def _served_model(self) -> str | None:
        """What the server calls the model; None where it has no list of its models, as those do that have one alone."""
        with self._lock:
            if self._model is None and not self._is_asked:
                self._found_model, self._is_asked = self._only_model(), True
        return self._found_model if self._model is None else self._model

    _found_model: str | None = None
    _is_asked = False

    def _only_model(self) -> str | None:
        try:
            content = self._server.ask("/models")
        except Refused as refused:
            if refused.status in (404, 405, 501):
                return None
            raise
        try:
            names = [str(model["id"]) for model in json.loads(content)["data"]]
        except (LookupError, RecursionError, TypeError, ValueError):
            return None
        if len(names) > 1:
            listed = ", ".join(repr(self._server.quoted(name)) for name in names[:20])
            raise ValueError(
                f"The server {self.name!r} serves several models ({listed}{', ...' if len(names) > 20 else ''}); say which "
                "one is to answer by its name there (expert_served_model or planner_served_model, in Python model=...)."
            )
        return names[0] if names else None

    def _ask_in_form(self, call: dict[str, Any], form: AnswerForm) -> Completion:
        """Ask for an answer of a form, in the first of all ways of saying so that the server follows."""
        fields = _form_fields(form)
        for way in range(self._form_way, len(fields)):
            try:
                completion = self._ask({**call, **fields[way]})
            except Refused as refused:
                if refused.status not in (400, 422):
                    raise
                continue
            if completion.is_cut or form.matches(completion.text):
                self._form_way = way
                return completion
        raise ValueError(
            f"The server {self.name!r} cannot be held to the wanted form of answers, by a regex or a grammar; leave the "
            "answers free, or use a server that can (vLLM, llama.cpp, TGI)."
        )

    def _ask(self, call: dict[str, Any]) -> Completion:
        body = {"model": self._served_model, **call, "logprobs": True, "stream": False}
        body = {name: value for name, value in body.items() if value is not None}
        while True:
            plain, asked = self._plain, self._top_logprobs
            try:
                return self._read(self._server.ask("/chat/completions", {**plain, **body, "top_logprobs": asked}))
            except Refused as refused:
                if refused.status not in (400, 422) or not (
                    self._leaves_out(refused, {*plain} - {*body}) or self._takes_fewer(refused, asked)
                ):
                    raise

    def _leaves_out(self, refused: Refused, told: set[str]) -> bool:
        """Whether a server refused because of a field that it need not know, which is left out from now on."""
        unknown = {name for name in told if re.search(rf"\b{name}\b", refused.said)}
        with self._lock:
            self._plain = {name: value for name, value in self._plain.items() if name not in unknown}
        return bool(unknown)

    def _takes_fewer(self, refused: Refused, asked: int) -> bool:
        """Whether a server refused because of the number of listed tokens, of which fewer are asked for from now on."""
        if not re.search("logprobs|top_n_tokens", refused.said):
            return False
        with self._lock:
            if self._top_logprobs < asked:
                return True  # found out by another thread
            named = [number for number in map(int, re.findall(r"\d{1,9}", refused.said)) if 1 <= number < asked]
            fewer = max(named, default=_FEWEST_LOGPROBS)
            if fewer >= asked:
                return False
            logger.warning(
                "The server %r lists no more than %d tokens at each position, not %d: the entropies of its answers are "
                "known less exactly.",
                self.name,
                fewer,
                asked,
            )
            self._top_logprobs = fewer
        return True

    def _read(self, content: bytes) -> Completion:
        try:
            completion = read_completion(content, self._vocabulary_size)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"The server {self.name!r} sent no chat completion that can be read ({self._server.quoted(repr(error))}); "
                "use a server that speaks OpenAI's chat completions with log-probabilities."
            ) from None
        if not completion.has_logprobs:
            raise ValueError(
                f"The server {self.name!r} gave no log-probabilities, without which an answer has no uncertainty; start it "
                "with log-probabilities allowed (vLLM: --max-logprobs 20; llama-cpp-python: --logits_all true), or use "
                "another server."
            )
        if None in completion.bounds:
            raise ValueError(
                f"The server {self.name!r} gave log-probabilities of its own tokens only; it must support top_logprobs "
                f"(asked for {self._top_logprobs})."
            )
        if completion.text.strip() and not any(completion.pieces):
            raise ValueError(
                f"The server {self.name!r} gave tokens that do not make up its answer "
                f"{self._server.quoted(completion.text)!r}, so that nobody knows how sure it is of it; use another server."
            )
        return completion


def _form_fields(form: AnswerForm) -> list[dict[str, Any]]:
    """Ways of telling servers the form of answers.

    The first is for vLLM and llama.cpp, which pass over what the other is told, the second for vLLM until 0.11, the third
    for TGI.
    """
    return [
        {"structured_outputs": {"regex": form.regex}, "grammar": form.grammar},
        {"guided_regex": form.regex},
        {"response_format": {"type": "regex", "value": form.regex}},
    ]


def _messages(request: MllmRequest) -> list[dict[str, Any]]:
    """A request as chat messages: sound as one WAV file, frames as JPEG images, then the prompt."""
    parts: list[dict[str, Any]] = []
    if request.audio is not None:
        parts.append({"type": "input_audio", "input_audio": {"data": _wav(request.audio), "format": "wav"}})
    for frame in () if request.frames is None else request.frames:
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_jpeg(frame)}"}})
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


def _jpeg(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    to_pil_image(frame, input_data_format="channels_last").save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
