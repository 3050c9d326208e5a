"""The base class of objectives: a module that holds the network and returns a loss per row.

A data-parallel wrapper around it averages exactly the gradients of what its forward returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from raycrt.networks.network import Network
from raycrt.specs import TrainSpec
from raycrt.training.folding.subspace import Subspace
from raycrt.training.precision import View
from raycrt.training.regularizer import CurvatureEstimate


@dataclass(frozen=True, kw_only=True)
class Losses:
    """`loss` (n,) per row, and the booleans `correct` and `robust` (n,) to be monitored."""

    loss: Tensor
    correct: Tensor
    robust: Tensor


class Objective(nn.Module):
    """forward(images, labels, radius) -> `Losses`; `radius` (0-d) is the ramped l2 radius.

    A subclass is registered with the keys of `train` that it uses (`training.registry`); `options`
    holds their values and no others. With a subspace, the network takes its coordinates.
    """

    uses: ClassVar[frozenset[str]]
    # True for `curvature.margins`, False for `curvature.bound`, else None.
    pairwise: ClassVar[bool | None] = None

    def __init__(self, network: Network, spec: TrainSpec, subspace: Subspace | None = None) -> None:
        super().__init__()
        self.network, self.subspace = network, subspace
        self.options = spec.only(self.uses)
        self.view = View(network, spec.precision)
        self.estimate = (
            None if self.pairwise is None else CurvatureEstimate(network, pairwise=self.pairwise)
        )

    @property
    def curvature(self) -> CurvatureEstimate:
        assert self.estimate is not None, (
            f"{type(self).__name__} uses curvature, so it must set pairwise: True for "
            "curvature.margins, False for curvature.bound"
        )
        return self.estimate

    def before_step(self) -> None:
        """Called once before each step, outside any data-parallel wrapper."""
        self.view.refresh()
        if self.estimate is not None:
            self.estimate.update(self.network)

    def forward(self, images: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        with torch.no_grad():
            x = images.flatten(1) if self.subspace is None else self.subspace(images)
        return self.losses(x, labels, radius)

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        """`forward` on flat inputs of the network."""
        raise NotImplementedError


OBJECTIVES: dict[str, type[Objective]] = {}


def without_label(logits: Tensor, labels: Tensor) -> Tensor:
    """`logits` (n, classes) with minus infinity for the labelled class."""
    return logits.scatter(1, labels[:, None], -torch.inf)
