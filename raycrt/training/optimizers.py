"""What moves the weights: Adam for all of them, or Muon for the hidden matrices."""

from __future__ import annotations

from typing import Any

import torch

from raycrt.networks.network import Network
from raycrt.spec import TrainSpec


class Optimizer:
    """Several torch optimizers that step together, with one schedule for all their rates."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self._rates = [[group["lr"] for group in part.param_groups] for part in parts]

    def step(self, share: float) -> None:
        """One step with `share` of every part's learning rate."""
        for part, rates in zip(self.parts, self._rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * share
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {str(index): part.state_dict() for index, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for index, part in enumerate(self.parts):
            part.load_state_dict(state[str(index)])


def build(network: Network, spec: TrainSpec) -> Optimizer:
    """The optimizer that `spec` names.

    Muon (Jordan et al. 2024) moves a matrix by its orthogonalised momentum, so that a step has the
    spectral norm `muon_rate * sqrt(max(1, rows / columns))`. It has the matrices of all layers but
    the last; Adam has the rest, kernels of convolutions included: their norm as a map of images is
    not that of a reshaped kernel.
    """
    if spec.optimizer == "adam":
        return Optimizer([torch.optim.Adam(network.parameters(), lr=spec.learning_rate)])
    matrices = [p for layer in network.layers[:-1] for p in layer.parameters() if p.dim() == 2]
    hidden = {id(p) for p in matrices}
    rest = [p for p in network.parameters() if id(p) not in hidden]
    muon = torch.optim.Muon(matrices, lr=spec.muon_rate, weight_decay=0.0, momentum=0.95)
    return Optimizer([muon, torch.optim.Adam(rest, lr=spec.learning_rate, betas=(0.9, 0.99))])
