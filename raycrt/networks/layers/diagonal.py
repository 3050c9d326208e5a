"""Affine maps that act on each feature separately, and maps that only reorder features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raycrt.errors import require
from raycrt.networks.layers.affine import AffineMap


class Diagonal(AffineMap):
    """x -> scale * x + offset, feature by feature.

    A subclass implements `scale` and `offset`; a computed `scale` has a relative error of at most
    8 eps.
    """

    def scale(self) -> Tensor:
        """The diagonal of W (out_features,)."""
        raise NotImplementedError

    def linear(self, x: Tensor) -> Tensor:
        return x * self.scale()

    def transpose(self, cotangent: Tensor) -> Tensor:
        return cotangent * self.scale()

    def transpose_absolute(self, weights: Tensor) -> Tensor:
        return weights * self.scale().abs()

    def matrix(self) -> Tensor:
        return torch.diag(self.scale())

    @property
    def terms(self) -> int:
        return 8


class Normalization(Diagonal):
    """Batch normalisation with fixed statistics: `weight (x - mean) / sqrt(variance + eps) + bias`.

    Each parameter has one number per channel, that is per `positions` consecutive features.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, positions: int, eps: float) -> None:
        super().__init__()
        require(eps >= 0, "eps >= 0", eps=eps)
        self.in_features = self.out_features = channels * positions
        self.positions, self.eps = positions, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def scale(self) -> Tensor:
        return self.spread(self.weight / (self.variance + self.eps).sqrt())

    def offset(self) -> Tensor:
        return self.spread(self.bias) - self.spread(self.mean) * self.scale()

    def spread(self, channels: Tensor) -> Tensor:
        return channels.repeat_interleave(self.positions)


class Standardization(Diagonal):
    """`(x - mean) / std`, with one constant of each per channel, that is per `positions`
    consecutive features."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, positions: int) -> None:
        super().__init__()
        self.in_features = self.out_features = channels * positions
        self.positions = positions
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def scale(self) -> Tensor:
        return (1 / self.std).repeat_interleave(self.positions)

    def offset(self) -> Tensor:
        return -self.mean.repeat_interleave(self.positions) * self.scale()

    def state(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the constants; `InvalidInput` unless their type holds them."""
        for name, numbers in (("mean", mean), ("std", std)):
            found = getattr(self, name).new_tensor(numbers)
            require(
                bool(found.isfinite().all()) and (name == "mean" or bool((found > 0).all())),
                f"data.normalize has a {name} that the type of the weights holds",
                smallest=min(numbers),
                largest=max(numbers),
            )
            getattr(self, name).copy_(found)


class Scaling(Diagonal):
    """`weight x / divisor + bias`, with one number of each for every feature.

    The divisor is kept as it is stored, since its reciprocal would be rounded.
    """

    divisor: Tensor

    def __init__(self, weight: Tensor, divisor: Tensor, bias: Tensor) -> None:
        super().__init__()
        features = len(weight)
        require(
            weight.shape == divisor.shape == bias.shape == (features,) and features > 0,
            "weight, divisor and bias are one number each for every feature",
            weight=tuple(weight.shape),
            divisor=tuple(divisor.shape),
            bias=tuple(bias.shape),
        )
        if not divisor.is_meta:
            require(bool((divisor != 0).all()), "divisor != 0", smallest=float(divisor.abs().min()))
        self.in_features = self.out_features = features
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)
        self.register_buffer("divisor", divisor)

    def scale(self) -> Tensor:
        return self.weight / self.divisor

    def offset(self) -> Tensor:
        return self.bias


class Identity(AffineMap):
    """x -> x."""

    like: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        require(features > 0, "features > 0", features=features)
        self.in_features = self.out_features = features
        # This only carries the type and the device of the network.
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def linear(self, x: Tensor) -> Tensor:
        return x

    def transpose(self, cotangent: Tensor) -> Tensor:
        return cotangent

    def transpose_absolute(self, weights: Tensor) -> Tensor:
        return weights

    def linear_absolute(self, x: Tensor) -> Tensor:
        return x

    def row_norms(self) -> Tensor:
        return self.like.new_ones(self.out_features)

    def matrix(self) -> Tensor:
        return torch.eye(self.in_features).to(self.like)

    def offset(self) -> Tensor:
        return self.like.new_zeros(self.out_features)

    @property
    def terms(self) -> int:
        return 1


class Permutation(Identity):
    """Feature i of the result is feature `order[i]` of the input."""

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        features = len(order)
        super().__init__(features)
        require(
            torch.equal(order.sort().values, torch.arange(features)),
            "order holds every feature once",
            features=features,
        )
        self.register_buffer("order", order)

    def linear(self, x: Tensor) -> Tensor:
        return x[..., self.order]

    def transpose(self, cotangent: Tensor) -> Tensor:
        return cotangent[..., self.order.argsort()]

    def transpose_absolute(self, weights: Tensor) -> Tensor:
        return self.transpose(weights)

    def linear_absolute(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def matrix(self) -> Tensor:
        return super().matrix()[self.order]
