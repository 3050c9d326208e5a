"""Forward error bounds: how far a computed margin and its gradient are from the exact ones.

A priori bounds by norms (Higham, Accuracy and Stability, ch. 3): a product with n terms, summed in
any order with or without fused multiply-add, is off by at most `gamma(n)` times the product of
absolute values. Errors that enter a layer grow by its spectral norm; errors made in it by the norm
of its absolute values. All bounds are Euclidean, a number for each row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.activations import ULPS
from raycrt.network import TORCH, Network
from raycrt.spectral import gram_iteration_upper

# The bounds themselves are sums of a few hundred positive float64 terms.
_SLACK = 1 + 1e-9
# Products that underflow in float32 (below 2^-126), all of them in a network, add less than this.
_UNDERFLOW = 1e-30


@dataclass(frozen=True, kw_only=True)
class ErrorModel:
    """What the error bounds need of a network, for each layer and of the activation."""

    spectral: tuple[float, ...]
    magnitude: tuple[float, ...]
    bias: tuple[float, ...]
    terms: tuple[int, ...]
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
            widths=tuple(layer.out_features for layer in layers),
            slope=network.activation.slope_bound,
            bend=network.activation.curvature_bound,
            at_zero=abs(float(network.activation.value(zero, TORCH))),
        )

    def margin(self, length: Tensor, eps: float) -> Tensor:
        """Bound of |computed margin - exact margin| for inputs of norm `length` (n,)."""
        return self.layers(length, eps)[-1] * (math.sqrt(2) * _SLACK)

    def gradient(self, length: Tensor, eps: float, *, forward_eps: float | None = None) -> Tensor:
        """Bound of |computed gradient of a margin - exact|_2 for inputs of norm `length` (n,).

        `eps` is the precision of the backward pass, and of the forward pass that its slopes come
        from unless `forward_eps` says otherwise. Rounding the weights and slopes to `eps` is
        counted, and so is underflow.
        """
        forward = self.layers(length, eps if forward_eps is None else forward_eps)
        size = torch.full_like(length, math.sqrt(2) * self.spectral[-1])
        error = math.sqrt(2) * self.magnitude[-1] * _gamma(self.terms[-1] + 2, eps) * _ones(length)
        for k in range(len(self.spectral) - 2, -1, -1):
            slope_error = self.bend * forward[k] + 16 * ULPS * eps * max(1.0, self.slope)
            error = self.slope * error + (slope_error + 2 * eps * self.slope) * (size + error)
            size = self.slope * size
            local = _gamma(self.terms[k] + 2, eps) * self.magnitude[k]
            error = self.spectral[k] * error + local * (size + error)
            size = self.spectral[k] * size
        return (error + _UNDERFLOW) * _SLACK

    def layers(self, length: Tensor, eps: float) -> list[Tensor]:
        """Bounds of |computed z_k - exact z_k|_2 for every layer."""
        errors = []
        size, error = length, torch.zeros_like(length)
        for k in range(len(self.spectral)):
            reach = self.magnitude[k] * (size + error) + self.bias[k]
            error = self.spectral[k] * error + _gamma(self.terms[k] + 2, eps) * reach
            size = self.spectral[k] * size + self.bias[k]
            errors.append(error)
            if k < len(self.spectral) - 1:
                value = self.slope * (size + error) + self.at_zero * math.sqrt(self.widths[k])
                error = self.slope * error + ULPS * eps * (value + size)
                size = self.slope * size + self.at_zero * math.sqrt(self.widths[k])
        return errors


def _gamma(n: int, eps: float) -> float:
    return n * eps / (1 - n * eps) if n * eps < 0.5 else math.inf


def _ones(like: Tensor) -> Tensor:
    return torch.ones_like(like)
