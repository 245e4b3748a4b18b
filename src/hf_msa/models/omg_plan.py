"""OMG-Agent's plans: who does what with which sentiment, written and read back as one line (paper, Sec. 3.3, appendix A)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .msa_label_families import LabelFamily
from .msa_mllm_forms import AnswerForm, Phrase
from .msa_schema import SENTIMENT_SCALE

PLAN_FIELDS = ("entity", "action", "sentiment")
MAX_PHRASE = 60
"""Longest entity or action, in characters."""
_FEW_WORDS = 32
PLAN_FORM = AnswerForm(
    (
        "Entity:",
        Phrase(_FEW_WORDS),
        "; Action:",
        Phrase(_FEW_WORDS),
        "; Sentiment:",
        tuple(f" {word}" for word in SENTIMENT_SCALE),
    )
)
"""Plans as language models are held to write them."""


def sentiment_word(label: float, family: LabelFamily) -> str:
    """The word for a label: clipped to the family's range, then rounded to the nearest of seven classes (half to even)."""
    position = (label - family.neutral) / (family.high - family.neutral) * 3
    return SENTIMENT_SCALE[round(min(max(position, -3.0), 3.0)) + 3]


def score_label(score: float, family: LabelFamily) -> float:
    """The label that a score from -3 to 3 stands for."""
    return family.neutral + score / 3 * (family.high - family.neutral)


@dataclass(frozen=True)
class Plan:
    """What is thought to happen in a clip.

    Args:
        entity: Who or what it is about.
        action: What they do.
        sentiment: One of `SENTIMENT_SCALE`.

    Raises:
        ValueError: If the triplet breaks the schema.
    """

    entity: str
    action: str
    sentiment: str

    def __post_init__(self) -> None:
        if problems := _violations(self.to_dict()):
            raise ValueError(
                f"A plan was given in which {'; '.join(problems)}; give an entity and an action of at most {MAX_PHRASE} "
                f"characters each, and a sentiment out of {', '.join(SENTIMENT_SCALE)}."
            )

    @property
    def score(self) -> int:
        """The sentiment as a number from -3 to 3."""
        return SENTIMENT_SCALE.index(self.sentiment) - 3

    def to_text(self) -> str:
        """One line, as models are asked to write it: what g reads, and what `read_plan` reads back."""
        return "; ".join(self.constraints)

    @property
    def constraints(self) -> tuple[str, str, str]:
        """The three fields by themselves, each as it stands in the text."""
        entity, action, sentiment = (f"{name.capitalize()}: {value}" for name, value in self.to_dict().items())
        return entity, action, sentiment

    def to_dict(self) -> dict[str, str]:
        """The fields by name."""
        return {"entity": self.entity, "action": self.action, "sentiment": self.sentiment}


def read_plan(text: str) -> tuple[Plan | None, tuple[str, ...]]:
    """Read a plan that a model wrote: three fields in their order, on one line or one on each.

    Capitals, spaces around words, quotation marks around a value and a full stop at its end make no difference.

    Returns:
        The plan, None where it breaks the schema; and the ways in which it does.
    """
    parts = [part.partition(":") for part in re.split(r"[;\n]", text) if part.strip()]
    if tuple(name.strip().lower() for name, _, _ in parts) != PLAN_FIELDS:
        return None, (f"the fields are not {', '.join(PLAN_FIELDS)}",)
    entity, action, sentiment = (" ".join(value.split()).strip(" \"'.") for _, _, value in parts)
    fields = {"entity": entity, "action": action, "sentiment": sentiment.lower()}
    violations = _violations(fields)
    return None if violations else Plan(**fields), violations


def _violations(fields: Mapping[str, str]) -> tuple[str, ...]:
    found = []
    for name in ("entity", "action"):
        value = fields[name]
        if not value:
            found.append(f"the {name} is empty")
        elif len(value) > MAX_PHRASE:
            found.append(f"the {name} has {len(value)} characters")
        elif value != " ".join(value.split()).strip(" \"'.") or ";" in value:
            found.append(f"the {name} {value!r} is not a bare phrase on one line")
    if fields["sentiment"] not in SENTIMENT_SCALE:
        found.append(f"the sentiment is {fields['sentiment']!r}")
    return tuple(found)


FALLBACK_PLAN = Plan("a speaker", "speaks", "neutral")
"""Takes the place of a plan where no candidate keeps to the schema."""
