"""Bounds on sums of squares `sum_l w_l (t_l + e_l)^2` over the neurons of all layers below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raycrt.verify.enclosure.forms import TINY, Forms
from raycrt.verify.norms import SLACK

# Errors beyond this share of |J| R are large: there `(t + e)^2 >= 0` bounds a product from below.
_LARGE = 0.5


@dataclass(frozen=True, kw_only=True)
class Squares:
    """Sums with the coefficients `weights` (k, m), t = J u with |u| <= `radius`.

    `lengths` >= |J_l| > 0 and `errors` >= |e_l| are lists of arrays (width,), one for each layer;
    `room` covers the rounding of sums over a layer.
    """

    forms: Forms
    weights: np.ndarray
    lengths: list[np.ndarray]
    errors: list[np.ndarray]
    radius: float
    room: float

    def forms_alone(self) -> np.ndarray:
        """Numbers (k,) >= |sum_l w_l t_l^2|."""
        return self.forms.norms(self.weights) * self.radius * self.radius * SLACK + TINY

    def mixed(self, weights: np.ndarray) -> np.ndarray:
        """Numbers (k,) >= sum_l w_l (2 t_l e_l + e_l^2), for these `weights` (k, m) or less them.

        For a positive w a term is at most `w (2 |t| |e| + e^2)`, for a negative one `2 |w| |t| |e|`
        or, where the error is large, `|w| t^2`.
        """
        total, start = np.zeros(len(weights)), 0
        for lengths, error in zip(self.lengths, self.errors, strict=True):
            rows = slice(start, start := start + len(error))
            part = weights[:, rows]
            up, down = np.maximum(part, 0.0), np.maximum(-part, 0.0)
            large = error > _LARGE * self.radius * lengths
            linear = 2 * error * np.where(large, up, up + down)
            form = self.forms.norms_of_positive(linear / lengths, rows)
            total = total + np.sqrt((linear @ lengths) * form + TINY) * self.radius
            whole = np.where(large, down, 0.0)
            if whole.any():
                form = self.forms.norms_of_positive(whole, rows)
                total = total + form * self.radius * self.radius
            total = total + up @ error**2
        return total * self.room * SLACK + TINY
