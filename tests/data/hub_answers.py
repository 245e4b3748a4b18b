"""Answers of a Hub, made with the HTTP library that huggingface_hub itself uses."""

import sys
from typing import Any

from huggingface_hub import errors


def answer(status: int) -> Any:
    """Return an answer with this status."""
    library = sys.modules[errors.HTTPError.__module__.partition(".")[0]]
    return library.Response(status, request=library.Request("GET", "http://hub/x"))
