"""Proved upper bounds on eigenvalues and norms, in float64, and estimates for training.

A name ending in `_upper` is a theorem about the value returned, rounding included. A name ending
in `_estimate` approaches from below and may never enter a certificate.

Proof. Let A be symmetric and t > 0. If the Cholesky factorisation of t I - A, run in floating
point, completes with finite numbers, then t I - A >= -c I with `c = g / (1 - g) trace(t I - A)`,
`g = (n + 1) eps / (1 - (n + 1) eps)` (Rump, BIT 46, 2006), so lambda_max(A) <= t + c. The proof
holds for any guess t: the factorisation breaks down if t is too small. It is about substitution in
any order, which a CPU does; libraries for GPUs may multiply by inverted blocks instead, so matrices
that are on a GPU are factorised on the CPU.
"""

from __future__ import annotations

import math

import torch
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from torch import Tensor

from raycrt.networks.layers.affine import DENSE_ENTRIES

EPS = torch.finfo(torch.float64).eps
# No sum in a bound has more terms than a formed matrix has entries. Sums of that many positive
# float64 terms, and a few products of such sums, lose less than this factor to rounding.
SLACK = 1 + DENSE_ENTRIES * EPS
# A guess is raised by this factor until its proof succeeds; 1e-9 is far above rounding errors.
_RAISE = 1e-9
_LANCZOS_FROM = 128
# Upper bound on the loss of a sum or product to underflow.
_NOTHING = torch.finfo(torch.float64).smallest_normal
# Entries of a Collatz-Wielandt vector stay above this share of the largest: it must be positive.
_POSITIVE = 1e-9


def gamma(n: int) -> float:
    """Higham's `n u / (1 - n u)`, with eps = 2u in place of u: generously bounds n roundings."""
    return n * EPS / (1 - n * EPS)


def eigenvalue_upper(symmetric: Tensor, guess: float | None = None) -> float:
    """A number >= lambda_max of the float64 matrix `symmetric` (n, n), its lower triangle mirrored.

    `guess` is any approximation of lambda_max; without one it is computed. Infinity where the
    matrix holds NaN or infinities.
    """
    symmetric = symmetric.cpu()
    if not torch.isfinite(symmetric).all():
        return math.inf
    n = len(symmetric)
    scale = float(symmetric.diagonal().abs().max()) + float(torch.linalg.matrix_norm(symmetric)) / n
    if scale == 0:
        return 0.0
    # Dividing by a power of two is exact and avoids absolute thresholds of libraries.
    unit = math.ldexp(1.0, math.frexp(scale)[1])
    symmetric = symmetric / unit
    guess = _largest_estimate(symmetric) if guess is None else guess / unit
    step = _RAISE * max(abs(guess), 1.0)
    while math.isfinite(guess + step):
        proved = cholesky_upper(symmetric, guess + step)
        if proved is not None:
            return proved * unit
        step *= 4
    return math.inf


def _largest_estimate(symmetric: Tensor) -> float:
    """An estimate of lambda_max: by all eigenvalues if the matrix is small, else by Lanczos."""
    n = len(symmetric)
    if n <= _LANCZOS_FROM:
        return float(torch.linalg.eigvalsh(symmetric)[-1])
    start = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        found = eigsh(
            symmetric.numpy(force=True),
            k=1,
            which="LA",
            v0=start.numpy(),
            tol=_RAISE,
            return_eigenvectors=False,
        )
    except ArpackNoConvergence:
        return float(torch.linalg.eigvalsh(symmetric)[-1])
    return float(found[0])


def cholesky_upper(symmetric: Tensor, bound: float) -> float | None:
    """A number >= lambda_max just above `bound`, or None if a factorisation breaks down.

    For several matrices (..., n, n) the number bounds the largest eigenvalue of all.
    """
    shifted = -symmetric.cpu()
    diagonal = shifted.diagonal(dim1=-2, dim2=-1)
    largest = float(diagonal.abs().max())
    diagonal.add_(bound)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if bool(info.any()) or not torch.isfinite(factor).all():
        return None
    n = symmetric.shape[-1]
    g = gamma(n + 1)
    trace = float(diagonal.sum(-1).max()) * (1 + gamma(n))
    # The subtraction on the diagonal rounds too, by at most eps times its operands.
    subtraction = EPS * (abs(bound) + largest)
    proved = bound + g / (1 - g) * trace + subtraction
    return proved + 2 * EPS * (abs(proved) + abs(bound))


def weighted_gram_upper(matrix: Tensor, weights: Tensor) -> float:
    """A number >= lambda_max of W^T diag(weights) W and >= 0; W (rows, columns), any weights.

    For weights >= 0 the smaller of the two Gram matrices is used. The rounding error of forming a
    Gram matrix is at most `gamma(k + 3)` times `sum_i |weights_i| |w_i|^2`, a bound on the sum of
    all |entries|; it is added.
    """
    matrix, weights = matrix.double(), weights.double()
    if not (torch.isfinite(matrix).all() and torch.isfinite(weights).all()):
        return math.inf
    if not ((matrix != 0).any(1) & (weights != 0)).any():
        return 0.0
    # Dividing by powers of two is exact and makes everything that underflows negligible relative
    # to the largest entries.
    size, weight = (_power_of_two(part) for part in (matrix, weights))
    matrix, weights = matrix / size, weights / weight
    rows, columns = matrix.shape
    mass = float((weights.abs() * matrix.square().sum(1)).sum()) * (1 + gamma(rows + columns + 3))
    if rows < columns and bool((weights >= 0).all()):
        root = weights.sqrt()
        gram = root[:, None] * (matrix @ matrix.T) * root
    else:
        gram = matrix.T @ (weights[:, None] * matrix)
    rounding = gamma(max(rows, columns) + 6) * mass + _NOTHING * rows * columns
    found = max(0.0, (eigenvalue_upper(gram) + rounding) * (1 + EPS))
    return max(found * weight * size * size, _NOTHING)


def _power_of_two(values: Tensor) -> float:
    """A power of two near the largest magnitude of finite `values`, not all of them 0."""
    return math.ldexp(1.0, math.frexp(float(values.abs().max()))[1] - 1)


def gram_iteration_upper(matrices: Tensor, steps: int = 8) -> Tensor:
    """Numbers >= |W|_2 for matrices (..., rows, columns) from products only: |W|_2 <=
    |G_k|_F^(1 / 2^k), G_{k+1} = G_k^T G_k.

    Looser than `norm_upper` by at most n^(1 / 2^(steps + 1)), n the smaller size. The rounding
    error of a product, at most gamma(n) |G_k|_F^2, is added (Delattre et al.,
    ICML 2023, with the rounding).
    """
    matrices = matrices.double()
    rows, columns = matrices.shape[-2:]
    largest = matrices.detach().abs().amax((-2, -1))
    # Divide by a power of two so that squares neither over- nor underflow. This quotient is one to
    # the last bit; a function for powers of two may round on a GPU.
    unit = largest / (2 * torch.frexp(largest).mantissa)
    unit = torch.where(torch.isfinite(unit), unit, 1.0)
    matrices = matrices / unit[..., None, None]
    size = torch.linalg.matrix_norm(matrices) * (1 + gamma(rows * columns))
    if steps > 0:
        gram = matrices @ matrices.mT if rows < columns else matrices.mT @ matrices
        square = gram_iteration_upper(gram, steps - 1)
        square = square + gamma(max(rows, columns) + 2) * size.square()
        size = square.sqrt() * (1 + 4 * EPS)
    size = size * unit
    # A product with a power of two is exact down to the smallest normal number.
    size = torch.where(largest > 0, size.clamp(min=_NOTHING), size)
    return size.nan_to_num(nan=math.inf, posinf=math.inf)


def nonnegative_norm_upper(matrix: Tensor, steps: int = 30) -> float:
    """A number >= |B|_2 for B with entries >= 0: Collatz-Wielandt, `rho(A) <= max (A x)_i / x_i`.

    It holds for A = B^T B >= 0 and any x > 0; power steps choose x. Sums of n terms >= 0 have
    relative errors of at most gamma(n).
    """
    matrix = matrix.double()
    if not torch.isfinite(matrix).all():
        return math.inf
    unit = float(matrix.max()) if matrix.numel() else 0.0
    if unit == 0:
        return 0.0
    unit = math.ldexp(1.0, math.frexp(unit)[1])
    matrix = matrix / unit
    x = torch.ones(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    square = math.inf
    for _ in range(steps):
        moved = (matrix @ x) @ matrix
        square = min(square, float((moved / x).max()))
        x = (moved / moved.max()).clamp(min=_POSITIVE)
    return math.sqrt(square * (1 + gamma(sum(matrix.shape) + 4))) * unit * (1 + 4 * EPS)


def norm_upper(matrix: Tensor) -> float:
    """A number >= the spectral norm |W|_2 of a matrix of any shape."""
    ones = torch.ones(len(matrix), dtype=torch.float64, device=matrix.device)
    return math.sqrt(weighted_gram_upper(matrix, ones)) * (1 + 2 * EPS)
