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
        eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
        layers = self.layers(length, forward or dtype)
        lost = [tiny * (n + 2) * math.sqrt(n) for n in self.terms]
        size = torch.full_like(length, math.sqrt(2) * self.spectral[-1])
        first = math.sqrt(2) * self.magnitude[-1] * _gamma(self.terms[-1] + 2, eps) + lost[-1]
        error = torch.full_like(length, first)
        for k in range(len(self.spectral) - 2, -1, -1):
            slope_error = self.bend * layers[k] + 16 * ULPS * eps * max(1.0, self.slope) + tiny
            error = self.slope * error + (slope_error + 2 * eps * self.slope) * (size + error)
            error = error + lost[k]
            size = self.slope * size
            local = _gamma(self.terms[k] + 2, eps) * self.magnitude[k]
            error = self.spectral[k] * error + local * (size + error) + lost[k] * (1 + size)
            size = self.spectral[k] * size
        return error * _SLACK

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


def _gamma(n: int, eps: float) -> float:
    return n * eps / (1 - n * eps) if n * eps < 0.5 else math.inf
