"""Errors that user input can cause: one sentence each, with the nearest valid name where a name was wrong."""

import difflib
from collections.abc import Iterable


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

    Args:
        kind: What the name stands for, e.g. ``"recipe"``.
        name: What was given.
        valid: The names that are allowed.
    """
    names = sorted(valid)
    return MsaError(f"Unknown {kind} {name!r}.{nearest(name, names)} Known: {', '.join(names) or 'none'}.")


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
