"""A graph is read as what it computes of one input, or refused in a sentence that names a node."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import raycrt
from raycrt import cli, models
from raycrt.affine import Dense
from raycrt.diagonal import Permutation
from raycrt.distributed import stages
from raycrt.elementwise import Elementwise
from raycrt.errors import InvalidInput
from raycrt.network import Network
from raycrt.onnx_graph import shapes
from tests.onnx_models import (
    Graph,
    gelu_half_first,
    gelu_half_last,
    gelu_two_branches,
    gemm_chain,
    sharp,
    silu,
    softplus_below,
)
from tests.test_models import assert_same, convolutional, dense

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def flat(*before: nn.Module, features: int = 16, classes: int = 3) -> nn.Sequential:
    layers = [nn.Linear(features, 5), nn.Tanh(), nn.Linear(5, classes)]
    return nn.Sequential(*before, nn.Flatten(), *layers).double()


def head(graph: Graph, model: nn.Sequential) -> Graph:
    """The last three layers of `flat`."""
    return gemm_chain(model[-3:], lambda g: g("Tanh"), graph)


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class TestActivations:
    @pytest.mark.parametrize(
        ("activation", "activate"),
        [
            (nn.Sigmoid(), lambda g: g("Sigmoid")),
            (nn.Tanh(), lambda g: g("Tanh")),
            (nn.Softplus(threshold=50), lambda g: g("Softplus")),
            (nn.Softplus(4, threshold=90), sharp),
            (nn.Softplus(threshold=50), softplus_below(50)),
            (nn.Softplus(4, threshold=90), softplus_below(90, beta=4)),
            (Elementwise("erf"), lambda g: g("Erf")),
            (Elementwise("arctan"), lambda g: g("Atan")),
            (nn.GELU(), lambda g: g("Gelu")),
            (nn.GELU(), gelu_half_last),
            (nn.GELU(), gelu_half_first),
            (nn.GELU(), gelu_two_branches),
            (nn.SiLU(), silu),
        ],
    )
    def test_is_one_activation(self, tmp_path: Path, activation: nn.Module, activate) -> None:
        model = dense(activation).double()
        found = models.load(gemm_chain(model, activate).save(tmp_path))
        assert [type(layer) for layer in found.layers] == [Dense, Dense, Dense]
        assert_same(model, found, (6,))

    def test_scaled_argument(self, tmp_path: Path) -> None:
        """Numbers before and after that belong to no activation are affine steps."""

        def activate(graph: Graph) -> None:
            graph("Mul", np.array(3.0))
            graph("Softplus")
            graph("Div", np.array(7.0))

        scaled = Of(lambda x: nn.functional.softplus(3 * x, threshold=90) / 7)
        model = dense(scaled).double()
        assert_same(model, models.load(gemm_chain(model, activate).save(tmp_path)), (6,))

    @pytest.mark.parametrize(
        ("activate", "message"),
        [
            (lambda g: g("Relu"), r"node '/nt1' \(Relu\): not supported; supported are Add"),
            (lambda g: g("Gelu", approximate="tanh"), r"'/nt1' \(Gelu\): approximate must be"),
            (lambda g: g("Add", on=(g.last, g("Tanh"))), r"2 nodes use 't0': .*Tanh.*Add"),
            (lambda g: g("Mul", on=(g.last, g("Tanh"))), r"2 nodes use 't0': .*Tanh.*Mul"),
            (lambda g: g("Add", on=(g.last, g.last)), r"'/nt1' \(Add\): not supported"),
            (softplus_below(19.9), r"must be one chain, but 2 nodes use 't0'"),
            (softplus_below(50, beta=-1), r"must be one chain, but 2 nodes use 't0'"),
        ],
    )
    def test_is_none(self, tmp_path: Path, activate, message: str) -> None:
        file = gemm_chain(dense(nn.Tanh()).double(), activate).save(tmp_path)
        with pytest.raises(InvalidInput, match=message):
            models.load(file)


class TestLayers:
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
        pads = {"pads": [1, 1, 1, 1], "count_include_pad": 1}
        graph("AveragePool", kernel_shape=[3, 3], strides=[2, 2], **pads)
        graph("Conv", grouped.weight, group=2, strides=[2, 2], pads=[1, 0, 1, 0])
        graph("Mul", beta)
        graph("Softplus")
        graph("Div", beta)
        graph("Identity")
        graph("AveragePool", kernel_shape=[1, 1])
        graph("Reshape", np.array([-1, 12]))
        graph("MatMul", model[1][-1].weight.T)
        graph("Add", model[1][-1].bias)
        found = models.load(graph.save(tmp_path))
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
        assert_same(model, models.load(graph.save(tmp_path)), (16,))

    @pytest.mark.parametrize(
        ("axes", "keepdims", "opset"),
        [([2, 3], 1, 13), ([-1, -2], 0, 18), ([1], 1, 18), ([1, 3], 0, 13)],
    )
    def test_means(self, tmp_path: Path, axes: list[int], keepdims: int, opset: int) -> None:
        mean = Of(lambda x: x.mean(axes))
        features = mean(torch.zeros(1, 2, 4, 4)).numel()
        model = flat(mean, features=features)
        graph = Graph(2, 4, 4, opset=opset)
        if opset < 18:
            graph("ReduceMean", axes=axes, keepdims=keepdims)
        else:
            graph("ReduceMean", np.array(axes), keepdims=keepdims)
        graph("Flatten")
        assert_same(model, models.load(head(graph, model).save(tmp_path)), (2, 4, 4))

    @pytest.mark.parametrize("opset", [9, 13, 14])
    @pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
    def test_batch_normalisation(self, tmp_path: Path, opset: int, shape: tuple) -> None:
        """Epsilon, which is left out, is a float32; one output tells of fixed statistics."""
        weight, bias, mean = torch.randn(3, 3).double()
        variance = torch.rand(3).double() * 1e-3
        spread = (1, 3, *[1] * (len(shape) - 1))
        normalised = Of(
            lambda x: (
                (x - mean.view(spread))
                / (variance + float(np.float32(1e-5))).sqrt().view(spread)
                * weight.view(spread)
                + bias.view(spread)
            )
        )
        model = flat(normalised, features=math.prod(shape))
        graph = Graph(*shape, opset=opset)
        graph("BatchNormalization", weight, bias, mean, variance)
        graph("Flatten")
        assert_same(model, models.load(head(graph, model).save(tmp_path)), shape)

    def test_batch_normalisation_that_trains(self, tmp_path: Path) -> None:
        graph = Graph(3, opset=9)
        graph("BatchNormalization", *np.ones((4, 3)))
        model = head(graph, flat(features=3)).model()
        model.graph.node[0].output.extend(["m", "v", "sm", "sv"])
        onnx.save(model, tmp_path / "model.onnx")
        with pytest.raises(InvalidInput, match=r"\(BatchNormalization\): `one output: fixed"):
            models.load(tmp_path / "model.onnx")

    def test_bias_of_matmul_is_the_layers_own(self, tmp_path: Path) -> None:
        model = dense(nn.Tanh()).double()
        graph = Graph(6)
        for layer in model:
            if isinstance(layer, nn.Linear):
                graph("MatMul", layer.weight.T)
                graph("Add", layer.bias)
            else:
                graph("Tanh")
        found = models.load(graph.save(tmp_path))
        assert [type(layer) for layer in found.layers] == [Dense, Dense, Dense]
        assert_same(model, found, (6,))

    @pytest.mark.parametrize(
        ("node", "message"),
        [
            (("Conv", np.ones((2, 1, 2, 2)), {"pads": [0, 0, 1, 1]}), "same on opposite sides"),
            (("Conv", np.ones((2, 1, 2, 2)), {"auto_pad": "SAME_UPPER"}), "auto_pad must be"),
            (("Conv", np.ones((2, 1, 9, 9)), {}), r"\(Conv\): `kernel fits into the padded image`"),
            (("Conv", np.ones((2, 3, 2, 2)), {}), "channels == those of the kernel"),
            (("MaxPool", {"kernel_shape": [2, 2]}), r"node '/nt0' \(MaxPool\): not supported"),
            (("AveragePool", {"kernel_shape": [2, 2], "ceil_mode": 1}), "ceil_mode must be 0"),
            (("AveragePool", {"kernel_shape": [2, 2], "pads": [1] * 4}), "padding must be counted"),
            (("Gemm", np.ones((16, 3)), {}), "input is flat with the weight's features"),
            (("MatMul", np.ones((4, 3)), {}), "input is flat with the weight's features"),
            (("MatMul", np.ones((4, 0)), {}), "input 1 is not empty"),
            (("MatMul", np.full((4, 3), np.nan), {}), "input 1 is not NaN"),
            (("MatMul", np.ones((4, 3), np.int64), {}), "input 1 is float16, bfloat16"),
            (("Add", np.full(4, np.inf), {}), "a finite constant"),
            (("Div", np.array([1.0, 2, 0, 4]), {}), "divisor != 0"),
            (("Add", np.ones((2, 1, 1, 4, 4)), {}), "fits the input without repeating it"),
            (("Add", np.ones((3, 1)), {}), "fits the input without repeating it"),
            (("ReduceMean", np.array([0]), {}), "axes without the batch"),
            (("QuantizeLinear", np.float64(0.1), np.uint8(3), {}), r"\(QuantizeLinear\): not supp"),
            (("Cast", {"to": 10}), "cast to float32, float64 or the input's type.*'FLOAT16'"),
            (("Cast", {"to": 6}), "cast to float32, float64 or the input's type.*'INT32'"),
            (("Dropout", 0.5, np.array(True), {}), "not in training mode"),
            (("Reshape", np.array([-1, 5]), {}), "must keep its size"),
            (("Transpose", {"perm": [0, 1, 3, 2]}), "must be a number for each class"),
        ],
    )
    def test_refused_with_its_node(self, tmp_path: Path, node: tuple, message: str) -> None:
        kind, *constants, attributes = node
        graph = Graph(1, 4, 4)
        graph(kind, *constants, **attributes)
        with pytest.raises(InvalidInput, match=message):
            models.load(graph.save(tmp_path))


class TestElementwise:
    """Affine steps of single features are the functions of their stored constants."""

    @pytest.mark.parametrize("shape", [(), (1, 2, 1, 1), (2, 1, 1), (2, 4, 4), (4,)])
    def test_every_step(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        mean, std, gain, shift = (torch.rand(shape, dtype=torch.float64) + 0.5 for _ in range(4))
        steps = Of(lambda x: 3 - gain * -((x - mean) / std) + shift)
        model = flat(steps, features=32)
        graph = Graph(2, 4, 4)
        graph("Sub", mean)
        graph("Div", std)
        graph("Neg")
        graph("Mul", on=(graph.constant(gain), graph.last))
        graph("Sub", on=(graph.constant(3.0), graph.last))
        graph("Add", shift)
        graph("Flatten")
        assert_same(model, models.load(head(graph, model).save(tmp_path)), (2, 4, 4))

    def test_division_is_not_a_rounded_factor(self, tmp_path: Path) -> None:
        """1 / 3 is no float32, and x / 3 is what the graph states."""
        model = flat().float()
        graph = Graph(4, 4)
        graph("Div", np.float32(3))
        graph("Flatten")
        found = models.load(head(graph, model).save(tmp_path, onnx.TensorProto.FLOAT))
        exact = found.in_float64()
        x = torch.rand(5, 16, dtype=torch.float64)
        first = model[1].double()
        expected = (x / 3) @ first.weight.T + first.bias
        torch.testing.assert_close(exact.layers[0](x), expected, rtol=0, atol=1e-15)

    def test_radii_are_those_of_the_inputs_that_come_in(self, tmp_path: Path) -> None:
        """Those of the normalised images times the standard deviation."""
        model = flat()
        bare = head(Graph(16), model)
        found = raycrt.certify(models.load(bare.save(tmp_path)), torch.rand(4, 16) * 4 - 2)
        graph = Graph(4, 4)
        graph("Sub", np.array(0.5))
        graph("Div", np.array(0.25))
        graph("Flatten")
        torch.manual_seed(0)
        model = flat()
        normalising = models.load(head(graph, model).save(tmp_path))
        images = (torch.rand(4, 16) * 4 - 2) * 0.25 + 0.5
        again = raycrt.certify(normalising, images)
        assert (again.radius > 0).all()
        torch.testing.assert_close(again.radius, found.radius * 0.25, rtol=1e-4, atol=0)


class TestShapes:
    @pytest.mark.parametrize("axis", [1, 2, -2])
    def test_flatten(self, tmp_path: Path, axis: int) -> None:
        model = flat()
        graph = Graph(1, 4, 4)
        graph("Flatten", axis=axis)
        assert_same(model, models.load(head(graph, model).save(tmp_path)), (1, 4, 4))

    def test_squeeze_and_unsqueeze(self, tmp_path: Path) -> None:
        model = flat()
        graph = Graph(1, 4, 4)
        graph("Squeeze", np.array([1]))
        graph("Unsqueeze", np.array([-1, 1]))
        graph("Reshape", np.array([0, -1]))
        assert_same(model, models.load(head(graph, model).save(tmp_path)), (1, 4, 4))

    def test_axes_as_attributes(self, tmp_path: Path) -> None:
        model = flat()
        graph = Graph(1, 4, 4, opset=11)
        graph("Squeeze", axes=[1])
        graph("Unsqueeze", axes=[1])
        graph("Dropout", ratio=0.5)
        graph("Flatten")
        assert_same(model, models.load(head(graph, model).save(tmp_path)), (1, 4, 4))

    def test_open_batch_by_its_shape(self, tmp_path: Path) -> None:
        """What exporters make of `x.view(x.size(0), -1)`."""
        model = flat()
        graph = Graph(1, 4, 4)
        graph("Shape")
        size = graph("Gather", np.array(0), axis=0)
        front = graph("Unsqueeze", np.array([0]), on=(size,))
        sizes = graph("Concat", np.array([-1]), on=(front,), axis=0)
        graph("Reshape", on=("x", sizes))
        assert_same(model, models.load(head(graph, model).save(tmp_path)), (1, 4, 4))

    @pytest.mark.parametrize("batch", [1, "batch"])
    def test_batch_of_one_that_is_written_down(self, tmp_path: Path, batch: int | str) -> None:
        model = flat()
        graph = Graph(1, 4, 4, batch=batch)
        graph("Reshape", np.array([1, 16]))
        assert_same(model, models.load(head(graph, model).save(tmp_path)), (1, 4, 4))

    def test_transposition_that_moves_no_pixel(self, tmp_path: Path) -> None:
        conv, last = nn.Conv2d(1, 2, 3).double(), nn.Linear(8, 2).double()
        graph = Graph(4, 4, 1)
        graph("Transpose", perm=[0, 3, 1, 2])
        graph("Conv", conv.weight, conv.bias)
        graph("Tanh")
        graph("Flatten")
        graph("Gemm", last.weight.T, last.bias)
        found = models.load(graph.save(tmp_path), None, (1, 4, 4))
        assert not any(isinstance(part, Permutation) for part in found.modules())
        model = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), last)
        assert_same(model, found, (1, 4, 4))

    def test_channels_last(self, tmp_path: Path) -> None:
        conv, last = nn.Conv2d(3, 2, 3).double(), nn.Linear(8, 2).double()
        graph = Graph(4, 4, 3)
        graph("Transpose", perm=[0, 3, 1, 2])
        graph("Conv", conv.weight, conv.bias)
        graph("Tanh")
        graph("Transpose", perm=[0, 2, 3, 1])
        graph("Flatten")
        graph("Gemm", last.weight.T, last.bias)
        model = nn.Sequential(
            Of(lambda x: x.permute(0, 3, 1, 2)),
            conv,
            nn.Tanh(),
            Of(lambda x: x.permute(0, 2, 3, 1)),
            nn.Flatten(),
            last,
        )
        found = models.load(graph.save(tmp_path))
        assert_same(model, found, (4, 4, 3))
        images = torch.rand(3, 4, 4, 3)
        radius = raycrt.certify(found, images).radius
        assert (radius > 0).all()
        assert (radius <= raycrt.attack(found, images).distance).all()

    def test_wider_type(self, tmp_path: Path) -> None:
        model = flat()
        graph = Graph(4, 4)
        graph("Cast", to=onnx.TensorProto.DOUBLE)
        graph("Flatten")
        file = head(graph, model).save(tmp_path, onnx.TensorProto.FLOAT)
        assert_same(model, models.load(file), (4, 4))


class TestOrderOfPixels:
    """Which number of an image is which input is told by the shapes, or not at all."""

    @staticmethod
    def file(directory: Path, *shape: int | str) -> Path:
        graph = Graph(*shape)
        graph("Flatten")
        return head(graph, flat(features=48)).save(directory)

    @pytest.mark.parametrize(
        ("stated", "given"),
        [
            ((48,), (1, 6, 8)),
            (("features",), (1, 6, 8)),
            ((6, 8), (1, 6, 8)),
            ((6, 8, 1), (1, 6, 8)),
            ((1, 6, 8), (48,)),
            ((3, 4, 4), (3, 4, 4)),
            (("c", "h", "w"), (3, 4, 4)),
            ((3, 4, 4), None),
        ],
    )
    def test_told(self, tmp_path: Path, stated: tuple, given: tuple | None) -> None:
        assert models.load(self.file(tmp_path, *stated), None, given).features == 48

    @pytest.mark.parametrize(
        ("stated", "given", "message"),
        [
            ((48,), (3, 4, 4), r"takes inputs \(48,\), but those at hand are \(3, 4, 4\)"),
            ((4, 4, 3), (3, 4, 4), "which pixel is which cannot be told"),
            ((8, 6), (1, 6, 8), "which pixel is which cannot be told"),
            ((48,), (1, 8, 8), "which pixel is which cannot be told"),
            (("c", "h", "w"), None, "input_shape must be given"),
            (("h", "w"), (1, 6, 8), "input_shape must be given"),
        ],
    )
    def test_not_told(self, tmp_path: Path, stated: tuple, given: tuple, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            models.load(self.file(tmp_path, *stated), None, given)


class TestTail:
    """What follows the logits is left out where it moves no prediction."""

    @staticmethod
    def load(directory: Path, tail, opset: int = 20, classes: int = 3) -> tuple[Network, Network]:
        model = flat(classes=classes)
        graph = head(Graph(16, opset=opset), model)
        whole = models.load(graph.save(directory))
        tail(graph)
        return models.load(graph.save(directory)), whole

    @pytest.mark.parametrize(
        ("opset", "tail"),
        [
            (20, lambda g: g("Softmax")),
            (20, lambda g: g("LogSoftmax", axis=1)),
            (11, lambda g: g("Softmax")),
            (20, lambda g: (g("Div", np.array(2.5)), g("Softmax", axis=-1), g("Identity"))),
            (20, lambda g: (g("Mul", on=(g.constant(np.ones(1)), g.last)), g("ArgMax", axis=1))),
            (20, lambda g: (g("Softmax"), g("ArgMax", axis=-1, keepdims=0))),
        ],
    )
    def test_is_left_out(self, tmp_path: Path, opset: int, tail) -> None:
        found, whole = self.load(tmp_path, tail, opset)
        assert [type(layer) for layer in found.layers] == [Dense, Dense]
        images = torch.rand(6, 16).double()
        assert torch.equal(found(images), whole(images))
        assert models.dense_spec(found) is not None

    def test_negative_temperature_turns_the_order(self, tmp_path: Path) -> None:
        found, whole = self.load(tmp_path, lambda g: (g("Div", np.array(-2.0)), g("Softmax")))
        images = torch.rand(6, 16).double()
        torch.testing.assert_close(found(images), whole(images) / -2)

    def test_bias_of_the_classes_stays(self, tmp_path: Path) -> None:
        bias = np.array([1.0, -2.0, 3.0])
        found, whole = self.load(tmp_path, lambda g: (g("Add", bias), g("Softmax")))
        images = torch.rand(6, 16).double()
        torch.testing.assert_close(found(images), whole(images) + torch.from_numpy(bias))

    @pytest.mark.parametrize(
        ("tail", "message"),
        [
            (lambda g: g("Softmax", axis=0), r"\(Softmax\) must be over several classes.*axis 0"),
            (lambda g: g("ArgMax"), r"\(ArgMax\) must be over several classes.*axis 0"),
            (lambda g: g("Sigmoid"), r"\(Sigmoid\) at the end must have one output, but has 3"),
            (lambda g: g("Tanh"), "must .* end in an affine layer"),
            (lambda g: g("Reshape", np.array([1, 1, 1, 3, 1])) and g("Softmax"), "over axis -1"),
        ],
    )
    def test_is_refused(self, tmp_path: Path, tail, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            self.load(tmp_path, tail)

    @pytest.mark.parametrize("tail", [lambda g: None, lambda g: g("Sigmoid")])
    def test_one_output_is_two_classes(self, tmp_path: Path, tail) -> None:
        model = flat(classes=1)
        graph = head(Graph(16), model)
        tail(graph)
        found = models.load(graph.save(tmp_path))
        images = torch.rand(20, 16).double() * 8 - 4
        z = model(images)[:, 0]
        torch.testing.assert_close(found(images), torch.stack([torch.zeros_like(z), z], 1))
        certificates = raycrt.certify(found, images)
        assert torch.equal(certificates.prediction, (z > 0).long())
        assert 0 < int((z > 0).sum()) < 20

    def test_softmax_of_one_output(self, tmp_path: Path) -> None:
        graph = head(Graph(16), flat(classes=1))
        graph("Softmax")
        with pytest.raises(InvalidInput, match="must be over several classes"):
            models.load(graph.save(tmp_path))


class TestConstants:
    """Weights that the graph computes are what the reference evaluator computes."""

    def test_weight_norm(self, tmp_path: Path) -> None:
        model = flat()
        direction, length = torch.randn(5, 16).double(), torch.rand(5, 1).double()
        model[1].weight.data = direction * length / direction.norm(dim=1, keepdim=True)
        graph = Graph(16)
        v = graph.constant(direction)
        norm = graph.folded("ReduceL2", np.array([1]), on=(v,), keepdims=1)
        unit = graph.folded("Div", on=(v, norm))
        weight = graph.folded("Mul", length, on=(unit,))
        graph("MatMul", on=("x", graph.folded("Transpose", on=(weight,))))
        graph("Add", model[1].bias)
        graph("Tanh")
        graph("Gemm", model[3].weight, model[3].bias, transB=1)
        found = models.load(graph.save(tmp_path))
        assert [type(layer) for layer in found.layers] == [Dense, Dense]
        assert_same(model, found, (16,))

    def test_quantised_weights(self, tmp_path: Path) -> None:
        model = flat().float()
        stored = torch.randint(-128, 127, (5, 16), dtype=torch.int8)
        model[1].weight.data = stored.float() * 0.0125
        graph = Graph(16)
        weight = graph.folded("DequantizeLinear", stored, np.float32(0.0125))
        graph("Gemm", on=("x", weight, graph.constant(model[1].bias)), transB=1)
        graph("Tanh")
        graph("Gemm", model[3].weight, model[3].bias, transB=1)
        found = models.load(graph.save(tmp_path, onnx.TensorProto.FLOAT))
        assert torch.equal(found.layers[0].matrix(), model[1].weight)

    def test_random_weights(self, tmp_path: Path) -> None:
        graph = Graph(4)
        graph("MatMul", on=("x", graph.folded("RandomNormal", on=(), shape=[4, 3])))
        with pytest.raises(InvalidInput, match="input 1 must be a constant, but is computed"):
            models.load(graph.save(tmp_path))

    def test_weights_computed_from_the_input(self, tmp_path: Path) -> None:
        graph = Graph(4)
        graph("MatMul", on=("x", graph("Transpose", on=("x",))))
        with pytest.raises(InvalidInput, match="must be one chain, but 2 nodes use 'x'"):
            models.load(graph.save(tmp_path))

    def test_constant_that_cannot_be_evaluated(self, tmp_path: Path) -> None:
        graph = Graph(4)
        weight = graph.folded("Reshape", np.ones(7), np.array([4, 2]))
        graph("MatMul", on=("x", weight))
        with pytest.raises(InvalidInput, match=r"\(Reshape\) cannot be evaluated: .*reshape"):
            models.load(graph.save(tmp_path))

    @pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16"])
    def test_half_precision_is_widened(self, tmp_path: Path, kind: str) -> None:
        number = getattr(onnx.TensorProto, kind)
        half = {"FLOAT16": torch.float16, "BFLOAT16": torch.bfloat16}[kind]
        model = flat().to(half)
        graph = Graph(16)
        for layer in model[1:]:
            if isinstance(layer, nn.Tanh):
                graph("Tanh")
                continue
            stored = [self.stored(tensor, number) for tensor in (layer.weight, layer.bias)]
            graph("Gemm", *stored, transB=1)
        found = models.load(graph.save(tmp_path, number))
        assert found.dtype == torch.float32
        assert torch.equal(found.layers[0].matrix(), model[1].weight.float())
        assert torch.equal(found.layers[1].offset(), model[3].bias.float())

    @staticmethod
    def stored(tensor: Tensor, kind: int):
        raw = tensor.detach().view(torch.int16).numpy().tobytes()
        return onnx.helper.make_tensor("", kind, tensor.shape, raw, raw=True)


class TestComparison:
    """The second reading decides: a reader that errs is caught at inputs."""

    def test_what_is_read_wrongly_is_refused_with_its_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        graph = Graph(3, 4, 4)
        graph("Transpose", perm=[0, 2, 3, 1])
        graph("Flatten")
        file = head(graph, flat(features=48)).save(tmp_path)
        models.load(file)
        monkeypatch.setattr(shapes, "reordered", lambda shape, axes: [])
        with pytest.raises(InvalidInput, match=r"they are [\d.]+ apart where rounding explains"):
            models.load(file)

    def test_rows_that_are_mixed(self, tmp_path: Path) -> None:
        """Of a batch of one the transpositions are nothing."""
        model = flat()
        graph = Graph(16)
        graph("Transpose", perm=[1, 0])
        graph("Reshape", np.array([-1, 16]))
        with pytest.raises(InvalidInput, match="apart where rounding explains"):
            models.load(head(graph, model).save(tmp_path))

    def test_at_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A difference far from the random inputs shows at an image alone."""
        from raycrt.onnx_graph.reference import Reference

        file = head(Graph(16), flat()).save(tmp_path)
        run = Reference._run
        monkeypatch.setattr(
            Reference, "_run", lambda self, x: run(self, np.where(np.abs(x) > 99, x * 1.01, x))
        )
        images = torch.rand(3, 1, 4, 4)
        models.load(file, None, (1, 4, 4), images=images)
        images[1] = 100
        with pytest.raises(InvalidInput, match="given input, number 1"):
            models.load(file, None, (1, 4, 4), images=images)


def test_the_command_compares_at_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat inputs of a network are the rows of the images, one after the other."""
    file = head(Graph(64), flat(features=64, classes=10)).save(tmp_path)
    compared, certified = [], []
    load = models.load

    def watched(*arguments, images: Tensor, **options) -> Network:
        compared.append(images)
        return load(*arguments, images=images, **options)

    monkeypatch.setattr(models, "load", watched)
    monkeypatch.setattr(stages, "certify", lambda spec, *rest, **named: certified.append(rest[0]))
    cli.certify(out=tmp_path / "run", model=file)
    assert compared[0].shape == (360, 1, 8, 8)
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(certified[0](x), load(file)(x.flatten(1)))


class TestFiles:
    @pytest.fixture
    def model(self):
        return head(Graph(16), flat()).model()

    @staticmethod
    def refused(directory: Path, model, message: str) -> None:
        (directory / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(InvalidInput, match=message):
            models.load(directory / "model.onnx")

    @pytest.mark.parametrize("content", [b"not a model at all", b"", b"\x08\x0a" * 40])
    def test_damaged(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(InvalidInput, match="must be a valid ONNX file"):
            models.load(tmp_path / "model.onnx")

    def test_truncated(self, tmp_path: Path, model) -> None:
        content = model.SerializeToString()
        for length in range(1, len(content), 97):
            (tmp_path / "model.onnx").write_bytes(content[:length])
            with pytest.raises(InvalidInput, match="must be a valid ONNX file"):
                models.load(tmp_path / "model.onnx")

    def test_external_data(self, tmp_path: Path, model) -> None:
        whole = models.load(head(Graph(16), flat_again()).save(tmp_path))
        file = tmp_path / "model.onnx"
        onnx.save(
            head(Graph(16), flat_again()).model(),
            file,
            save_as_external_data=True,
            location="weights.data",
            size_threshold=0,
        )
        assert torch.equal(models.load(file).layers[0].matrix(), whole.layers[0].matrix())
        data = tmp_path / "weights.data"
        data.write_bytes(data.read_bytes()[:100])
        with pytest.raises(InvalidInput, match="must be a valid ONNX file"):
            models.load(file)
        data.unlink()
        with pytest.raises(InvalidInput, match=r"must be a valid ONNX file.*weights\.data"):
            models.load(file)

    def test_initializers_as_inputs(self, tmp_path: Path, model) -> None:
        for tensor in model.graph.initializer:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.input.append(info)
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        assert models.load(tmp_path / "model.onnx").features == 16

    def test_missing_opset(self, tmp_path: Path, model) -> None:
        del model.opset_import[:]
        self.refused(tmp_path, model, "must be a valid ONNX file.*opset_import")

    @pytest.mark.parametrize("opset", [6, 999])
    def test_opset(self, tmp_path: Path, model, opset: int) -> None:
        model.opset_import[0].version = opset
        self.refused(tmp_path, model, "opset")

    def test_several_inputs(self, tmp_path: Path, model) -> None:
        model.graph.input.append(onnx.helper.make_tensor_value_info("y", 11, ["batch", 3]))
        self.refused(tmp_path, model, r"one input.*'x', 'y'")

    def test_several_outputs(self, tmp_path: Path, model) -> None:
        model.graph.output.append(onnx.helper.make_tensor_value_info("t0", 11, ["batch", 5]))
        self.refused(tmp_path, model, r"one output.*'t2', 't0'")

    def test_custom_domain(self, tmp_path: Path, model) -> None:
        model.graph.node[1].domain = "com.example"
        model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
        self.refused(tmp_path, model, r"node '/nt1' \(com.example.Tanh\): an operation of a custom")

    def test_functions_of_the_file_are_read(self, tmp_path: Path) -> None:
        graph = head(Graph(16), flat())
        model = graph.model()
        model.graph.node[1].CopyFrom(
            onnx.helper.make_node("Bend", ["t0"], ["t1"], domain="own", name="bend")
        )
        body = [onnx.helper.make_node("Tanh", ["a"], ["b"])]
        opsets = [onnx.helper.make_opsetid("", 20)]
        model.functions.append(onnx.helper.make_function("own", "Bend", ["a"], ["b"], body, opsets))
        model.opset_import.append(onnx.helper.make_opsetid("own", 1))
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        found = models.load(tmp_path / "model.onnx")
        assert found.activation.name == "tanh"
        assert_same(flat_again(), found, (16,))

    def test_subgraphs(self, tmp_path: Path) -> None:
        branch = onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["x"], ["y"])],
            "branch",
            [],
            [onnx.helper.make_tensor_value_info("y", 11, ["batch", 16])],
        )
        graph = Graph(16)
        graph("If", on=(graph.constant(np.array(True)),), then_branch=branch, else_branch=branch)
        with pytest.raises(InvalidInput, match="must be one chain, but 0 nodes use 'x'"):
            models.load(head(graph, flat()).save(tmp_path))

    def test_sparse_initializers(self, tmp_path: Path, model) -> None:
        values = onnx.helper.make_tensor("s", 11, [1], [1.0])
        places = onnx.helper.make_tensor("i", 7, [1], [0])
        model.graph.sparse_initializer.append(
            onnx.helper.make_sparse_tensor(values, places, [5, 16])
        )
        self.refused(tmp_path, model, "no sparse initializers")

    @pytest.mark.parametrize(
        ("shape", "kind", "message"),
        [
            ([64, 16], 1, "input has a batch in front, 1 or open, and features"),
            (["batch"], 1, "input has a batch in front, 1 or open, and features"),
            (["batch", 0], 1, "input has a batch in front, 1 or open, and features"),
            (["batch", 16], 2, "input is of floating point.*UINT8"),
            (None, 1, "must be a valid ONNX file: Field 'shape'"),
        ],
    )
    def test_input(self, tmp_path: Path, model, shape, kind: int, message: str) -> None:
        model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", kind, shape))
        self.refused(tmp_path, model, message)

    def test_nodes_that_the_output_does_not_need(self, tmp_path: Path) -> None:
        graph = head(Graph(16), flat())
        last = graph.last
        graph("Relu", on=("x",))
        graph.last = last
        assert models.load(graph.save(tmp_path)).features == 16

    def test_skip_connection(self, tmp_path: Path) -> None:
        graph = Graph(16)
        graph("Gemm", np.ones((16, 16)))
        graph("Add", on=("x", graph("Tanh")))
        with pytest.raises(InvalidInput, match=r"one chain, but 2 nodes use 'x': .*Gemm.*Add"):
            models.load(graph.save(tmp_path))


def flat_again() -> nn.Sequential:
    torch.manual_seed(0)
    return flat()
