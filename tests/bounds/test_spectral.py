"""Proved bounds lie above the truth, also where iterations lie, and not far above it."""

import math
from fractions import Fraction

import pytest
import torch

from raycrt.bounds.spectral import (
    EPS,
    cholesky_upper,
    eigenvalue_upper,
    gram_iteration_upper,
    nonnegative_norm_upper,
    norm_upper,
    weighted_gram_upper,
)


def _with_spectrum(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(
        torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)
    )
    matrix = q @ torch.diag(values.double()) @ q.T
    return (matrix + matrix.T) / 2


PLANTED = {
    "tight cluster": torch.cat([torch.linspace(1 - 1e-7, 1, 40), torch.rand(160)]),
    "equal": torch.ones(150),
    "rank one plus noise": torch.cat([torch.ones(1), 1e-9 * torch.rand(199)]),
    "indefinite": torch.linspace(-2, 1, 180),
    "negative": -torch.linspace(1, 2, 140),
    "tiny": 1e-30 * torch.rand(160),
    "huge": 1e30 * torch.rand(160),
}


@pytest.mark.parametrize("name", PLANTED)
def test_largest_eigenvalue(name):
    values = PLANTED[name].double()
    bound = eigenvalue_upper(_with_spectrum(values))
    largest, size = float(values.max()), float(values.abs().max())
    assert largest * (1 - 1e-12) <= bound + 1e-12 * size
    assert bound <= largest + 1e-6 * size


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999, 1 - 1e-7])
def test_a_guess_that_is_too_small_proves_nothing(share):
    """What power iteration gives when its start is nearly orthogonal to the first eigenvector."""
    values = torch.linspace(0.1, 3, 60)
    assert eigenvalue_upper(_with_spectrum(values), guess=3 * share) >= 3 * (1 - 1e-12)


@pytest.mark.parametrize("visible", [0.5, 1 - 1e-6, 1 - 1e-12])
def test_an_eigenvector_that_the_start_of_lanczos_does_not_see(visible):
    """The start is an eigenvector itself, for the second eigenvalue."""
    n = 160
    start = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = torch.linalg.qr(torch.cat([start[:, None], torch.eye(n).double()[:, 1:]], 1)).Q
    matrix = visible * torch.outer(q[:, 0], q[:, 0]) + torch.outer(q[:, 1], q[:, 1])
    assert 1 - 1e-13 <= eigenvalue_upper(matrix) <= 1 + 1e-6


@pytest.mark.parametrize("n", [1, 2, 40])
def test_rumps_shift_and_the_rounding_of_the_diagonal_are_added(n):
    """At the guess 0 nothing else is: the trace of -A is n (n + 1) / 2, its largest entry n."""
    proved = cholesky_upper(-torch.diag(torch.arange(1, n + 1).double()), 0.0)
    unit = (n + 1) * Fraction(EPS)
    shift = unit / (1 - unit) * n * (n + 1) / 2 + n * Fraction(EPS)
    assert shift <= Fraction(proved) <= shift * Fraction(1 + 1e-9)


def test_one_bound_for_the_largest_eigenvalue_of_several_matrices():
    several = torch.diag_embed(torch.tensor([[1.0, 2.0], [3.0, -9.0]], dtype=torch.float64))
    assert cholesky_upper(several, 2.5) is None
    alone = [cholesky_upper(matrix, 3.5) for matrix in several]
    assert cholesky_upper(several, 3.5) == max(alone) > 3.5


def test_weighted_gram_of_both_signs():
    generator = torch.Generator().manual_seed(1)
    for rows, columns in [(7, 30), (30, 7), (12, 12)]:
        w = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
        for p in (torch.rand(rows, generator=generator), torch.randn(rows, generator=generator)):
            p = p.double()
            truth = max(0.0, float(torch.linalg.eigvalsh(w.T @ (p[:, None] * w))[-1]))
            assert truth * (1 - 1e-12) <= weighted_gram_upper(w, p) <= truth * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (200, 150)])
def test_norm(shape):
    w = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    truth = float(torch.linalg.matrix_norm(w, 2))
    assert truth * (1 - 1e-13) <= norm_upper(w) <= truth * (1 + 1e-6)


NORMS = {
    "cholesky": (norm_upper, 1 + 1e-6),
    "gram iteration": (gram_iteration_upper, 200 ** (1 / 2**9)),
    "gram iteration, many steps": (lambda w: gram_iteration_upper(w, 20), 1 + 1e-4),
    "gram iteration of several": (
        lambda w: gram_iteration_upper(torch.stack([0 * w, w, 1e3 * w]))[1],
        200 ** (1 / 2**9),
    ),
}


@pytest.mark.parametrize("method", NORMS)
@pytest.mark.parametrize("name", [n for n in PLANTED if n not in ("indefinite", "negative")])
@pytest.mark.parametrize("columns", [None, 60])
def test_every_norm_of_planted_matrices(method, name, columns):
    """The same matrices for each proof: bounds lie above the truth and within what they promise."""
    matrix = _with_spectrum(PLANTED[name])[:, :columns]
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    bound, loose = NORMS[method]
    assert truth * (1 - 1e-12) <= bound(matrix) <= truth * loose * (1 + 1e-6)


@pytest.mark.parametrize("steps", [0, 1, 8])
@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-170, 1e-60, 1e-44, 1e150, 1e300])
def test_no_size_of_entries_loses_a_norm(size, steps):
    """Squares of these entries under- or overflow; zero beside them stays zero."""
    matrices = torch.stack([torch.eye(2), torch.zeros(2, 2)]).double() * size
    bound, zero = gram_iteration_upper(matrices, steps).tolist()
    assert size <= bound <= max(1.5 * size, 2.3e-308)
    assert zero == 0


@pytest.mark.parametrize("method", NORMS)
def test_what_the_sums_of_a_product_lose_is_added(method):
    """Squares of 2^-54 next to squares of 1 vanish from every partial sum: 256 eps of the whole."""
    ones, rest = 64, 2**16
    row = torch.cat([torch.ones(ones), torch.full((rest,), 2.0**-27)]).double()[None]
    for matrix in (row, row.T):
        bound = Fraction(float(NORMS[method][0](matrix)))
        assert bound**2 >= ones + rest * Fraction(1, 2**54)


@pytest.mark.parametrize("coupling", [0.0, 1e-12, 1e-6])
def test_non_negative_blocks_that_hardly_touch(coupling):
    """Nearly reducible, and the blocks' norms a tight cluster: power steps do not tell them apart.

    The exact norm is that of [[a, c], [c, 1]] with a = 1 - 1e-6, blocks of equal entries.
    """
    small = torch.tensor([[1 - 1e-6, coupling], [coupling, 1.0]], dtype=torch.float64)
    truth = float(torch.linalg.eigvalsh(small)[-1])
    matrix = torch.kron(small, torch.full((8, 8), 1 / 8, dtype=torch.float64))
    bound = nonnegative_norm_upper(matrix)
    assert truth * (1 - 1e-14) <= bound <= truth * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(30, 80), (80, 30), (50, 50)])
def test_norm_of_non_negative_matrices(shape):
    generator = torch.Generator().manual_seed(3)
    dense = torch.rand(*shape, dtype=torch.float64, generator=generator)
    sparse = dense * (torch.rand(*shape, generator=generator) < 0.05)
    for matrix in (dense, sparse, 1e-200 * dense, 1e200 * dense):
        scale = float(matrix.max())
        truth = float(torch.linalg.matrix_norm(matrix / scale, 2)) * scale
        assert truth * (1 - 1e-12) <= nonnegative_norm_upper(matrix)
    truth = float(torch.linalg.matrix_norm(dense, 2))
    assert nonnegative_norm_upper(dense) <= truth * (1 + 1e-9)


def test_zero_and_non_finite_matrices():
    assert norm_upper(torch.zeros(4, 3)) == 0
    bad = torch.ones(4, 3)
    bad[1, 2] = math.nan
    assert norm_upper(bad) == gram_iteration_upper(bad) == math.inf
    assert nonnegative_norm_upper(bad) == math.inf
    assert gram_iteration_upper(torch.zeros(4, 3)) == nonnegative_norm_upper(torch.zeros(4, 3)) == 0
    assert eigenvalue_upper(torch.full((2, 2), math.inf, dtype=torch.float64)) == math.inf
