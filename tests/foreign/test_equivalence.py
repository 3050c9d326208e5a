"""A model that computes something else than its network is refused; rounding is no difference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raycrt.errors import InvalidInput
from raycrt.foreign.equivalence import require_same_function
from raycrt.foreign.modules.reader import as_network
from raycrt.networks.network import Network
from tests.models import random_network

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=["softplus", "tanh", "gelu"])
def network(request) -> Network:
    return random_network(3, features=12, width=40, name=request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_function_added_up_in_another_order_passes(network, dtype):
    """In every precision: the inputs are taken from their end."""
    network = network.to(dtype)
    turned = network.copied(dtype)
    first = turned.layers[0]
    first.weight = nn.Parameter(first.weight.flip(1).clone())
    given = torch.randn(100, 3, 4)
    require_same_function(lambda x: turned(x.flatten(1).flip(1)), network, (3, 4), given=given)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_a_difference_of_one_class_is_named(network, dtype, least):
    network = network.to(dtype)

    def other(x: Tensor) -> Tensor:
        return network(x) * torch.tensor([1, 1, 1 + least, 1], dtype=dtype)

    with pytest.raises(
        InvalidInput, match=r"input.*, number \d+, the model's output 2 is .* rounding explains"
    ):
        require_same_function(other, network, (12,))


def test_differences_outside_of_the_given_range_are_seen(network):
    given = torch.rand(50, 12) / 2
    require_same_function(network, network, (12,), given=given)
    with pytest.raises(InvalidInput, match=r"random input \(between -0\.\d+ and 1\.\d+\)"):
        require_same_function(lambda x: network(x.clamp(0, 1)), network, (12,), given=given)


@pytest.mark.parametrize(
    "where",
    [
        lambda x: x.mean(1) < 0.1,
        lambda x: x.std(1) == 0,
        lambda x: x[:, 3] > 0.99,
        lambda x: x.abs().amax(1) > 20,
    ],
    ids=["dark", "one color", "one pixel", "far"],
)
def test_random_inputs_are_of_many_kinds(network, where):
    def other(x: Tensor) -> Tensor:
        return torch.where(where(x)[:, None], -1, 1) * network(x)

    with pytest.raises(InvalidInput, match="random input"):
        require_same_function(other, network, (12,))


def test_a_difference_at_given_inputs_alone_is_seen(network):
    given = torch.rand(50, 12)
    given[:, 0] = 0.25
    with pytest.raises(InvalidInput, match="given input"):
        require_same_function(
            lambda x: torch.where((x == 0.25).any(1, keepdim=True), 0, network(x)),
            network,
            (12,),
            given=given,
        )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_on_one_side_is_a_difference(network, value):
    def other(x: Tensor) -> Tensor:
        return network(x).index_fill(1, torch.tensor(1), value)

    with pytest.raises(InvalidInput, match=r"output 1 is (nan|inf)"):
        require_same_function(other, network, (12,))
    network.layers[-1].bias.data[1] = value
    require_same_function(network, network, (12,))


def test_overflow_of_the_model_s_own_type_is_no_difference():
    network = random_network(2, gain=100.0, seed=3).half()
    given = torch.full((1, 5), 6e4)
    assert not network(given.half()).isfinite().all()
    require_same_function(network, network, (5,), given=given)


def test_softplus_of_torch_becomes_linear_and_passes_in_float64():
    model = nn.Sequential(nn.Linear(3, 20), nn.Softplus(beta=3), nn.Linear(20, 2)).double()
    model[0].weight.data *= 20
    network = as_network(model)
    x = torch.rand(200, 3, dtype=torch.float64)
    assert float((model(x) - network(x)).detach().abs().max()) > 1e-12
    require_same_function(model, network, (3,), given=x)
    with pytest.raises(InvalidInput, match="rounding explains"):
        require_same_function(lambda x: model(x) * (1 + 1e-6), network, (3,), given=x)


@pytest.mark.parametrize(
    ("original", "message"),
    [
        (lambda x: x[:, :2], r"shape that its layers give it` .*output=\(16, 2\)"),
        (lambda x: {"logits": x}, "must return one tensor, but got dict"),
        (lambda x: x @ x, "its call raised RuntimeError: mat1 and mat2"),
    ],
)
def test_another_kind_of_output(original, message):
    with pytest.raises(InvalidInput, match=message):
        require_same_function(original, random_network(2), (5,))


def test_neither_random_numbers_nor_autocast_nor_gradients_are_touched():
    network = random_network(2)
    before = torch.get_rng_state()

    def original(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        torch.rand(3)
        return network(x)

    with torch.autocast("cpu"):
        require_same_function(original, network, (5,))
    assert torch.equal(before, torch.get_rng_state())
