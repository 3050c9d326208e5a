"""Rounding-error bounds tabulated over the input norm, so that a row costs a lookup."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.rounding import FirstLayerError, RoundingErrors


@dataclass(frozen=True, kw_only=True)
class ErrorTables:
    """Bounds of `RoundingErrors` for float64 evaluations whose first layer has the errors `slack`.

    The bounds increase with the norm of the input. They are tabulated at powers of 2^(1/4), so that
    a row costs a lookup instead of a recursion, and are infinite beyond the last and for NaN.
    """

    slack: FirstLayerError
    margins: Tensor
    gradients: Tensor
    hiddens: dict[torch.dtype, Tensor]

    @staticmethod
    def of(errors: RoundingErrors, slack: FirstLayerError) -> ErrorTables:
        steps = torch.arange(_LOWEST, _HIGHEST + 1, dtype=torch.float64)
        # Slightly enlarged to cover the rounding of logarithms.
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
        """Upper bounds (n,) on |computed margin - exact| for inputs of norm `input_norm` (n,)."""
        return self._looked_up(self.margins, input_norm)

    def gradient(self, input_norm: Tensor) -> Tensor:
        """Upper bounds (n,) on |computed gradient of a margin - exact|, both with `slack` and
        without."""
        return self._looked_up(self.gradients, input_norm)

    def hidden(self, input_norm: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """The bounds (n,) of `RoundingErrors.hidden`, one per hidden layer."""
        return [self._looked_up(table, input_norm) for table in self.hiddens[dtype]]

    @staticmethod
    def _looked_up(table: Tensor, input_norm: Tensor) -> Tensor:
        step = (input_norm.log2() * _STEPS).ceil().nan_to_num(_HIGHEST).clamp(_LOWEST, _HIGHEST)
        return table.to(input_norm.device)[step.long() - _LOWEST]


# Bounds are tabulated at norms 2^(k / _STEPS) with k from _LOWEST to _HIGHEST.
_STEPS, _LOWEST, _HIGHEST = 4, -256, 1600
