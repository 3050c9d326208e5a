"""Upper bounds on eigenvalues and spectral norms, proved by a completed Cholesky factorisation.

If the factorisation of a symmetric M of order n, run in floating point, completes, its factor has
`R^T R = M + E` with `|E|_2 <= g / (1 - g) trace(M)`, `g = gamma(n + 1)` (Demmel 1989; Rump, BIT 46,
2006), and `R^T R >= 0`, so `M >= -|E|_2 I`. With M = t I - A this bounds the eigenvalues of A.
"""

from __future__ import annotations

import math

import numpy as np

# The unit roundoff of float64: the maximum relative error of an operation.
UNIT = 2.0**-53
# Covers the rounding of a bound that is itself a short sum of positive float64 terms.
SLACK = 1 + 2.0**-48
_RAISE = 2e-10


def gamma(n: int, unit: float = UNIT) -> float:
    """Higham's `n u / (1 - n u)`: bounds the relative error of n roundings; inf if n u >= 1."""
    return n * unit / (1 - n * unit) if n * unit < 1 else math.inf


def frobenius(matrix: np.ndarray | float) -> float:
    """A number >= the Frobenius norm of `matrix`."""
    matrix = np.asarray(matrix)
    unit = unit_of(matrix)
    scaled = matrix / unit
    return float(np.sqrt((scaled * scaled).sum())) * (1 + gamma(matrix.size + 4)) * unit


def absolute_norm(matrix: np.ndarray) -> float:
    """A number >= the spectral norm of the entrywise absolute value: that of Frobenius, or Schur's
    `sqrt(largest row sum * largest column sum)`."""
    absolute = np.abs(matrix)
    schur = math.sqrt(float(absolute.sum(1).max())) * math.sqrt(float(absolute.sum(0).max()))
    return min(frobenius(matrix), schur * (1 + gamma(sum(matrix.shape) + 8)))


def gram_upper(matrix: np.ndarray, claim: float | None = None) -> float:
    """A number >= |matrix|_2^2, at most `claim` where that claim can be proved.

    The smaller Gram matrix is formed; its rounding is at most `gamma(k)` times the Gram matrix of
    the absolute values, whose norm is at most the sum of all squares.
    """
    if not np.isfinite(matrix).all():
        return math.inf
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    size = frobenius(matrix)
    rounding = gamma(max(rows, columns) + 2) * size * size * SLACK
    return eigenvalue_upper(gram, rounding, claim)


def eigenvalue_upper(gram: np.ndarray, rounding: float, claim: float | None = None) -> float:
    """A number >= lambda_max of any matrix within `rounding` of `gram` in the 2-norm, and >= 0.

    It is at most `claim` where that can be proved, and infinite where `gram` overflowed.
    """
    if not (np.isfinite(gram).all() and math.isfinite(rounding)):
        return math.inf
    if rounding == 0:
        return 0.0
    if claim is not None:
        # Twice the amount required, so that the sum stays below the claim in floating point.
        target = claim - 2 * (_shift(gram, claim) + rounding)
        if _completes(gram, target):
            return claim
    target = float(np.linalg.eigvalsh(gram)[-1])
    step = _RAISE * abs(target) + rounding
    while not _completes(gram, target + step):
        step *= 2
    target += step
    return max(0.0, (target + _shift(gram, target) + rounding) * SLACK)


def norm_upper(matrix: np.ndarray) -> float:
    """A number >= the spectral norm of `matrix`; of a diagonal one that norm itself."""
    rows, columns = matrix.shape
    if rows == columns and np.count_nonzero(matrix) == np.count_nonzero(matrix.diagonal()):
        return float(np.abs(matrix.diagonal()).max(initial=0.0))
    unit = unit_of(matrix)
    return math.sqrt(gram_upper(matrix / unit)) * SLACK * unit


def unit_of(matrix: np.ndarray) -> float:
    """A power of two near the largest entry; 1 where that is 0 or not finite. Dividing by it is
    exact; then squares do not overflow, and they underflow only where they are negligible relative
    to the largest."""
    largest = float(np.abs(matrix).max(initial=0.0))
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if 0 < largest < math.inf else 1.0


def _completes(symmetric: np.ndarray, target: float) -> bool:
    """Whether `target I - symmetric` has a Cholesky factor in floating point."""
    shifted = -symmetric
    shifted[np.diag_indices(len(shifted))] += target
    try:
        return bool(np.isfinite(np.linalg.cholesky(shifted)).all())
    except np.linalg.LinAlgError:
        return False


def _shift(symmetric: np.ndarray, target: float) -> float:
    """If `_completes`, eigenvalues are <= `target` + this: |E|_2 and rounding of the diagonal."""
    n = len(symmetric)
    trace = n * abs(target) + float(np.abs(symmetric.diagonal()).sum())
    g = gamma(n + 1)
    return (g / (1 - g) + UNIT) * trace * SLACK
