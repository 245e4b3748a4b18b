"""Packages that only some models need, imported when they are: a checkpoint's code must load without them."""

import importlib
from typing import Any


def optional_package(name: str, requirement: str, use: str) -> Any:
    """Import a package that may not be installed.

    Args:
        name: What to import.
        requirement: What `pip install` takes, e.g. ``"hf-msa[omg]"``.
        use: What it is for, the subject of the error's sentence.

    Raises:
        ImportError: If it is not installed; the message gives the exact command.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{use} needs the package {name!r}, which is not installed: pip install '{requirement}'."
        ) from error
