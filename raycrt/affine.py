"""Affine maps between flat vectors: the layers of a network, as a certifier sees them.

Every map takes and gives tensors of shape (..., features), whatever the layer's own layout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycrt.errors import require


class AffineMap(nn.Module):
    """x -> W x + b from `in_features` to `out_features`; the family's contract.

    `forward` applies W x + b, `transpose` applies W^T, `matrix` is W as a dense
    (out_features, in_features) tensor and `offset` is b as a vector (zeros where there is none).
    """

    in_features: int
    out_features: int

    def transpose(self, cotangent: Tensor) -> Tensor:
        raise NotImplementedError

    def matrix(self) -> Tensor:
        raise NotImplementedError

    def offset(self) -> Tensor:
        raise NotImplementedError


class Dense(AffineMap):
    """A fully connected layer."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        require(in_features > 0, "in_features > 0", in_features=in_features)
        require(out_features > 0, "out_features > 0", out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def transpose(self, cotangent: Tensor) -> Tensor:
        return cotangent @ self.weight

    def matrix(self) -> Tensor:
        return self.weight

    def offset(self) -> Tensor:
        return self.bias
