"""Probes: what a linear map, a small non-linear one and nearest neighbours tell of rows that they were not fitted to.

Rows are dealt into folds by video, so that no speaker is on both sides, and what is fitted is dealt into parts once more,
which choose all that is to be chosen. Columns are standardised, and each block of them (a modality, the words) has a weight
of its own. ``"linear"``: ridge regression. ``"non-linear"``: ridge regression on the columns and
200 random radial basis functions of their first principal components. ``"neighbours"``: ridge regression, and a share of
what it missed by in the nearest rows of other parts; what it gains over ``"linear"`` is what retrieval gains.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.estimates import Estimate, Floats
from hf_msa.errors import MsaError, require_package
from hf_msa.evaluation.statistics import all_and_resampled
from hf_msa.evaluation.uncertainty import auroc

LINEAR, NON_LINEAR, NEIGHBOURS = PROBES = ("linear", "non-linear", "neighbours")

_COMPONENTS, _FUNCTIONS, _PARTS, _NEIGHBOURS = 32, 200, 20, (1, 3, 10, 30)
_FARTHEST, _WEIGHTS = 5.0, (0.3, 0.0)
# Of each row; all columns of a block have a variance of 1.
_PENALTIES = np.logspace(-5, 3, 17)


def folds(groups: Sequence[str], count: int = 5) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Places of the rows that are fitted and of those that are predicted, fold by fold.

    Args:
        groups: The video of each row.
        count: Folds, fewer where there are fewer videos.

    Raises:
        MsaError: If all rows are of one video, or scikit-learn is not installed.
    """
    require_package("sklearn", "probes")
    from sklearn.model_selection import GroupKFold

    videos = len(set(groups))
    if videos < 2:
        raise MsaError(
            "All rows are of one video, so that no probe can be tested on another one; give data of several."
        )
    yield from GroupKFold(min(count, videos)).split(np.zeros(len(groups)), groups=np.asarray(groups))


class Columns:
    """Blocks of columns, each column with mean 0 and each block with a variance of 1 in all.

    What lies farther than five deviations from the mean is moved there: features of recordings have heavy tails.

    Args:
        blocks: Each (N, its width); constant columns become 0.
    """

    def __init__(self, blocks: Sequence[Floats]) -> None:
        self._means = [block.mean(axis=0) for block in blocks]
        self._scales, self._widths = [], []
        for block, mean in zip(blocks, self._means, strict=True):
            spread = block.std(axis=0)
            varies = spread > 1e-9 * np.maximum(np.abs(mean), 1e-9)
            self._scales.append(np.where(varies, spread, np.inf))
            self._widths.append(max(1, int(varies.sum())))

    def __call__(self, blocks: Sequence[Floats]) -> list[Floats]:
        """Scaled blocks of rows, each (M, its width)."""
        found = zip(blocks, self._means, self._scales, self._widths, strict=True)
        return [
            np.clip((block - mean) / scale, -_FARTHEST, _FARTHEST) / np.sqrt(width)
            for block, mean, scale, width in found
        ]


class Ridge:
    """Ridge regression whose penalty and weights of blocks are chosen by leaving out one part of the rows after the other.

    One decomposition serves all penalties and parts, and what a part is missed by follows from it without another fit.
    Blocks are tried at lower weights one after the other, down to 0: what says nothing shall not do harm.

    Args:
        blocks: Of `Columns`, each (N, its width).
        targets: (N, q).
        parts: Places of the rows of each part.

    Attributes:
        weights: Of the blocks.
        penalty: What was chosen.
        missed: What each row's target differs by from its prediction without its part (N, q).
    """

    def __init__(self, blocks: Sequence[Floats], targets: Floats, parts: Sequence[NDArray[np.int64]]) -> None:
        self.weights = [1.0] * len(blocks)
        self._error = np.inf
        self._fit(blocks, targets, parts, self.weights)
        for place in range(len(blocks) if len(blocks) > 1 else 0):
            for weight in _WEIGHTS:
                if not self._fit(blocks, targets, parts, [*self.weights[:place], weight, *self.weights[place + 1 :]]):
                    break

    def _fit(
        self, blocks: Sequence[Floats], targets: Floats, parts: Sequence[NDArray[np.int64]], weights: list[float]
    ) -> bool:
        """Take these weights if they are better than what is there, and say so."""
        before = self._error
        columns = _beside(blocks, weights)
        mean, offset = columns.mean(axis=0), targets.mean(axis=0)
        columns, centred = columns - mean, targets - offset
        strengths, directions = np.linalg.eigh(columns.T @ columns)
        turned = columns @ directions
        along = turned.T @ centred
        for penalty in len(columns) * _PENALTIES:
            shrunk = 1 / (np.maximum(strengths, 0) + penalty)
            missed = centred - turned @ (shrunk[:, None] * along)
            for part in parts:
                own = (turned[part] * shrunk) @ turned[part].T + 1 / len(columns)
                missed[part] = np.linalg.solve(np.eye(len(part)) - own, missed[part])
            error = float(np.square(missed).sum())
            if error < self._error:
                self._error, self.missed, self.penalty, self.weights = error, missed, float(penalty), weights
                self._slopes = directions @ (shrunk[:, None] * along)
                self._offset = offset - mean @ self._slopes
        return self._error < before

    def __call__(self, blocks: Sequence[Floats]) -> Floats:
        """Predictions of rows (M, q)."""
        predicted: Floats = _beside(blocks, self.weights) @ self._slopes + self._offset
        return predicted


def _beside(blocks: Sequence[Floats], weights: Sequence[float]) -> Floats:
    return np.concatenate([block * weight for block, weight in zip(blocks, weights, strict=True)], axis=1)


def fit_and_predict(
    blocks: Sequence[Floats], targets: Floats, queries: Sequence[Floats], groups: Sequence[str]
) -> dict[str, Floats]:
    """Fit all probes and predict.

    Args:
        blocks: Columns by where they come from, each (N, its width).
        targets: (N, q).
        queries: The same blocks of other rows, each (M, its width).
        groups: The video of each of the N rows.

    Returns:
        Of each probe (M, q).
    """
    from sklearn.decomposition import PCA
    from sklearn.kernel_approximation import Nystroem

    videos = np.unique(np.asarray(groups), return_inverse=True)[1]
    # Of one video its rows are dealt out.
    part_of = (videos if videos.any() else np.arange(len(videos))) % _PARTS
    parts = [np.flatnonzero(part_of == part) for part in np.unique(part_of)]
    scaled = Columns(blocks)
    linear = Ridge(scaled(blocks), targets, parts)
    # What says nothing to a linear map may tell rows apart.
    own, asked = (np.concatenate(scaled(some), axis=1) for some in (blocks, queries))
    if not own.any():
        # Nothing varies.
        return dict.fromkeys(PROBES, linear(scaled(queries)))
    components = PCA(min(_COMPONENTS, own.shape[1], len(own) // 2), random_state=0).fit(own)
    near, near_asked = components.transform(own), components.transform(asked)
    width = 2 * float(np.square(near).sum(axis=1).mean())
    functions = Nystroem(gamma=1 / max(width, 1e-12), n_components=min(_FUNCTIONS, len(own)), random_state=0).fit(near)
    wider = [functions.transform(some) for some in (near, near_asked)]
    wide = Columns([*blocks, wider[0]])
    predicted = linear(scaled(queries))
    return {
        LINEAR: predicted,
        NON_LINEAR: Ridge(wide([*blocks, wider[0]]), targets, parts)(wide([*queries, wider[1]])),
        NEIGHBOURS: predicted + _of_neighbours(near, linear.missed, near_asked, part_of),
    }


def _of_neighbours(inputs: Floats, missed: Floats, queries: Floats, part_of: NDArray[np.int64]) -> Floats:
    """What the nearest rows were missed by (M, q): of as many, and so much of it, as serves the rows of other parts best."""
    from sklearn.metrics.pairwise import euclidean_distances

    distances = euclidean_distances(inputs)
    distances[part_of[:, None] == part_of] = np.inf
    among, asked = np.argsort(distances, axis=1), np.argsort(euclidean_distances(queries, inputs), axis=1)
    best, guess = 0.0, np.zeros((len(queries), missed.shape[1]))
    for count in _NEIGHBOURS:
        near = missed[among[:, :count]].mean(axis=1)
        along, size = float((missed * near).sum()), float(np.square(near).sum())
        share = min(max(along / size, 0.0), 1.0) if size else 0.0
        gain = 2 * share * along - share**2 * size
        if gain > best:
            best, guess = gain, share * missed[asked[:, :count]].mean(axis=1)
    return guess


def out_of_fold(blocks: Sequence[Floats], targets: Floats, groups: Sequence[str]) -> tuple[dict[str, Floats], Floats]:
    """Predictions of rows (N, q) by probes that were fitted to rows of other videos, and the mean of those rows.

    Args:
        blocks: See `fit_and_predict`.
        targets: (N, q).
        groups: The video of each row.
    """
    found = {probe: np.empty_like(targets) for probe in PROBES}
    constant = np.empty_like(targets)
    for fitted, held_out in folds(groups):
        known, asked = ([block[places] for block in blocks] for places in (fitted, held_out))
        own = [groups[place] for place in fitted]
        for probe, predicted in fit_and_predict(known, targets[fitted], asked, own).items():
            found[probe][held_out] = predicted
        constant[held_out] = targets[fitted].mean(axis=0)
    return found, constant


def explained(errors: Floats, trivial: Floats, groups: Sequence[str]) -> Estimate:
    """Share of the trivial guess' squared error that is gone, with its bootstrap over videos.

    Args:
        errors: Squared errors of each row (N,).
        trivial: Those of the trivial guess (N,).
        groups: The video of each row.
    """
    counts = _counts(groups)
    total = counts @ trivial
    share = np.full(len(counts), np.nan)
    np.divide(counts @ errors, total, out=share, where=total > 0)
    return Estimate.of((1 - share)[None])


def told_apart(scores: Floats, positive: NDArray[np.bool_], groups: Sequence[str]) -> Estimate:
    """AUC of scores (N,) for a class (N,), with its bootstrap over videos."""
    return Estimate.of(auroc(scores, positive, _counts(groups))[None])


def _counts(groups: Sequence[str]) -> Floats:
    """How often each row counts: rows of one video say the same of its speaker, so videos are drawn."""
    videos = np.unique(np.asarray(groups), return_inverse=True)[1]
    return all_and_resampled(int(videos.max()) + 1)[:, videos]
