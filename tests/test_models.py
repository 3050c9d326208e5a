"""A converted model computes what the original does, and what cannot be converted is named."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raycrt import checkpoint, models, network
from raycrt.certifier import Certifier
from raycrt.elementwise import Elementwise
from raycrt.errors import InvalidInput
from raycrt.network import Network
from raycrt.spec import ModelSpec, Spec


def dense(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 8), activation, nn.Linear(8, 3))


def convolutional() -> nn.Sequential:
    body = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(2, 4, 3, padding="same"),
            norm=nn.BatchNorm2d(4),
            act=nn.Softplus(beta=5),
            pool=nn.AvgPool2d(3, stride=2, padding=1),
            grouped=nn.Conv2d(4, 6, 3, stride=2, dilation=1, padding=(1, 0), groups=2, bias=False),
        )
    )
    head = nn.Sequential(
        nn.Softplus(beta=5),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Identity(),
        nn.Linear(12, 3),
    )
    norm = body.norm
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.2
    nn.init.normal_(norm.weight)
    return nn.Sequential(body, head)


def assert_same(model: nn.Module, converted: Network, shape: tuple[int, ...]) -> None:
    x = torch.rand(5, *shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            converted.double()(x), model.double().eval()(x), rtol=0, atol=1e-12
        )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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
        assert_same(model, models.as_network(model), (6,))

    def test_convolutional(self) -> None:
        model = convolutional()
        converted = models.as_network(model, (2, 8, 6))
        assert converted.depth == 3
        assert converted.features == 96
        assert_same(model, converted, (2, 8, 6))

    def test_softplus_of_torch_is_near_the_exact_one(self) -> None:
        """Above its threshold of 20 torch drops `exp(-20)`."""
        layer, x = nn.Softplus(beta=2), torch.linspace(-30, 30, 10_001, dtype=torch.float64)
        exact = Elementwise(models.as_network(dense(layer)).activation)(x)
        assert 1e-10 < float((layer(x) - exact).abs().max()) <= math.exp(-20) / 2 * (1 + 1e-6)

    def test_flatten_first_needs_no_input_shape(self) -> None:
        model = nn.Sequential(nn.Flatten(), *dense(nn.Tanh()))
        assert_same(model, models.as_network(model), (1, 2, 3))

    def test_unflatten_states_the_shape(self) -> None:
        model = nn.Sequential(
            nn.Unflatten(1, (1, 4, 4)),
            nn.Conv2d(1, 2, 3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(8, 2),
        )
        assert_same(model, models.as_network(model), (16,))

    def test_weights_are_copies_and_no_random_number_is_drawn(self) -> None:
        model = dense(nn.Tanh())
        before = torch.get_rng_state()
        converted = models.as_network(model)
        assert torch.equal(before, torch.get_rng_state())
        model[0].weight.data.zero_()
        assert converted.layers[0].matrix().abs().min() > 0

    def test_a_network_is_itself(self) -> None:
        made = models.as_network(dense(nn.Tanh()))
        assert models.as_network(made) is made

    def test_gradients_of_a_convolutional_network(self) -> None:
        converted = models.as_network(convolutional(), (2, 8, 6)).double()
        x = torch.rand(3, 96, dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(converted(x)[:, 1].sum(), x)
        cotangent = torch.eye(3, dtype=torch.float64)[1].expand(3, -1)
        found = converted.pull_back(converted.trace(x).slopes, cotangent)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    def test_certificates_hold_under_attack(self) -> None:
        """No point of a gradient descent within the radius has another prediction."""
        converted = models.as_network(convolutional(), (2, 8, 6))
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
            ([nn.ReLU()], r"layer 0.1 \(ReLU\) is not supported; supported are Linear, Conv2d"),
            ([nn.Softplus(threshold=5)], r"threshold >= 20 .* layer 0.1 \(Softplus\)"),
            ([nn.GELU(approximate="tanh")], r"approximate must be 'none', but layer 0.1 \(GELU\)"),
            ([nn.Tanh(), nn.Tanh()], r"an affine layer must stand before layer 0.2 \(Tanh\)"),
            ([nn.Tanh(), nn.Linear(8, 8), nn.SiLU()], r"layer 0.3 \(SiLU\) is not the tanh before"),
            (
                [nn.Softplus(), nn.Linear(8, 8), nn.Softplus(2)],
                r"layer 0.3 \(Softplus\) is not the softplus before",
            ),
            ([nn.Linear(9, 8), nn.Tanh()], r"layer 0.1 \(Linear\): `input is flat with in_feat"),
            ([nn.Conv2d(1, 2, 3)], r"layer 0.1 \(Conv2d\): `input is \(channels, height, width\)`"),
            ([nn.BatchNorm1d(8, track_running_stats=False)], "running statistics must be kept"),
        ],
    )
    def test_layer_is_named_with_its_path(self, layers: list[nn.Module], message: str) -> None:
        model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), *layers), nn.Linear(8, 3))
        with pytest.raises(InvalidInput, match=message):
            models.as_network(model)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), "padding_mode == 'zeros'"),
            (nn.Conv2d(1, 2, 2, padding="same"), "padding is the same on both sides"),
            (nn.Conv2d(3, 2, 3), "channels == in_channels"),
            (nn.Conv2d(1, 2, 9), "kernel fits into the padded image"),
            (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode is false"),
            (nn.AvgPool2d(3, padding=1, count_include_pad=False), "count_include_pad"),
            (nn.AdaptiveAvgPool2d(3), "output_size divides the image"),
            (nn.Flatten(2), "start_dim == 1"),
            (nn.BatchNorm2d(2), "channels == num_features"),
            (nn.Unflatten(1, (2, 2)), "sizes fit"),
            (nn.MaxPool2d(2), "MaxPool2d.* is not supported"),
        ],
    )
    def test_geometry(self, layer: nn.Module, message: str) -> None:
        with pytest.raises(InvalidInput, match=message) as caught:
            models.as_network(nn.Sequential(layer), (1, 8, 8))
        assert f"layer 0 ({type(layer).__name__})" in str(caught.value)

    def test_convolution_needs_the_input_shape(self) -> None:
        with pytest.raises(InvalidInput, match="input_shape must be given"):
            models.as_network(convolutional())

    def test_module_that_is_no_sequential(self) -> None:
        class Own(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x

        with pytest.raises(InvalidInput, match=r"layer \(whole model\) \(Own\) is not supported"):
            models.as_network(Own())

    def test_subclass_may_do_anything(self) -> None:
        class Twice(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(2 * x)

        with pytest.raises(InvalidInput, match=r"layer 0 \(Twice\) is not supported"):
            models.as_network(nn.Sequential(Twice(2, 2), nn.Tanh(), nn.Linear(2, 2)))

    def test_weights_behind_hooks(self) -> None:
        model = dense(nn.Tanh())
        model[2].register_forward_pre_hook(lambda module, inputs: None)
        with pytest.raises(InvalidInput, match=r"hooks must be removed, but layer 2 \(Linear\)"):
            models.as_network(model)

    def test_parametrized_weights(self) -> None:
        model = dense(nn.Tanh())
        nn.utils.parametrizations.spectral_norm(model[2])
        with pytest.raises(InvalidInput, match=r"layer 2 \(ParametrizedLinear\) is not supported"):
            models.as_network(model)

    @pytest.mark.parametrize("layers", [[], [nn.Linear(3, 2)], [nn.Linear(3, 2), nn.Tanh()]])
    def test_no_activation_or_one_at_the_end(self, layers: list[nn.Module]) -> None:
        with pytest.raises(InvalidInput, match="affine layers with an activation between them"):
            models.as_network(nn.Sequential(*layers))

    def test_one_logit(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        with pytest.raises(InvalidInput, match="classes >= 2"):
            models.as_network(model)


class TestFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="a model file must exist"):
            models.load(tmp_path / "none.onnx")

    def test_unknown_kind(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"a run directory or a file in \('.onnx'"):
            models.load(tmp_path / "model.h5")

    def test_inputs_of_another_shape(self, tmp_path: Path) -> None:
        spec = Spec(model=ModelSpec(width=8))
        checkpoint.save_model(tmp_path, network.build(spec.model, (1, 8, 8), 10), spec)
        assert models.load(tmp_path, input_shape=(1, 8, 8)).features == 64
        with pytest.raises(InvalidInput, match=r"inputs of shape \(1, 28, 28\), but takes 64"):
            models.load(tmp_path, input_shape=(1, 28, 28))


class Graph:
    """An ONNX graph written node by node, each taking the last one's output."""

    def __init__(self, *shape: int) -> None:
        self.nodes: list = []
        self.constants: list = []
        self.shape, self.last = shape, "x"

    def __call__(self, kind: str, *constants, on: tuple[str, ...] = (), **attributes) -> str:
        from onnx import helper, numpy_helper

        names = []
        for constant in constants:
            names.append(f"c{len(self.constants)}")
            value = constant.detach().numpy() if isinstance(constant, Tensor) else constant
            self.constants.append(numpy_helper.from_array(np.asarray(value), names[-1]))
        output = f"t{len(self.nodes)}"
        inputs = [*(on or (self.last,)), *names]
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=f"/n{output}", **attributes)
        )
        self.last = output
        return output

    def save(self, file: Path) -> Path:
        import onnx
        from onnx import TensorProto, helper

        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "model",
            [value("x", TensorProto.DOUBLE, ["batch", *self.shape])],
            [value(self.last, TensorProto.DOUBLE, ["batch", "classes"])],
            self.constants,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), file)
        return file


def gemm_chain(model: nn.Sequential, activate) -> Graph:
    """Linear layers of `model` as Gemm, `activate(graph)` for each activation."""
    graph = Graph(6)
    for layer in model:
        if isinstance(layer, nn.Linear):
            graph("Gemm", layer.weight, layer.bias, transB=1)
        else:
            activate(graph)
    return graph


def sharp(graph: Graph) -> None:
    graph("Mul", np.array(4.0))
    graph("Softplus")
    graph("Div", np.array(4.0))


def silu(graph: Graph) -> None:
    x = graph.last
    graph("Mul", on=(x, graph("Sigmoid")))


def gelu_half_last(graph: Graph) -> None:
    x = graph.last
    graph("Div", np.array(math.sqrt(2)))
    graph("Erf")
    graph("Mul", on=(x, graph("Add", np.array(1.0))))
    graph("Mul", np.array(0.5))


def gelu_two_branches(graph: Graph) -> None:
    x = graph.last
    graph("Mul", np.array(math.sqrt(0.5)))
    graph("Erf")
    one_plus = graph("Add", np.array(1.0))
    graph("Mul", on=(graph("Mul", np.array(0.5), on=(x,)), one_plus))


def gelu_half_first(graph: Graph) -> None:
    x = graph.last
    graph("Mul", np.array(math.sqrt(0.5)))
    graph("Erf")
    graph("Add", np.array(1.0))
    graph("Mul", on=(x, graph("Mul", np.array(0.5))))


class TestOnnx:
    @pytest.fixture(autouse=True)
    def _onnx(self) -> None:
        pytest.importorskip("onnx", reason="the onnx extra is not installed")

    @pytest.mark.parametrize(
        ("activation", "activate"),
        [
            (nn.Sigmoid(), lambda g: g("Sigmoid")),
            (nn.Tanh(), lambda g: g("Tanh")),
            (nn.Softplus(threshold=50), lambda g: g("Softplus")),
            (nn.Softplus(4, threshold=90), sharp),
            (Elementwise("erf"), lambda g: g("Erf")),
            (Elementwise("arctan"), lambda g: g("Atan")),
            (nn.GELU(), lambda g: g("Gelu")),
            (nn.GELU(), gelu_half_last),
            (nn.GELU(), gelu_half_first),
            (nn.GELU(), gelu_two_branches),
            (nn.SiLU(), silu),
        ],
    )
    def test_activations(self, tmp_path: Path, activation: nn.Module, activate) -> None:
        model = dense(activation).double()
        file = gemm_chain(model, activate).save(tmp_path / "model.onnx")
        assert_same(model, models.load(file), (6,))

    def test_convolutional(self, tmp_path: Path) -> None:
        model = convolutional().double()
        conv, norm, _, _, grouped = model[0]
        graph = Graph(2, 8, 6)
        graph("Conv", conv.weight, pads=[1, 1, 1, 1])
        graph("Add", conv.bias.view(1, -1, 1, 1))
        graph(
            "BatchNormalization",
            *(norm.weight, norm.bias, norm.running_mean, norm.running_var),
            epsilon=norm.eps,
        )
        beta = np.array(5.0)
        graph("Mul", beta)
        graph("Softplus")
        graph("Div", beta)
        graph(
            "AveragePool",
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[1, 1, 1, 1],
            count_include_pad=1,
        )
        graph("Conv", grouped.weight, group=2, strides=[2, 2], pads=[1, 0, 1, 0])
        graph("Mul", beta)
        graph("Softplus")
        graph("Div", beta)
        graph("Identity")
        graph("AveragePool", kernel_shape=[1, 1])
        graph("Reshape", np.array([-1, 12]))
        graph("MatMul", model[1][-1].weight.T)
        graph("Add", model[1][-1].bias)
        found = models.load(graph.save(tmp_path / "model.onnx"))
        assert found.features == 96
        assert_same(model, found, (2, 8, 6))

    def test_image_from_a_flat_input(self, tmp_path: Path) -> None:
        conv, last = nn.Conv2d(1, 2, 3).double(), nn.Linear(2, 2).double()
        graph = Graph(16)
        graph("Reshape", np.array([-1, 1, 4, 4]))
        graph("Conv", conv.weight, conv.bias)
        graph("Tanh")
        graph("GlobalAveragePool")
        graph("Flatten")
        graph("Gemm", last.weight.T, last.bias)
        model = nn.Sequential(
            nn.Unflatten(1, (1, 4, 4)),
            conv,
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            last,
        )
        assert_same(model, models.load(graph.save(tmp_path / "model.onnx")), (16,))

    @pytest.mark.parametrize(
        ("activate", "message"),
        [
            (lambda g: g("Relu"), r"node '/nt1' \(Relu\) is not supported; supported are Add"),
            (lambda g: g("Gelu", approximate="tanh"), "approximate must be b'none'"),
            (lambda g: g("Mul", np.array(2.0)), r"\(Mul\) is not supported"),
            (lambda g: g("Add", on=(g.last, g("Tanh"))), r"\(Add\) is not supported"),
            (lambda g: g("Mul", on=(g.last, g("Tanh"))), r"'/nt2' \(Mul\) is not supported"),
            (lambda g: (g("Mul", np.array(3.0)), g("Softplus")), r"\(Softplus\) is not supported"),
            (lambda g: g("MatMul", on=(g.last, g.last)), "input 1 must be a constant"),
            (lambda g: (g("Tanh"), g("Add", np.ones(8))), r"must follow MatMul or Conv without"),
        ],
    )
    def test_unsupported_node_is_named(self, tmp_path: Path, activate, message: str) -> None:
        file = gemm_chain(dense(nn.Tanh()).double(), activate).save(tmp_path / "model.onnx")
        with pytest.raises(InvalidInput, match=message):
            models.load(file)

    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ({"pads": [0, 0, 1, 1]}, "the same on opposite sides"),
            ({"auto_pad": "SAME_UPPER"}, "auto_pad must be b'NOTSET'"),
        ],
    )
    def test_padding(self, tmp_path: Path, attributes: dict, message: str) -> None:
        graph = Graph(1, 4, 4)
        graph("Conv", np.ones((2, 1, 2, 2)), **attributes)
        with pytest.raises(InvalidInput, match=message):
            models.load(graph.save(tmp_path / "model.onnx"))

    def test_damaged_file(self, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(b"not a model at all")
        with pytest.raises(InvalidInput, match="must be a valid ONNX file"):
            models.load(tmp_path / "model.onnx")


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.Softplus(beta=5), nn.GELU()])
def test_a_dense_network_is_told_by_a_spec(layer: nn.Module) -> None:
    found = models.dense_spec(models.as_network(dense(layer)))
    assert found is not None and (found.depth, found.width) == (3, 8)
    rebuilt = network.build(found, (6,), 3)
    rebuilt.load_state_dict(models.as_network(dense(layer)).state_dict())
    assert found.beta == (5 if isinstance(layer, nn.Softplus) else 1)


def test_what_no_spec_can_say_is_not_told() -> None:
    widths = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    assert models.dense_spec(models.as_network(widths)) is None
    assert models.dense_spec(models.as_network(convolutional(), (2, 8, 6))) is None
    deep = [layer for _ in range(16) for layer in (nn.Linear(6, 6), nn.Tanh())]
    assert models.dense_spec(models.as_network(nn.Sequential(*deep, nn.Linear(6, 3)))) is None
