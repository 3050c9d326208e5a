"""What stands between two affine layers: an activation on the first features, the rest passed on.

A residual block `x + V s(W x + b)` is a layer `[W; I]`, an activation on the rows of W alone, and a
layer `[V I]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F

from raycrt.activations import Activation
from raycrt.errors import require

# softplus is linear to the last bit of float64 above this: exp(-40) < 2^-57.
_SOFTPLUS_LINEAR = 40.0

TORCH = SimpleNamespace(
    exp=torch.exp,
    tanh=torch.tanh,
    arctan=torch.arctan,
    erf=torch.erf,
    sigmoid=torch.sigmoid,
    softplus=lambda z: F.softplus(z, threshold=_SOFTPLUS_LINEAR),
    minimum=torch.minimum,
    maximum=torch.maximum,
    where=torch.where,
    clip=torch.clip,
)


@dataclass(frozen=True, kw_only=True)
class Nonlinearity:
    """`activation` on the first `active` of `width` features; the others are passed on unchanged,
    with slope 1 and curvature 0."""

    activation: Activation
    active: int
    width: int

    def __post_init__(self) -> None:
        require(
            0 < self.active <= self.width,
            "an activation acts on some of a layer's features",
            active=self.active,
            width=self.width,
        )

    @property
    def passes(self) -> int:
        """The number of features passed on."""
        return self.width - self.active

    def value(self, z: Tensor) -> Tensor:
        """h (..., width) from z (..., width)."""
        if not self.passes:
            return self.activation.value(z, TORCH)
        acted, passed = z.split([self.active, self.passes], -1)
        return torch.cat([self.activation.value(acted, TORCH), passed], -1)

    def slope(self, z: Tensor) -> Tensor:
        """The derivative of each feature of h in its own z (..., width)."""
        if not self.passes:
            return self.activation.slope(z, TORCH)
        acted, passed = z.split([self.active, self.passes], -1)
        return torch.cat([self.activation.slope(acted, TORCH), torch.ones_like(passed)], -1)

    def slope_ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest slope of each feature (width,), of the type of `like`."""
        return self._ends(self.activation.slope_range, 1.0, like)

    def curvature_ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest curvature of each feature (width,), of the type of `like`."""
        return self._ends(self.activation.curvature_range, 0.0, like)

    def slope_ends_on(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The ranges of the slopes where z is in `low` .. `high` (width,)."""
        found = self.activation.slope_range_on(low[: self.active], high[: self.active], TORCH)
        return self._with_passed(found, 1.0)

    def curvature_ends_on(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The ranges of the curvatures where z is in `low` .. `high` (width,)."""
        found = self.activation.curvature_range_on(low[: self.active], high[: self.active], TORCH)
        return self._with_passed(found, 0.0)

    @property
    def slope_bound(self) -> float:
        """`|h'(z)| <= slope_bound` for every z and feature."""
        own = self.activation.slope_bound
        return max(own, 1.0) if self.passes else own

    @property
    def curvature_bound(self) -> float:
        """`|h''(z)| <= curvature_bound` for every z and feature."""
        return self.activation.curvature_bound

    @property
    def at_zero(self) -> float:
        """An upper bound on the norm of h at z = 0."""
        zero = torch.zeros((), dtype=torch.float64)
        return abs(float(self.activation.value(zero, TORCH))) * math.sqrt(self.active)

    def acts(self, like: Tensor) -> Tensor:
        """1 for each feature that the activation acts on, 0 for the others (width,)."""
        return self._ends((1.0, 1.0), 0.0, like)[0]

    def _ends(
        self, acted: tuple[float, float], passed: float, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        low, high = (like.new_full((self.active,), end) for end in acted)
        return self._with_passed((low, high), passed)

    def _with_passed(self, acted: tuple[Tensor, Tensor], passed: float) -> tuple[Tensor, Tensor]:
        if not self.passes:
            return acted
        low, high = (torch.cat([end, end.new_full((self.passes,), passed)]) for end in acted)
        return low, high
