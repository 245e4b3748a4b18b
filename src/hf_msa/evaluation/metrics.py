"""The field's metrics, in numpy alone, for every label family.

MOSI and MOSEI (family ``"mosi"``, labels in [-3, 3]) and CH-SIMS v1 and v2 (family ``"sims"``, labels in [-1, 1]) are
scored by different rules, which stand in `hf_msa.models.msa_label_families`. Both follow MMSA's reference: values and bin
edges are compared in float32, and rounding is half-to-even.

Models that classify have metrics of their class logits beside those of their score. With three classes (CMC) the true
class is the sign of the label; two-class decisions leave the neutral logit out. Public CMC code computes them so, but
for one thing: there the positive class of the Non0 metrics has one number in the truth and another in the prediction,
and is never right. With seven classes (OMG-Agent, family ``"mosi"``) it is the label, clipped to [-3, 3] and rounded.

Every metric but the correlation is a ratio of sums over samples, and the correlation needs five sums. So one matrix of
per-sample terms serves a single evaluation and, multiplied by a matrix of draw counts, a thousand bootstrap resamples.

Undefined values are NaN, never a stand-in number: the Non0 metrics where no label differs from zero, the correlation
where predictions or labels are constant.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_msa.errors import MsaError, unknown_name
from hf_msa.label_families import AnyFamily, find_label_family
from hf_msa.models.msa_label_families import BUILT_IN, LabelFamily

FloatArray = NDArray[np.float64]

# A variance this small beside its own sum of squares is rounding error, not spread.
_CONSTANT = 1e-12


@dataclass(frozen=True)
class Metric:
    """What a reader needs to know of a metric.

    Attributes:
        name: The key in results and arguments, e.g. ``"non0_acc2"``.
        pretty: The name in tables and plots.
        higher_is_better: Direction.
        percent: Whether tables show it times 100 (it is always stored as a fraction).
        description: One line on what is counted.
    """

    name: str
    pretty: str
    higher_is_better: bool
    percent: bool
    description: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("acc7", "Acc-7", True, True, "clipped to [-3, 3] and rounded, share of equal pairs"),
        Metric("acc5", "Acc-5", True, True, "MOSI: clipped to [-2, 2] and rounded; SIMS: five bins"),
        Metric("acc3", "Acc-3", True, True, "SIMS: negative, neutral, positive with edges -0.1 and 0.1"),
        Metric("fine_acc", "Fine Acc", True, True, "share of scores in the label family's class of the label"),
        Metric("has0_acc2", "Has0 Acc-2", True, True, "negative against non-negative, all samples"),
        Metric("has0_f1", "Has0 F1", True, True, "weighted F1, negative against non-negative, all samples"),
        Metric("non0_acc2", "Non0 Acc-2", True, True, "negative against positive, samples labelled zero left out"),
        Metric("non0_f1", "Non0 F1", True, True, "weighted F1, samples labelled zero left out"),
        Metric("acc2", "Acc-2", True, True, "SIMS: non-positive against positive"),
        Metric("f1", "F1", True, True, "SIMS: weighted F1, non-positive against positive"),
        Metric("mae", "MAE", False, False, "mean absolute error in label units"),
        Metric("corr", "Corr", True, False, "Pearson correlation"),
        Metric("class_acc7", "Class Acc-7", True, True, "largest of seven class logits: label clipped and rounded"),
        Metric("class_acc3", "Class Acc-3", True, True, "largest class logit: negative, neutral, positive"),
        Metric("class_f1_3", "Class F1-3", True, True, "weighted F1 over the three classes"),
        Metric(
            "class_has0_acc2",
            "Class Has0 Acc-2",
            True,
            True,
            "negative against positive logit, all samples; neutral truth is positive on MOSI and negative on SIMS",
        ),
        Metric("class_has0_f1", "Class Has0 F1", True, True, "weighted F1 of the same decisions"),
        Metric("class_non0_acc2", "Class Non0 Acc-2", True, True, "negative against positive logit, no neutral truth"),
        Metric("class_non0_f1", "Class Non0 F1", True, True, "weighted F1 of the same decisions"),
    )
}

CLASS_METRICS: tuple[str, ...] = (
    "class_acc3",
    "class_f1_3",
    "class_has0_acc2",
    "class_has0_f1",
    "class_non0_acc2",
    "class_non0_f1",
)
"""The metrics of three class logits, in the order of tables; they come after those of the score."""

SCALE_METRICS: tuple[str, ...] = ("class_acc7",)
"""The metrics of seven class logits; they come after those of the score."""

METRICS_BY_CLASSES: dict[int, tuple[str, ...]] = {3: CLASS_METRICS, 7: SCALE_METRICS}
"""The metrics of class logits by the number of classes."""


# The accuracy whose confusion matrix each F1 is computed from.
_CONFUSIONS = {
    "has0_f1": "has0_acc2",
    "non0_f1": "non0_acc2",
    "f1": "acc2",
    "class_f1_3": "class_acc3",
    "class_has0_f1": "class_has0_acc2",
    "class_non0_f1": "class_non0_acc2",
}


def family_metrics(family: AnyFamily) -> tuple[str, ...]:
    """Return the names of a label family's metrics of a score, in table order.

    Args:
        family: See `hf_msa.label_families.find_label_family`.

    Raises:
        MsaError: If there is no such family, or it names a metric that there is not.
    """
    found = find_label_family(family)
    for name in (*found.metrics, found.main_accuracy):
        if name not in METRICS:
            raise unknown_name(f"metric of the label family {found.name!r}:", name, METRICS)
    return found.metrics


def is_class_metric(name: str) -> bool:
    """Whether a metric is one of class logits, not of the score."""
    return any(name in names for names in METRICS_BY_CLASSES.values())


def regression_metrics(
    predictions: ArrayLike, labels: ArrayLike, family: AnyFamily, *, legacy_f1: bool = False
) -> dict[str, float]:
    """Score predictions against labels.

    Args:
        predictions: N scores in label units; shape (N,) or (N, 1).
        labels: N labels in the same units; shape (N,) or (N, 1).
        family: ``"mosi"`` (MOSI, MOSEI), ``"sims"`` (CH-SIMS v1, v2), or another label family.
        legacy_f1: Weight F1 by predicted instead of true support, as MMSA did before April 2021. Only for reading old
            tables: it rewards a model that predicts one class.

    Returns:
        The family's metrics, accuracies and F1 as fractions; NaN where undefined (see the module's description).

    Raises:
        MsaError: If the family is unknown, the input is empty, the shapes differ, or a value is NaN or infinite.

    Example:
        ```python
        from hf_msa import regression_metrics

        regression_metrics([1.2, -0.4], [1.0, -1.0], "mosi")["mae"]  # 0.4
        ```
    """
    score, label = _checked(predictions, labels)
    return _Terms.of(_score_terms(score, label, family), family_metrics(family)).score_all(legacy_f1=legacy_f1)


def class_metrics(class_logits: ArrayLike, labels: ArrayLike, family: AnyFamily) -> dict[str, float]:
    """Score class logits against labels.

    Args:
        class_logits: Logits of negative, neutral and positive, in that order; shape (N, 3). Or, for the family ``"mosi"``,
            those of the scores -3 to 3; shape (N, 7).
        labels: N sentiment labels in label units; shape (N,) or (N, 1). The true one of three classes is the sign, of seven
            the label clipped to [-3, 3] and rounded.
        family: ``"mosi"``: the Has0 metrics tell negative from non-negative; ``"sims"``: non-positive from positive; another
            label family as it says (`neutral_is_positive`).

    Returns:
        The metrics of `CLASS_METRICS`, of seven classes those of `SCALE_METRICS`, as fractions; NaN where undefined (see
        the module's description).

    Raises:
        MsaError: If the family is unknown or has no such classes, the input is empty, the shapes differ, or a value is NaN
            or infinite.
    """
    logits, label = _checked_classes(class_logits, labels)
    return _Terms.of(_class_terms(logits, label, family), METRICS_BY_CLASSES[logits.shape[1]]).score_all()


def resampled_metrics(
    predictions: ArrayLike,
    labels: ArrayLike,
    family: AnyFamily,
    counts: ArrayLike,
    class_logits: ArrayLike | None = None,
) -> dict[str, FloatArray]:
    """Score many resamples of the same rows at once.

    Args:
        predictions: N scores; shape (N,) or (N, 1).
        labels: N labels.
        family: The label family.
        counts: How often each resample holds each row; shape (resamples, N), see `hf_msa.evaluation.statistics`.
        class_logits: Class logits (N, 3) or (N, 7), for the metrics of `class_metrics` as well.

    Returns:
        Per metric, the (resamples,) values; NaN where undefined in that resample.

    Raises:
        MsaError: As `regression_metrics` and `class_metrics`, or if `counts` does not have N columns.
    """
    score, label = _checked(predictions, labels)
    blocks, names = _score_terms(score, label, family), family_metrics(family)
    if class_logits is not None:
        logits, label = _checked_classes(class_logits, label)
        blocks |= _class_terms(logits, label, family)
        names += METRICS_BY_CLASSES[logits.shape[1]]
    terms = _Terms.of(blocks, names)
    weights = np.asarray(counts, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != len(terms.matrix):
        raise MsaError(
            f"Draw counts must have the shape (resamples, {len(terms.matrix)}), a column per row; got {weights.shape}."
        )
    return terms.score(weights)


def weighted_f1(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Mean F1 over classes, weighted by how often each class is true.

    Equal to scikit-learn's ``f1_score(truth, prediction, average="weighted", zero_division=0)``. The order of the
    arguments matters: swapped, classes are weighted by how often they are *predicted*.

    Args:
        truth: N class labels.
        prediction: N class labels.

    Raises:
        MsaError: If the input is empty or the shapes differ.
    """
    true, predicted = np.ravel(truth), np.ravel(prediction)
    if true.shape != predicted.shape or not true.size:
        raise MsaError(
            f"F1 needs as many predictions as labels and at least one; got {predicted.size} and {true.size}."
        )
    classes, codes = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    rows, columns = codes[: true.size], codes[true.size :]
    confusion = np.bincount(rows * classes.size + columns, minlength=classes.size**2).astype(np.float64)
    return float(_weighted_f1(confusion.reshape(1, classes.size, classes.size))[0])


def _weighted_f1(confusion: FloatArray, *, by_prediction: bool = False) -> FloatArray:
    """Weighted F1 of each confusion matrix (R, truth, prediction); NaN where it is empty."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    f1 = _ratio(2 * hits, true + predicted, undefined=0.0)
    support = predicted if by_prediction else true
    return _ratio((f1 * support).sum(axis=1), support.sum(axis=1))


def _ratio(numerator: FloatArray, denominator: FloatArray, undefined: float = np.nan) -> FloatArray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, undefined), where=denominator != 0)


@dataclass(frozen=True)
class _Terms:
    """Per-sample terms (N, K) whose sums give every metric, with the columns each metric reads."""

    matrix: FloatArray
    columns: Mapping[str, slice]
    names: Sequence[str]

    @staticmethod
    def of(blocks: Mapping[str, FloatArray], names: Sequence[str]) -> "_Terms":
        """Put the (N, k) blocks side by side; `names` are the metrics to score, in order."""
        columns: dict[str, slice] = {}
        start = 0
        for name, block in blocks.items():
            columns[name] = slice(start, start + block.shape[1])
            start += block.shape[1]
        return _Terms(np.concatenate(list(blocks.values()), axis=1), columns, names)

    def score_all(self, *, legacy_f1: bool = False) -> dict[str, float]:
        """Metrics of all rows, each counted once."""
        scored = self.score(np.ones((1, len(self.matrix))), legacy_f1=legacy_f1)
        return {name: float(values[0]) for name, values in scored.items()}

    def score(self, counts: FloatArray, *, legacy_f1: bool = False) -> dict[str, FloatArray]:
        """Metrics of each row of `counts` (R, N)."""
        sums = counts @ self.matrix
        total = counts.sum(axis=1)
        result: dict[str, FloatArray] = {}
        for name in self.names:
            cells = sums[:, self.columns[_CONFUSIONS.get(name, name)]]
            if name in _CONFUSIONS:
                result[name] = _weighted_f1(_square(cells), by_prediction=legacy_f1)
            elif name in _CONFUSIONS.values():
                # The diagonal over the samples that count (Non0 leaves some out).
                hits = np.diagonal(_square(cells), axis1=1, axis2=2).sum(axis=1)
                result[name] = _ratio(hits, cells.sum(axis=1))
            elif name == "corr":
                result[name] = _correlation(cells, total)
            else:
                result[name] = _ratio(cells[:, 0], total)
        return result


def _square(cells: FloatArray) -> FloatArray:
    """Flattened confusion matrices (R, C * C) as (R, C, C)."""
    classes = math.isqrt(cells.shape[1])
    return cells.reshape(-1, classes, classes)


def _checked(predictions: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    score, label = (
        _finite("predictions", _flat("predictions", predictions)),
        _finite("labels", _flat("labels", labels)),
    )
    if score.shape != label.shape:
        raise MsaError(f"There are {score.size} predictions but {label.size} labels; give one of each per sample.")
    return score, label


def _checked_classes(class_logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    logits = np.asarray(class_logits, dtype=np.float32)
    if logits.ndim != 2 or logits.shape[1] not in METRICS_BY_CLASSES:
        raise MsaError(f"The class logits must have the shape (N, 3) or (N, 7); got {logits.shape}.")
    logits, label = _finite("class logits", logits), _finite("labels", _flat("labels", labels))
    if len(logits) != label.size:
        raise MsaError(
            f"There are class logits of {len(logits)} samples but {label.size} labels; give one per sample."
        )
    return logits, label


def _flat(what: str, values: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(values, dtype=np.float32)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise MsaError(f"The {what} must have the shape (N,) or (N, 1); got {array.shape}.")
    return array


def _finite(what: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    if not array.size:
        raise MsaError(f"There are no {what} to score; give at least one sample.")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise MsaError(f"{bad} of {array.size} {what} are NaN or infinite, and only finite values can be scored.")
    return array


def _score_terms(score: NDArray[np.float32], label: NDArray[np.float32], given: AnyFamily) -> dict[str, FloatArray]:
    family = find_label_family(given)
    family_metrics(family)
    if family.clip:
        score, label = np.clip(score, family.low, family.high), np.clip(label, family.low, family.high)
    # Only what the family's metrics read, in their order.
    needed = dict.fromkeys(_CONFUSIONS.get(name, name) for name in family.metrics)
    return {name: block for term in needed for name, block in _score_term(term, score, label, family).items()}


def _score_term(
    name: str, score: NDArray[np.float32], label: NDArray[np.float32], family: LabelFamily
) -> dict[str, FloatArray]:
    """The terms of one metric of a score."""
    neutral, every = np.float32(family.neutral), np.ones_like(label, dtype=bool)
    if name == "fine_acc":
        return {name: _column(family.class_index(label) == family.class_index(score))}
    if name in family.accuracies:
        rule = family.accuracies[name]
        if isinstance(rule, int):
            return {name: _column(np.round(np.clip(label, -rule, rule)) == np.round(np.clip(score, -rule, rule)))}
        # Right-closed bins: a value equal to an edge belongs to the bin below it.
        edges = np.asarray(rule, dtype=np.float32)
        return {
            name: _column(np.searchsorted(edges, label, side="left") == np.searchsorted(edges, score, side="left"))
        }
    if name == "has0_acc2":
        return {name: _confusion_terms(label >= neutral, score >= neutral, every)}
    if name == "non0_acc2":
        return {name: _confusion_terms(label > neutral, score > neutral, label != neutral)}
    if name == "acc2":
        return {name: _confusion_terms(label > neutral, score > neutral, every)}
    if name in ("mae", "corr"):
        return {name: _distance_terms(score, label)[name]}
    raise MsaError(f"The label family {family.name!r} has the metric {name!r}, but no edges for it in its accuracies.")


def _class_terms(logits: NDArray[np.float32], label: NDArray[np.float32], given: AnyFamily) -> dict[str, FloatArray]:
    family = find_label_family(given)
    if logits.shape[1] == 7:
        if family != BUILT_IN["mosi"]:
            raise MsaError(
                f"Seven classes are the scores -3 to 3 of the family 'mosi', but the labels are of {family.name!r}."
            )
        return {"class_acc7": _column(logits.argmax(axis=1) == family.class_index(label))}
    true = family.polarity(label)
    every = np.ones_like(true, dtype=bool)
    # Neutral truth counts as positive on MOSI and MOSEI (non-negative), and as negative on SIMS (non-positive).
    positive = true >= (1 if family.neutral_is_positive else 2)
    predicted = logits[:, 2] > logits[:, 0]
    return {
        "class_acc3": _confusion_terms(true, logits.argmax(axis=1), every, classes=3),
        "class_has0_acc2": _confusion_terms(positive, predicted, every),
        "class_non0_acc2": _confusion_terms(true == 2, predicted, true != 1),
    }


def _column(flags: NDArray[np.bool_]) -> FloatArray:
    return flags.astype(np.float64)[:, None]


def _confusion_terms(
    true: NDArray[Any], predicted: NDArray[Any], counted: NDArray[np.bool_], classes: int = 2
) -> FloatArray:
    """The cell of a flattened (truth, prediction) matrix that each sample falls into, (N, classes squared)."""
    cells = true.astype(np.int64) * classes + predicted
    inside: NDArray[np.bool_] = (cells[:, None] == np.arange(classes**2)) & counted[:, None]
    return inside.astype(np.float64)


def _distance_terms(score: NDArray[np.float32], label: NDArray[np.float32]) -> dict[str, FloatArray]:
    x, y = _centred(score), _centred(label)
    return {
        "mae": np.abs(score - label).astype(np.float64)[:, None],
        "corr": np.stack([x, y, x * x, y * y, x * y], axis=1),
    }


def _centred(values: NDArray[np.float32]) -> FloatArray:
    # The first value goes first, so that a constant becomes exactly zero.
    shifted = values.astype(np.float64) - float(values[0])
    return shifted - float(shifted.mean())


def _correlation(sums: FloatArray, total: FloatArray) -> FloatArray:
    x, y, xx, yy, xy = sums.T
    spread_x, spread_y = xx - x * x / total, yy - y * y / total
    defined = (spread_x > _CONSTANT * xx) & (spread_y > _CONSTANT * yy)
    scale = np.sqrt(np.where(defined, spread_x, 1.0) * np.where(defined, spread_y, 1.0))
    values: FloatArray = np.where(defined, np.clip((xy - x * y / total) / scale, -1.0, 1.0), np.nan)
    return values
