"""Points proved in few directions: the error of leaving the others out is never below the truth."""

import numpy as np
import pytest
import torch

from raycrt import Certifier
from raycrt.bounds.error_tables import ErrorTables
from raycrt.bounds.rounding import FirstLayerError, RoundingErrors
from raycrt.evaluation.attacks import attack
from raycrt.margins import first_layer
from raycrt.margins.first_layer import AllPixels, Span
from raycrt.margins.tolerances import Tolerances
from raycrt.networks.layers.affine import Dense
from tests.models import random_network


def _layer(noise, rank=4, rows=30, columns=20, seed=0):
    """A first layer of `rank` directions, stored in float32, and a rest of size `noise`."""
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, rank, generator=draw) @ torch.randn(rank, columns, generator=draw)
    spike = torch.outer(torch.randn(rows, generator=draw), torch.randn(columns, generator=draw))
    layer = Dense(columns, rows)
    with torch.no_grad():
        layer.weight.copy_(matrix + noise * spike / spike.norm())
        layer.bias.copy_(torch.randn(rows, generator=draw))
    return layer.requires_grad_(False)


def _network(layer):
    network = random_network(2, features=layer.in_features, width=layer.out_features, gain=2.0)
    network.maps[0] = layer
    return network


# Directions are left out whatever that costs.
FREELY = Tolerances(left_out=1e-3)


def _certifier(network, tolerances=FREELY):
    return Certifier(network, tolerances=tolerances)


def _exactly(matrix):
    return np.array(matrix.double().numpy(), dtype=np.longdouble)


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-5])
def test_what_is_left_out_is_never_below_the_truth(noise):
    layer = _layer(noise)
    space = _certifier(_network(layer)).batch.prepared.space
    layer = layer.double()
    assert isinstance(space, Span)
    assert len(space.basis) == 4
    matrix = _exactly(layer.matrix())
    rest = layer.matrix() - space.action @ space.basis
    worst = torch.linalg.svd(rest)
    x = torch.cat([torch.randn(50, 20).double(), worst.Vh, space.basis])
    exact = _exactly(x) @ matrix.T + _exactly(layer.offset())
    off = np.linalg.norm((exact - _exactly(space.first(x))).astype(float), axis=1)
    assert (off <= space.slack.image * x.norm(dim=1).numpy() + 1e-14).all()
    w = torch.cat([torch.randn(50, 4).double(), torch.eye(4).double()])
    step = _exactly(w) @ _exactly(space.basis)
    moved = space.onto(torch.zeros(len(w), 30).double(), w)
    off = np.linalg.norm((step @ matrix.T - _exactly(moved)).astype(float), axis=1)
    assert (off <= space.slack.image * w.norm(dim=1).numpy() + space.slack.lost).all()
    v = torch.cat([torch.randn(50, 30).double(), worst.U.T])
    gradient = _exactly(v) @ matrix
    back = _exactly(space.pull(v)) @ _exactly(space.basis)
    off = np.linalg.norm((gradient - back).astype(float), axis=1)
    assert (off <= space.slack.pull * v.norm(dim=1).numpy() + space.slack.lost).all()
    # Storing the weights in float32 adds some 1e-6 of their size.
    assert space.slack.image < 2 * noise + 3e-6


def test_radii_in_few_directions_are_those_in_pixels_and_below_every_attack():
    network = _network(_layer(1e-7))
    images = torch.randn(60, 20, generator=torch.Generator().manual_seed(1))
    certifier = _certifier(network)
    assert isinstance(certifier.batch.prepared.space, Span)
    found = certifier(images)
    everywhere = _certifier(network, Tolerances(few=0.0))
    assert isinstance(everywhere.batch.prepared.space, AllPixels)
    pixels = everywhere(images)
    assert torch.allclose(found.radius, pixels.radius, rtol=3e-3)
    # In few directions curvature is a matrix, which proves a little more next to the pole.
    mean = float(pixels.radius.mean())
    assert mean * (1 - 1e-5) <= float(found.radius.mean()) <= mean * (1 + 1e-3)
    assert (found.radius <= attack(network, images).distance).all()


def test_a_larger_rest_costs_radius_and_no_proof():
    """Directions that matter, left out on purpose: the radii shrink by what they may do."""
    network = _network(_layer(0.3))
    images = torch.randn(60, 20, generator=torch.Generator().manual_seed(2))
    whole = _certifier(network)(images)
    certifier = _certifier(network, Tolerances(negligible=0.05, left_out=10.0))
    assert isinstance(certifier.batch.prepared.space, Span)
    assert len(certifier.batch.prepared.space.basis) == 4
    found = certifier(images)
    assert (found.radius <= whole.radius * (1 + 1e-6)).all()
    assert found.radius.mean() < whole.radius.mean() * 0.99
    assert (found.radius <= attack(network, images).distance).all()


@pytest.mark.parametrize("scale", [0.0, 1e-60, 1e60])
def test_layers_of_any_size_give_radii(scale):
    network = _network(_layer(0.0)).double()
    with torch.no_grad():
        network.maps[0].weight.mul_(scale)
        network.maps[1].weight.div_(scale or 1.0)
    found = _certifier(network)(torch.randn(5, 20))
    assert (found.radius >= 0).all()
    assert ((found.radius < torch.inf) == (scale > 0)).all()


def test_directions_are_not_left_out_where_that_costs_radius():
    certifier = _certifier(_network(_layer(1e-7)), Tolerances(left_out=1e-9))
    assert isinstance(certifier.batch.prepared.space, AllPixels)


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 300.0])
def test_a_point_that_is_kept_lies_where_its_proof_holds(size):
    space = _certifier(_network(_layer(0.0, rank=9))).batch.prepared.space
    assert isinstance(space, Span)
    w = space.rounded(size * torch.randn(400, 9, generator=torch.Generator().manual_seed(0)))
    step = w.double() @ space.basis
    off = (space.point(w).double() - step).norm(dim=1)
    allowed = space.rounding(w.double().norm(dim=1))
    assert (off <= allowed).all()
    assert (allowed < 2e-3 * step.norm(dim=1) + 1e-6).all()


def test_a_step_too_long_for_its_point_proves_nothing():
    space = _certifier(_network(_layer(0.0))).batch.prepared.space
    assert space.rounding(torch.tensor([7e4], dtype=torch.float64)).isinf().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [30, 300, 1000])
def test_gradients_in_few_directions_are_within_their_bound(rows, dtype):
    """Vectors that lie along the columns make every rounding count."""
    network = _network(_layer(1e-6, rows=rows))
    certifier = _certifier(network)
    space = certifier.batch.prepared.space
    assert isinstance(space, Span)
    matrix = _exactly(network.maps[0].matrix())
    v = torch.cat([torch.randn(50, rows), space.action.T.float()]).to(dtype)
    back = _exactly(space.pull(v)) @ _exactly(space.basis)
    off = np.linalg.norm((_exactly(v) @ matrix - back).astype(float), axis=1)
    zero = torch.zeros(len(v), dtype=torch.float64)
    bound = certifier.batch.prepared.proof.errors.at_input(
        zero, v.double().norm(dim=1), dtype, space.slack
    )
    assert (off <= bound.numpy()).all()


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_blocks_are_added_up_when_they_are_complete(rows):
    """Terms just below half a unit of the sum so far: one by one, each of them would be lost."""
    column = torch.full((4096,), 2.0**-12 * (1 - 2.0**-10))
    column[0] = 1.0
    v, matrix = column.expand(rows, -1).contiguous(), column[:, None].expand(-1, 4).contiguous()
    exact = float(column.double() @ column.double())
    off = (first_layer._blockwise(v, matrix).double() - exact).abs().max()
    terms = first_layer._terms(4096)
    assert terms < 280
    assert float(off) <= terms * 2.0**-24 * exact


def test_equal_rows_of_the_last_matrix_leave_no_typical_gradient():
    network = _network(_layer(0.0))
    with torch.no_grad():
        network.maps[1].weight.copy_(network.maps[1].weight[:1].expand(4, -1))
    found = _certifier(network)(torch.randn(5, 20))
    assert (found.radius >= 0).all()


def test_kept_bounds_are_those_of_the_next_longer_input():
    errors = RoundingErrors.of(random_network(3))
    bounds = ErrorTables.of(errors, FirstLayerError.plain(5))
    lengths = torch.tensor([0.0, 1e-30, 0.7, 1.0, 2.0**0.25, 3.0, 1e6, 1e100], dtype=torch.float64)
    dtypes = (torch.float32, torch.float64)
    for found, exact in (
        (bounds.margin(lengths), errors.margin(lengths, torch.float64)),
        (bounds.gradient(lengths), errors.gradient(lengths, torch.float64)),
        *(
            (found, exact)
            for dtype in dtypes
            for found, exact in zip(
                bounds.hidden(lengths, dtype), errors.hidden(lengths, dtype, None), strict=True
            )
        ),
    ):
        assert (found >= exact).all()
        assert (found[2:7] <= exact[2:7] * 2).all()
    for beyond in (1e130, torch.inf, torch.nan):
        length = torch.tensor([beyond], dtype=torch.float64)
        for found in (
            bounds.margin(length),
            bounds.gradient(length),
            *bounds.hidden(length, torch.float32),
        ):
            assert found.isinf().all()
