"""Pseudo labels per modality, guided by gradient norms (CMC, PLGM).

Paper: CMC, pseudo-label generation; the numbers and the order of steps are those of the public code.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_msa.models.msa_schema import SENTIMENT_CLASSES

_CLASSES = len(SENTIMENT_CLASSES)


def momentum_at(initial: float, gamma: float, epoch: int) -> float:
    """The momentum of an epoch, ``1 - (1 - initial) / epoch ** gamma``: what is kept grows towards 1.

    Args:
        initial: The momentum of the first epoch, m_0.
        gamma: How fast it grows.
        epoch: The epoch, counted from 1.

    Raises:
        ValueError: If the epoch is not counted from 1.
    """
    if epoch < 1:
        raise ValueError(f"Epochs of a momentum count from 1, but {epoch} was given; add 1 to a count from 0.")
    return 1.0 - (1.0 - initial) / math.pow(epoch, gamma)


class Guidance(NamedTuple):
    """What one prediction says about a label; see `guide`.

    Args:
        base_norm: Gradient norm at the hard label, g_base, of shape `(...)`.
        reverse_norm: Gradient norm at the predicted class, g_rev, of shape `(...)`.
        share: How far the label is drawn to the predicted class, a in [0, 1), of shape `(...)`.
        target: What the soft label moves towards, `(..., 3)`.
    """

    base_norm: Tensor
    reverse_norm: Tensor
    share: Tensor
    target: Tensor


def guide(probabilities: Tensor, classes: Tensor) -> Guidance:
    """Weigh hard labels against predictions by the norms of the cross entropy's gradients.

    The gradient of the cross entropy with respect to the logits is ``probabilities - onehot``, so its norm tells how much
    a prediction would have to change to agree with a label. ``a = (g_base - g_rev) / (g_base + g_rev)`` is 0 where the
    prediction agrees with the label, and close to 1 where a sure prediction contradicts it.

    Args:
        probabilities (`torch.FloatTensor` of shape `(..., 3)`): Predicted class probabilities.
        classes (`torch.LongTensor` of shape `(...)`): Hard labels before this step.
    """
    base = F.one_hot(classes, _CLASSES).to(probabilities.dtype)
    reverse = F.one_hot(probabilities.argmax(dim=-1), _CLASSES).to(probabilities.dtype)
    base_norm = (probabilities - base).norm(dim=-1)
    reverse_norm = (probabilities - reverse).norm(dim=-1)
    # Both norms are 0 where a prediction of exactly 1 agrees with its label.
    total = (base_norm + reverse_norm).clamp(min=torch.finfo(probabilities.dtype).tiny)
    share = (base_norm - reverse_norm) / total
    weight = share.unsqueeze(-1)
    return Guidance(base_norm, reverse_norm, share, (1 - weight) * base + weight * reverse)


def updated_labels(labels: Tensor, probabilities: Tensor, momentum: Tensor | float) -> Tensor:
    """Move soft labels towards what predictions say: ``m * label + (1 - m) * target``.

    Args:
        labels (`torch.FloatTensor` of shape `(..., 3)`): Soft labels.
        probabilities (`torch.FloatTensor` of shape `(..., 3)`): Predicted class probabilities, without gradient.
        momentum (`torch.FloatTensor` that broadcasts to `(..., 3)`, or `float`): What is kept of the labels.
    """
    target = guide(probabilities, labels.argmax(dim=-1)).target
    return momentum * labels + (1 - momentum) * target


class PseudoLabels:
    """The soft labels of one split, one per sample and modality.

    They begin as one-hot rows of the given classes, and change as fast as the momentum of the epoch allows. All
    processes of a run keep a table of their own; given the same predictions in the same order the tables are equal.

    Args:
        classes (`torch.LongTensor` of shape `(rows, modalities)`): The classes to begin with.
        momentum: The first epoch's momentum by modality, in the columns' order.
        gamma: Growth of the momentum by modality.

    Attributes:
        soft: Soft labels `(rows, modalities, 3)`, float32.
        epoch: The epoch of the latest update, 0 before the first.
    """

    def __init__(self, classes: Tensor, momentum: Sequence[float], gamma: Sequence[float]) -> None:
        self.classes = classes
        self.momentum = tuple(momentum)
        self.gamma = tuple(gamma)
        self.soft = F.one_hot(classes, _CLASSES).float()
        self.epoch = 0
        # The labels as they were when the latest epoch began.
        self._before = self.soft

    def to(self, device: torch.device | str) -> "PseudoLabels":
        """Move the table, and return it."""
        self.classes, self.soft, self._before = (
            tensor.to(device) for tensor in (self.classes, self.soft, self._before)
        )
        return self

    def hard(self, indices: Tensor | None = None) -> Tensor:
        """The likeliest class of each label, as `torch.LongTensor` of shape `(indices, modalities)`.

        Args:
            indices (`torch.LongTensor`, *optional*): Rows; default: all.
        """
        return (self.soft if indices is None else self.soft[indices]).argmax(dim=-1)

    def update(self, indices: Tensor, probabilities: Tensor, epoch: int) -> None:
        """Take in what was predicted for some rows.

        Args:
            indices (`torch.LongTensor` of shape `(batch,)`): Rows. One that is there twice counts once, by its first
                prediction.
            probabilities (`torch.FloatTensor` of shape `(batch, modalities, 3)`): Predicted class probabilities.
            epoch: The epoch, counted from 1.
        """
        if epoch != self.epoch:
            self.epoch, self._before = epoch, self.soft.clone()
        indices, probabilities = indices.to(self.soft.device), probabilities.to(self.soft.device).detach().float()
        places = torch.arange(len(indices), device=indices.device)
        # Which of several writes to one row wins is not defined on a GPU: all of them write the same.
        first = torch.full((len(self.soft),), len(indices), device=indices.device)
        first = first.scatter_reduce(0, indices, places, "amin")
        momentum = torch.tensor(
            [momentum_at(m, g, epoch) for m, g in zip(self.momentum, self.gamma, strict=True)],
            device=self.soft.device,
        )
        kept = probabilities[first[indices]]
        self.soft[indices] = updated_labels(self.soft[indices], kept, momentum.unsqueeze(-1))

    def flip_rates(self) -> list[float]:
        """Share of the rows whose hard label is no longer the class it began with, by modality."""
        rates: list[float] = (self.hard() != self.classes).double().mean(dim=0).tolist()
        return rates

    def changes(self) -> list[float]:
        """Mean L1 distance between the labels now and when the latest epoch began, by modality."""
        changes: list[float] = (self.soft - self._before).abs().sum(dim=-1).double().mean(dim=0).tolist()
        return changes

    def state(self) -> dict[str, Tensor]:
        """All that changes, as tensors of their own on the CPU."""
        tensors = {"soft": self.soft, "before": self._before, "epoch": torch.tensor(self.epoch)}
        return {name: tensor.cpu().clone() for name, tensor in tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        self.soft, self._before = (state[name].to(self.soft.device).clone() for name in ("soft", "before"))
        self.epoch = int(state["epoch"])
