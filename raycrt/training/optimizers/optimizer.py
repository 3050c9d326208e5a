"""Optimizers: Adam for all weights, or Muon for the hidden matrices."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from raycrt.networks.network import Network
from raycrt.specs import TrainSpec
from raycrt.training.optimizers.muon import Float32Muon
from raycrt.training.precision import has_bfloat16
from raycrt.training.registry import register


class Optimizer:
    """Several torch optimizers that step together, with one schedule for all learning rates."""

    uses: ClassVar[frozenset[str]]

    def __init__(self, network: Network, spec: TrainSpec) -> None:
        self.parts = self.made(network, spec.only(self.uses))
        self._rates = [[group["lr"] for group in part.param_groups] for part in self.parts]

    @staticmethod
    def made(network: Network, options: Any) -> list[torch.optim.Optimizer]:
        """The torch optimizers for the weights of `network`; `options` has the values of `uses`."""
        raise NotImplementedError

    def step(self, share: float) -> None:
        """Take one step with `share` of every part's learning rate."""
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


OPTIMIZERS: dict[str, type[Optimizer]] = {}


@register(OPTIMIZERS, "adam", uses=("learning_rate",))
class Adam(Optimizer):
    """Adam for all weights."""

    @staticmethod
    def made(network: Network, options: Any) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(network.parameters(), lr=options.learning_rate)]


@register(OPTIMIZERS, "muon", uses=("learning_rate", "muon_rate"))
class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of all layers but the last, Adam for the rest.

    Muon updates a matrix by its orthogonalised momentum, so that a step has the spectral norm
    `muon_rate * sqrt(max(1, rows / columns))`. Kernels of convolutions are left to Adam: their norm
    as a map of images is not that of a reshaped kernel.
    """

    @staticmethod
    def made(network: Network, options: Any) -> list[torch.optim.Optimizer]:
        matrices = [p for layer in network.layers[:-1] for p in layer.parameters() if p.dim() == 2]
        hidden = {id(p) for p in matrices}
        rest = [p for p in network.parameters() if id(p) not in hidden]
        quick = has_bfloat16(network.device)
        kind = torch.optim.Muon if quick else Float32Muon
        muon = kind(matrices, lr=options.muon_rate, weight_decay=0.0, momentum=0.95)
        return [muon, torch.optim.Adam(rest, lr=options.learning_rate, betas=(0.9, 0.99))]


def build(network: Network, spec: TrainSpec) -> Optimizer:
    """The optimizer that `spec` names, for the weights of `network`."""
    return OPTIMIZERS[spec.optimizer](network, spec)
