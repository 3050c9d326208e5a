"""Multiplication, division and addition by constants, as a torch module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raycrt.errors import require


class Rescaling(nn.Module):
    """`x * factor / divisor + offset`, with constants that broadcast over the batch.

    Constants are kept in float64, the type of Python's numbers. Raises `InvalidInput` unless all
    are finite and no divisor is 0.
    """

    def __init__(self, *, factor: Any = 1.0, divisor: Any = 1.0, offset: Any = 0.0) -> None:
        super().__init__()
        self.factor, self.divisor, self.offset = _kept(factor), _kept(divisor), _kept(offset)
        for constant in (self.factor, self.divisor, self.offset):
            require(bool(constant.isfinite().all()), "constants are finite", constant=constant)
        require(bool((self.divisor != 0).all()), "divisor != 0", divisor=self.divisor)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.to(x) / self.divisor.to(x) + self.offset.to(x)

    @property
    def is_positive(self) -> bool:
        """Whether the module only multiplies its input by one positive number."""
        factor = self.factor / self.divisor
        return factor.numel() == 1 and bool((factor > 0).all()) and not bool(self.offset.any())


def _kept(constant: Any) -> Tensor:
    kept = torch.as_tensor(constant, dtype=None if isinstance(constant, Tensor) else torch.float64)
    require(not kept.is_complex(), "constants are real", dtype=kept.dtype)
    return kept.detach().double()
