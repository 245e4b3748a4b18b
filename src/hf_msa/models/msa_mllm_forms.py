"""Forms that a language model's answers can be held to: fixed words, phrases of its own, and one of several words."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

# What no phrase contains: marks that part fields, quotation marks, and ends of lines.
_NOT_IN_PHRASES = ';:"\n'


@dataclass(frozen=True)
class Phrase:
    """Words of the model's own, at least one letter or digit, without `;`, `:` and quotation marks.

    Args:
        longest: In characters.
    """

    longest: int


@dataclass(frozen=True)
class AnswerForm:
    """A form of answers.

    Args:
        parts: In their order: fixed text; a `Phrase`, behind which has to follow fixed text that begins with `;` or `:`;
            several texts of which one is written, as the last part.

    Raises:
        ValueError: If what follows a phrase does not end it, or a choice is not the last part.
    """

    parts: tuple[str | Phrase | tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, str | Phrase) for part in self.parts[:-1]):
            raise ValueError("A form has parts, and the choice of one of several texts is the last.")
        for part, behind in zip(self.parts, (*self.parts[1:], ""), strict=True):
            if isinstance(part, Phrase) and not (isinstance(behind, str) and behind[:1] in (";", ":")):
                raise ValueError("Behind a phrase comes fixed text that begins with ';' or ':'.")

    @cached_property
    def regex(self) -> str:
        """A regular expression that answers of this form match as a whole."""
        return "".join(map(_regex, self.parts))

    @cached_property
    def grammar(self) -> str:
        """The same in GBNF, the notation of llama.cpp."""
        several = len(self.parts) > 1
        return "root ::= " + " ".join(_rule(part, several) for part in self.parts)

    def matches(self, text: str) -> bool:
        """Whether an answer keeps to the form; spaces around it do not count."""
        return re.fullmatch(self.regex, text.strip()) is not None


def _regex(part: str | Phrase | tuple[str, ...]) -> str:
    if isinstance(part, Phrase):
        return rf' ?[^;:"\n ][^;:"\n]{{0,{part.longest - 1}}}'
    if isinstance(part, str):
        return _escaped(part)
    return f"({'|'.join(map(_escaped, part))})"


def _escaped(text: str) -> str:
    """The text in a regular expression, without escapes that only some dialects know."""
    return re.sub(r"([.^$*+?{}\[\]\\|()])", r"\\\1", text)


def _rule(part: str | Phrase | tuple[str, ...], grouped: bool) -> str:
    if isinstance(part, Phrase):
        return rf'" " [^;:\"\n ] [^;:\"\n]{{0,{part.longest - 1}}}'
    if isinstance(part, str):
        return f'"{part}"'
    rule = " | ".join(f'"{text}"' for text in part)
    return f"({rule})" if grouped else rule


class Vocabulary:
    """What each token of a tokenizer adds to a text, as far as it can be said of the token alone.

    Args:
        tokenizer: Of transformers.
        end_ids: Tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, end_ids: Iterable[int]) -> None:
        self.end_ids = sorted(end_ids)
        # Behind another token, as decoders strip a space at the beginning of a text.
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
        begin = len(_decoded(tokenizer, [[anchor]])[0])
        special = {*tokenizer.all_special_ids, *self.end_ids}
        ids = sorted({*tokenizer.get_vocab().values()} - special)
        texts = _decoded(tokenizer, [[anchor, token] for token in ids])
        self.pieces = {token: text[begin:] for token, text in zip(ids, texts, strict=True)}
        self._by_text: dict[str, int] = {}
        for token, piece in self.pieces.items():
            self._by_text.setdefault(piece, token)
        self._longest = max(map(len, self._by_text), default=0)
        phrasal = {
            token: piece
            for token, piece in self.pieces.items()
            if piece and piece.isprintable() and not any(mark in piece for mark in (*_NOT_IN_PHRASES, "\ufffd"))
        }
        size = max(ids, default=-1) + 1
        # Lengths of the tokens that phrases may contain; of all others more than any phrase has.
        self._lengths = torch.full((size,), torch.iinfo(torch.int32).max, dtype=torch.int32)
        self._lengths[list(phrasal)] = torch.tensor([len(piece) for piece in phrasal.values()], dtype=torch.int32)
        self._begins = torch.zeros(size, dtype=torch.bool)
        self._begins[[token for token, piece in phrasal.items() if any(map(str.isalnum, piece))]] = True

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens, without the space that some vocabularies begin answers with."""
        return "".join(self.pieces.get(token, "") for token in tokens).removeprefix(" ")

    def written(self, text: str) -> list[int]:
        """Tokens of a fixed text, at each place the longest.

        Raises:
            ValueError: If the vocabulary cannot write it.
        """
        tokens = []
        while text:
            sizes = range(min(len(text), self._longest), 0, -1)
            size = next((size for size in sizes if text[:size] in self._by_text), None)
            if size is None:
                raise ValueError(
                    f"The vocabulary of this language model has no token for {text[0]!r}, so its answers cannot be held to "
                    "the form; leave the constraint out."
                )
            tokens.append(self._by_text[text[:size]])
            text = text[size:]
        return tokens

    def phrasal(self, room: int, is_begun: bool) -> Tensor:
        """Which tokens a phrase may go on with.

        Args:
            room: Characters that may follow.
            is_begun: Whether a letter or digit has been written.

        Returns:
            `(tokens,)`, bool.
        """
        fitting = self._lengths <= room
        return fitting if is_begun else fitting & self._begins


def _decoded(tokenizer: Any, tokens: Sequence[Sequence[int]]) -> list[str]:
    texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return texts


class FormConstraint(LogitsProcessor):
    """Leaves the tokens that lead to an answer of a form, and ends phrases where the rest would not fit any more.

    Fixed texts are written in their longest tokens.

    Args:
        form: Of the answers.
        vocabulary: Of the model.
        prompt_length: Tokens before the answers.
        max_new_tokens: Longest answer.

    Raises:
        ValueError: If the vocabulary cannot write the form, or the longest answer leaves no room for it.
    """

    def __init__(self, form: AnswerForm, vocabulary: Vocabulary, prompt_length: int, max_new_tokens: int) -> None:
        self._form, self._vocabulary = form, vocabulary
        self._prompt_length, self._max_new_tokens = prompt_length, max_new_tokens
        self._needed = [self._shortest(part) for part in form.parts]
        needed = sum(self._needed) + 1
        if max_new_tokens < needed:
            raise ValueError(
                f"An answer may have {max_new_tokens} tokens, but one of the wanted form may take {needed}; allow as many."
            )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Leave of each row's scores `(rows, tokens)` those of the tokens that may follow."""
        allowed = torch.zeros(scores.shape, dtype=torch.bool)
        for row, answer in enumerate(input_ids[:, self._prompt_length :].tolist()):
            ids, more = self._next(answer)
            allowed[row, ids] = True
            if more is not None:
                allowed[row, : len(more)] |= more
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _shortest(self, part: str | Phrase | tuple[str, ...]) -> int:
        """Tokens that a part needs at least; of several texts those of the longest."""
        if isinstance(part, Phrase):
            return 1
        return max(len(self._vocabulary.written(text)) for text in ([part] if isinstance(part, str) else part))

    def _next(self, answer: Sequence[int]) -> tuple[list[int], Tensor | None]:
        """Tokens that may follow an answer's: some by their ids, and those of a phrase."""
        vocabulary, rest = self._vocabulary, self._vocabulary.text(answer)
        if any(token in vocabulary.end_ids for token in answer):
            return vocabulary.end_ids, None
        for number, part in enumerate(self._form.parts):
            if isinstance(part, Phrase):
                behind = str(self._form.parts[number + 1])
                phrase, found, _ = rest.partition(behind[0])
                if found:
                    rest = rest[len(phrase) :]
                    continue
                is_begun = any(map(str.isalnum, phrase))
                closing = vocabulary.written(behind)[:1] if is_begun else []
                left = self._max_new_tokens - len(answer)
                if is_begun and left <= sum(self._needed[number + 1 :]) + 1:
                    return closing, None
                room = part.longest - len(phrase)
                return closing, vocabulary.phrasal(room, is_begun)
            if isinstance(part, str):
                if len(rest) < len(part):
                    return vocabulary.written(part[len(rest) :])[:1], None
                rest = rest[len(part) :]
                continue
            ways = [text[len(rest) :] for text in part if text.startswith(rest)]
            return [token for way in ways for token in vocabulary.written(way)[:1] or vocabulary.end_ids], None
        return vocabulary.end_ids, None
