"""A guard for tests whose asserts stand in a loop: they would pass if there were nothing to go through."""

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def some(items: Iterable[Item]) -> list[Item]:
    """The items, of which there has to be one at least."""
    found = list(items)
    assert found, "there is nothing to test"
    return found
