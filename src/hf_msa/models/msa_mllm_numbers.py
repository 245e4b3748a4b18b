"""Constrained decoding: a language model that can write nothing but a score."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

WIDEST_RANGE = (-9.9, 9.9)
"""Of the numbers that may be written where no range is given."""

# Marks of a leading space in vocabularies.
_SPACE = "[ \u0120\u2581]?"


def writable_numbers(low: float, high: float) -> tuple[str, ...]:
    """Every number of one decimal in a range, as training answers are written: "-0.4", "0.0", "1.2".

    Args:
        low: The lowest.
        high: The highest.

    Raises:
        ValueError: If there is none.
    """
    tenths = range(math.ceil(round(low * 10, 6)), math.floor(round(high * 10, 6)) + 1)
    if not tenths:
        raise ValueError(f"No number of one decimal lies from {low:g} to {high:g}; give a wider range.")
    return tuple(f"{number / 10:.1f}" for number in tenths)


def check_room(numbers: Sequence[str], max_new_tokens: int) -> None:
    """Refuse answers that are too short for a number.

    Args:
        numbers: What may be written.
        max_new_tokens: Longest answer.

    Raises:
        ValueError: If the longest may not fit.
    """
    # Each character may be a token; a space before and the end behind.
    needed = max(map(len, numbers)) + 2
    if max_new_tokens < needed:
        raise ValueError(
            f"An answer may have {max_new_tokens} tokens, but one of the numbers {numbers[0]} to {numbers[-1]} may take "
            f"{needed}; allow as many."
        )


class NumberGrammar:
    """Says which tokens may come next where an answer has to be one of some numbers.

    A space may stand before the number, as some vocabularies begin every answer with one. Made once for a tokenizer: the
    few tokens that can be part of a number are picked from the vocabulary, and what they add is asked of the tokenizer
    itself, behind the tokens before them.

    Args:
        tokenizer: Of transformers.
        end_ids: Tokens that end an answer.

    Raises:
        ValueError: If the vocabulary cannot write numbers with its tokens, or there is no token that ends an answer.
    """

    def __init__(self, tokenizer: Any, end_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = sorted(end_ids)
        part = re.compile(rf"{_SPACE}-?[0-9]*\.?[0-9]*")
        special = set(tokenizer.all_special_ids)
        vocabulary = tokenizer.get_vocab()
        self._parts = [
            vocabulary[piece]
            for piece in sorted(vocabulary)
            if piece and vocabulary[piece] not in special and part.fullmatch(piece)
        ]
        if lacking := sorted({*"-.0123456789"} - vocabulary.keys()):
            raise ValueError(
                f"The vocabulary of this language model has no token for {lacking[0]!r}, so its answers cannot be "
                "constrained to numbers; leave the constraint out."
            )
        self._known: dict[tuple[tuple[int, ...], tuple[str, ...]], list[int]] = {}

    def allowed(self, answer: Sequence[int], numbers: tuple[str, ...]) -> list[int]:
        """Tokens that may follow.

        Args:
            answer: The tokens of the answer so far; behind its end anything more of the end.
            numbers: What the whole answer may be.
        """
        key = (tuple(answer), numbers)
        if key not in self._known:
            self._known[key] = self._find(key[0], numbers)
        return self._known[key]

    def _find(self, answer: tuple[int, ...], numbers: tuple[str, ...]) -> list[int]:
        if any(token in self._end_ids for token in answer):
            return self._end_ids
        written = self._text(answer)
        begun = written.strip(" ")
        fitting = [token for token in self._parts if self._fits(answer, token, begun, numbers)]
        return fitting + (self._end_ids if begun in numbers else [])

    def _fits(self, answer: tuple[int, ...], token: int, begun: str, numbers: tuple[str, ...]) -> bool:
        text = self._text((*answer, token))
        longer = text.removeprefix(" ")
        if not longer:
            return not answer  # a space, once
        return longer != begun and any(number.startswith(longer) for number in numbers)

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
