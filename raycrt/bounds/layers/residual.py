"""Proved bounds on the affine maps of residual blocks; they are registered with `norms.norms`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raycrt.bounds.layers.diagonal import IdentityNorms
from raycrt.bounds.layers.norms import Norms, interval_by_matrix, norms
from raycrt.bounds.spectral import SLACK
from raycrt.networks.layers.affine import Chain
from raycrt.networks.layers.residual import DirectSum, Parts, Selection, Stack, Sum


@norms.register(Parts)
class PartsNorms(Norms[Parts]):
    """Bounds from those of the maps side by side: `|W|^2` is at most the sum of their squares."""

    layer: Parts

    @property
    def parts(self) -> list[Norms]:
        return [norms(part) for part in self.layer.maps]

    @property
    def chained(self) -> bool:
        """Whether an entry of W may be that of a product, smaller than what is summed for it."""
        return any(isinstance(part, Chain) for part in self.layer.modules())

    def magnitude_upper(self) -> float:
        if self.layer.dense and not self.chained:
            return super().magnitude_upper() + self.matrix_error_upper()
        return math.hypot(*(part.magnitude_upper() for part in self.parts)) * SLACK

    def transpose_interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return (
            interval_by_matrix(self.layer, low, high)
            if self.chained
            else super().transpose_interval(low, high)
        )

    def offset_norm_upper(self) -> float:
        return sum(part.offset_norm_upper() for part in self.parts) * SLACK

    def matrix_error_upper(self) -> float:
        return sum(part.matrix_error_upper() for part in self.parts) * SLACK

    def gain_upper(self) -> float:
        return sum(part.gain_upper() for part in self.parts) * SLACK

    def _squares(self, found: list[Tensor]) -> Tensor:
        """The roots of the sums of squares of `found`, rounded up."""
        return torch.stack(found).square().sum(0).sqrt() * SLACK


@norms.register(Stack)
class StackNorms(PartsNorms):
    layer: Stack

    def offset_magnitude_upper(self) -> Tensor:
        return torch.cat([part.offset_magnitude_upper().cpu() for part in self.parts])

    def row_norms_upper(self) -> Tensor:
        return torch.cat([part.row_norms_upper() for part in self.parts])

    def column_norms_upper(self) -> Tensor:
        return self._squares([part.column_norms_upper() for part in self.parts])

    def gram_upper(self, weights: Tensor) -> float:
        if self.layer.dense:
            return super().gram_upper(weights)
        given = zip(self.parts, self.layer.rows(weights), strict=True)
        return sum(part.gram_upper(own) for part, own in given) * SLACK


@norms.register(Sum)
class SumNorms(PartsNorms):
    layer: Sum

    def offset_magnitude_upper(self) -> Tensor:
        given = [part.offset_magnitude_upper().cpu() for part in self.parts]
        return torch.stack(given).sum(0) * SLACK

    def row_norms_upper(self) -> Tensor:
        return self._squares([part.row_norms_upper() for part in self.parts])

    def column_norms_upper(self) -> Tensor:
        return torch.cat([part.column_norms_upper() for part in self.parts])

    def gram_upper(self, weights: Tensor) -> float:
        if self.layer.dense:
            return super().gram_upper(weights)
        return sum(part.gram_upper(weights) for part in self.parts) * SLACK


@norms.register(DirectSum)
class DirectSumNorms(PartsNorms):
    layer: DirectSum

    def magnitude_upper(self) -> float:
        return max(part.magnitude_upper() for part in self.parts)

    def offset_magnitude_upper(self) -> Tensor:
        return torch.cat([part.offset_magnitude_upper().cpu() for part in self.parts])

    def row_norms_upper(self) -> Tensor:
        return torch.cat([part.row_norms_upper() for part in self.parts])

    def column_norms_upper(self) -> Tensor:
        return torch.cat([part.column_norms_upper() for part in self.parts])

    def gram_upper(self, weights: Tensor) -> float:
        given = zip(self.parts, self.layer.rows(weights), strict=True)
        return max(part.gram_upper(own) for part, own in given)


@norms.register(Selection)
class SelectionNorms(IdentityNorms):
    layer: Selection

    def column_norms_upper(self) -> Tensor:
        """1 for what is kept, 0 for the rest."""
        return self.layer.transpose(self.row_norms_upper())
