"""Affine maps between flat vectors: the layers of a network, as a certifier sees them.

Every map takes and gives tensors of shape (..., features), whatever the layer's own layout. A map
computes W x + b and states what bounds need to know of it. Bounds named `*_upper` are proved for
the map with its stored weights in exact arithmetic; take them from a float64 copy of the map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycrt.errors import require
from raycrt.spectral import nonnegative_norm_upper, weighted_gram_upper

# Matrices with more entries are not formed for a bound: 2^25 float64 are 256 MB.
DENSE_ENTRIES = 2**25
# Sums of a few thousand positive float64 terms are off by less than this, relatively.
SLACK = 1 + 1e-11


class AffineMap(nn.Module):
    """x -> W x + b from `in_features` to `out_features`; the family's contract.

    A member writes `linear`, `transpose`, `matrix` and `offset`; the rest follows from these, and
    is overridden where the layer's structure gives it without the dense matrix.

    Rounding: `linear`, `transpose` and `matrix`, computed with unit eps, are off by at most
    `n eps / (1 - n eps)`, n = `terms`, times `magnitude_upper()` (times the length of the vector).
    That holds in float64; in float32 only where `sums_in_float32` says so.
    """

    in_features: int
    out_features: int
    # Whether the map has `pull_weights`.
    pulls_weights = False

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
        """|W|^T v for rows v >= 0 (..., out_features), or more than it where W is a product."""
        return weights @ self.matrix().abs()

    def linear_absolute(self, x: Tensor) -> Tensor:
        """|W| x for rows x >= 0 (..., in_features)."""
        return x @ self.matrix().abs().T

    def row_norms(self) -> Tensor:
        """Lengths of the rows of W (out_features,), but for rounding."""
        return self.matrix().norm(dim=1)

    def transpose_interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Elementwise range of W^T c over all c in [low, high], but for the rounding of float64."""
        middle = self.transpose((low + high) / 2)
        reach = self.transpose_absolute((high - low) / 2)
        return middle - reach, middle + reach

    @property
    def terms(self) -> int:
        """Number of roundings that the error of an entry of a result is made of."""
        return max(self.in_features, self.out_features)

    @property
    def transpose_terms(self) -> int:
        """The same for `transpose` alone."""
        return self.terms

    def magnitude_upper(self) -> float:
        """A number >= the spectral norm of |W|, entry by entry absolute."""
        return nonnegative_norm_upper(self.matrix().detach().double().abs()) * SLACK

    def offset_norm_upper(self) -> float:
        """A number >= |b|, and >= the length of all that is added up to get b."""
        return float(self.offset().detach().double().norm()) * SLACK

    def matrix_error_upper(self) -> float:
        """A number >= |matrix() - W|: 0 where every entry is a stored weight."""
        return 0.0

    def gain_upper(self) -> float:
        """A number >= 1 and >= by what anything grows that is computed on the way through W or
        back, an input of length 1 and what is added included: 1 where nothing is on the way."""
        return 1.0

    def row_norms_upper(self) -> Tensor:
        """Numbers >= the lengths of the rows of W, float64 (out_features,)."""
        rows = torch.linalg.vector_norm(self.matrix().detach().double(), dim=1)
        return rows * SLACK + self.matrix_error_upper()

    def column_norms_upper(self) -> Tensor:
        """Numbers >= the lengths of the columns of W, float64 (in_features,)."""
        columns = torch.linalg.vector_norm(self.matrix().detach().double(), dim=0)
        return columns * SLACK + self.matrix_error_upper()

    def gram_upper(self, weights: Tensor) -> float:
        """A number >= lambda_max(W^T diag(weights) W) for float64 weights >= 0 (out_features,)."""
        root = math.sqrt(weighted_gram_upper(self.matrix().detach(), weights))
        root += math.sqrt(float(weights.max())) * self.matrix_error_upper()
        return root**2 * SLACK

    def pull_weights(self, weights: Tensor) -> Tensor:
        """Upper bounds of the diagonal of W^T diag(weights) W where that is diagonal: the weights
        before this map."""
        raise NotImplementedError

    def norm_upper(self) -> float:
        """A number >= the spectral norm |W|."""
        return math.sqrt(self.gram_upper(torch.ones(self.out_features, dtype=torch.float64)))

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

    def _eps(self) -> float:
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

    def magnitude_upper(self) -> float:
        return math.prod(link.magnitude_upper() for link in self.links) * SLACK

    def offset_norm_upper(self) -> float:
        total = 0.0
        for link in self.links:
            total = link.magnitude_upper() * total + link.offset_norm_upper()
        return total * SLACK

    def matrix_error_upper(self) -> float:
        if len(self.links) == 1:
            return self.links[0].matrix_error_upper()
        n = self.terms * self._eps()
        # And what is lost to underflow on the way.
        lost = torch.finfo(self.links[0].offset().dtype).smallest_normal * self.gain_upper()
        lost *= self.terms * max(self.in_features, self.out_features)
        return n / (1 - n) * self.magnitude_upper() + lost if n < 1 else math.inf

    def gain_upper(self) -> float:
        if len(self.links) == 1:
            return self.links[0].gain_upper()
        sizes = [link.magnitude_upper() for link in self.links]
        parts = [math.prod(sizes[i:j]) for i in range(len(sizes)) for j in range(i, len(sizes) + 1)]
        added = max(1.0, *(link.offset_norm_upper() for link in self.links))
        inside = max(link.gain_upper() for link in self.links)
        return len(sizes) * max(1.0, *parts) * added * inside * SLACK

    def row_norms_upper(self) -> Tensor:
        if self.dense:
            return super().row_norms_upper()
        *first, last = self.links
        return last.row_norms_upper() * math.prod(link.norm_upper() for link in first) * SLACK

    def column_norms_upper(self) -> Tensor:
        if self.dense:
            return super().column_norms_upper()
        first, *rest = self.links
        return first.column_norms_upper() * math.prod(link.norm_upper() for link in rest) * SLACK

    def gram_upper(self, weights: Tensor) -> float:
        """Of the dense matrix where that fits, else the product of the links' bounds."""
        if self.dense:
            return super().gram_upper(weights)
        *first, last = self.links
        if first and last.pulls_weights:
            return Chain(first).gram_upper(last.pull_weights(weights))
        norms = math.prod(link.norm_upper() for link in first)
        return last.gram_upper(weights) * norms**2 * SLACK
