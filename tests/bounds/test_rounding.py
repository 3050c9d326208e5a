"""What rounding does to values, slopes and gradients stays within its bounds, planted or real."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raycrt import Certifier
from raycrt.activations import NUMPY
from raycrt.bounds.rounding import RoundingErrors
from raycrt.margins.prepared import pull_back
from raycrt.networks.nonlinearity import TORCH
from tests.models import random_network

DTYPES = [torch.float32, torch.float64]
KINDS = ["softplus", "tanh", "arctan", "silu"]


def _case(depth, name, cancels):
    """In float64, with 100 float32 images; z_1 of large terms may nearly cancel at all of them."""
    network = random_network(depth, features=20, width=30, name=name, seed=depth).in_float64()
    x = torch.randn(100, 20, generator=torch.Generator().manual_seed(depth))
    if cancels:
        first = network.layers[0]
        first.weight.mul_(1e4)
        x = x[:1] + 1e-5 * x
        first.bias.copy_(-(x[:1].double() @ first.weight.T)[0])
    return network, x.double()


def _exactly(network, x):
    """z_k of the hidden layers and the gradient of the margin (0, 1), in long double."""
    weights, biases = (
        [part(layer).numpy().astype(np.longdouble) for layer in network.layers]
        for part in (lambda layer: layer.matrix(), lambda layer: layer.offset())
    )
    found, a = [], x.numpy().astype(np.longdouble)
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        found.append(a @ w.T + b)
        a = network.activation.value(found[-1], NUMPY)
    g = np.broadcast_to(weights[-1][0] - weights[-1][1], found[-1].shape)
    for w, z in zip(weights[-2::-1], found[::-1], strict=True):
        g = (g * network.activation.slope(z, NUMPY)) @ w
    return found, g


def _apart(computed, exact):
    off = computed.double().numpy().astype(np.longdouble) - exact
    return torch.from_numpy(np.sqrt((off * off).sum(1)).astype(np.float64))


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_and_hidden_values_are_within_their_bounds(depth, name, cancels):
    network, x = _case(depth, name, cancels)
    z, gradient = _exactly(network, x)
    errors, length = RoundingErrors.of(network), x.norm(dim=1)
    cotangent = torch.eye(4).double()[0] - torch.eye(4).double()[1]
    for dtype in DTYPES:
        fast = network.copied(dtype)
        slopes = fast.trace(x.to(dtype)).slopes
        found = fast.pull_back(slopes, cotangent.to(dtype).expand(len(x), 4))
        assert (_apart(found, gradient) <= errors.gradient(length, dtype)).all()
        values, a = [], x
        for layer in network.layers[:-1]:
            values.append(layer(a))
            a = network.activation.value(values[-1], TORCH)
        for bound, value, exact in zip(errors.hidden(length, dtype, None), values, z, strict=True):
            assert (_apart(value.to(dtype), exact) <= bound).all()


@pytest.mark.parametrize("backward", DTYPES)
@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_proofs_are_within_their_bounds(depth, name, cancels, backward):
    network, x = _case(depth, name, cancels)
    prepared, fast = Certifier(network).batch.prepared, backward == torch.float32
    prepared = replace(prepared, backward=prepared.fast if fast else prepared.exact)
    readout = prepared.fast_readout if fast else prepared.exact_readout
    label = torch.zeros(len(x), dtype=torch.int64)
    slopes = prepared.exact.hidden(prepared.space.first(x), backward)[1]
    first, norms = pull_back(prepared.backward, slopes, readout.margin(label, label + 1))
    error = prepared.gradient_error(norms, label, label + 1, x.norm(dim=1), backward)
    assert (_apart(prepared.space.pull(first), _exactly(network, x)[1]) <= error).all()


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("size", [1e-4, 1e-2])
def test_slopes_taken_at_the_wrong_place_are_counted(layer, size):
    """z of one layer is off by `size` in the neuron that matters most; the rest is exact."""
    network = random_network(4, name="tanh", width=8).in_float64()
    errors = RoundingErrors.of(network)
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).double()
    z, a = [], x
    for each in network.layers[:-1]:
        z.append(each(a))
        a = network.activation.value(z[-1], TORCH)
    cotangent = (network.layers[-1].matrix()[0] - network.layers[-1].matrix()[1]).repeat(200, 1)

    def gradient(values):
        slopes = [network.activation.slope(value, TORCH) for value in values]
        return pull_back(network, slopes, cotangent.clone())

    exact = gradient(z)[0]
    sizes = [cotangent.norm(dim=1)]
    off = [torch.full((200,), size if k == layer else 0.0).double() for k in range(3)]
    worst = torch.zeros(200, dtype=torch.float64)
    for neuron in range(8):
        moved = [value.clone() for value in z]
        moved[layer][:, neuron] += size
        found, way = gradient(moved)
        bound = errors.pulled_back([*sizes, *way.between], off, torch.float64)
        apart = (found - exact).norm(dim=1)
        assert (apart <= bound).all()
        worst = torch.maximum(worst, apart / bound)
    assert float(worst.max()) > 1e-2
