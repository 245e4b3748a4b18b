"""The table of label families, open to others, and the one way from what a user gives to a family."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import MsaError, unknown_name
from .models.msa_label_families import BUILT_IN, LabelFamily
from .registry import Registry

LABEL_FAMILIES: Registry[LabelFamily] = Registry("label family", "hf_msa.label_families")
"""Label families by name."""

_MOST_BYTES = 1 << 17
_DEEPEST = 10

AnyFamily = str | Mapping[str, Any] | LabelFamily
"""A family, its description, its name, or a YAML file with its description."""


def register_label_family(family: LabelFamily) -> LabelFamily:
    """Add a label family: `--label-family` and metrics then know its name.

    Args:
        family: See `LabelFamily.from_dict` for one of a few values.

    Raises:
        MsaError: If the name will not do or is taken.

    Example:
        ```python
        from hf_msa import register_label_family
        from hf_msa.models.msa_label_families import LabelFamily

        register_label_family(LabelFamily.from_dict({"name": "stars", "low": 1, "high": 5}))
        ```
    """
    return LABEL_FAMILIES.register(family.name, family)


for _family in BUILT_IN.values():
    register_label_family(_family)


def find_label_family(given: AnyFamily) -> LabelFamily:
    """The family that is meant.

    Args:
        given: A family, its description as a data set or a result holds it, its name, or the path of a YAML file.

    Raises:
        MsaError: If there is no such family or file, or its description will not do.
    """
    if isinstance(given, LabelFamily):
        return given
    if isinstance(given, str) and not given.endswith((".yaml", ".yml")):
        if given not in LABEL_FAMILIES:
            error = unknown_name("label family", given, LABEL_FAMILIES)
            raise MsaError(f"{error} A YAML file with name, low and high describes another one.")
        return LABEL_FAMILIES[given]
    try:
        values = _read(Path(given)) if isinstance(given, str) else given
        if not isinstance(values, Mapping):
            raise ValueError("it is no group of KEY: VALUE")
        # YAML takes a bare 1 for a number, whose names and keys are texts.
        wrong = [key for key in values if not isinstance(key, str)]
        if wrong:
            raise ValueError(
                f"the key {wrong[0]!r:.60} is no text; write it as name, low, high or another key of a family"
            )
        return LabelFamily.from_dict(values)
    except (
        Exception
    ) as error:  # A description can be wrong in any way; the parser lets through what dates and numbers raise.
        place = f" in {given!r}" if isinstance(given, str) else ""
        raise MsaError(
            f"The label family{place} cannot be used: {' '.join(str(error).split()).rstrip('.')[:400]}."
        ) from error


class _Loader(yaml.SafeLoader):
    """Without aliases, by which a few lines can stand for gigabytes, and without deep nesting, which takes seconds."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has an alias (*name); write out what it stands for")
        if self.depth == _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep, which no description needs")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _read(file: Path) -> Any:
    if not file.is_file():
        raise ValueError("No such file")
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES} bytes, which no description needs")
    return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
