"""Reading a chat completion of a server: its answer, where each token stands in it, and the bounds of its entropies."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .msa_mllm_answers import MllmAnswer

# Servers round: a logarithm may lie this far above 0, and probabilities may add up to so much more than 1.
_ROUNDING = 0.02
_THOUGHT, _THOUGHT_END = "<think>", "</think>"
# Keys under which servers keep what a model thought apart from its answer.
_THOUGHT_KEYS = ("reasoning_content", "reasoning")
# The longest text, in bytes, that a token without one of its own is taken for: a character's.
_LONGEST_PART = 4


@dataclass(frozen=True)
class _Token:
    """A token as a server describes it: the UTF-8 bytes of its text, and the natural logarithm of its probability."""

    piece: bytes
    logprob: float


@dataclass(frozen=True)
class Completion:
    """What a server completed.

    Args:
        text: The answer, without the thoughts before it.
        pieces: What each token of the answer adds to its text.
        logprobs: Natural logarithm of each token's probability.
        bounds: Lowest and highest entropy of each position in nats; None where the server lists no other tokens.
        has_logprobs: Whether the server gave log-probabilities at all.
        is_cut: Whether the longest length ended the answer.
        prompt_tokens: Length of the question, as the server counted it; None where it does not say.
    """

    text: str
    pieces: tuple[str, ...]
    logprobs: tuple[float, ...]
    bounds: tuple[tuple[float, float] | None, ...]
    has_logprobs: bool
    is_cut: bool
    prompt_tokens: int | None = None

    def answer(self) -> MllmAnswer:
        """The answer with the middles of its bounds, all of which have to be there."""
        known = tuple(bound for bound in self.bounds if bound is not None)
        middles = tuple((low + high) / 2 for low, high in known)
        return MllmAnswer(self.text, self.pieces, middles, self.logprobs, known, not self.is_cut, self.prompt_tokens)


def read_completion(content: bytes, vocabulary_size: int) -> Completion:
    """Read a chat completion with log-probabilities.

    What a model thinks before it answers is no part of the answer, and its tokens do not count: neither those that the
    server keeps apart (`reasoning_content`) nor those up to a `</think>`.

    Args:
        content: JSON.
        vocabulary_size: Number of tokens that the model knows.

    Raises:
        AttributeError, LookupError, RecursionError, TypeError, ValueError: If it is no chat completion, or a number in it
            cannot be what it should be.
    """
    whole = _parsed(content)
    choice, usage = whole["choices"][0], whole.get("usage")
    message = choice["message"]
    said, given = message.get("content") or "", choice.get("logprobs")
    listed = [] if given is None else given.get("content") or []
    if not isinstance(said, str) or not isinstance(listed, list):
        raise TypeError("text or tokens are none")
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    tokens = [_token(one) for one in listed]
    bounds = [_bounds(one, vocabulary_size) for one in listed]
    text = _without_thoughts(said)
    if text != said or any(message.get(key) for key in _THOUGHT_KEYS):
        begin = _answer_begin([token.piece for token in tokens], text)
        tokens, bounds = tokens[begin:], bounds[begin:]
    return Completion(
        text,
        tuple(placed([token.piece for token in tokens], text)),
        tuple(token.logprob for token in tokens),
        tuple(bounds),
        has_logprobs=given is not None and (bool(listed) or not said),
        is_cut=choice.get("finish_reason") == "length",
        prompt_tokens=counted if type(counted) is int and counted >= 0 else None,
    )


def entropy_bounds(logprobs: Sequence[float], vocabulary_size: int, most_probable: bool = True) -> tuple[float, float]:
    """Lowest and highest entropy of a distribution of which only some tokens are known.

    The rest of the probability has the highest entropy spread evenly over all other tokens, and the lowest on as few as
    can be: on one, unless the rest is more than the least probable listed token has, and no other token has more than it.

    Args:
        logprobs: Natural logarithms of the probabilities of the listed tokens.
        vocabulary_size: Number of tokens there are.
        most_probable: Whether no other token has more than the least of them.

    Returns:
        Nats.
    """
    listed = np.exp(np.asarray(logprobs, dtype=np.float64))
    known = float(-(listed * np.log(np.maximum(listed, np.finfo(np.float64).tiny))).sum())
    rest, others = 1.0 - float(listed.sum()), vocabulary_size - len(listed)
    if rest <= 0 or others <= 0:
        return known, known
    # With rounding errors more can be left than the other tokens may hold: then they are all equal.
    most = max(float(listed.min()), rest / others) if most_probable else rest
    full, left = divmod(rest, most)
    low = known - full * most * math.log(most) - (left * math.log(left) if left > 0 else 0.0)
    high = known - rest * math.log(rest / others)
    return min(low, high), high


def placed(pieces: Sequence[bytes], text: str) -> list[str]:
    """Texts that tokens add to an answer, one for each token.

    A character that several tokens make up is added by the last of them. Servers list the end of text, which is not in the
    text, may strip the text, and some have no bytes for a part of a character, nor a text: a token that does not go on
    where the text is adds nothing; but where tokens without a text of their own are followed by one that stands a little
    further on, or by the end of the answer, the last of them adds what lies between.

    Args:
        pieces: The tokens' bytes.
        text: The answer.
    """
    whole = text.encode("utf-8", "surrogatepass")
    ends: list[int] = []
    parts: list[int] = []  # tokens behind the last one that was found, which may be parts of what follows it
    end = 0
    for given in pieces:
        piece = given if end or whole.startswith(given) else given.lstrip()
        begin = whole.find(piece, end, end + _LONGEST_PART * len(parts) + len(piece)) if piece else -1
        if begin >= 0:
            if parts:
                ends[parts[-1] :] = [begin] * (len(ends) - parts[-1])
            end, parts = begin + len(piece), []
        elif _is_part(given):
            parts.append(len(ends))
        ends.append(end)
    if parts and len(whole) - end <= _LONGEST_PART * len(parts):
        ends[parts[-1] :] = [len(whole)] * (len(ends) - parts[-1])
    added, begin = [], 0
    for end in ends:
        while end < len(whole) and whole[end] & 0xC0 == 0x80:
            end -= 1  # within a character
        added.append(whole[begin:end].decode("utf-8", "surrogatepass"))
        begin = end
    return added


def _without_thoughts(text: str) -> str:
    """The answer behind the thoughts; nothing if they were not finished, as no number in them is an answer."""
    before, found, behind = text.rpartition(_THOUGHT_END)
    if found:
        return behind.lstrip()
    return "" if text.lstrip().startswith(_THOUGHT) else text


def _answer_begin(pieces: Sequence[bytes], text: str) -> int:
    """Number of the token with which an answer begins that stands behind thoughts."""
    if not text:
        return len(pieces)
    whole, mark = b"".join(pieces), _THOUGHT_END.encode()
    place = whole.rfind(mark)
    place = place + len(mark) if place >= 0 else whole.rfind(text.encode("utf-8", "surrogatepass"))
    end = 0
    for number, piece in enumerate(pieces):
        end += len(piece)
        if end > place:
            return number
    return len(pieces)


def _parsed(content: bytes) -> Any:
    """Strict JSON: NaN and infinities are none."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    return json.loads(content, parse_constant=refuse)


def _token(token: Mapping[str, Any]) -> _Token:
    """A token, the logarithm of whose probability rounding may have put a little above 0."""
    text, given, logprob = token["token"], token.get("bytes"), token["logprob"]
    if not isinstance(text, str):
        raise TypeError(f"a token is {text!r}")
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not -math.inf < logprob <= _ROUNDING:
        raise ValueError(f"a log-probability is {logprob!r}; it must be a number that is not above 0")
    if not isinstance(given, list | None):
        raise TypeError(f"the bytes of a token are {given!r}")
    piece = text.encode("utf-8", "surrogatepass") if given is None else bytes(given)
    return _Token(piece, min(float(logprob), 0.0))


def _bounds(token: Mapping[str, Any], vocabulary_size: int) -> tuple[float, float] | None:
    """Bounds of one position's entropy; None where the server lists nothing beside the token itself."""
    # A token may be listed twice; two parts of characters may look alike.
    given = token.get("top_logprobs") or ()
    listed = dict.fromkeys(_token(top) for top in given)
    total = math.fsum(math.exp(top.logprob) for top in listed)
    if total > 1 + _ROUNDING:
        raise ValueError(f"the probabilities of a token add up to {total:.3g}")
    if not listed:
        return None
    # Servers that list tokens by their texts alone list one of all that have none, not the most probable ones.
    one_of_many = any(top.get("bytes") is None and _is_part(_token(top).piece) for top in given)
    return entropy_bounds([top.logprob for top in listed], vocabulary_size, not one_of_many)


def _is_part(piece: bytes) -> bool:
    """Whether this is what servers give for a token that is a part of a character, and has no text of its own."""
    return not piece or "\ufffd".encode() in piece
