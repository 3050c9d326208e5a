"""Upper bounds on the norms of many quadratic forms that share their squares.

With rows J_l, the form of coefficients w is Q = sum_l w_l J_l^T J_l, so |u^T Q u| <= |Q| |u|^2. For
hundreds of rows of coefficients at once no Q is formed: with K = J J^T,

    |Q|_F^2 = sum_{l, l'} w_l w_l' K_ll'^2,

and likewise the squared norm of V^T Q for orthonormal columns V, with (J V)(J V)^T in place of one
K. V holds a few directions in which the rows are long; there Q is formed, and |Q| is at most the
norm of the 2 x 2 matrix of the norms of its four blocks.

Rows and coefficients are divided by powers of two near the largest of them, which is exact, so that
fourth powers of lengths underflow only where they are negligible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.spectral import SLACK, gamma, gram_iteration_upper

# Directions in which forms are formed.
_DIRECTIONS = 48
_ITERATIONS = 3
_PRODUCTS = 5
# More than the sums lose to underflow, relative to the largest numbers in them.
_LOST = 1e-140
# More than coefficients lose to underflow where they are divided.
_NOTHING = 1e-290


@dataclass(frozen=True, kw_only=True)
class Forms:
    """Rows J (m, features), of norms at most `lengths` (m,), with products that all forms share.

    `rows` and `lengths` are J's divided by the powers of two `units` (m,), one for each layer.
    `directions` (features, p) are orthonormal up to rounding, `loose` bounds by how much. Of every
    layer's rows, `squares` has the entries of K^2 and of K times (J V)(J V)^T with these rows and
    all before them. Every computed square of a norm is right to `share` times
    `(sum_l |w_l| |J_l|^2)^2`.
    """

    rows: Tensor
    lengths: Tensor
    units: Tensor
    directions: Tensor
    loose: float
    across: Tensor
    squares: tuple[tuple[Tensor, Tensor], ...]

    @staticmethod
    def along(directions: Tensor) -> Forms:
        """No rows yet, with `directions` (features, p) in which forms will be formed."""
        features, p = directions.shape
        apart = directions.T @ directions - torch.eye(p).to(directions)
        return Forms(
            rows=directions.new_zeros(0, features),
            lengths=directions.new_zeros(0),
            units=directions.new_zeros(0),
            directions=directions,
            loose=float(torch.linalg.matrix_norm(apart)) * SLACK + p * gamma(features),
            across=directions.new_zeros(0, p),
            squares=(),
        )

    def joined_by(self, rows: Tensor, lengths: Tensor) -> Forms:
        """These forms with further `rows` (n, features), of norms at most `lengths` (n,)."""
        unit = _power_of_two(lengths.max())
        rows, lengths = rows / unit, lengths / unit
        across = rows @ self.directions
        all_rows, all_across = torch.cat([self.rows, rows]), torch.cat([self.across, across])
        products, inside = rows @ all_rows.T, across @ all_across.T
        return Forms(
            rows=all_rows,
            lengths=torch.cat([self.lengths, lengths]),
            units=torch.cat([self.units, unit.expand(len(rows))]),
            directions=self.directions,
            loose=self.loose,
            across=all_across,
            squares=(*self.squares, (products.square(), products * inside)),
        )

    @property
    def share(self) -> float:
        features, p = self.directions.shape
        terms = 2 * len(self.rows) + features + p + 16
        return 4 * (4 + math.sqrt(p)) * gamma(terms) + 16 * self.loose

    def norms(self, weights: Tensor) -> Tensor:
        """Numbers (k,) >= |Q| for coefficients `weights` (k, m) of any sign."""
        weights, unit = self._scaled(weights, slice(None))
        mass = (weights.abs() @ self.lengths.square()) * SLACK
        least = self.share * mass.square()
        formed = self._formed(weights)
        both = formed.square().sum((1, 2))
        whole, one = self._twice(weights)
        beside = (one - both + 2 * least).clamp(min=0).sqrt()
        outside = (whole - 2 * one + both + 4 * least).clamp(min=0).sqrt()
        inside = gram_iteration_upper(formed, _PRODUCTS)
        inside = (inside + self.share * mass) * (1 + 2 * self.loose)
        half = (inside - outside) / 2
        found = (inside + outside) / 2 + (half.square() + beside.square()).sqrt()
        return (torch.minimum(found * SLACK, mass) + _LOST) * unit * SLACK + _NOTHING

    def _formed(self, weights: Tensor) -> Tensor:
        """V^T Q V (k, p, p) for each of the `weights` (k, m), from the entries below its diagonal
        and on it."""
        p = self.across.shape[1]
        i, j = torch.tril_indices(p, p, device=weights.device)
        formed = weights.new_empty(len(weights), p, p)
        formed[:, i, j] = formed[:, j, i] = weights @ (self.across[:, i] * self.across[:, j])
        return formed

    def _twice(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """`w A w` (k,) for each of the `weights` w (k, m) and both symmetric A of the `squares`."""
        whole = one = torch.zeros_like(weights[:, 0])
        for squares in self.squares:
            n, m = squares[0].shape
            own = weights[:, m - n : m]
            # What is beside the layer's own block is there only once, and counts twice.
            above = torch.cat([2 * weights[:, : m - n], own], 1)
            whole, one = (
                found + ((own @ square) * above).sum(1)
                for found, square in zip((whole, one), squares, strict=True)
            )
        return whole, one

    def norms_of_positive(self, weights: Tensor, layer: int) -> Tensor:
        """The same, by the Frobenius norm, for coefficients >= 0 (k, n) of the rows of a layer."""
        n, m = self.squares[layer][0].shape
        rows = slice(m - n, m)
        weights, unit = self._scaled(weights, rows)
        mass = (weights @ self.lengths[rows].square()) * SLACK
        square = ((weights @ self.squares[layer][0][:, rows]) * weights).sum(1)
        found = torch.minimum((square + self.share * mass.square()).sqrt() * SLACK, mass)
        return (found + _LOST) * unit * SLACK + _NOTHING

    def _scaled(self, weights: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """The coefficients (k, n) of the divided `rows`, divided by powers of two (k,), and
        these, or 0 where there are only zeros."""
        weights = weights * self.units[rows] * self.units[rows]
        largest = weights.abs().amax(1)
        unit = _power_of_two(largest)
        return weights / unit[:, None], unit * (largest != 0)


def _power_of_two(largest: Tensor) -> Tensor:
    """Powers of two near the numbers `largest`; 1 for those that are 0 or not finite."""
    unit = largest / (2 * torch.frexp(largest).mantissa)
    return torch.where(torch.isfinite(unit), unit, 1.0)


def leading_directions(rows: Tensor) -> Tensor:
    """Orthonormal columns (features, p) near those in which `rows` (m, features) are longest.

    Any would do. They are found by iteration from a fixed start.
    """
    features = rows.shape[1]
    p = min(_DIRECTIONS, features)
    steps = torch.arange(1, features + 1, dtype=rows.dtype, device=rows.device)[:, None]
    found = torch.cos(steps * torch.arange(1, p + 1, dtype=rows.dtype, device=rows.device).sqrt())
    for _ in range(_ITERATIONS):
        found = torch.linalg.qr(rows.T @ (rows @ found)).Q
    return found
