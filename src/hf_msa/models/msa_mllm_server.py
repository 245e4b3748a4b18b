"""Requests to a server that is not trusted.

It gets no token but the one that is meant for it, is not followed to another place, and what it sends is bounded in bytes
and in time.
"""

import email.utils
import ipaddress
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import get_session, get_token
from huggingface_hub.errors import OfflineModeIsEnabled

Answer = TypeVar("Answer")

LARGEST_ANSWER = 32 * 2**20
"""Bytes of the longest answer that is read; a token with twenty others takes about three thousand."""

_TRANSIENT = {408, 429}
_LONGEST_WAIT = 60.0
_LONGEST_QUOTE = 200


class Refused(ConnectionError):
    """The server answered with another status than success.

    Args:
        sentence: The message.
        status: Of the answer.
        said: Its content.
    """

    def __init__(self, sentence: str, status: int, said: str) -> None:
        super().__init__(sentence)
        self.status, self.said = status, said


class _Refusal(Exception):
    """An answer that is none: the status, what the server said, and how long it wants to be left alone."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers


class Server:
    """Asks one server, again where that may help.

    Args:
        name: What messages call it.
        address: Where its paths begin.
        token: Sent with every request; None sends none.
        timeout: Seconds in which one answer has to be there, to its last byte.
        retries: Further attempts after a time-out, a broken connection, or status 408, 429 or 5xx.
        backoff: Seconds before the first of them, doubled for each further one and drawn within a half of it either way;
            a server's own Retry-After, seconds or a date, is followed. Never more than a minute.
    """

    def __init__(
        self, name: str, address: str, token: str | None, timeout: float, retries: int, backoff: float
    ) -> None:
        self.name = name
        self._address = address.rstrip("/")
        self._token = token
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """Get a path, or post a body to it.

        Raises:
            Refused: If the server answers with another status than success.
            TimeoutError: If it does not answer in time, however often it is asked.
            ConnectionError: If it cannot be reached.
            ValueError: If its answer is too long.
        """
        for attempt in range(self._retries + 1):
            try:
                return _within(lambda: self._ask_once(path, body), self._timeout)
            except Exception as error:
                if not _is_transient(error) or attempt == self._retries:
                    raise self._failure(error, attempt + 1) from None
                time.sleep(self._wait(error, attempt))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def quoted(self, text: str) -> str:
        """A text of the server's or of an error's in one short line, without what is secret."""
        for secret in filter(None, (self._token, get_token())):
            text = text.replace(secret, "[token]")
        line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split()) or "no reason given"
        return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}..."

    def _ask_once(self, path: str, body: Mapping[str, Any] | None) -> bytes:
        """Send one request, and read the answer as far as it is no longer than answers are."""
        received, deadline = bytearray(), time.monotonic() + self._timeout
        authorization = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        with get_session().stream(
            "GET" if body is None else "POST",
            f"{self._address}{path}",
            json=body,
            headers={"Accept-Encoding": "identity", **authorization},
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
            wait = max(wait, _seconds(error.headers.get("Retry-After", "")))
        return min(wait, _LONGEST_WAIT)

    def _failure(self, error: Exception, attempts: int) -> Exception:
        """What to raise in the place of what went wrong with a request."""
        times = "once" if attempts == 1 else f"{attempts} times"
        if isinstance(error, TimeoutError) or _is_a(error, "TimeoutException"):
            return TimeoutError(
                f"The server {self.name!r} did not answer within {self._timeout:g} s, asked {times}; raise the timeout, or "
                "ask for fewer answers at once."
            )
        quote = self.quoted(str(error))
        if isinstance(error, OfflineModeIsEnabled):
            return ConnectionError(f"The server {self.name!r} cannot be asked offline; unset HF_HUB_OFFLINE.")
        if isinstance(error, _Refusal):
            sentence = f"The server {self.name!r} refused with status {error.status}, asked {times}: {quote}"
            if 300 <= error.status < 400:
                place = self.quoted(error.headers.get("Location", "another place"))
                sentence = (
                    f"The server {self.name!r} sends us on to {place} (status {error.status}), where nothing is sent; give "
                    "that address itself if you trust it."
                )
            return Refused(sentence, error.status, str(error))
        if _is_transient(error):
            return ConnectionError(
                f"The server {self.name!r} cannot be reached, tried {times} ({quote}); check the address, and that the "
                "server runs."
            )
        return ValueError(f"The server {self.name!r} sent nothing that can be read ({quote}).")


def check_address(address: str) -> None:
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


def _seconds(retry_after: str) -> float:
    """Seconds that a Retry-After header asks for, given as such or as a date; 0 where it cannot be read."""
    if re.fullmatch(r"\d{1,9}(\.\d+)?", retry_after.strip()):
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


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
        return error.status in _TRANSIENT or (error.status >= 500 and error.status != 501)
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return _is_a(error, "TransportError") or isinstance(error, (TimeoutError, ConnectionError))
