"""The update of pseudo labels against numbers computed by hand, and the table that applies it."""

import math

import pytest
import torch
from torch.nn import functional as F

from hf_msa.training.cmc.pseudo_labels import PseudoLabels, guide, momentum_at, updated_labels


def doubles(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("initial", "gamma", "epoch", "expected"),
    [
        (0.8, 0.5, 1, 0.8),
        (0.6, 2.0, 1, 0.6),
        (0.8, 0.5, 4, 0.9),  # 1 - 0.2 / 2
        (0.8, 2.5, 4, 0.99375),  # 1 - 0.2 / 32
        (0.9, 5.0, 4, 1 - 0.1 / 1024),
        (0.6, 2.0, 4, 0.975),  # 1 - 0.4 / 16
    ],
)
def test_momentum(initial: float, gamma: float, epoch: int, expected: float) -> None:
    assert momentum_at(initial, gamma, epoch) == pytest.approx(expected, abs=1e-12)


def test_epochs_count_from_one() -> None:
    with pytest.raises(ValueError, match="count from 1, but 0"):
        momentum_at(0.8, 0.5, 0)


def test_a_contradicting_prediction_by_hand() -> None:
    """p = (.1, .2, .7), label 0: g_base = |(-.9, .2, .7)| = sqrt(1.34), g_rev = |(.1, .2, -.3)| = sqrt(.14)."""
    probabilities = doubles(0.1, 0.2, 0.7)
    found = guide(probabilities, torch.tensor(0))
    assert found.base_norm.item() == pytest.approx(math.sqrt(1.34))
    assert found.reverse_norm.item() == pytest.approx(math.sqrt(0.14))
    assert found.share.item() == pytest.approx(0.5114531, abs=1e-7)
    assert torch.allclose(found.target, doubles(0.4885469, 0, 0.5114531), atol=1e-7)
    moved = updated_labels(doubles(1.0, 0.0, 0.0), probabilities, 0.8)
    assert torch.allclose(moved, doubles(0.8977094, 0, 0.1022906), atol=1e-7)


@pytest.mark.parametrize("probabilities", [(0.1, 0.2, 0.7), (0.0, 0.0, 1.0)])
def test_an_agreeing_prediction_draws_towards_the_hard_label(probabilities: tuple[float, ...]) -> None:
    found = guide(doubles(*probabilities), torch.tensor(2))
    assert found.share.item() == 0.0
    assert torch.equal(found.target, doubles(0, 0, 1))
    assert torch.allclose(updated_labels(doubles(0.4, 0, 0.6), doubles(*probabilities), 0.5), doubles(0.2, 0, 0.8))


def test_norms_are_those_of_the_cross_entropy_s_gradient() -> None:
    logits = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    F.cross_entropy(logits, classes, reduction="sum").backward()
    found = guide(logits.detach().softmax(-1), classes)
    assert torch.allclose(found.base_norm, logits.grad.norm(dim=-1))


def flip_epoch(initial: float, gamma: float, last: int) -> int | None:
    label, sure = doubles(1.0, 0.0, 0.0), doubles(0.05, 0.05, 0.9)
    assert guide(sure, torch.tensor(0)).share.item() == pytest.approx(0.8289528, abs=1e-7)
    for epoch in range(1, last + 1):
        label = updated_labels(label, sure, momentum_at(initial, gamma, epoch))
        if label.argmax() != 0:
            return epoch
    return None


def test_how_long_a_sure_contradiction_takes_to_flip_a_label() -> None:
    """With the paper's momenta text may flip at epoch 8, audio and vision not within any run."""
    assert flip_epoch(0.8, 0.5, 100) == 8
    assert flip_epoch(0.99, 0.5, 2201) is None
    assert flip_epoch(0.99, 0.5, 2202) == 2202


def test_labels_stay_probabilities() -> None:
    labels = torch.rand(50, 2, 3).softmax(-1)
    moved = updated_labels(labels, torch.randn(50, 2, 3).mul(3).softmax(-1), torch.tensor([[0.3], [0.9]]))
    assert torch.allclose(moved.sum(-1), torch.ones(50, 2)) and (moved >= 0).all()


def table(rows: int = 4) -> PseudoLabels:
    classes = torch.arange(rows).remainder(3).unsqueeze(1).expand(rows, 2).clone()
    return PseudoLabels(classes, momentum=(0.8, 0.99), gamma=(0.5, 0.5))


def test_a_table_begins_one_hot_and_moves_each_modality_by_its_own_momentum() -> None:
    labels = table()
    assert torch.equal(labels.hard()[:, 0], torch.tensor([0, 1, 2, 0]))
    assert torch.equal(labels.soft.sum(-1), torch.ones(4, 2)) and labels.flip_rates() == [0, 0]
    probabilities = torch.tensor([0.1, 0.2, 0.7]).expand(1, 2, 3)
    labels.update(torch.tensor([3]), probabilities, epoch=1)
    assert torch.allclose(labels.soft[3, 0], torch.tensor([0.8977094, 0, 0.1022906]))
    assert torch.allclose(labels.soft[3, 1], torch.tensor([1 - 0.01 * 0.5114531, 0, 0.01 * 0.5114531]))
    assert torch.equal(labels.soft[:3], table().soft[:3]), "rows that were not seen stay as they are"
    # Two entries of a row each move by 0.1022906; one of four rows moved.
    assert labels.changes() == pytest.approx([2 * 0.1022906 / 4, 2 * 0.01 * 0.5114531 / 4], rel=1e-5)


def test_flips_and_changes_of_an_epoch() -> None:
    labels = table(2)
    sure = torch.tensor([[0.05, 0.05, 0.9]]).expand(2, 2, 3)
    for epoch in range(1, 9):
        assert labels.flip_rates() == [0, 0]
        before = labels.soft.clone()
        labels.update(torch.tensor([0]), sure[:1], epoch)
        labels.update(torch.tensor([1]), sure[1:], epoch)
        expected = (labels.soft - before).abs().sum(-1).mean(0)
        assert labels.changes() == pytest.approx(expected.tolist(), rel=1e-5), "since the epoch began, not the step"
    assert labels.flip_rates() == [1.0, 0.0]
    assert torch.equal(labels.hard(torch.tensor([1])), torch.tensor([[2, 1]]))


def test_a_row_that_is_there_twice_counts_once() -> None:
    once, twice = table(), table()
    probabilities = torch.randn(3, 2, 3).softmax(-1)
    once.update(torch.tensor([2, 0]), probabilities[:2], epoch=2)
    twice.update(torch.tensor([2, 0, 2]), probabilities, epoch=2)
    assert torch.equal(once.soft, twice.soft)


def test_state_goes_on_where_it_was() -> None:
    torch.manual_seed(0)
    steps = [(torch.randperm(4)[:2], torch.randn(2, 2, 3).softmax(-1), 1 + step // 2) for step in range(8)]
    labels, resumed = table(), table()
    for step in steps[:5]:
        labels.update(*step)
    state = labels.state()
    for step in steps[5:]:
        labels.update(*step)
    resumed.load_state(state)
    for step in steps[5:]:
        resumed.update(*step)
    assert torch.equal(labels.soft, resumed.soft) and labels.epoch == resumed.epoch == 4
    assert labels.changes() == resumed.changes()
    assert not torch.equal(state["soft"], labels.soft), "a state does not follow the table"
