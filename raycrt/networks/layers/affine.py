"""Affine maps between flat vectors: the layers of a network as the certifier uses them.

Every map takes and returns tensors of shape (..., features), whatever the layer's own layout. A map
defines W x + b and the number of roundings in its evaluation; the bounds proved for it are in
`raycrt.bounds.layers.norms`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycrt.errors import require

# Matrices with more entries are not formed for a bound: 2^25 float64 are 256 MB.
DENSE_ENTRIES = 2**25


class AffineMap(nn.Module):
    """Base class of the maps x -> W x + b from `in_features` to `out_features`.

    A subclass implements `linear`, `transpose`, `matrix` and `offset`; the rest follows from these,
    and is overridden where the layer's structure gives it without the dense matrix.

    Rounding: the errors of `linear`, `transpose` and `matrix`, computed with machine epsilon eps,
    are at most `n eps / (1 - n eps)`, n = `terms`, times the spectral norm of |W|
    (`bounds.norms.Norms.magnitude_upper`) and the norm of the vector. That holds in float64; in
    float32 only where `sums_in_float32` is true.
    """

    in_features: int
    out_features: int

    def linear(self, x: Tensor) -> Tensor:
        """W x for rows x (..., in_features)."""
        raise NotImplementedError

    def transpose(self, cotangent: Tensor) -> Tensor:
        """W^T c for rows c (..., out_features)."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """W, dense (out_features, in_features)."""
        raise NotImplementedError

    def offset(self) -> Tensor:
        """b (out_features,), zeros where there is none."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.offset()

    def transpose_absolute(self, weights: Tensor) -> Tensor:
        """|W|^T v for rows v >= 0 (..., out_features), or an upper bound where W is a product."""
        return weights @ self.matrix().abs()

    def linear_absolute(self, x: Tensor) -> Tensor:
        """|W| x for rows x >= 0 (..., in_features)."""
        return x @ self.matrix().abs().T

    def row_norms(self) -> Tensor:
        """Norms of the rows of W (out_features,), up to rounding."""
        return self.matrix().norm(dim=1)

    def transpose_interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Elementwise range of W^T c over all c in [low, high], up to float64 rounding."""
        middle = self.transpose((low + high) / 2)
        reach = self.transpose_absolute((high - low) / 2)
        return middle - reach, middle + reach

    @property
    def terms(self) -> int:
        """Number of roundings that contribute to the error of an entry of a result."""
        return max(self.in_features, self.out_features)

    @property
    def transpose_terms(self) -> int:
        """The number of roundings for `transpose` alone."""
        return self.terms

    @property
    def sums_in_float32(self) -> bool:
        """Whether float32 results are plain sums of products, so that `terms` bounds their error.

        Libraries may convolve in float32 by Winograd's or Fourier transforms or in TF32.
        """
        return True

    @property
    def dense(self) -> bool:
        """Whether the matrix is small enough to be formed for a bound."""
        return self.in_features * self.out_features <= DENSE_ENTRIES

    @property
    def machine_eps(self) -> float:
        """The machine epsilon of the type of the weights."""
        return torch.finfo(self.offset().dtype).eps


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

    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def transpose(self, cotangent: Tensor) -> Tensor:
        return cotangent @ self.weight

    @property
    def transpose_terms(self) -> int:
        return self.out_features

    def matrix(self) -> Tensor:
        return self.weight

    def offset(self) -> Tensor:
        return self.bias


class OneLogit(AffineMap):
    """The logits (0, z) of two classes: `weight` (1, in_features) and `bias` (1,) make z."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        dense = Dense(in_features, 1)
        self.in_features, self.out_features = in_features, 2
        self.weight, self.bias = dense.weight, dense.bias

    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix())

    def transpose(self, cotangent: Tensor) -> Tensor:
        return cotangent @ self.matrix()

    def matrix(self) -> Tensor:
        return torch.cat([torch.zeros_like(self.weight), self.weight])

    def offset(self) -> Tensor:
        return torch.cat([torch.zeros_like(self.bias), self.bias])


def links_of(maps: Iterable[AffineMap]) -> list[AffineMap]:
    """`maps` with the links of chains in their place."""
    return [
        link
        for layer in maps
        for link in (links_of(layer.links) if isinstance(layer, Chain) else [layer])
    ]


class Chain(AffineMap):
    """Several affine maps, one after the other, as one map."""

    def __init__(self, maps: Sequence[AffineMap]) -> None:
        super().__init__()
        require(len(maps) > 0, "at least one map", maps=len(maps))
        for before, after in itertools.pairwise(maps):
            require(
                before.out_features == after.in_features,
                "out_features of a map == in_features of the next",
                out_features=before.out_features,
                in_features=after.in_features,
            )
        self.maps = nn.ModuleList(maps)
        self.in_features, self.out_features = maps[0].in_features, maps[-1].out_features

    @property
    def links(self) -> list[AffineMap]:
        """The maps in the order in which they are applied, typed."""
        return list(self.maps)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for link in self.links:
            x = link(x)
        return x

    def linear(self, x: Tensor) -> Tensor:
        for link in self.links:
            x = link.linear(x)
        return x

    def transpose(self, cotangent: Tensor) -> Tensor:
        for link in reversed(self.links):
            cotangent = link.transpose(cotangent)
        return cotangent

    def transpose_absolute(self, weights: Tensor) -> Tensor:
        for link in reversed(self.links):
            weights = link.transpose_absolute(weights)
        return weights

    def matrix(self) -> Tensor:
        like = self.links[0].offset()
        if self.out_features <= self.in_features:
            return self.transpose(torch.eye(self.out_features).to(like))
        return self.linear(torch.eye(self.in_features).to(like)).T

    def offset(self) -> Tensor:
        like = self.links[0].offset()
        return self(torch.zeros(self.in_features).to(like))

    @property
    def terms(self) -> int:
        return sum(link.terms + 2 for link in self.links)

    @property
    def sums_in_float32(self) -> bool:
        return all(link.sums_in_float32 for link in self.links)
