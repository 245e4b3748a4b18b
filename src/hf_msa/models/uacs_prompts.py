"""Questions of U-ACS to its expert: our own wording of what the paper's two templates ask for (its appendix D)."""

import json
from typing import Any

from .msa_label_families import LabelFamily
from .msa_observed import in_usual_case

_SOURCES = {"text": "what is said", "audio": "how it is said", "vision": "what the face shows"}
_SENSES = {"audio": "hear", "vision": "see"}
SECOND_OPINION = "\n\nTwo estimates of this clip are at hand"
"""How the part begins that only the second question has."""


def direct_prompt(
    family: LabelFamily, transcript: str | None, modalities: tuple[str, ...], description: str = ""
) -> str:
    """Ask for the score of a clip.

    Args:
        family: The label family.
        transcript: What is said, with "..." for lost words; None where all of it is lost.
        modalities: Names of the modalities that the expert is given in any form; that it is not given the others is said.
        description: Sound and pictures in words, where they are not given themselves.
    """
    low, neutral, high = (f"{score:g}" for score in (family.low, family.neutral, family.high))
    found = [_SOURCES[name] for name in modalities] or ["whatever there is"]
    sources = found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"
    lost = " or ".join(verb for name, verb in _SENSES.items() if name not in modalities)
    lines = [
        f"How does the speaker feel about what they talk about, from {low} to {high}? {low} is as negative as can be, "
        f"{neutral} is neutral, {high} is as positive as can be. Go by {sources}.",
        "The words are lost." if transcript is None else f'Words: "{in_usual_case(transcript)}"',
        description,
        f"You cannot {lost} the clip." if lost else "",
        "Reply with nothing but a number with one decimal.",
    ]
    return "\n".join(line for line in lines if line)


def second_part(small_score: float, small_uncertainty: float, expert_score: float, expert_uncertainty: float) -> str:
    """What is added to the same question when both models are uncertain and disagree (eq. 16).

    Args:
        small_score, small_uncertainty: Of the small model.
        expert_score, expert_uncertainty: Of the expert's first answer.
    """
    estimates: dict[str, Any] = {
        "small model": {"score": _rounded(small_score), "uncertainty": _rounded(small_uncertainty)},
        "your first answer": {"score": _rounded(expert_score), "uncertainty": _rounded(expert_uncertainty)},
    }
    return (
        f"{SECOND_OPINION}; the higher the uncertainty, the less one is to be trusted: {json.dumps(estimates)}\nThey "
        "contradict each other. Look at the clip again, decide, and reply with nothing but your final score, a number with "
        "one decimal."
    )


def answer_text(label: float) -> str:
    """How a score is to be answered: one decimal, no sign before a zero or a positive number.

    Args:
        label: In label units.
    """
    return f"{round(label, 1) + 0.0:.1f}"


def _rounded(value: float) -> float:
    return round(value, 2) + 0.0
