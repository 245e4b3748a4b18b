"""Two optimizers that take turns behind the interface of one."""

from collections.abc import Callable, Mapping
from typing import Any

import torch


class AlternatingOptimizer(torch.optim.Optimizer):
    """Several optimizers, each with moments of its own, of which one steps at a time.

    Learning-rate schedulers, checkpoints and `accelerate` see a single optimizer. Parameters may belong to several parts.

    Args:
        parts: The optimizers by name; the first is active to begin with.
    """

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer]) -> None:
        self.parts = dict(parts)
        self.active = next(iter(self.parts))
        # The base class checks that no parameter is in two groups, which here is the very purpose: it is set up with a
        # stand-in, and `param_groups` below gives the parts' own groups.
        super().__init__([torch.nn.Parameter(torch.zeros(()))], {})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of all parts, as the very dictionaries that the parts use."""
        return [group for part in self.parts.values() for group in part.param_groups]

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        pass

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Do nothing: groups belong to the parts."""

    def activate(self, name: str) -> None:
        """Choose the part that the next `step` runs."""
        if name not in self.parts:
            raise ValueError(f"There is no optimizer {name!r}; the parts are {', '.join(self.parts)}.")
        self.active = name

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step the active part."""
        return self.parts[self.active].step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients, also those that the active part does not own."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """The parts' states by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
