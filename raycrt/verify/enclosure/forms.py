"""Norms of many quadratic forms `sum_l w_l t_l^2`, t = J u, that share the rows of J.

The form of w is u^T Q u with Q = sum_l w_l J_l J_l^T, J_l a row of J as a column. No Q is formed:
with `K = J J^T` and, for orthonormal columns V, `I = (J V)(J V)^T`,

    |Q|_F^2 = sum w_l w_l' K_ll'^2,   |V^T Q|_F^2 = sum w_l w_l' K_ll' I_ll',
    |V^T Q V|_F^2 = sum w_l w_l' I_ll'^2.

V and its complement split Q into four blocks. |Q| is at most the norm of the 2 x 2 matrix of the
norms of these: |V^T Q V|, of which the matrix is formed; the Frobenius norm of the block beside it,
whose square is the second number less the third; and that of the last one, whose square is the
first less twice the second plus the third. Also `|Q| <= sum |w_l| |J_l|^2`, the mass of w.

Rounding. V stands for the nearest orthonormal columns, from which `V^T V = I + D`, |D| <= `loose`,
makes it differ by a symmetric factor S with S^2 = I + D. So the second number changes by at most
`loose` mass^2 and the third by 2 `loose` + `loose`^2 of that. An entry of K is within gamma(n)
|J_l| |J_l'|, n the features, and one of I within 2 sqrt(p) gamma(n) + gamma(p) of the same, up to
terms of second order, p the columns of V.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raycrt.verify.norms import SLACK, frobenius, gamma, unit_of

# Columns of V, and the steps of the iteration that finds them.
_DIRECTIONS = 48
_ITERATIONS = 3
# Products with which norms of small matrices are bounded.
_PRODUCTS = 5
# More than sums of squares lose to underflow, relative to squares of the largest numbers in them.
_LOST = 1e-280
# More than products of bounds lose to underflow.
TINY = 1e-290


@dataclass(frozen=True, kw_only=True)
class Forms:
    """`rows` (m, n) are those of J divided by `units` (m,), powers of two near the largest entry of
    each layer; `lengths` (m,) >= the norms of `rows`.

    `squares` are the matrices (m, m) of K^2, K I and I^2, entry by entry, of which a weighted sum
    is right to `share` mass^2.
    """

    directions: np.ndarray
    loose: float
    rows: np.ndarray
    units: np.ndarray
    lengths: np.ndarray
    across: np.ndarray
    squares: tuple[np.ndarray, np.ndarray, np.ndarray]

    @staticmethod
    def of(jacobians: list[np.ndarray], directions: np.ndarray) -> Forms:
        """Of the rows of all `jacobians` (width, n), with the columns V = `directions` (n, p)."""
        n, p = directions.shape
        units = [unit_of(jacobian) for jacobian in jacobians]
        rows = np.concatenate([j / unit for j, unit in zip(jacobians, units, strict=True)])
        across = rows @ directions
        products, inside = rows @ rows.T, across @ across.T
        apart = directions.T @ directions - np.eye(p)
        return Forms(
            directions=directions,
            loose=frobenius(apart) + 4 * p * gamma(n + 4),
            rows=rows,
            units=np.repeat(units, [len(jacobian) for jacobian in jacobians]),
            lengths=row_lengths(rows),
            across=across,
            squares=(products**2, products * inside, inside**2),
        )

    @property
    def share(self) -> float:
        """See the module; infinite where the columns are far from orthonormal."""
        (m, n), p = self.rows.shape, self.across.shape[1]
        if not self.loose <= 0.1:
            return math.inf
        entry = 4 * (math.sqrt(p) + 1) * gamma(n + p + 4)
        return 3 * entry + 2 * gamma(2 * m + 8) + 3 * self.loose

    @property
    def room(self) -> float:
        return 1 + gamma(2 * sum(self.rows.shape) + 64)

    def norms(self, weights: np.ndarray) -> np.ndarray:
        """Numbers (k,) >= |Q| for coefficients `weights` (k, m), right to 2 roundings."""
        weights, unit = self._scaled(weights, slice(None))
        mass = (np.abs(weights) @ self.lengths**2) * self.room
        error = self.share * mass**2 * SLACK + _LOST
        whole, one, both = (((weights @ part) * weights).sum(1) for part in self.squares)
        beside = np.sqrt(np.maximum(one - both + 2 * error, 0.0))
        outside = np.sqrt(np.maximum(whole - 2 * one + both + 4 * error, 0.0))
        p = self.across.shape[1]
        pairs = (self.across[:, :, None] * self.across[:, None, :]).reshape(-1, p * p)
        inside = small_norms((weights @ pairs).reshape(-1, p, p))
        inside = (inside + self.share * mass) * (1 + 2 * self.loose)
        found = (inside + outside) / 2 + np.sqrt(((inside - outside) / 2) ** 2 + beside**2)
        found = np.where(np.isfinite(found), np.minimum(found, mass), mass)
        return ((found + gamma(2) * mass) * SLACK * SLACK + math.sqrt(_LOST)) * unit + TINY

    def norms_of_positive(self, weights: np.ndarray, rows: slice) -> np.ndarray:
        """The same for coefficients >= 0 (k, width) of some `rows`, by the Frobenius norm."""
        weights, unit = self._scaled(weights, rows)
        mass = (weights @ self.lengths[rows] ** 2) * self.room
        whole = ((weights @ self.squares[0][rows, rows]) * weights).sum(1)
        found = np.sqrt(whole + self.share * mass**2 * SLACK + _LOST)
        found = np.where(np.isfinite(found), np.minimum(found, mass), mass)
        return ((found + gamma(2) * mass) * SLACK + math.sqrt(_LOST)) * unit + TINY

    def _scaled(self, weights: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """The coefficients of normalised rows over a power of two near the largest, and it, or 0
        where there are only zeros."""
        weights = weights * self.units[rows] * self.units[rows]
        largest = np.abs(weights).max(1, initial=0.0)
        unit = _units(largest)
        return weights / unit[:, None], unit * (largest != 0)


def small_norms(matrices: np.ndarray, products: int = _PRODUCTS) -> np.ndarray:
    """Numbers (k,) >= the spectral norms of `matrices` (k, p, p), by `|A|^2 = |A^T A|` for some
    `products` and at last the norm of Frobenius, of which a root of high order is left."""
    p = matrices.shape[-1]
    largest = np.abs(matrices).max((1, 2), initial=0.0)
    unit = _units(largest)
    matrices = matrices / unit[:, None, None]
    size = np.sqrt((matrices**2).sum((1, 2))) * (1 + gamma(p * p + 4))
    if products > 0:
        square = small_norms(matrices.swapaxes(1, 2) @ matrices, products - 1)
        # An entry of the product is right to gamma(p) times the product of two columns' norms.
        size = np.sqrt(square + gamma(p + 4) * size**2)
    return (size * SLACK + math.sqrt(_LOST)) * unit * (largest != 0)


def _units(largest: np.ndarray) -> np.ndarray:
    """Powers of two near the numbers `largest`; 1 where that is 0 or not finite."""
    usable = (largest > 0) & np.isfinite(largest)
    return np.ldexp(1.0, np.where(usable, np.frexp(largest)[1] - 1, 0))


def row_lengths(matrix: np.ndarray) -> np.ndarray:
    """Numbers >= the norms of the rows of a `matrix`, > 0."""
    unit = unit_of(matrix)
    found = np.sqrt(((matrix / unit) ** 2).sum(1)) * (1 + gamma(matrix.shape[1] + 4))
    return (found + math.sqrt(_LOST)) * unit + TINY


def leading_directions(rows: np.ndarray) -> np.ndarray:
    """Orthonormal columns (n, p), up to rounding, in which `rows` (m, n) are long: by iteration
    from a fixed start. A bound holds with any columns, but it depends on them."""
    n = rows.shape[1]
    p = min(_DIRECTIONS, n)
    steps = np.arange(1.0, n + 1)[:, None]
    found = np.cos(steps * np.sqrt(np.arange(1.0, p + 1)))
    for _ in range(_ITERATIONS):
        found = np.linalg.qr(rows.T @ (rows @ found))[0]
    return found
