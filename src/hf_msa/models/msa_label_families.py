"""Label families: which scores are possible, which classes they fall into, and which metrics apply.

A family of one's own, e.g. of reviews with one to five stars, is a few lines of YAML or Python; a checkpoint and a data set
carry its description with them, so that they can be read where nobody knows its name.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .msa_schema import SENTIMENT_CLASSES, SENTIMENT_SCALE

Values = TypeVar("Values", NDArray[Any], Tensor)

NEUTRAL = SENTIMENT_CLASSES.index("neutral")
"""What `LabelFamily.polarity` says of a neutral score."""

SCORE_METRICS = ("fine_acc", "has0_acc2", "has0_f1", "non0_acc2", "non0_f1", "mae", "corr")
"""The metrics of a score of a family that names none."""


@dataclass(frozen=True)
class LabelFamily:
    """What kind of labels a data set has.

    Args:
        name: What it is called.
        low, high: Lowest and highest score.
        neutral: The score that is neither positive nor negative; below it is negative. Default: the middle.
        neutral_is_positive: Where there are two classes, whether neutral scores go with the positive ones.
        classes: Fine classes from the lowest to the highest: name -> the score that it stands for.
        edges: Between neighbouring classes; a score that equals an edge belongs to the class below it. None: a score belongs
            to the class of the nearest whole number, half to even, so the classes' scores are consecutive whole numbers.
        metrics: The metrics of a score, in the order of tables; `fine_acc` is the share of scores in the class of the label.
        accuracies: Further accuracies among them: name -> edges, or the bound within which scores are rounded to whole
            numbers, half to even.
        main_accuracy: The accuracy that stands for all where there is room for one.
        clip: Whether scores and labels are clipped to the range before anything is measured.
    """

    name: str
    low: float
    high: float
    neutral: float
    neutral_is_positive: bool
    classes: dict[str, float]
    edges: tuple[float, ...] | None
    metrics: tuple[str, ...] = SCORE_METRICS
    accuracies: dict[str, int | tuple[float, ...]] = field(default_factory=dict)
    main_accuracy: str = "non0_acc2"
    clip: bool = False

    def __post_init__(self) -> None:
        scores = list(self.classes.values())
        if not self.low < self.neutral < self.high:
            raise ValueError(
                f"The label family {self.name!r} goes from {self.low} to {self.high} with {self.neutral} as neutral; give "
                "the lowest score, one between, and the highest."
            )
        if len(scores) < 2 or scores != sorted(set(scores)):
            raise ValueError(
                f"The classes of the label family {self.name!r} stand for {scores}; give two or more in ascending order, "
                "each a score of its own."
            )
        whole = all(score == scores[0] + index and score == int(score) for index, score in enumerate(scores))
        if self.edges is None and not whole:
            raise ValueError(
                f"The classes of the label family {self.name!r} stand for {scores}, which are not consecutive whole "
                "numbers; give the edges between them."
            )
        if self.edges is not None and (
            len(self.edges) != len(scores) - 1 or list(self.edges) != sorted(set(self.edges))
        ):
            raise ValueError(
                f"The label family {self.name!r} has the edges {list(self.edges)} between {len(scores)} classes; give "
                f"{len(scores) - 1} in ascending order."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a family of its description.

        Args:
            values: `name`, `low` and `high`, and any other argument; classes as a mapping, or a list of names that part the
                range evenly. Default: negative, neutral and positive. Edges, by default, lie in the middle between classes.

        Raises:
            ValueError: For a key that there is not, one that is lacking, or a value that will not do.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        lacking = sorted({"name", "low", "high"} - set(values))
        if unknown or lacking:
            fault = f"has no {unknown[0]!r}" if unknown else f"needs {lacking[0]!r}"
            raise ValueError(f"A label family {fault}; it takes {', '.join(sorted(known))}.")
        try:
            low, high = float(values["low"]), float(values["high"])
            neutral = float(values.get("neutral", (low + high) / 2))
            classes = values.get("classes") or ["negative", "neutral", "positive"]
            if not isinstance(classes, Mapping):
                classes = dict(zip(classes, np.linspace(low, high, len(classes)).tolist(), strict=True))
            # By score, as a configuration file holds mappings sorted by key.
            classes = dict(sorted(((str(k), float(v)) for k, v in classes.items()), key=lambda pair: pair[1]))
            scores = list(classes.values())
            middle = [(a + b) / 2 for a, b in zip(scores, scores[1:], strict=False)]
            edges = tuple(float(edge) for edge in values.get("edges", middle) or ()) or None
            accuracies = {
                str(name): rule if isinstance(rule, int) else tuple(float(edge) for edge in rule)
                for name, rule in values.get("accuracies", {}).items()
            }
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"The label family {values['name']!r} has a value that is not a number: {error}."
            ) from error
        return cls(
            name=str(values["name"]),
            low=low,
            high=high,
            neutral=neutral,
            neutral_is_positive=bool(values.get("neutral_is_positive", True)),
            classes=classes,
            edges=edges,
            accuracies=accuracies,
            metrics=tuple(values.get("metrics", SCORE_METRICS)),
            main_accuracy=str(values.get("main_accuracy", "non0_acc2")),
            clip=bool(values.get("clip", False)),
        )

    @classmethod
    def of(cls, value: "str | Mapping[str, Any] | LabelFamily") -> "LabelFamily":
        """The family of a value that a configuration or a data set holds.

        Args:
            value: The name of a built-in family, a description, or the family itself.

        Raises:
            ValueError: If it is none of these.
        """
        if isinstance(value, LabelFamily):
            return value
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        if value not in BUILT_IN:
            raise ValueError(f"There is no label family {value!r}; give {' or '.join(BUILT_IN)}, or a description.")
        return BUILT_IN[value]

    def to_value(self) -> str | dict[str, Any]:
        """What files hold: the name of a built-in family, the description of any other."""
        if BUILT_IN.get(self.name) == self:
            return self.name
        values = dataclasses.asdict(self)
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        rules = {name: list(rule) if isinstance(rule, tuple) else rule for name, rule in self.accuracies.items()}
        return {**plain, "accuracies": rules}

    def polarity(self, scores: Values) -> Values:
        """Index into `SENTIMENT_CLASSES` of each score: 0 below neutral, 1 at exactly neutral, 2 above.

        Args:
            scores (array or tensor of any shape): In label units; NaN has no polarity, as an exactly neutral score.

        Returns:
            Whole numbers of the same shape.
        """
        if isinstance(scores, Tensor):
            return (scores if not self.neutral else scores - self.neutral).sign().long() + 1
        distances = scores if not self.neutral else scores - scores.dtype.type(self.neutral)
        classes: NDArray[np.int64] = (distances > 0).astype(np.int64) - (distances < 0) + 1
        return classes

    def class_index(self, scores: Values) -> Values:
        """Index into `classes` of each score.

        Args:
            scores (array or tensor of any shape): In label units.

        Returns:
            Whole numbers of the same shape.
        """
        centres = list(self.classes.values())
        if self.edges is None:
            first, last = int(centres[0]), int(centres[-1])
            if isinstance(scores, Tensor):
                return scores.clamp(first, last).round().long() - first
            rounded: NDArray[np.int64] = np.round(np.clip(scores, first, last)).astype(np.int64) - first
            return rounded
        if isinstance(scores, Tensor):
            edges = torch.tensor(self.edges, dtype=scores.dtype, device=scores.device)
            return torch.bucketize(scores, edges)
        bins: NDArray[np.int64] = np.searchsorted(np.asarray(self.edges, dtype=scores.dtype), scores, side="left")
        return bins


BUILT_IN: dict[str, LabelFamily] = {
    family.name: family
    for family in (
        # MOSI and MOSEI, scored as MMSA's reference does.
        LabelFamily(
            name="mosi",
            low=-3.0,
            high=3.0,
            neutral=0.0,
            neutral_is_positive=True,
            classes={name.replace(" ", "_"): index - 3.0 for index, name in enumerate(SENTIMENT_SCALE)},
            edges=None,
            accuracies={"acc7": 3, "acc5": 2},
            metrics=("acc7", "acc5", "has0_acc2", "has0_f1", "non0_acc2", "non0_f1", "mae", "corr"),
            main_accuracy="non0_acc2",
        ),
        # CH-SIMS v1 and v2: a class stands for the middle of its bin.
        LabelFamily(
            name="sims",
            low=-1.0,
            high=1.0,
            neutral=0.0,
            neutral_is_positive=False,
            classes={
                "negative": -0.85,
                "weakly_negative": -0.4,
                "neutral": 0.0,
                "weakly_positive": 0.4,
                "positive": 0.85,
            },
            edges=(-0.7, -0.1, 0.1, 0.7),
            accuracies={"acc3": (-0.1, 0.1), "acc5": (-0.7, -0.1, 0.1, 0.7)},
            metrics=("acc2", "acc3", "acc5", "f1", "mae", "corr"),
            main_accuracy="acc2",
            clip=True,
        ),
    )
}
"""The families of the benchmarks, by name."""
