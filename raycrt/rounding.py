"""Forward error bounds: how far a computed margin and its gradient are from the exact ones.

A priori bounds by norms (Higham, Accuracy and Stability, ch. 3): a product with n terms, summed in
any order with or without fused multiply-add, is off by at most `gamma(n)` times the product of
absolute values. Errors that enter a layer grow by its spectral norm; errors made in it by the norm
of its absolute values. All bounds are Euclidean, a number for each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.activations import ULPS
from raycrt.network import TORCH, Network
from raycrt.spectral import gram_iteration_upper

# The bounds themselves are sums of a few hundred positive float64 terms.
_SLACK = 1 + 1e-9


@dataclass(frozen=True, kw_only=True)
class ErrorModel:
    """What the error bounds need of a network, for each layer and of the activation."""

    spectral: tuple[float, ...]
    magnitude: tuple[float, ...]
    bias: tuple[float, ...]
    terms: tuple[int, ...]
    backward_terms: tuple[int, ...]
    longest: int
    widths: tuple[int, ...]
    slope: float
    bend: float
    at_zero: float

    @staticmethod
    def of(network: Network) -> ErrorModel:
        network = network.in_float64()
        layers = network.layers
        zero = torch.zeros((), dtype=torch.float64)
        return ErrorModel(
            # Errors need no tight norm: a few products do.
            spectral=tuple(
                gram_iteration_upper(layer.matrix()) + layer.matrix_error_upper()
                if layer.dense
                else layer.norm_upper()
                for layer in layers
            ),
            magnitude=tuple(layer.magnitude_upper() for layer in layers),
            bias=tuple(layer.offset_norm_upper() for layer in layers),
            terms=tuple(layer.terms for layer in layers),
            backward_terms=tuple(layer.transpose_terms for layer in layers),
            longest=max(network.features, *(layer.out_features for layer in layers)),
            widths=tuple(layer.out_features for layer in layers),
            slope=network.activation.slope_bound,
            bend=network.activation.curvature_bound,
            at_zero=abs(float(network.activation.value(zero, TORCH))),
        )

    def margin(self, length: Tensor, dtype: torch.dtype) -> Tensor:
        """Bound of |computed margin - exact margin| for inputs of norm `length` (n,)."""
        return self.layers(length, dtype)[-1] * (math.sqrt(2) * _SLACK)

    def gradient(
        self, length: Tensor, dtype: torch.dtype, *, forward: torch.dtype | None = None
    ) -> Tensor:
        """Bound of |computed gradient of a margin - exact|_2 for inputs of norm `length` (n,).

        `dtype` is the precision of the backward pass, and of the forward pass that its slopes come
        from unless `forward` says otherwise. Rounding the weights and slopes to `dtype` is counted,
        and so is underflow.
        """
        depth = len(self.spectral)
        layers = self.layers(length, forward or dtype)
        # A margin's cotangent is two ones.
        error, size = torch.zeros_like(length), torch.full_like(length, math.sqrt(2))
        for k in range(depth - 1, -1, -1):
            error = self.through_layer(k, error, size, dtype)
            size = self.spectral[k] * size
            if k > 0:
                error = self.through_slopes(layers[k - 1], error, size, dtype, forward or dtype)
                size = self.slope * size
        return error * _SLACK

    def pull_back_above(
        self, network: Network, slopes: Sequence[Tensor], cotangent: Tensor, off: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`network.pull_back_above` of an exact cotangent (n, classes), and its error's bound (n,).

        The bound grows with the lengths of what is computed. `slopes` were computed in float64,
        from z_k that are off by `off[k]` (n,).
        """
        dtype, error = cotangent.dtype, torch.zeros_like(off[0])
        for k in range(network.depth - 1, 0, -1):
            error = self.through_layer(k, error, length_upper(cotangent), dtype)
            cotangent = network.layers[k].transpose(cotangent)
            size = length_upper(cotangent)
            error = self.through_slopes(off[k - 1], error, size, dtype, torch.float64)
            cotangent = cotangent * slopes[k - 1]
        return cotangent, error * _SLACK

    def through_layer(self, k: int, error: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
        """Bound of the error of W_k^T c, computed in `dtype`, if c is off by `error` and the exact
        or the computed c is no longer than `size`."""
        eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
        terms = self.backward_terms[k]
        lost = tiny * (terms + 2) * math.sqrt(self.longest)
        local = _gamma(terms + 2, eps) * self.magnitude[k]
        return self.spectral[k] * error + local * (size + error) + lost * (1 + size + error)

    def through_slopes(
        self, off: Tensor, error: Tensor, size: Tensor, dtype: torch.dtype, forward: torch.dtype
    ) -> Tensor:
        """The same of s'(z) * c for a z, computed in `forward`, that is off by `off` in norm."""
        number = torch.finfo(dtype)
        slope_error = self.bend * off + 16 * ULPS * torch.finfo(forward).eps * max(1.0, self.slope)
        relative = slope_error + 2 * number.eps * self.slope + number.smallest_normal
        lost = number.smallest_normal * math.sqrt(self.longest)
        return self.slope * error + relative * (size + error) + lost

    def layers(self, length: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Bounds of |computed z_k - exact z_k|_2 for every layer; infinite where it may overflow.

        Each sum loses at most a smallest normal number a term to underflow, flushed to zero or not.
        """
        number = torch.finfo(dtype)
        eps, tiny, most = number.eps, number.smallest_normal, number.max / 8
        errors = []
        size, error = length, torch.zeros_like(length)
        for k in range(len(self.spectral)):
            lost = tiny * (self.terms[k] + 2) * math.sqrt(self.terms[k])
            reach = self.magnitude[k] * (size + error) + self.bias[k]
            error = self.spectral[k] * error + _gamma(self.terms[k] + 2, eps) * reach
            # Rounding an entry of the weights down to nothing loses its product with the input.
            error = error + lost * (1 + size)
            size = self.spectral[k] * size + self.bias[k]
            # A sharp softplus multiplies its argument by 4 sup s'' before anything else.
            within = torch.maximum(reach, size + error) * max(1.0, 4 * self.bend) < most
            error = torch.where(within, error, torch.inf)
            errors.append(error)
            if k < len(self.spectral) - 1:
                width = math.sqrt(self.widths[k])
                value = self.slope * (size + error) + self.at_zero * width
                error = self.slope * error + ULPS * eps * (value + size) + 8 * tiny * width
                size = self.slope * size + self.at_zero * width
        return errors


def length_upper(v: Tensor) -> Tensor:
    """Bounds (n,), float64, of the norms of rows as they stand, whatever rounds or underflows."""
    number, n = torch.finfo(v.dtype), v.shape[1]
    square = torch.linalg.vecdot(v, v).double() * (1 + 2 * (n + 4) * number.eps)
    return (square + n * number.smallest_normal).sqrt() * (1 + 1e-12)


def _gamma(n: int, eps: float) -> float:
    return n * eps / (1 - n * eps) if n * eps < 0.5 else math.inf
