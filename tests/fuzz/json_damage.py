"""Damage to files and answers: values in the place of others, keys and bytes gone, anything anywhere in JSON."""

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hf_msa.errors import MsaError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**25), max_value=10**25)
    | st.floats(width=64)
    | st.text(max_size=8)
    | st.sampled_from(["../../x", "a.yaml", "NaN", 10**400, -0.0, 1e308, "\ud800"])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of keys and indices of everything in a JSON value; of long lists only a few items."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:12]:
        found += places(item, (*path, key))
    return found


def damaged(seed: Any) -> st.SearchStrategy[bytes]:
    """Bytes of JSON like `seed`, after one to three changes, or with bytes that are cut, changed or put in."""

    def change(value: Any, edits: list[tuple[tuple[Any, ...], str, Any]]) -> Any:
        value = copy.deepcopy(value)
        for path, kind, new in edits:
            place = value
            try:
                for key in path[:-1]:
                    place = place[key]
                if kind == "delete":
                    del place[path[-1]]
                else:
                    place[path[-1]] = new if kind == "replace" else [place[path[-1]], new]
            except (LookupError, TypeError):
                continue
        return value

    edit = st.tuples(st.sampled_from(places(seed)), st.sampled_from(["replace", "replace", "delete", "wrap"]), VALUES)
    edited = st.lists(edit, min_size=1, max_size=3).map(lambda edits: json.dumps(change(seed, edits)).encode())
    plain = json.dumps(seed).encode()
    where = st.integers(0, len(plain))
    cut = where.map(lambda end: plain[:end])
    put = st.tuples(where, st.binary(max_size=6)).map(lambda put: plain[: put[0]] + put[1] + plain[put[0] + 3 :])
    return edited | edited | edited | cut | put | VALUES.map(lambda value: json.dumps(value).encode()) | st.binary()


def fuzz(content: st.SearchStrategy[Any], read: Callable[[Any], object], examples: int) -> dict[str, int]:
    """Read what is damaged, many times, always the same: it is read, or refused in one sentence.

    Args:
        content: What to read.
        read: Reads it, and uses what was read.
        examples: How often.

    Returns:
        How often it was read, and refused.
    """
    counts = {"read": 0, "refused": 0}

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(content)
    def attempt(given_content: Any) -> None:
        try:
            read(given_content)
        except (MsaError, ValueError, OSError) as error:
            sentence = str(error)
            assert sentence and "\n" not in sentence and len(sentence) < 1200, sentence
            assert type(error).__module__ in ("builtins", "hf_msa.errors"), repr(error)
            counts["refused"] += 1
        else:
            counts["read"] += 1

    attempt()
    return counts
