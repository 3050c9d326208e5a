"""Networks whose layers differ: certified, read by the checker, and proved a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raycrt import Certifier, attack, data
from raycrt.bounds.curvature import margin_curvature
from raycrt.errors import InvalidInput
from raycrt.networks import checkpoint
from raycrt.specs import validate
from raycrt.verify import verify_run
from raycrt.verify.curvature import curvature_upper
from raycrt.verify.model import Model
from tests.bounds.laws import PAIRS, most_negative
from tests.models import MIXED, MIXED_IMAGES, mixed_network
from tests.verify.runs import (
    assert_rows_hold_and_raised_ones_do_not,
    edit_manifest,
    manifest_of,
    rewrite_rows,
    rows_of,
    write_run,
)
from tests.verify.seen import seen

EVERY = MIXED | MIXED_IMAGES
# The two networks with every kind of layer between them; the others in the slow suite.
MOST = [
    name
    if name in ("residual", "residual convolutions")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in EVERY
]


def _spec(layers, **certify):
    return validate(
        {
            "model": {"layers": layers, "activation": "arctan"},
            "data": {"name": "digits", "limit": 8},
            "certify": {"steps": 20, "batch_size": 16, "at": [0.05, 0.3], **certify},
        }
    )


@pytest.mark.parametrize("region", ["global", pytest.param("local", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MOST)
def test_honest_rows_pass_and_raised_ones_do_not(tmp_path, name, region):
    run = write_run(tmp_path, _spec(EVERY[name], region=region))
    assert_rows_hold_and_raised_ones_do_not(run)


@pytest.mark.parametrize(
    "name",
    [name if name == "residual" else pytest.param(name, marks=pytest.mark.slow) for name in MIXED],
)
def test_float32_deployments_pass(tmp_path, name):
    run = write_run(tmp_path, _spec(MIXED[name], deployment="float32"))
    report = verify_run(run)
    assert report.sound, report.findings[:3]


def _stored(tmp_path, layers, shape):
    spec = validate({"model": {"layers": layers}})
    network = mixed_network(layers, shape=shape)
    checkpoint.save_model(tmp_path, network, spec)
    return network, Model.load(tmp_path / checkpoint.MODEL, spec.model, shape)


@pytest.mark.parametrize("name", EVERY)
def test_the_checker_computes_what_the_network_computes(tmp_path, name):
    shape = (2, 6, 8) if name in MIXED_IMAGES else (5,)
    network, model = _stored(tmp_path, EVERY[name], shape)
    points = torch.randn(7, *shape, dtype=torch.float64)
    logits, slopes = model.joined.forward(points.flatten(1).numpy())
    assert np.allclose(logits, model.forward(points.flatten(1).numpy())[0], rtol=1e-12, atol=1e-13)
    trace = network.double().trace(points.flatten(1))
    assert np.allclose(logits, trace.logits.detach().numpy(), rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(slopes, trace.slopes, strict=True):
        assert np.allclose(ours, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", MIXED.values(), ids=MIXED)
def test_the_checkers_curvature_is_above_exact_hessians(tmp_path, layers):
    network, model = _stored(tmp_path, layers, (5,))
    m = curvature_upper(model, np.full((4, 4), np.nan))
    points = 0.5 * torch.randn(60, 5, dtype=torch.float64)
    for y, t in PAIRS:
        assert most_negative(network.double(), y, t, points) <= m[y, t]
    assert np.allclose(m, margin_curvature(network).numpy(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST)
@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"region": "local", "radii": (0.3,)}, marks=pytest.mark.slow)],
)
def test_no_attack_lies_inside_a_radius(name, options):
    shape = (1, 8, 8)
    network = mixed_network(EVERY[name], shape=shape, classes=10, gain=1.5)
    images = data.load(_spec(EVERY[name]).data).test.images
    found = Certifier(network, **options)(images)
    assert (found.radius > 0).sum() >= 6
    assert (found.radius <= attack(network, images).distance).all()


def test_the_identity_of_a_residual_block_adds_no_curvature():
    """Of `x + V s(W x)` only V s(W x) is curved, whatever the size of what is passed on."""
    residual = mixed_network([{"kind": "residual", "width": 6}], gain=1.0)
    block = mixed_network([{"kind": "dense", "width": 6}], gain=1.0)
    stack, after, last = residual.maps
    with torch.no_grad():
        first, second = block.layers
        first.weight.copy_(stack.maps[0].weight)
        first.bias.copy_(stack.maps[0].bias)
        second.weight.copy_(last.weight @ after.maps[0].weight)
    torch.testing.assert_close(
        margin_curvature(residual), margin_curvature(block), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [{"kind": "dense", "width": 5}, {"kind": "average_pool"}],
            "layer 1 of the model: it must be given images",
        ),
        ([{"kind": "convolution", "channels": 3, "groups": 2}], "groups divides"),
        ([{"kind": "convolution", "channels": 3, "kernel": 9}], "kernel fits"),
    ],
)
def test_layers_that_do_not_fit_are_named(layers, message):
    with pytest.raises(InvalidInput, match=message):
        mixed_network(layers, shape=(1, 6, 6))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"layers": [{"kind": "dence", "width": 5}]}, "kind must be dense, convolution"),
        ({"layers": [{"kind": "dense", "width": 5}], "width": 64}, "width must be left out"),
        ({"layers": [{"kind": "residual", "width": 5, "kernel": 2}]}, "must be odd"),
        ({"layers": [{"kind": "residual", "width": 5, "activation": "none"}]}, "must be one of"),
        ({"layers": [{"kind": "average_pool", "window": 0}]}, "window"),
        ({"layers": [{"kind": "convolution", "channels": 3, "kernel": [3, 2, 2]}]}, "kernel"),
        ({"layers": [{"kind": "batch_normalization", "eps": -1.0}]}, "eps"),
        (
            {"layers": [{"kind": "dense", "width": 5, "activation": "tanh", "beta": 2.0}]},
            "beta of a layer must be left out",
        ),
        ({"layers": [{"kind": "dense", "width": 5}], "head": False}, "ends in a linear layer"),
        ({"layers": [{"kind": "flatten"}]}, "activation"),
    ],
)
def test_lists_of_layers_that_make_no_sense_are_refused(model, message):
    with pytest.raises(InvalidInput, match=message):
        validate({"model": model})


def test_a_tensor_that_is_missing_or_unknown_is_named(tmp_path):
    layers = MIXED["residual"]
    spec, other = _spec(layers), _spec(layers[:-1])
    checkpoint.save_model(tmp_path, mixed_network(layers), spec)
    with pytest.raises(InvalidInput, match=r"maps\.7\.bias|maps\.6\.parts"):
        Model.load(tmp_path / checkpoint.MODEL, other.model, (5,))
    checkpoint.save_model(tmp_path, mixed_network(layers[:-1]), other)
    with pytest.raises(InvalidInput, match=r"missing='maps\.\d\.parts\.0\.weight'"):
        Model.load(tmp_path / checkpoint.MODEL, spec.model, (5,))


CONSTANTS = [
    (0, "variance", math.nan),
    (0, "variance", -1.0),
    (0, "mean", math.inf),
    (1, "divisor", 0.0),
    (1, "divisor", math.nan),
    (3, "weight", 1e200),
]


@pytest.mark.parametrize(("place", "name", "value"), CONSTANTS)
def test_constants_that_prove_nothing_are_the_same_to_both(tmp_path, place, name, value):
    spec, network = _spec(MIXED["normalised"]), mixed_network(MIXED["normalised"]).double()
    getattr(network.maps[place], name).data[0] = value
    checkpoint.save_model(tmp_path, network, spec)
    model = Model.load(tmp_path / checkpoint.MODEL, spec.model, (5,))
    assert not network.bounded() and not model.finite
    assert np.isinf(curvature_upper(model, np.zeros((4, 4)))[0, 1])


@pytest.mark.slow
@pytest.mark.parametrize(("place", "name", "value"), [*CONSTANTS, (0, "variance", 1e-30)])
def test_rows_of_such_networks_pass_without_a_radius(tmp_path, place, name, value):
    def extreme(model):
        getattr(model.double().maps[place], name).data[0] = value

    run = write_run(tmp_path, _spec(MIXED["normalised"]), change=extreme)
    report = verify_run(run)
    assert report.sound, report.findings[:3]
    assert (name, value) == ("variance", 1e-30) or all(
        row["radius"] == 0 for row in rows_of(run).to_pylist()
    )


def test_an_order_that_is_none_is_refused(tmp_path):
    spec, network = _spec(MIXED["normalised"]), mixed_network(MIXED["normalised"])
    network.maps[5].order[:2] = 1
    checkpoint.save_model(tmp_path, network, spec)
    with pytest.raises(InvalidInput, match=r"maps\.5\.order holds every feature once"):
        Model.load(tmp_path / checkpoint.MODEL, spec.model, (5,))


def test_a_width_that_the_spec_does_not_state_is_refused(tmp_path):
    """Before anything of the stated size is made."""
    for layers, key in (
        ([{"kind": "residual", "width": 3}, {"kind": "dense", "width": 5}], "residual"),
        ([{"kind": "dense", "width": 5}, {"kind": "residual", "width": 3}], "dense"),
    ):
        checkpoint.save_model(tmp_path / key, mixed_network(layers), _spec(layers))
        wide = [{**layers[0], "width": 1_000_000}, *layers[1:]]
        with pytest.raises(InvalidInput, match=r"the layers fit together: maps\.0"):
            Model.load(tmp_path / key / checkpoint.MODEL, _spec(wide).model, (5,))


def test_a_branch_of_one_row_is_refused(tmp_path):
    spec = _spec([{"kind": "residual", "width": 6}])
    network = mixed_network([{"kind": "residual", "width": 6}])
    outer = network.maps[1].maps[0]
    outer.weight, outer.bias = (torch.nn.Parameter(p[:1]) for p in (outer.weight, outer.bias))
    checkpoint.save_model(tmp_path, network, spec)
    with pytest.raises(InvalidInput, match=r"maps\.1\.parts\.0\.weight is \(outputs, inputs\)"):
        Model.load(tmp_path / checkpoint.MODEL, spec.model, (5,))


def test_gradients_that_underflow_prove_nothing():
    """The gradient in the block's neuron is 1e-330, which is 0 in float64, its Jacobian 1e198."""
    layers = [{"kind": "dense", "width": 2, "activation": "none"}, {"kind": "residual", "width": 1}]
    network = mixed_network(layers, shape=(2,), classes=2).double()
    first, stack, after, last = network.maps
    with torch.no_grad():
        first.weight.copy_(1e99 * torch.eye(2))
        stack.maps[0].weight.fill_(1e99)
        after.maps[0].weight.copy_(torch.tensor([[1e-300], [1e-50]]))
        last.weight.copy_(torch.tensor([[1e-30, 0.0], [-1e-30, 0.0]]))
    assert torch.isinf(margin_curvature(network)[0, 1])
    assert np.isinf(curvature_upper(seen(network), np.full((2, 2), np.nan))[0, 1])


@pytest.mark.slow
def test_overflow_limits_the_same_radii_in_solver_and_checker(tmp_path):
    """Rows of one class that is not masked reach as far as float32 does."""

    def masked(model):
        model.maps[-1].bias.data[1:] = -torch.inf

    layers = MIXED["residual"]
    run = write_run(tmp_path, _spec(layers, deployment="float32"), change=masked)
    report = verify_run(run)
    assert report.sound, report.findings[:3]


@pytest.mark.parametrize("variance", [-1e-5, -9.99e-6, -1e-30])
def test_a_negative_variance_proves_nothing(tmp_path, variance):
    """A sum with eps cancels, and in float32 eps is another number."""
    layers = [{"kind": "batch_normalization"}, {"kind": "dense", "width": 6}]
    network = mixed_network(layers).double()
    network.maps[0].variance.fill_(variance)
    assert not network.bounded()
    assert (Certifier(network)(torch.rand(4, 5)).radius == 0).all()
    checkpoint.save_model(tmp_path, network, validate({"model": {"layers": layers}}))
    stored = validate({"model": {"layers": layers}}).model
    model = Model.load(tmp_path / checkpoint.MODEL, stored, (5,))
    assert np.isinf(curvature_upper(model, np.full((4, 4), np.nan))[~np.eye(4, dtype=bool)]).all()


@pytest.mark.parametrize(("eps", "weight"), [(1e-46, 1e-23), (1e-54, 1e-27)])
def test_what_float32_divides_by_counts_as_much_as_its_root(tmp_path, eps, weight):
    """1 / (variance + eps) is not finite in float32, where 1 / sqrt(variance + eps) is."""
    layers = [{"kind": "batch_normalization", "eps": eps}, {"kind": "dense", "width": 24}]
    spec = _spec(layers)

    def change(model):
        model.maps[0].variance.zero_()
        model.maps[0].weight.fill_(weight)

    run = write_run(tmp_path, spec, change=change)
    rows = rows_of(run).to_pylist()
    assert verify_run(run).sound and any(row["status"] == "certified" for row in rows)
    for row in rows:
        row["radius"], row["radius_runner_up"] = row["radius"] / 2, row["radius_runner_up"] / 2
    rewrite_rows(run, rows)
    manifest = manifest_of(run)
    manifest["spec"]["certify"]["deployment"] = "float32"
    edit_manifest(run, deployment="float32", spec=manifest["spec"])
    assert verify_run(run).failed == sum(row["status"] == "certified" for row in rows)


@pytest.mark.parametrize("kind", ["batch_normalization", "scaling", "average_pool"])
def test_each_layer_has_the_sharpness_that_it_states(tmp_path, kind):
    """In the network as in the checker."""
    layers = [{"kind": kind, "activation": "softplus", "beta": 3.0}]
    network = mixed_network(layers, shape=(1, 4, 4))
    spec = validate({"model": {"layers": layers}})
    checkpoint.save_model(tmp_path, network, spec)
    model = Model.load(tmp_path / checkpoint.MODEL, spec.model, (1, 4, 4))
    for each in (network.nonlinearities[0].activation, model.hidden[0].activation):
        assert each.curvature_range[1] == pytest.approx(0.75)
