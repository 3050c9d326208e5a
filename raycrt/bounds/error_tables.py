"""Rounding-error bounds tabulated over the input norm, so that a row costs a lookup."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.rounding import FirstLayerError, RoundingErrors


@dataclass(frozen=True, kw_only=True)
class ErrorTables:
    """What an `RoundingErrors` says of float64 evaluations of which `slack` is the first layer's.

    The bounds grow with the length of the input: they are kept for powers of 2^(1/4), so that a
    row costs a look and not a recursion, and infinite beyond the last and for NaN.
    """

    slack: FirstLayerError
    margins: Tensor
    gradients: Tensor
    hiddens: dict[torch.dtype, Tensor]

    @staticmethod
    def of(errors: RoundingErrors, slack: FirstLayerError) -> ErrorTables:
        steps = torch.arange(_LOWEST, _HIGHEST + 1, dtype=torch.float64)
        # A little longer, for the rounding of logarithms.
        lengths = (2.0 ** (steps / _STEPS)) * (1 + 1e-9)
        tables = [
            errors.margin(lengths, torch.float64, slack),
            torch.maximum(
                errors.gradient(lengths, torch.float64, slack),
                errors.gradient(lengths, torch.float64),
            ),
            *(
                torch.stack(errors.hidden(lengths, dtype, slack))
                for dtype in (torch.float32, torch.float64)
            ),
        ]
        for table in tables:
            table[..., -1] = torch.inf
        margins, gradients, single, double = tables
        hiddens = {torch.float32: single, torch.float64: double}
        return ErrorTables(slack=slack, margins=margins, gradients=gradients, hiddens=hiddens)

    def margin(self, length: Tensor) -> Tensor:
        """Bounds (n,) of |computed margin - exact| for inputs of norm `length` (n,)."""
        return self._look(self.margins, length)

    def gradient(self, length: Tensor) -> Tensor:
        """Bounds (n,) of |computed gradient of a margin - exact|, by way of `slack` and without."""
        return self._look(self.gradients, length)

    def hidden(self, length: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Bounds (n,) of `RoundingErrors.hidden`."""
        return [self._look(table, length) for table in self.hiddens[dtype]]

    @staticmethod
    def _look(table: Tensor, length: Tensor) -> Tensor:
        step = (length.log2() * _STEPS).ceil().nan_to_num(_HIGHEST).clamp(_LOWEST, _HIGHEST)
        return table.to(length.device)[step.long() - _LOWEST]


# Bounds are kept for lengths 2^(k / _STEPS) with k from _LOWEST to _HIGHEST.
_STEPS, _LOWEST, _HIGHEST = 4, -256, 1600
