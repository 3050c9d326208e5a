"""A converted model computes what the original does, and what cannot be converted is named."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import raycrt
from raycrt.certification.certifier import Certifier
from raycrt.errors import InvalidInput
from raycrt.foreign import description, files
from raycrt.foreign.modules.elementwise import Elementwise
from raycrt.networks import checkpoint, network
from raycrt.networks.layers.affine import Dense
from raycrt.networks.network import Network
from raycrt.specs import ModelSpec, Spec
from tests.foreign.models import assert_same, convolutional, dense


class TestSequential:
    @pytest.mark.parametrize(
        "activation",
        [
            nn.Softplus(threshold=50),
            nn.Softplus(beta=4, threshold=50),
            nn.Sigmoid(),
            nn.Tanh(),
            nn.GELU(),
            nn.SiLU(),
            Elementwise("arctan"),
            Elementwise("erf"),
        ],
        ids=lambda layer: type(layer).__name__,
    )
    def test_dense(self, activation: nn.Module) -> None:
        model = dense(activation)
        assert_same(model, raycrt.as_network(model), (6,))

    def test_convolutional(self) -> None:
        model = convolutional()
        converted = raycrt.as_network(model, (2, 8, 6))
        assert converted.depth == 3
        assert converted.features == 96
        assert_same(model, converted, (2, 8, 6))

    def test_softplus_of_torch_is_near_the_exact_one(self) -> None:
        """Above its threshold of 20 torch drops `exp(-20)`."""
        layer, x = nn.Softplus(beta=2), torch.linspace(-30, 30, 10_001, dtype=torch.float64)
        exact = Elementwise(raycrt.as_network(dense(layer)).activation)(x)
        assert 1e-10 < float((layer(x) - exact).abs().max()) <= math.exp(-20) / 2 * (1 + 1e-6)

    def test_flatten_first_needs_no_input_shape(self) -> None:
        model = nn.Sequential(nn.Flatten(), *dense(nn.Tanh()))
        assert_same(model, raycrt.as_network(model), (1, 2, 3))

    def test_unflatten_states_the_shape(self) -> None:
        model = nn.Sequential(
            nn.Unflatten(1, (1, 4, 4)),
            nn.Conv2d(1, 2, 3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(8, 2),
        )
        assert_same(model, raycrt.as_network(model), (16,))

    def test_weights_are_copies_and_no_random_number_is_drawn(self) -> None:
        model = dense(nn.Tanh())
        before = torch.get_rng_state()
        converted = raycrt.as_network(model)
        assert torch.equal(before, torch.get_rng_state())
        model[0].weight.data.zero_()
        assert converted.layers[0].matrix().abs().min() > 0

    def test_a_network_is_itself(self) -> None:
        made = raycrt.as_network(dense(nn.Tanh()))
        assert raycrt.as_network(made) is made

    def test_gradients_of_a_convolutional_network(self) -> None:
        converted = raycrt.as_network(convolutional(), (2, 8, 6)).double()
        x = torch.rand(3, 96, dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(converted(x)[:, 1].sum(), x)
        cotangent = torch.eye(3, dtype=torch.float64)[1].expand(3, -1)
        found = converted.pull_back(converted.trace(x).slopes, cotangent)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    def test_certificates_hold_under_attack(self) -> None:
        """No point of a gradient descent within the radius has another prediction."""
        converted = raycrt.as_network(convolutional(), (2, 8, 6))
        images = torch.rand(6, 2, 8, 6)
        found = Certifier(converted, steps=10)(images)
        assert (found.radius > 0).any()
        exact, x0 = converted.double(), images.flatten(1).double()
        others = torch.nn.functional.one_hot(found.prediction, 3).bool()
        x = x0.clone()
        for _ in range(50):
            x.requires_grad_(True)
            logits = exact(x)
            assert torch.equal(logits.argmax(1), found.prediction)
            margin = logits[others] - logits.masked_fill(others, -torch.inf).amax(1)
            (gradient,) = torch.autograd.grad(margin.sum(), x)
            u = x.detach() - x0 - gradient
            x = x0 + u * (found.radius / u.norm(dim=1)).clamp(max=1)[:, None] * (1 - 1e-9)


class TestUnsupported:
    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            (
                [nn.ReLU()],
                r"layer 0.1 \(ReLU\) is not supported \(a kink .*\); supported are Linear, Conv2d",
            ),
            ([nn.Softplus(threshold=5)], r"threshold >= 20 .* layer 0.1 \(Softplus\)"),
            ([nn.GELU(approximate="tanh")], r"approximate must be 'none', but layer 0.1 \(GELU\)"),
            (
                [nn.Linear(9, 8), nn.Tanh()],
                r"layer 0.1 \(Linear\): a linear layer of 9 features .* gets \(8,\)",
            ),
            ([nn.Conv2d(1, 2, 3)], r"layer 0.1 \(Conv2d\): `input is \(channels, height, width\)`"),
            ([nn.BatchNorm1d(8, track_running_stats=False)], "running statistics must be kept"),
        ],
    )
    def test_layer_is_named_with_its_path(self, layers: list[nn.Module], message: str) -> None:
        model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), *layers), nn.Linear(8, 3))
        with pytest.raises(InvalidInput, match=message):
            raycrt.as_network(model)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), "is padded with zeros"),
            (nn.Conv2d(1, 2, 2, padding="same"), "padding is the same on both sides"),
            (nn.Conv2d(3, 2, 3), "as many channels as it takes.*channels=1"),
            (nn.Conv2d(1, 2, 9), "kernel fits into the padded image"),
            (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode is false"),
            (nn.AvgPool2d(3, padding=1, count_include_pad=False), "count_include_pad"),
            (nn.AdaptiveAvgPool2d(3), "output_size divides the image"),
            (nn.Flatten(2), "flatten keeps the batch alone"),
            (nn.BatchNorm2d(2), "normalisation is given as many channels"),
            (nn.Unflatten(1, (2, 2)), "sizes fit"),
            (nn.MaxPool2d(2), "MaxPool2d.* is not supported"),
        ],
    )
    def test_geometry(self, layer: nn.Module, message: str) -> None:
        with pytest.raises(InvalidInput, match=message) as caught:
            raycrt.as_network(nn.Sequential(layer), (1, 8, 8))
        assert f"layer 0 ({type(layer).__name__})" in str(caught.value)

    def test_convolution_needs_the_input_shape(self) -> None:
        with pytest.raises(InvalidInput, match="input_shape must be given"):
            raycrt.as_network(convolutional())

    @pytest.mark.parametrize("layers", [[], [nn.Linear(3, 2)], [nn.Linear(3, 2), nn.Tanh()]])
    def test_no_activation_or_one_at_the_end(self, layers: list[nn.Module]) -> None:
        with pytest.raises(InvalidInput, match="affine layers with an activation between them"):
            raycrt.as_network(nn.Sequential(*layers))


class TestFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="a model file must exist"):
            files.load(tmp_path / "none.onnx")

    def test_unknown_kind(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"a run directory or a file in \('.onnx'"):
            files.load(tmp_path / "model.h5")

    def test_inputs_of_another_shape(self, tmp_path: Path) -> None:
        spec = Spec(model=ModelSpec(width=8))
        checkpoint.save_model(tmp_path, network.build(spec.model, (1, 8, 8), 10), spec)
        assert files.load(tmp_path, input_shape=(1, 8, 8)).features == 64
        with pytest.raises(InvalidInput, match=r"inputs of shape \(1, 28, 28\), but takes 64"):
            files.load(tmp_path, input_shape=(1, 28, 28))


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.Softplus(beta=5), nn.GELU()])
def test_a_dense_network_is_told_by_a_spec(layer: nn.Module) -> None:
    found = description.spec_of(raycrt.as_network(dense(layer)), (6,))
    assert found is not None and (found.depth, found.width) == (3, 8)
    rebuilt = network.build(found, (6,), 3)
    rebuilt.load_state_dict(raycrt.as_network(dense(layer)).state_dict())
    assert found.beta == (5 if isinstance(layer, nn.Softplus) else 1)


@pytest.mark.parametrize("widths", [(8, 5), (6,) * 16])
def test_dense_layers_beyond_the_short_form_are_listed(widths: tuple[int, ...]) -> None:
    sizes = [6, *widths]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    given = raycrt.as_network(nn.Sequential(*layers, nn.Linear(sizes[-1], 3)))
    found = description.spec_of(given, (6,))
    assert found is not None
    assert [layer.width for layer in found.layers] == list(widths)
    network.build(found, (6,), 3).load_state_dict(given.state_dict())


def test_a_convolution_of_its_own_geometry_is_listed() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 2, stride=1, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)
    )
    given = raycrt.as_network(model, (2, 2, 2))
    found = description.spec_of(given, (2, 2, 2))
    assert found is not None and found.layers[0].groups == 2
    network.build(found, (2, 2, 2), 3).load_state_dict(given.state_dict())


@pytest.mark.parametrize(
    ("given", "names", "beta"),
    [
        ((nn.Tanh(), nn.SiLU(), nn.Tanh()), [None, "silu", None], 1.0),
        ((nn.GELU(), nn.Softplus(3), nn.Softplus(3)), ["gelu", None, None], 3.0),
        ((nn.Sigmoid(), nn.Softplus(), nn.Sigmoid()), [None, "softplus", None], 1.0),
    ],
)
def test_each_layer_may_have_an_activation_of_its_own(
    given: tuple[nn.Module, ...], names: list[str | None], beta: float
) -> None:
    layers = [layer for act in given for layer in (nn.Linear(6, 6), act)]
    model = nn.Sequential(*layers, nn.Linear(6, 3))
    read = raycrt.as_network(model)
    assert_same(model, read, (6,))
    found = description.spec_of(read, (6,))
    assert found is not None and found.beta == beta
    assert [layer.activation for layer in found.layers] == names
    rebuilt = network.build(found, (6,), 3).to(read.dtype)
    rebuilt.load_state_dict(read.state_dict())
    x = torch.randn(4, 6, dtype=read.dtype)
    assert torch.equal(rebuilt(x), read(x))


def test_two_sharpnesses_of_softplus_are_certified_and_described() -> None:
    layers = (nn.Linear(6, 6), nn.Softplus(2), nn.Linear(6, 6), nn.Softplus(), nn.Linear(6, 3))
    read = raycrt.as_network(nn.Sequential(*layers))
    told = description.spec_of(read, (6,))
    assert told is not None and told.beta == 2
    rebuilt = network.build(told, (6,), 3)
    assert [each.curvature_bound for each in rebuilt.nonlinearities] == [
        each.curvature_bound for each in read.nonlinearities
    ]
    x = torch.randn(5, 6)
    found = Certifier(read)(x)
    assert (found.radius > 0).all() and (found.radius <= raycrt.attack(read, x).distance).all()


def test_a_layer_that_no_spec_states_is_not_described() -> None:
    class Twice(Dense):
        """A kind of its own."""

    read = raycrt.as_network(dense(nn.Tanh()))
    other = Network([Twice(6, 8), *read.maps[1:]], read.between)
    assert description.spec_of(other, (6,)) is None
