"""Single values of raw files: ids, texts and names of splits, in whatever form the field's tools write them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_msa.data.schema import CLIP_ID, ID, ID_SEPARATOR, SPLIT_ALIASES, VIDEO_ID
from hf_msa.errors import MsaError, nearest

_ID_FORMS = (
    re.compile(r"(?P<video>.+?)\$_\$(?P<clip>.+)"),  # MMSA
    re.compile(r"(?P<video>.+)\[(?P<clip>[^\[\]]+)\]"),  # CMU-MultimodalSDK
    re.compile(r"(?P<video>.+)/(?P<clip>[^/]+)"),  # files of CH-SIMS
    re.compile(r"(?P<video>.+)_(?P<clip>(?:utt)?\d+)"),  # CMU-MOSI's segments; dialogues of MELD
)
_MAX_ID_PARTS = 8


def split_name(given: Any, where: str) -> str:
    """The name that a split has here.

    Args:
        given: What a file calls it, in any case.
        where: What the file is and where in it the name stands, for the message.

    Raises:
        MsaError: If it is none of the known names; "eval", for example, is the validation split to some and the test split
            to others.
    """
    name = (given.decode("latin1") if isinstance(given, bytes) else str(given)).strip().lower()
    if name not in SPLIT_ALIASES:
        raise MsaError(
            f"{where} has the split {given!r:.60}, and only {', '.join(SPLIT_ALIASES)} are known; rename it."
            f"{'' if name == 'eval' else nearest(name, SPLIT_ALIASES)}"
        )
    return SPLIT_ALIASES[name]


def is_missing(value: Any) -> bool:
    """Whether a value stands for nothing: None or NaN."""
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def text_of(value: Any, what: str) -> str | None:
    """A text, or None where there is none.

    Args:
        value: Text, bytes in UTF-8, a number, None or NaN.
        what: What it is, for the message.

    Raises:
        MsaError: If it is something else, or bytes in another encoding.
    """
    if is_missing(value):
        return None
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise MsaError(f"{what} has halves of characters, which cannot be written as UTF-8; correct it.")
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise MsaError(f"{what} is not UTF-8 text; store it as a string, or encode it anew.") from error
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        return str(value)
    raise MsaError(f"{what} is a {type(value).__name__}; a text is needed.")


def split_id(value: Any) -> tuple[str, str, str]:
    """Turn an id of any form that the field's files use into (id, video id, clip id).

    The one place that knows what video a clip is of: splits by video, warnings and file names all go by it.

    Args:
        value: ``"video$_$clip"``, ``"video[clip]"``, ``"video/clip"``, ``"video_12"``; text, bytes or a number; or a row
            such as (video, start, end), whose id is made of its parts.

    Returns:
        The id as it is given; its video and clip. An id of no known form says nothing about its video: it stands as a video
        of its own, and its clip is "".

    Raises:
        MsaError: If there is no id, or it is none.
    """
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        if not 0 < len(value) <= _MAX_ID_PARTS:
            raise MsaError(f"An id has {len(value)} parts; one text, or video, start and end are needed.")
        parts = [text_of(part, "A part of an id") for part in value]
        if None not in parts and "" not in parts:
            video, clip = str(parts[0]), "_".join(map(str, parts[1:]))
            if clip:
                return f"{video}{ID_SEPARATOR}{clip}", video, clip
            value = video
        else:
            value = None
    identifier = text_of(value, "An id")
    if not identifier:
        raise MsaError("A sample has no id; give each an id of its own, such as video$_$clip.")
    for form in _ID_FORMS:
        if (found := form.fullmatch(identifier)) is not None:
            return identifier, found["video"], found["clip"]
    return identifier, identifier, ""


def names_no_video(row: Any) -> bool:
    """Whether the id of a row says nothing about its video, see `split_id`.

    Args:
        row: A row with `id`, `video_id` and `clip_id`.
    """
    return bool(row[VIDEO_ID] == row[ID] and not row[CLIP_ID])


def filled_columns(names: Sequence[str], parts: Sequence[Mapping[str, Sequence[Any]]]) -> tuple[bool, list[str]]:
    """Whether optional columns, which belong together, can be kept.

    Args:
        names: The columns.
        parts: The values of each split, or of all of them together, by column.

    Returns:
        Whether all of them are in every part and not all empty, and a sentence on each that was left out.
    """
    found = [name for name in names if any(name in part for part in parts)]
    everywhere = all(name in part for name in names for part in parts)
    filled = any(
        not is_missing(value) and value != "" for part in parts for name in found for value in part.get(name, ())
    )
    if not found or (everywhere and filled):
        return bool(found), []
    why = "has no value" if not filled else "is not in every split" if len(found) == len(names) else None
    listed = f"{list_of(found)} {why}" if why else f"{list_of(found)} does not come with all of {list_of(names)}"
    return False, [f"{listed}, and was left out."]


def list_of(values: Iterable[Any], most: int = 8) -> str:
    """Names for a message: quoted, each cut to a readable length, and no more than `most`."""
    found = list(values)
    shown = [f"{value!r:.60}" for value in found[:most]]
    return ", ".join(shown) + (f" and {len(found) - most} more" if len(found) > most else "")
