"""Assignments of the command line, `KEY=VALUE`; what they are for may not need training's packages."""

from typing import Any

import yaml

from hf_msa.errors import MsaError


def set_value(
    recipe: dict[str, Any], assignment: str, option: str = "--set", example: str = "model.num_tokens=4"
) -> None:
    """Set one value of nested groups, e.g. by ``model.num_tokens=4``; groups that are absent are made.

    Args:
        recipe: The groups, changed in place.
        assignment: Names joined by dots, ``=``, and the value as YAML.
        option: What messages call the option that it was given by.
        example: What they show as one that is right.

    Raises:
        MsaError: If it is no such assignment.
    """
    key, equals, text = assignment.partition("=")
    if not equals:
        raise MsaError(f"{option} takes KEY=VALUE, e.g. {example}; {assignment!r} has no '='.")
    *parents, last = key.strip().split(".")
    place = recipe
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise MsaError(f"{option} {key}: {parent!r} is a value, not a group of values.")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MsaError(f"{option} {key}: {text!r} is no YAML value ({one_line(error)}).") from error


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())
