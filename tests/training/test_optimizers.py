"""Two optimizers behind one: moments of their own, only the active one steps, state survives."""

import copy

import pytest
import torch
from torch import nn

from hf_msa.training.optimizers import AlternatingOptimizer


def make() -> tuple[nn.Parameter, nn.Parameter, AlternatingOptimizer]:
    shared, own = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    first = torch.optim.AdamW([shared], lr=0.1, weight_decay=0.0)
    second = torch.optim.AdamW([shared, own], lr=0.01, weight_decay=0.0)
    return shared, own, AlternatingOptimizer({"first": first, "second": second})


def step(optimizer: AlternatingOptimizer, part: str, *parameters: nn.Parameter) -> None:
    optimizer.activate(part)
    optimizer.zero_grad()
    sum(parameters).backward()
    optimizer.step()


def test_only_the_active_part_steps_and_moments_are_separate() -> None:
    shared, own, optimizer = make()
    step(optimizer, "first", shared)
    # Adam's first step has the size of the learning rate, whatever the gradient.
    assert shared.item() == pytest.approx(0.9) and own.item() == 1.0
    step(optimizer, "second", shared, own)
    assert shared.item() == pytest.approx(0.89) and own.item() == pytest.approx(0.99)
    assert optimizer.parts["first"].state[shared]["step"] == 1
    assert optimizer.parts["second"].state[shared]["step"] == 1


def test_schedulers_reach_both_parts() -> None:
    _, _, optimizer = make()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.005])
    assert optimizer.parts["second"].param_groups[0]["lr"] == pytest.approx(0.005)


def test_state_survives_saving() -> None:
    shared, own, optimizer = make()
    step(optimizer, "first", shared)
    step(optimizer, "second", shared, own)
    saved = copy.deepcopy(optimizer.state_dict())
    shared2, own2, restored = make()
    shared2.data, own2.data = shared.data.clone(), own.data.clone()
    restored.load_state_dict(saved)
    for part in ("second", "first"):
        step(optimizer, part, shared, own)
        step(restored, part, shared2, own2)
    assert torch.equal(shared, shared2) and torch.equal(own, own2)


def test_unknown_part_is_refused() -> None:
    _, _, optimizer = make()
    with pytest.raises(ValueError, match="parts are first, second"):
        optimizer.activate("third")
