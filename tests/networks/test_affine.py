"""Every affine map states one linear function, whichever way it is asked, and bounds that hold."""

from __future__ import annotations

import copy
import inspect
import math
import pkgutil
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raycrt import networks
from raycrt.activations import activation
from raycrt.bounds.layers.norms import Norms, norms
from raycrt.bounds.layers.torus import torus_norm_upper
from raycrt.errors import InvalidInput
from raycrt.foreign.description import spec_of
from raycrt.networks.layers import affine
from raycrt.networks.layers.affine import AffineMap, Chain, Dense, links_of
from raycrt.networks.layers.convolution import AveragePool, Convolution, Correlation
from raycrt.networks.layers.diagonal import (
    Diagonal,
    Identity,
    Normalization,
    Permutation,
    Scaling,
    Standardization,
)
from raycrt.networks.layers.residual import DirectSum, Parts, Selection, Stack, Sum
from raycrt.networks.network import Network
from raycrt.networks.nonlinearity import Nonlinearity
from raycrt.specs import ModelSpec
from raycrt.verify.model import Model

for _module in pkgutil.walk_packages(networks.__path__, f"{networks.__name__}."):
    import_module(_module.name)


def convolution(in_shape=(3, 9, 8), out_channels=4, kernel=(3, 3), **geometry) -> Convolution:
    return Convolution(in_shape, out_channels, kernel, **geometry)


def normalization(channels: int, positions: int) -> Normalization:
    made = Normalization(channels, positions, 1e-5)
    made.mean, made.variance = torch.randn(channels), torch.rand(channels) + 0.1
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made


def standardization(channels: int, positions: int) -> Standardization:
    made = Standardization(channels, positions)
    made.state(torch.randn(channels).tolist(), (torch.rand(channels) + 0.1).tolist())
    return made


def scaling(features: int) -> Scaling:
    return Scaling(torch.randn(features), torch.rand(features) - 2, torch.randn(features))


def pool_and_dense() -> Chain:
    conv = convolution(padding=(1, 1))
    pool = AveragePool(conv.out_shape, (3, 3), stride=(2, 2))
    return Chain([conv, normalization(4, 72), pool, Dense(pool.out_features, 5)])


def scaled(layer: Dense, factor: float) -> Dense:
    layer.weight.data *= factor
    return layer


def below(kind: type) -> set[type]:
    """The classes of the package that derive from `kind`."""
    found = {cls for sub in kind.__subclasses__() for cls in {sub} | below(sub)}
    return {cls for cls in found if cls.__module__.startswith("raycrt.")}


def of_sizes(kind: type[AffineMap]) -> AffineMap:
    """A layer that is made of whole numbers alone, with random weights."""
    made = kind(*range(2, 2 + len(inspect.signature(kind).parameters)))
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


# What kinds of layers have in common.
ABSTRACT = {AffineMap, Correlation, Diagonal, Parts}
CASES = {
    "dense": lambda: Dense(6, 4),
    "normalization": lambda: normalization(3, 5),
    "scaling": lambda: scaling(6),
    "standardization": lambda: standardization(3, 4),
    "permutation": lambda: Permutation(torch.randperm(6)),
    "standardised": lambda: Chain([scaling(6), Permutation(torch.randperm(6)), Dense(6, 4)]),
    "scaled-last": lambda: Chain([Dense(6, 4), scaling(4)]),
    "convolution": convolution,
    "padded": lambda: convolution(padding=(1, 2)),
    "of-a-spec": lambda: convolution(stride=(2, 2), padding=(1, 1)),
    "strided": lambda: convolution(kernel=(4, 3), stride=(2, 3), padding=(1, 1)),
    "dilated": lambda: convolution(kernel=(3, 2), dilation=(2, 3), padding=(2, 1)),
    "grouped": lambda: convolution((4, 6, 6), 6, groups=2, stride=(2, 2), padding=(1, 1)),
    "everything": lambda: convolution(
        (4, 11, 10), 8, (3, 2), stride=(3, 2), padding=(2, 1), dilation=(2, 2), groups=4
    ),
    "pool": lambda: AveragePool((2, 7, 6), (3, 2), stride=(2, 2), padding=(1, 0)),
    "pool-divisor": lambda: AveragePool((2, 6, 6), (2, 2), stride=(1, 1), divisor=3),
    "chain": pool_and_dense,
    "stacked": lambda: Stack([Dense(5, 4), Identity(5)]),
    "added": lambda: Sum([Dense(4, 5), Identity(5)]),
    "stacked-images": lambda: Stack([convolution((2, 5, 4), 3, padding=(1, 1)), Identity(40)]),
    "side by side": lambda: DirectSum([Dense(4, 3), convolution((2, 5, 4), 3), Identity(2)]),
    "selected": lambda: Selection([3, 4, 2], [0, 2]),
    "selected-added": lambda: Chain(
        [Selection([3, 4, 2], [1, 2]), Sum([Dense(4, 2), Identity(2)])]
    ),
    "added-chain": lambda: Sum([Chain([Dense(6, 4), scaling(4)]), Dense(3, 4)]),
    "loud-first": lambda: Chain([scaled(Dense(5, 6), 100), scaled(Dense(6, 4), 0.01)]),
    "loud-last": lambda: Chain([scaled(Dense(5, 6), 0.01), scaled(Dense(6, 4), 100)]),
}
# Any other kind whose constructor takes whole numbers is a case as it stands.
COVERED = {type(part) for make in CASES.values() for part in make().modules()}
CASES |= {
    kind.__name__: partial(of_sizes, kind)
    for kind in sorted(below(AffineMap) - ABSTRACT - COVERED, key=lambda kind: kind.__name__)
    if {p.annotation for p in inspect.signature(kind).parameters.values()} <= {"int", int}
}


@pytest.fixture(params=CASES)
def layer(request: pytest.FixtureRequest) -> AffineMap:
    torch.manual_seed(0)
    return CASES[request.param]().double()


@pytest.fixture
def undense(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix is small enough to be formed for a bound."""
    monkeypatch.setattr(affine, "DENSE_ENTRIES", 0)


def test_every_kind_of_layer_is_held_to_these_laws() -> None:
    covered = {type(part) for make in CASES.values() for part in make().modules()}
    missing = {kind.__name__ for kind in below(AffineMap) - ABSTRACT - covered}
    assert not missing, f"give {missing} a case in CASES"


def test_every_class_of_bounds_is_registered() -> None:
    missing = {bounds.__name__ for bounds in below(Norms) - set(norms.registry.values())}
    assert not missing, f"register {missing} with `norms`"


class TestLayerLaws:
    def test_forward_is_matrix_and_offset(self, layer: AffineMap) -> None:
        x = torch.randn(2, 3, layer.in_features, dtype=torch.float64)
        expected = x @ layer.matrix().T + layer.offset()
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.linear(x) + layer.offset(), expected, rtol=0, atol=1e-12)
        assert layer.matrix().shape == (layer.out_features, layer.in_features)
        assert layer.offset().shape == (layer.out_features,)

    def test_every_parameter_enters(self, layer: AffineMap) -> None:
        parameters = dict(layer.named_parameters())
        if not parameters:
            pytest.skip("nothing is trained in it")
        value = layer(torch.randn(layer.in_features, dtype=torch.float64)).square().sum()
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        pairs = zip(parameters, found, strict=True)
        ignored = [name for name, gradient in pairs if gradient is None or not gradient.any()]
        assert not ignored, f"W x + b must depend on {ignored}"

    def test_the_checker_reads_the_same_map(self, layer: AffineMap, tmp_path: Path) -> None:
        acts = Nonlinearity(
            activation=activation("tanh"), active=layer.out_features, width=layer.out_features
        )
        links = links_of([layer])
        last = Dense(layer.out_features, 2).double()
        network = Network([*links, last], [*[None] * (len(links) - 1), acts])
        shape = getattr(links[0], "in_shape", (layer.in_features,))
        spec = spec_of(network, shape)
        sizes = {name: len(tensor) for name, tensor in layer.state_dict().items()}
        plain = sizes.keys() == {"weight", "bias"} and sizes["bias"] == layer.out_features
        if spec is None and not plain:
            pytest.skip("no spec describes it")
        spec = spec or ModelSpec(depth=2, width=layer.out_features)
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        read = Model.load(tmp_path / "model.safetensors", spec, shape).joined
        apart = np.abs(read.weights[0] - layer.matrix().detach().numpy())
        moved = np.abs(read.biases[0] - layer.offset().detach().numpy())
        # The map's own numbers are rounded as often as the checker's.
        assert (apart <= 2 * read.weight_error(0)).all()
        assert (moved <= 2 * read.bias_error(0)).all()
        assert (read.largest(0) < 1.001 * np.abs(read.weights[0]) + 1e-9).all()

    def test_transpose_is_the_adjoint(self, layer: AffineMap) -> None:
        c = torch.randn(2, 3, layer.out_features, dtype=torch.float64)
        torch.testing.assert_close(layer.transpose(c), c @ layer.matrix(), rtol=0, atol=1e-12)

    def test_one_vector_needs_no_batch(self, layer: AffineMap) -> None:
        x = torch.randn(layer.in_features, dtype=torch.float64)
        assert layer(x).shape == (layer.out_features,)
        assert layer.transpose(layer(x)).shape == (layer.in_features,)

    def test_all_four_train_the_same_weights(self, layer: AffineMap) -> None:
        parameters = [p for name, p in layer.named_parameters() if name.endswith("weight")]
        if not parameters:
            pytest.skip("nothing is trained in it")
        x = torch.randn(layer.in_features, dtype=torch.float64)
        c = torch.randn(layer.out_features, dtype=torch.float64)
        ways = [
            torch.autograd.grad(value, parameters)
            for value in (c @ layer.linear(x), layer.transpose(c) @ x, c @ layer.matrix() @ x)
        ]
        for other in ways[1:]:
            for first, second in zip(ways[0], other, strict=True):
                torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-11)

    def test_only_convolutions_may_round_otherwise_in_float32(self, layer: AffineMap) -> None:
        convolves = any(isinstance(part, Correlation) for part in layer.modules())
        assert layer.sums_in_float32 != convolves

    def test_interval_holds_every_member(self, layer: AffineMap) -> None:
        low = torch.randn(layer.out_features, dtype=torch.float64)
        high = low + torch.rand_like(low)
        below, above = layer.transpose_interval(low, high)
        members = layer.transpose(low + torch.rand(200, len(low)).double() * (high - low))
        assert (members >= below - 1e-12).all()
        assert (members <= above + 1e-12).all()
        if not isinstance(layer, Chain):  # of one matrix the range is attained
            matrix = layer.matrix()
            best = (torch.where(matrix > 0, high[:, None], low[:, None]) * matrix).sum(0)
            torch.testing.assert_close(above, best, rtol=0, atol=1e-12)


class TestNormLaws:
    """Proved numbers against what the dense matrix gives, formed for the bound or not."""

    @pytest.fixture(params=["dense", "undense"], autouse=True)
    def _way(self, request: pytest.FixtureRequest) -> None:
        if request.param == "undense":
            request.getfixturevalue("undense")

    def test_norm(self, layer: AffineMap) -> None:
        exact = float(torch.linalg.matrix_norm(layer.matrix().detach(), 2))
        assert norms(layer).norm_upper() >= exact

    def test_weighted_gram(self, layer: AffineMap) -> None:
        weights = torch.rand(layer.out_features, dtype=torch.float64) ** 3
        matrix = layer.matrix().detach()
        exact = float(torch.linalg.eigvalsh(matrix.T @ (weights[:, None] * matrix))[-1])
        assert norms(layer).gram_upper(weights) >= exact
        largest = float(weights.max()) * norms(layer).norm_upper() ** 2
        assert norms(layer).gram_upper(weights) <= largest * 1.001

    def test_rows_and_columns(self, layer: AffineMap) -> None:
        matrix = layer.matrix()
        assert (norms(layer).row_norms_upper() >= matrix.norm(dim=1)).all()
        assert (norms(layer).column_norms_upper() >= matrix.norm(dim=0)).all()

    def test_magnitude(self, layer: AffineMap) -> None:
        exact = float(torch.linalg.matrix_norm(layer.matrix().detach().abs(), 2))
        assert norms(layer).magnitude_upper() >= exact * (1 - 1e-12)
        offset = float(layer.offset().detach().norm())
        assert norms(layer).offset_norm_upper() >= offset * (1 - 1e-12)

    def test_float32_errors_are_within_the_stated_roundings(self, layer: AffineMap) -> None:
        single = copy.deepcopy(layer).float()
        exact = copy.deepcopy(single).double()
        x = torch.randn(50, layer.in_features)
        c = torch.randn(50, layer.out_features)
        allowed = layer.terms * torch.finfo(torch.float32).eps * norms(exact).magnitude_upper()
        forward = (single.linear(x).double() - exact.linear(x.double())).norm(dim=1)
        back = (single.transpose(c).double() - exact.transpose(c.double())).norm(dim=1)
        assert (forward <= allowed * x.double().norm(dim=1)).all()
        assert (back <= allowed * c.double().norm(dim=1)).all()
        error = torch.linalg.matrix_norm(single.matrix().double() - exact.matrix(), 2).detach()
        assert float(error) <= norms(single).matrix_error_upper() + 1e-15


class TestTorus:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("size", "kernel", "stride", "padding", "groups", "within"),
        [
            (16, 3, 1, 1, 1, 1.03),
            (15, 5, 1, 2, 1, 1.05),
            (16, 4, 2, 1, 1, 1.03),
            (17, 3, 2, 0, 1, 1.05),
            (15, 3, 3, 0, 1, 1.0 + 1e-5),
            (14, 3, 1, 1, 2, 1.05),
        ],
    )
    def test_is_above_the_dense_norm_and_near(
        self, size: int, kernel: int, stride: int, padding: int, groups: int, within: float
    ) -> None:
        torch.manual_seed(1)
        layer = Convolution(
            (4, size, size),
            6,
            (kernel, kernel),
            stride=(stride, stride),
            padding=(padding, padding),
            groups=groups,
        ).double()
        exact = float(torch.linalg.matrix_norm(layer.matrix().detach(), 2))
        assert exact <= norms(layer).torus_norm_upper() <= within * exact

    def test_closed_form_of_one_channel(self) -> None:
        """A kernel of non-negative taps has its largest gain at frequency zero: the taps' sum."""
        kernel = torch.rand(1, 1, 3, 3, dtype=torch.float64)
        bound = torus_norm_upper(kernel, (8, 8), (1, 1), (1, 1))
        assert float(kernel.sum()) <= bound <= float(kernel.sum()) * (1 + 1e-5)

    def test_pool_of_disjoint_windows(self) -> None:
        pool = AveragePool((2, 8, 8), (2, 2), stride=(2, 2))
        assert 0.5 <= norms(pool).torus_norm_upper() <= 0.5 * (1 + 1e-5)

    def test_padding_makes_room_on_the_torus(self) -> None:
        """On a torus of the image's own size the two taps would cancel at every frequency."""
        layer = Convolution((1, 1, 2), 1, (1, 3), padding=(0, 1)).double()
        layer.weight.data.copy_(torch.tensor([1.0, 0.0, -1.0]))
        assert 1 <= norms(layer).torus_norm_upper() <= 2

    def test_a_hidden_frequency_is_not_missed(self) -> None:
        """The gain sits in one alternating pattern, to which a flat start is orthogonal."""
        sign = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
        layer = Convolution((1, 8, 8), 1, (2, 2)).double()
        layer.weight.data.copy_(sign[None, None])
        exact = float(torch.linalg.matrix_norm(layer.matrix().detach(), 2))
        assert exact <= norms(layer).torus_norm_upper() <= 4 * (1 + 1e-5)

    @pytest.mark.parametrize("value", [math.nan, math.inf, 1e200])
    def test_what_is_not_finite_has_an_infinite_bound(self, value: float) -> None:
        kernel = torch.full((2, 2, 3, 3), value, dtype=torch.float64)
        assert torus_norm_upper(kernel, (8, 8), (1, 1), (1, 1)) == math.inf

    def test_zero_kernel(self) -> None:
        kernel = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
        assert torus_norm_upper(kernel, (8, 8), (1, 1), (1, 1)) == 0.0

    def test_large_layers_form_no_matrix(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer = Convolution((8, 24, 24), 16, (3, 3), padding=(1, 1)).double()

        def refuse(self: Convolution) -> Tensor:
            raise AssertionError("the dense matrix was formed")

        monkeypatch.setattr(Convolution, "matrix", refuse)
        assert not layer.dense
        x = nn.functional.normalize(torch.randn(4, layer.in_features).double(), dim=1)
        for _ in range(20):
            x = nn.functional.normalize(layer.transpose(layer.linear(x)).detach(), dim=1)
        estimate = float(layer.linear(x).detach().norm(dim=1).max())
        assert estimate <= norms(layer).norm_upper() <= 1.05 * estimate


class TestBadInput:
    def test_sizes_of_a_chain(self) -> None:
        with pytest.raises(InvalidInput, match="out_features of a map == in_features of the next"):
            Chain([Dense(3, 4), Dense(5, 2)])

    def test_empty_chain(self) -> None:
        with pytest.raises(InvalidInput, match="at least one map"):
            Chain([])

    def test_kernel_larger_than_the_image(self) -> None:
        with pytest.raises(InvalidInput, match="kernel fits into the padded image"):
            convolution((1, 4, 4), 2, (6, 6))

    def test_groups(self) -> None:
        with pytest.raises(InvalidInput, match="groups divides"):
            convolution((3, 8, 8), 4, groups=2)


def test_norms_whose_squares_underflow_are_not_lost():
    layer = Dense(3, 2).double().requires_grad_(False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [1e-170, 0.0, 0.0]], dtype=torch.float64))
        layer.bias.fill_(1e-170)
    assert float(norms(layer).row_norms_upper()[1]) >= 1e-170
    assert norms(layer).column_norms_upper()[1:].tolist() == [0.0, 0.0]
    assert norms(layer).offset_norm_upper() >= 1.4e-170
