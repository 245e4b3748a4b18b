"""Errors that user input can cause: one sentence each, with the nearest valid name where a name was wrong."""

import contextlib
import difflib
import errno
import os
from collections.abc import Iterable, Iterator

_MOST_NAMES = 60


class MsaError(ValueError):
    """Input that hf_msa cannot use; the message says what was given, what is allowed and what to do."""


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
            name of the original error; all others say it in their first.
    """
    from huggingface_hub.errors import StrictDataclassError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = lines[-1].partition("Error: ")[2] or lines[-1] if isinstance(error, StrictDataclassError) else lines[0]
    return line.removesuffix(".")


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
        raise MsaError(f"This needs the package {package!r}, which is not installed: pip install 'hf-msa[{extra}]'.")
