"""Answers of language models: their tokens, the score that is read from one, and its uncertainty.

A wrong score is worse than none: where there are two numbers and no reason to take one, a dash that may be a minus or not,
or a word that contradicts the sign, nothing is read, and callers count the answer as unreadable.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MllmAnswer:
    """What a model answered, token by token.

    Args:
        text: The answer without special tokens; equal to ``"".join(token_texts)``.
        token_texts: What each token adds to the text: empty for special tokens, among them the end of text, and for
            the first parts of a character that several tokens make up.
        token_entropies: Entropy in nats of the distribution that each token was drawn from, over the full vocabulary;
            from an endpoint the middle of its bounds.
        token_logprobs: Natural logarithm of each token's probability, before temperature and top-p.
        token_entropy_bounds: From an endpoint, lowest and highest entropy that the listed tokens allow; else None.
        finished: False where the answer was cut off at its longest length: a number at its end may lack digits.
        prompt_tokens: Length of the question, as the model read it; None where it does not say.

    Raises:
        ValueError: If there is not one of each for every token, an entropy is below 0 or no number, or the logarithm of a
            probability above 0: an uncertainty made of these would be wrong without a word.
    """

    text: str
    token_texts: tuple[str, ...]
    token_entropies: tuple[float, ...]
    token_logprobs: tuple[float, ...]
    token_entropy_bounds: tuple[tuple[float, float], ...] | None = None
    finished: bool = True
    prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        bounds = self.token_entropy_bounds
        lengths = {len(self.token_texts), len(self.token_entropies), len(self.token_logprobs)}
        if len(lengths | (set() if bounds is None else {len(bounds)})) > 1:
            raise ValueError(
                f"An answer has {len(self.token_texts)} tokens, {len(self.token_entropies)} entropies and "
                f"{len(self.token_logprobs)} log-probabilities; there must be one of each for every token."
            )
        entropies = (*self.token_entropies, *(bound for pair in bounds or () for bound in pair))
        wrong = next((value for value in entropies if not 0 <= value < math.inf), None)
        wrong = next((value for value in self.token_logprobs if not value <= 0), wrong)
        if wrong is not None:
            raise ValueError(
                f"A language model gave the uncertainty {wrong} of a token; entropies are numbers from 0 on and "
                "log-probabilities at most 0. Load it in a type of more range (bfloat16), or use another one."
            )

    @property
    def logprob(self) -> float:
        """Natural logarithm of the whole answer's probability."""
        return math.fsum(self.token_logprobs)


def parse_score(answer: MllmAnswer | str, label_range: tuple[float, float] | None = None) -> float | None:
    """Read the score that an answer gives.

    Numbers that are no score do not count: parts of words and names ("3D", "COVID-19"), counts ("2 people"), list numbers,
    per cent, confidences, bounds ("above 1"), both ends of a range or scale, what a fraction is out of. Of those that are
    left the one behind a word such as "score" or "say" counts, else the only one. The sign may be any dash or a word
    ("minus 0.4").

    A score outside the range by at most a quarter of its width is clipped to it. One farther out was given on another
    scale, on which it means something else, and is not read.

    Args:
        answer: What the model said, or its text alone, e.g. ``"The score is 1.2."``.
        label_range: Lowest and highest label; None takes any number.

    Returns:
        The score, or None where there is none, or more than one, or the answer's words contradict its sign.
    """
    found = _read(answer, label_range)
    return None if found is None else found.value


def label_entropy(answer: MllmAnswer, label_range: tuple[float, float] | None = None) -> float:
    """Mean entropy of the tokens that carry the score: its sign, digits and point (U-ACS, eq. 10).

    End of text, spaces and words do not count, except a word that is the sign.

    Args:
        answer: What the model said.
        label_range: As in `parse_score`.

    Returns:
        Nats; infinity where `parse_score` reads nothing, so that it is never taken for certain.
    """
    positions = _label_tokens(answer, label_range)
    return float(np.mean([answer.token_entropies[position] for position in positions])) if positions else math.inf


def label_entropy_bounds(answer: MllmAnswer, label_range: tuple[float, float] | None = None) -> tuple[float, float]:
    """Lowest and highest `label_entropy` that an answer allows; both the same where entropies are exact.

    Args:
        answer: What the model said.
        label_range: As in `parse_score`.
    """
    positions = _label_tokens(answer, label_range)
    if answer.token_entropy_bounds is None or not positions:
        entropy = label_entropy(answer, label_range)
        return entropy, entropy
    low, high = np.mean([answer.token_entropy_bounds[position] for position in positions], axis=0)
    return float(low), float(high)


def _label_tokens(answer: MllmAnswer, label_range: tuple[float, float] | None) -> list[int]:
    """Positions of the tokens that carry a character of the number which `parse_score` reads, or of its sign."""
    found = _read(answer, label_range)
    if found is None:
        return []
    positions, begin = [], 0
    for position, piece in enumerate(answer.token_texts):
        end = begin + len(piece)
        if any(begin < stop and end > start for start, stop in found.spans) and piece:
            positions.append(position)
        begin = end
    return positions


# --- Reading ---


@dataclass
class _Number:
    """A number in an answer.

    Args:
        value: Sign included.
        spans: Where the characters of its sign (if any) and of its digits are.
        usable: Whether it can be a score, as far as the words around it say.
        begins: Whether it begins the answer.
        announced: Whether a word announces it.
    """

    value: float
    spans: list[tuple[int, int]]
    usable: bool
    begins: bool
    announced: bool

    @property
    def start(self) -> int:
        return self.spans[0][0]

    @property
    def end(self) -> int:
        return self.spans[-1][1]


# Character by character, so that places stay what they are.
_DASHES = {code: "-" for code in range(0x10000) if unicodedata.category(chr(code)) == "Pd"}
_PLAIN = {
    **_DASHES,
    **dict.fromkeys(map(ord, "\u00ad\u02d7\u2043\u207b\u208b\u2212\u2796\u30fc\uff70"), "-"),
    **dict.fromkeys(map(ord, "\u207a\u208a\u2795\ufe62\uff0b"), "+"),
    **dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u200a\u200b\u202f\u2060\u3000\ufeff"), " "),
    **dict(
        zip(map(ord, "\uff0e\uff05\uff0f\u2044\u2215\uff1a\uff1d\uff08\uff09\u301c\uff5e"), ".%///:=()~~", strict=True)
    ),
}
# How far from a number its words are looked at.
_NEAR = 60

_DIGITS = re.compile(r"\d+(?:[.,]\d+)*|(?<![\w.])\.\d+")
_DECIMAL = re.compile(r"\d*(?:\.\d+|,\d{1,2})?")
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"

# Before a number.
_SIGN = re.compile(r"([-+]+)([ ]*)\Z")
_MINUS_WORDS = r"minus|negativ[eo]?|n[ée]gatif|neg\.?|moins|menos|meno"
_SIGN_WORD = re.compile(
    rf"(?P<minus>(?<![^\W{_CJK}_])(?:{_MINUS_WORDS}) +|(?:零下|マイナス|마이너스|[负負减減]) ?)\Z|"
    rf"(?<![^\W{_CJK}_])(?:plus|positive) +\Z|正 ?\Z",
    re.I,
)
# A dash with spaces on both sides is a minus behind these only: "Score - 0.4" may be either.
_BEFORE_MINUS = re.compile(
    r"(?:^|[:=(\[{\"'`*,，]|\b(?:is|was|be|of|as|it|at|say|give|around|about|approximately)|[为是])[ *_`\"']*\Z", re.I
)
_JOINED = re.compile(rf"(?:(?![{_CJK}])[^\W_]|[^\W_]_+|[^\W_]\.)\Z")
_NO_SCORE_BEFORE = re.compile(
    r"(?:(?<!\w)(?:not|never|than|least|most|above|below|under|over|up to|point|no\.|number|minus|plus)|"
    r"(?:certainty|confidence|probability|likelihood|置信度|概率|确定性)(?:\W|score|level|value|of|is|at|about)*|"
    r"[负負减減点第±∓≤≥≠<]|不是?|[<>]=|(?<![-=\w\"'/])>|[\d+-]/)\s*\Z|\d:\Z|"
    # An estimate that is not the answer.
    r"\b(?:first|small|previous|earlier|former|initial|original)\b[^\d.!?,\n。！？，]{0,30}\Z|"
    # A dash that something stands between: a minus, or not.
    r"- *[*_`\"'({\[$}]+ *\Z|(?<!-)-\s*\n\s*\Z|[#€£¥^]\Z",
    re.I,
)
_LED = re.compile(
    r"(?:scor(?:e|ed|ing)|rat(?:e|ed|ing)|sentiment|polarity|answer|value|label|result|output|\bsay\b|give|assign|"
    r"得分|分数|评分|打分|情感|答案|结果|(?<!因)为|是)[^\d.!?;,。！？；，]{0,40}\Z",
    re.I,
)
# A whole number behind a noun is its name ("Clip 2").
_NAMED = re.compile(
    r"(?<![^\W_])(?!(?:a|an|the|is|was|be|of|as|it|at|with|around|about|approximately|roughly|exactly|maybe|perhaps|probably|"
    r"would|think|so|then|to|say|give|rated?|scored?|rating|sentiment|polarity|answer|value|label|result|output|assign)\s)"
    r"[^\W\d_]+ +\Z",
    re.I,
)
_LINE_START = re.compile(r"(?:^|\n)[ *#(\[]*\Z")

# Behind a number.
_NO_SCORE_AFTER = re.compile(
    rf"(?![{_CJK}])[^\W\d_]|_+[^\W_]|-[^\W\d]|:\d|"
    r"\s*(?:%|per ?cent\b|pct\b|个百分点|[☆★⭐]|点\d|point\s|certain|confiden|probab)|"
    r"[ -]?(?:hours?|min(?:ute)?s?|sec(?:ond)?s?|days?|weeks?|months?|years?|times|stars?|thumbs|people|persons?|speakers?|"
    r"words?|sentences?|frames?|clips?)\b",
    re.I,
)
_LIST_NUMBER = re.compile(r"(?:[.)] *\s\S|[.)、])(?![\d\s]|$)")
# A whole number without a sign counts what follows it, except these.
_COUNTED = re.compile(
    r"\s+(?!(?:a|an|and|as|at|because|but|considering|due|for|from|given|here|i|in|indicat\w+|is|it|mean\w*|on|or|overall|"
    r"points?|reflect\w*|represent\w*|score|seems?|showing|shows|since|so|suggest\w*|that|the|there|this|to|which|while|"
    r"with|would|positive|negative|neutral)\b)(?=[a-z])|(?=[个個人次条句位名部天年月日秒])"
)
# A whole number whose meaning on the scale is explained.
_EXPLAINED = re.compile(
    r"\s*(?:=|is|means?|being|stands for|represents?|indicates?)\s*(?:\w+\s+){0,2}(?:negative|positive|neutral)", re.I
)
_FRACTION = re.compile(r"[\s*_]*(?:/|out of|of)[\s*_]*")
# Between numbers that are ends of a range, a list or a sum, none of which is *the* score.
_ALTERNATIVES = re.compile(
    r"(?:\s*\([^()\n]{0,60}\)(?=\s*(?:-|~|to|and|至|到)))?[\s*_\"']*"
    r"(?:[-+~,;|&=×÷、，；和或与至到…]|\.{2,3}|\b(?:to|and|or|through|till|until|versus|vs\.?)\b)?[\s*_\"']*"
)

_NEGATIVE = re.compile(
    rf"(?<!not )(?<!non-)(?:minus|negativ|(?<![^\W{_CJK}_])(?:{_MINUS_WORDS})(?![^\W{_CJK}_]))|"
    r"[负負](?![责責担擔荷载])|消极|消極|零下|マイナス|마이너스|\b(?:below|under|less than) (?:zero|neutral|0)",
    re.I,
)
_POSITIVE = re.compile(
    rf"(?<!not )(?<!non-)(?<![^\W{_CJK}_])(?:positiv\w*|positif|pos\.?)(?![^\W{_CJK}_])|正面|正向|积极|積極|"
    r"\b(?:above|over|more than) (?:zero|neutral|0)",
    re.I,
)
_SENTENCE = re.compile(r"[^.!?\n。！？]*")


def _read(answer: MllmAnswer | str, label_range: tuple[float, float] | None) -> _Number | None:
    """Find the one number that is the score, clipped; see `parse_score`."""
    text = (answer if isinstance(answer, str) else answer.text).translate(_PLAIN)
    said = text.rpartition("</think>")[2]
    if "<think>" in said:
        return None
    text = said.rjust(len(text))
    numbers = list(_numbers(text))
    _mark_pairs(text, numbers, label_range)
    usable = [number for number in numbers if number.usable]
    chosen = usable
    if any(number.announced for number in usable):
        chosen = [number for number in usable if number.announced or number.begins]
    if len({number.value for number in chosen}) != 1:
        return None
    found = chosen[0]
    cut = not isinstance(answer, str) and not answer.finished and not text[found.end :].strip(".,")
    if cut or _contradicted(text, found, label_range):
        return None
    if label_range is not None:
        low, high = label_range
        margin = (high - low) / 4
        if not low - margin <= found.value <= high + margin:
            return None
        found.value = min(max(found.value, low), high)
    found.value += 0.0  # no -0.0
    return found


def _numbers(text: str) -> Iterator[_Number]:
    """All numbers, in their order, each judged by the words beside it."""
    for match in _DIGITS.finditer(text):
        before, after = text[max(0, match.start() - _NEAR) : match.start()], text[match.end() : match.end() + _NEAR]
        whole, decimal = match.group().isdecimal(), _DECIMAL.fullmatch(match.group()) is not None
        value = float(match.group().replace(",", ".")) if decimal else math.nan
        spans, clear = [match.span()], True
        sign = _SIGN.search(before)
        word = None if sign else _SIGN_WORD.search(before)
        if sign is not None:
            before = before[: sign.start()]
            clear = len(sign[1]) == 1 and _is_sign(sign[1], sign[2], before, text)
            if clear:
                value = -value if sign[1] == "-" else value
                start = match.start() - len(sign.group())
                spans.insert(0, (start, start + 1))
        elif word is not None:
            before = before[: word.start()]
            value = -value if word["minus"] else value
            start = match.start() - len(word.group())
            spans.insert(0, (start, start + len(word.group().rstrip())))
        begins = not re.search(r"[^\W_]", text[: spans[0][0]])
        announced = _LED.search(before) is not None
        unsigned = whole and len(spans) == 1
        usable = (
            clear
            and decimal
            and not (sign is None and word is None and _JOINED.search(before))
            and not _NO_SCORE_BEFORE.search(before)
            and not _NO_SCORE_AFTER.match(after)
            and not (whole and _EXPLAINED.match(after))
            and not (unsigned and _NAMED.search(before))
            and not (unsigned and not announced and _COUNTED.match(after))
            and not (unsigned and value and _LINE_START.search(before) and _LIST_NUMBER.match(after))
            and not (before.endswith("$") and not after.startswith("$"))
        )
        yield _Number(value, spans, usable, begins, announced)


def _is_sign(sign: str, gap: str, before: str, text: str) -> bool:
    """Whether a plus or dash before a number is its sign: not one that joins, separates or makes a list."""
    if sign == "+":
        return not before.endswith("/")
    if not gap:
        return re.search(rf"(?:(?![{_CJK}])[^\W_]|[)\]/]|\d\s*)\Z", before) is None
    if before.rstrip(" ").endswith("\n") or re.search(r"\n *- ", text):
        return False
    return _BEFORE_MINUS.search(before) is not None


def _mark_pairs(text: str, numbers: list[_Number], label_range: tuple[float, float] | None) -> None:
    """Take out both numbers of ranges and lists, and what fractions are out of; all of a fraction of another scale."""
    for left, right in zip(numbers, numbers[1:], strict=False):
        between = " ".join(text[left.end : right.start].split())
        if len(between) > _NEAR:
            continue
        if _FRACTION.fullmatch(between):
            right.usable = False
            left.usable &= label_range is not None and right.value == label_range[1]
        elif left.value != right.value and _ALTERNATIVES.fullmatch(between):
            left.usable = right.usable = False
    scale = ",".join(f"{end:g}" for end in label_range or ())  # "-3,3" is no decimal comma
    for number in numbers:
        number.usable &= text[number.start : number.end] != scale


def _contradicted(text: str, found: _Number, label_range: tuple[float, float] | None) -> bool:
    """Whether the words before the number, or with it in its sentence, speak of the other polarity alone."""
    if label_range is not None and label_range[0] >= 0:
        return False
    sentence = _SENTENCE.match(text, found.end)
    words = text[: found.end] + (sentence.group() if sentence else "")
    negative, positive = _NEGATIVE.search(words) is not None, _POSITIVE.search(words) is not None
    return negative != positive and (found.value > 0 if negative else found.value < 0)
