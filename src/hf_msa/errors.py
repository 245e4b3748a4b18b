"""Errors that user input can cause: one sentence each, with the nearest valid name where a name was wrong."""

import contextlib
import difflib
import errno
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator

_MOST_NAMES = 60


BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, NotImplementedError, TypeError)
"""Errors that are bugs, whatever has led to them; or, from a client, an answer of a server that it did not expect."""


class MsaError(ValueError):
    """Input that hf_msa cannot use; the message says what was given, what is allowed and what to do.

    Example:
        ```python
        from hf_msa import MsaError, load_msa

        try:
            load_msa("data/sample", "tset")
        except MsaError as error:
            print(error)  # Unknown split 'tset'. Did you mean 'test'? ...
        ```
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the valid name nearest to `name`, or an empty string.

    Args:
        name: What was given.
        valid: The names that are allowed.
    """
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> MsaError:
    """Build the error for an unknown name: what was given, the nearest valid one, and all valid ones.

    Where there are very many, the nearest one has to do.

    Args:
        kind: What the name stands for, e.g. ``"recipe"``.
        name: What was given.
        valid: The names that are allowed.
    """
    names = sorted(valid)
    near = nearest(name, names)
    known = "" if near and len(names) > _MOST_NAMES else f" Known: {', '.join(names) or 'none'}."
    return MsaError(f"Unknown {kind} {name!r}.{near}{known}")


def reason(error: BaseException) -> str:
    """The one line of another library's message that says what is wrong, without a full stop.

    Args:
        error: For example one of the strict data classes of `huggingface_hub`, which say it in their last line, after the
            name of the original error; all others say it in their first. Where the network or the Hub is behind it, that is
            said, with what to do.
    """
    from huggingface_hub.errors import StrictDataclassError

    network = network_reason(error)
    if network is not None:
        return network
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = lines[-1].partition("Error: ")[2] or lines[-1] if isinstance(error, StrictDataclassError) else lines[0]
    return redacted(line.removesuffix("."))


def network_reason(error: BaseException) -> str | None:
    """What went wrong on the way to the Hub and what to do, without a full stop; None where it is something else.

    Args:
        error: Whatever was raised; libraries wrap what they met.
    """
    # HTTPError is that of its HTTP library.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    for cause in causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return "the Hub cannot be used offline; unset HF_HUB_OFFLINE and try again"
        if isinstance(cause, LocalTokenNotFoundError):
            return "there is no Hub token; run `hf auth login`, or set HF_TOKEN"
        # Of its HTTP library's other errors some have an answer, too.
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, HTTPError) and status is not None:
            said = redacted(_first_line(getattr(cause, "server_message", None) or ""))
            what = f"the Hub answered {status}{said and f', {said}'}"
            if isinstance(cause, GatedRepoError):
                return f"{what}; ask for access on its page, then run `hf auth login` or set HF_TOKEN"
            if isinstance(cause, RepositoryNotFoundError) or status == 404:
                return f"{what}; check the name, and for what is private the token (`hf auth login`, or HF_TOKEN)"
            return f"{what}; {_REMEDIES.get(status) or _REMEDIES[500 if status >= 500 else 400]}"
        # Errors of sockets have a number; sentences of our own about a server have none.
        is_socket = isinstance(cause, (ConnectionError, TimeoutError)) and cause.errno is not None
        if isinstance(cause, HTTPError) or (is_socket and not isinstance(cause, BrokenPipeError)):
            said = redacted(_first_line(str(cause))) or type(cause).__name__
            return f"the connection failed ({said}); check the network and try again"
        if isinstance(cause, OSError) and str(cause).startswith("Consistency check failed"):
            return "a file arrived damaged; try again"
    return None


_REMEDIES = {
    401: "the token is missing or wrong: run `hf auth login`, or set HF_TOKEN",
    403: "this account or token may not do that: choose another name, or use a token with the right to it",
    408: "try again later",
    429: "that was too often: wait a few minutes and try again",
    500: "it has trouble of its own: try again later",
    400: "mend that and try again",
}


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].removesuffix(".")


def causes(error: BaseException) -> list[BaseException]:
    """An error and those that led to it, the last one first."""
    found: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in found:
        found.append(step)
        step = step.__cause__ or (None if step.__suppress_context__ else step.__context__)
    return found


def redacted(text: str) -> str:
    """A text for messages without what looks like a token of the Hub or a password in an address.

    Args:
        text: E.g. what a server or a library said.
    """
    return _ADDRESS_SECRET.sub("//", _TOKEN.sub("[token]", text))


_TOKEN = re.compile(r"\bhf_[A-Za-z0-9_]{4,}|(?<=Bearer )[^\s'\"]+")
_ADDRESS_SECRET = re.compile(r"//[^/\s@]+@")


@contextlib.contextmanager
def as_msa_errors() -> Iterator[None]:
    """Say in one sentence what a model, or one that it asks, lacks; for calls of `models`, which knows plain errors only.

    Raises:
        MsaError: In place of an ImportError, OSError or ValueError; an error of a full disk (`is_disk_full`) is let through,
            as every command knows what to say of it.
    """
    try:
        yield
    except MsaError:
        raise
    except (ImportError, OSError, ValueError) as error:
        if is_disk_full(error):
            raise
        raise MsaError(f"{reason(error)}.") from error


def is_disk_full(error: BaseException) -> bool:
    """Whether something could not be written because the disk or the quota is full.

    The libraries that write checkpoints do not pass on the system's error: safetensors quotes its text, torch only says
    that the file is shorter than it should be, SQLite has words of its own.

    Args:
        error: Whatever was raised.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    torch_writer = isinstance(error, RuntimeError) and ("PytorchStreamWriter" in text or "] . unexpected pos " in text)
    return os.strerror(errno.ENOSPC) in text or "database or disk is full" in text or torch_writer


def next_step(*words: str) -> str:
    """Write the line that says which command comes next, such that it runs as it is printed.

    Args:
        words: The command and its arguments, e.g. ``"evaluate", "runs/tcmr"``.
    """
    program = ["hf-msa"] if shutil.which("hf-msa") else [sys.executable, "-m", "hf_msa_cli"]
    return f"Next: {shlex.join([*program, *words])}"


def require_package(package: str, extra: str) -> None:
    """Check that an optional package can be imported.

    Args:
        package: The name that is imported, e.g. ``"matplotlib"``.
        extra: The hf-msa extra that brings it.

    Raises:
        MsaError: If it is not installed; the message gives the exact command.
    """
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise MsaError(_not_installed(package, extra))


def absent_extra(error: BaseException) -> str | None:
    """Say in a sentence which extra brings the package that could not be imported; None where it is none of an extra.

    Args:
        error: Whatever was raised.
    """
    for cause in causes(error) if isinstance(error, ImportError) else ():
        package = (cause.name or "").partition(".")[0] if isinstance(cause, ModuleNotFoundError) else ""
        if package in EXTRAS:
            return _not_installed(package, EXTRAS[package])
    return None


def _not_installed(package: str, extra: str) -> str:
    return f"This needs the package {package!r}, which is not installed: pip install 'hf-msa[{extra}]'."


EXTRAS = {
    "PIL": "mllm",
    "accelerate": "train",
    "av": "video",
    "diffusers": "omg",
    "evaluate": "metrics",
    "faiss": "kb",
    "faster_whisper": "asr",
    "gradio": "demo",
    "h5py": "csd",
    "librosa": "audio",
    "matplotlib": "plots",
    "mediapipe": "face",
    "opensmile": "opensmile",
    "peft": "lora",
    "sklearn": "probes",
}
"""Optional packages, by the names that are imported -> the extra of hf-msa that brings them."""
