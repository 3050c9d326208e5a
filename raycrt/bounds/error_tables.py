"""Rounding-error bounds tabulated over the input norm, so that a row costs a lookup."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.rounding import FirstLayerError, RoundingErrors


@dataclass(frozen=True, kw_only=True)
class ErrorTables:
    """What an `RoundingErrors` says of float64 evaluations of which `slack` is the first layer's.

    The bounds grow with the norm of the input: they are kept for powers of 2^(1/4), so that a row
    costs a lookup and not a recursion, and infinite beyond the last and for NaN.
    """

    slack: FirstLayerError
    margins: Tensor
    gradients: Tensor
    hiddens: dict[torch.dtype, Tensor]

    @staticmethod
    def of(errors: RoundingErrors, slack: FirstLayerError) -> ErrorTables:
        steps = torch.arange(_LOWEST, _HIGHEST + 1, dtype=torch.float64)
        # A little larger, for the rounding of logarithms.
        norms = (2.0 ** (steps / _STEPS)) * (1 + 1e-9)
        tables = [
            errors.margin(norms, torch.float64, slack),
            torch.maximum(
                errors.gradient(norms, torch.float64, slack),
                errors.gradient(norms, torch.float64),
            ),
            *(
                torch.stack(errors.hidden(norms, dtype, slack))
                for dtype in (torch.float32, torch.float64)
            ),
        ]
        for table in tables:
            table[..., -1] = torch.inf
        margins, gradients, single, double = tables
        hiddens = {torch.float32: single, torch.float64: double}
        return ErrorTables(slack=slack, margins=margins, gradients=gradients, hiddens=hiddens)

    def margin(self, input_norm: Tensor) -> Tensor:
        """Bounds (n,) of |computed margin - exact| for inputs of norm `input_norm` (n,)."""
        return self._looked_up(self.margins, input_norm)

    def gradient(self, input_norm: Tensor) -> Tensor:
        """Bounds (n,) of |computed gradient of a margin - exact|, by way of `slack` and without."""
        return self._looked_up(self.gradients, input_norm)

    def hidden(self, input_norm: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Bounds (n,) of `RoundingErrors.hidden`."""
        return [self._looked_up(table, input_norm) for table in self.hiddens[dtype]]

    @staticmethod
    def _looked_up(table: Tensor, input_norm: Tensor) -> Tensor:
        step = (input_norm.log2() * _STEPS).ceil().nan_to_num(_HIGHEST).clamp(_LOWEST, _HIGHEST)
        return table.to(input_norm.device)[step.long() - _LOWEST]


# Bounds are kept for norms 2^(k / _STEPS) with k from _LOWEST to _HIGHEST.
_STEPS, _LOWEST, _HIGHEST = 4, -256, 1600
