"""Proved bounds on affine maps: one class per kind of layer, selected by `norms(layer)`.

A value named `*_upper` is proved for the map with its stored weights in exact arithmetic; compute
it from a float64 copy of the map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatch
from typing import Generic, TypeVar

import torch
from torch import Tensor

from raycrt.bounds.layers.torus import torus_norm_upper
from raycrt.bounds.spectral import SLACK, nonnegative_norm_upper, weighted_gram_upper
from raycrt.errors import require
from raycrt.networks.layers.affine import AffineMap, Chain, Dense
from raycrt.networks.layers.convolution import AveragePool, Correlation
from raycrt.networks.layers.diagonal import Diagonal

# Squares of smaller norms may underflow.
_SMALLEST = 1e-140
Kind = TypeVar("Kind", bound=AffineMap, covariant=True)


class Norms(Generic[Kind]):
    """Bounds on any affine map, from its matrix.

    A subclass for a kind of layer overrides the bounds that the layer's structure gives without the
    dense matrix or more tightly, and is registered with `norms`.
    """

    def __init__(self, layer: Kind) -> None:
        self.layer = layer

    def magnitude_upper(self) -> float:
        """A number >= the spectral norm of the entrywise absolute value |W|."""
        return nonnegative_norm_upper(self.layer.matrix().detach().double().abs()) * SLACK

    def offset_norm_upper(self) -> float:
        """A number >= |b|, and >= the norm of all terms that are summed to compute b."""
        return float(_vector_norms_upper(self.layer.offset(), dim=0))

    def offset_magnitude_upper(self) -> Tensor:
        """Numbers >= |b_i|, and >= the size of all terms that are summed to compute b_i, float64
        (out_features,)."""
        size, device = (self.layer.out_features,), self.layer.offset().device
        return torch.full(size, self.offset_norm_upper(), dtype=torch.float64, device=device)

    def matrix_error_upper(self) -> float:
        """A number >= |matrix() - W|: 0 where every entry is a stored weight."""
        return 0.0

    def gain_upper(self) -> float:
        """A number >= 1 and >= the amplification of any intermediate result of W x or W^T c,
        including the addition of b, for an input of norm 1."""
        return 1.0

    def row_norms_upper(self) -> Tensor:
        """Numbers >= the norms of the rows of W, float64 (out_features,)."""
        rows = _vector_norms_upper(self.layer.matrix(), dim=1)
        return rows + self.matrix_error_upper()

    def column_norms_upper(self) -> Tensor:
        """Numbers >= the norms of the columns of W, float64 (in_features,)."""
        columns = _vector_norms_upper(self.layer.matrix(), dim=0)
        return columns + self.matrix_error_upper()

    def gram_upper(self, weights: Tensor) -> float:
        """A number >= lambda_max(W^T diag(weights) W) for float64 weights >= 0 (out_features,)."""
        root = math.sqrt(weighted_gram_upper(self.layer.matrix().detach(), weights))
        root += math.sqrt(float(weights.max())) * self.matrix_error_upper()
        return root**2 * SLACK

    def transpose_interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Elementwise range of W^T c over all c in [low, high], up to rounding and the errors of
        the matrix."""
        return self.layer.transpose_interval(low, high)

    def norm_upper(self) -> float:
        """A number >= the spectral norm |W|."""
        size, device = self.layer.out_features, self.layer.offset().device
        ones = torch.ones(size, dtype=torch.float64, device=device)
        return math.sqrt(self.gram_upper(ones))


def _vector_norms_upper(vectors: Tensor, dim: int) -> Tensor:
    """Numbers >= the Euclidean norms along `dim`, float64; 0 for vectors of zeros."""
    vectors = vectors.detach().double()
    found = torch.linalg.vector_norm(vectors, dim=dim).clamp(min=_SMALLEST) * SLACK
    return torch.where((vectors != 0).any(dim), found, 0.0)


def interval_by_matrix(layer: AffineMap, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """`layer.transpose_interval`, from the matrix where that is formed: of a product it is smaller
    than what `transpose_absolute` bounds."""
    if not layer.dense:
        return layer.transpose_interval(low, high)
    middle = layer.transpose((low + high) / 2)
    reach = ((high - low) / 2) @ layer.matrix().abs()
    return middle - reach, middle + reach


@singledispatch
def norms(layer: AffineMap) -> Norms:
    """The proved bounds on `layer`, selected by its kind."""
    return Norms(layer)


def formed(layers: Sequence[AffineMap]) -> tuple[list[Tensor], list[float]]:
    """The matrices of `layers` and, for each, a number >= |matrix - W|; `InvalidInput` if one is
    too large to be formed."""
    require(
        all(layer.dense for layer in layers),
        "every layer's matrix can be formed where region is 'local'",
        entries=[layer.out_features * layer.in_features for layer in layers],
    )
    return (
        [layer.matrix() for layer in layers],
        [norms(layer).matrix_error_upper() for layer in layers],
    )


class DenseNorms(Norms[Dense]):
    def offset_magnitude_upper(self) -> Tensor:
        return self.layer.bias.detach().double().abs()


class ChainNorms(Norms[Chain]):
    """Bounds from those of the links where the matrix of the whole chain is not formed."""

    @property
    def links(self) -> list[Norms]:
        return [norms(link) for link in self.layer.links]

    def magnitude_upper(self) -> float:
        return math.prod(link.magnitude_upper() for link in self.links) * SLACK

    def offset_norm_upper(self) -> float:
        total = 0.0
        for link in self.links:
            total = link.magnitude_upper() * total + link.offset_norm_upper()
        return total * SLACK

    def offset_magnitude_upper(self) -> Tensor:
        *first, last = self.layer.links
        given = norms(Chain(first)).offset_norm_upper() if first else 0.0
        own = norms(last)
        return (own.magnitude_upper() * given + own.offset_magnitude_upper()) * SLACK

    def matrix_error_upper(self) -> float:
        if len(self.links) == 1:
            return self.links[0].matrix_error_upper()
        # Several times what is needed: a checker bounds each entry by itself.
        n = 4 * self.layer.terms * self.layer.machine_eps
        # In addition, the loss to underflow in intermediate results.
        kind = self.layer.links[0].offset().dtype
        lost = torch.finfo(kind).smallest_normal * self.gain_upper()
        lost *= self.layer.terms * max(self.layer.in_features, self.layer.out_features)
        return n / (1 - n) * self.magnitude_upper() + lost if n < 1 else math.inf

    def gain_upper(self) -> float:
        if len(self.links) == 1:
            return self.links[0].gain_upper()
        sizes = [link.magnitude_upper() for link in self.links]
        parts = [math.prod(sizes[i:j]) for i in range(len(sizes)) for j in range(i, len(sizes) + 1)]
        added = max(1.0, *(link.offset_norm_upper() for link in self.links))
        inside = max(link.gain_upper() for link in self.links)
        return len(sizes) * max(1.0, *parts) * added * inside * SLACK

    def transpose_interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return interval_by_matrix(self.layer, low, high)

    def row_norms_upper(self) -> Tensor:
        if self.layer.dense:
            return super().row_norms_upper()
        *first, last = self.links
        return last.row_norms_upper() * math.prod(link.norm_upper() for link in first) * SLACK

    def column_norms_upper(self) -> Tensor:
        if self.layer.dense:
            return super().column_norms_upper()
        first, *rest = self.links
        return first.column_norms_upper() * math.prod(link.norm_upper() for link in rest) * SLACK

    def gram_upper(self, weights: Tensor) -> float:
        """From the dense matrix where that fits, else the product of the links' bounds."""
        if self.layer.dense:
            return super().gram_upper(weights)
        *first, last = self.layer.links
        own = norms(last)
        if first and isinstance(last, Diagonal):
            scale = own.row_norms_upper()
            return norms(Chain(first)).gram_upper(weights * scale.square() * SLACK)
        product = math.prod(norms(link).norm_upper() for link in first)
        return own.gram_upper(weights) * product**2 * SLACK


class CorrelationNorms(Norms[Correlation]):
    """Bounds from the kernel; on a torus where the dense matrix is too large to be formed."""

    def magnitude_upper(self) -> float:
        """Schur's test, `sqrt(largest row sum * largest column sum)` of |W|, or Frobenius."""
        absolute = self.layer.ungrouped(self.layer.kernel().detach().double().abs())
        schur = math.sqrt(float(absolute.sum((1, 2, 3)).max() * absolute.sum((0, 2, 3)).max()))
        frobenius = float(absolute.norm()) * math.sqrt(math.prod(self.layer.out_shape[1:]))
        return min(schur, frobenius) * SLACK + self.matrix_error_upper()

    def row_norms_upper(self) -> Tensor:
        square = self.layer.kernel().detach().double().square()
        ones = torch.ones(self.layer.in_features, dtype=torch.float64, device=square.device)
        sums = self.layer.apply_kernel(ones, square)
        return sums.sqrt() * SLACK + self.matrix_error_upper()

    def column_norms_upper(self) -> Tensor:
        square = self.layer.kernel().detach().double().square()
        ones = torch.ones(self.layer.out_features, dtype=torch.float64, device=square.device)
        sums = self.layer.apply_adjoint(ones, square)
        return sums.sqrt() * SLACK + self.matrix_error_upper()

    def gram_upper(self, weights: Tensor) -> float:
        """From the dense matrix where that fits, else on the torus with the largest weight per
        channel."""
        if self.layer.dense:
            return super().gram_upper(weights)
        channels = weights.double().cpu().clamp(min=0).view(self.layer.out_shape[0], -1).amax(1)
        kernel = self.layer.kernel().detach().double().cpu() * channels.sqrt()[:, None, None, None]
        error = math.sqrt(float(channels.max())) * self.matrix_error_upper()
        return ((self._on_torus_upper(kernel) + error) * SLACK) ** 2

    def torus_norm_upper(self) -> float:
        """A number >= |W|, proved on the torus for any size; `norm_upper` chooses by size."""
        kernel = self.layer.kernel().detach().double().cpu()
        return (self._on_torus_upper(kernel) + self.matrix_error_upper()) * SLACK

    def _on_torus_upper(self, kernel: Tensor) -> float:
        layer = self.layer
        size = [
            math.ceil((n + p) / s) * s
            for n, p, s in zip(layer.in_shape[1:], layer.padding, layer.stride, strict=True)
        ]
        return max(
            torus_norm_upper(part, (size[0], size[1]), layer.stride, layer.dilation)
            for part in kernel.chunk(layer.groups)
        )


class AveragePoolNorms(CorrelationNorms):
    layer: AveragePool

    def matrix_error_upper(self) -> float:
        divisor = self.layer.divisor
        exact = divisor & (divisor - 1) == 0
        return 0.0 if exact else self.layer.machine_eps * math.prod(self.layer.window) / divisor


for _kind, _bounds in (
    (Dense, DenseNorms),
    (Chain, ChainNorms),
    (Correlation, CorrelationNorms),
    (AveragePool, AveragePoolNorms),
):
    norms.register(_kind, _bounds)
