"""Proved bounds on maps of each feature separately; they are registered with `norms.norms`."""

from __future__ import annotations

import torch
from torch import Tensor

from raycrt.bounds.layers.norms import Norms, norms
from raycrt.bounds.spectral import SLACK
from raycrt.networks.layers.diagonal import (
    Diagonal,
    Identity,
    Normalization,
    Scaling,
    Standardization,
)


@norms.register(Diagonal)
class DiagonalNorms(Norms[Diagonal]):
    """Bounds from the scale, which is computed with a relative error of at most 8 eps."""

    def magnitude_upper(self) -> float:
        return float(self.layer.scale().detach().abs().max()) * (1 + 16 * self.layer.machine_eps)

    def matrix_error_upper(self) -> float:
        return 8 * self.layer.machine_eps * self.magnitude_upper()

    def row_norms_upper(self) -> Tensor:
        return self.layer.scale().detach().abs().double() * (1 + 16 * self.layer.machine_eps)

    def column_norms_upper(self) -> Tensor:
        return self.row_norms_upper()

    def gram_upper(self, weights: Tensor) -> float:
        return float((weights * self.row_norms_upper().square()).max()) * SLACK

    def _gain_upper(self, stored: tuple[Tensor, ...], divisor: Tensor) -> float:
        """`gain_upper` from the `stored` numbers, as intermediate results, and 1 / divisor."""
        largest = max(float(numbers.detach().abs().max()) for numbers in stored)
        steep = 1 / float(divisor.min())
        return max(1.0, largest, steep) * max(1.0, self.magnitude_upper()) * SLACK


@norms.register(Normalization)
class NormalizationNorms(DiagonalNorms):
    layer: Normalization

    def offset_norm_upper(self) -> float:
        bias, mean = (self.layer.spread(part) for part in (self.layer.bias, self.layer.mean))
        moved = mean.double().norm() * self.magnitude_upper()
        return float(bias.detach().double().norm() + moved) * SLACK

    def gain_upper(self) -> float:
        own = self.layer
        return self._gain_upper(
            (own.weight, own.bias, own.mean, own.variance), own.variance + own.eps
        )


@norms.register(Standardization)
class StandardizationNorms(DiagonalNorms):
    layer: Standardization

    def offset_norm_upper(self) -> float:
        mean = self.layer.mean.repeat_interleave(self.layer.positions)
        return float(mean.double().norm()) * self.magnitude_upper() * SLACK

    def gain_upper(self) -> float:
        return self._gain_upper((self.layer.mean, self.layer.std), self.layer.std)


@norms.register(Scaling)
class ScalingNorms(DiagonalNorms):
    layer: Scaling

    def gain_upper(self) -> float:
        own = self.layer
        return self._gain_upper((own.weight, own.bias, own.divisor), own.divisor.abs())


@norms.register(Identity)
class IdentityNorms(Norms[Identity]):
    """Also those of permutations."""

    def magnitude_upper(self) -> float:
        return 1.0

    def row_norms_upper(self) -> Tensor:
        size, device = self.layer.out_features, self.layer.like.device
        return torch.ones(size, dtype=torch.float64, device=device)

    def column_norms_upper(self) -> Tensor:
        return self.row_norms_upper()

    def gram_upper(self, weights: Tensor) -> float:
        return float(weights.max())
