"""Nodes are read as the activations and affine maps that they are, or named in a sentence."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from raycrt.errors import InvalidInput
from raycrt.foreign import files
from raycrt.foreign.modules.elementwise import Elementwise
from raycrt.networks.layers.affine import Dense
from tests.foreign.models import assert_same, convolutional, dense
from tests.foreign.onnx_graph.models import (
    Graph,
    Of,
    flat,
    gelu_half_first,
    gelu_half_last,
    gelu_two_branches,
    gemm_chain,
    head,
    sharp,
    silu,
    softplus_below,
)


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
        found = files.load(gemm_chain(model, activate).save(tmp_path))
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
        assert_same(model, files.load(gemm_chain(model, activate).save(tmp_path)), (6,))

    @pytest.mark.parametrize(
        ("activate", "message"),
        [
            (
                lambda g: g("Relu"),
                r"node '/nt1' \(Relu\): not supported \(a kink .*\); supported are Add",
            ),
            (lambda g: g("Gelu", approximate="tanh"), r"'/nt1' \(Gelu\): approximate must be"),
            (lambda g: g("Mul", on=(g.last, g("Tanh"))), r"\(Mul\): input 1 .* only sums"),
            (lambda g: g("Mul", on=(g.last, g.last)), r"'/nt1' \(Mul\): not supported"),
            (softplus_below(19.9), r"'/nt4' \(Greater\): not supported"),
            (softplus_below(50, beta=-1), r"'/nt4' \(Greater\): not supported"),
        ],
    )
    def test_is_none(self, tmp_path: Path, activate, message: str) -> None:
        file = gemm_chain(dense(nn.Tanh()).double(), activate).save(tmp_path)
        with pytest.raises(InvalidInput, match=message):
            files.load(file)


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
        found = files.load(graph.save(tmp_path))
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
        assert_same(model, files.load(graph.save(tmp_path)), (16,))

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
        assert_same(model, files.load(head(graph, model).save(tmp_path)), (2, 4, 4))

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
        assert_same(model, files.load(head(graph, model).save(tmp_path)), shape)

    def test_batch_normalisation_that_trains(self, tmp_path: Path) -> None:
        graph = Graph(3, opset=9)
        graph("BatchNormalization", *np.ones((4, 3)))
        model = head(graph, flat(features=3)).model()
        model.graph.node[0].output.extend(["m", "v", "sm", "sv"])
        onnx.save(model, tmp_path / "model.onnx")
        with pytest.raises(InvalidInput, match=r"\(BatchNormalization\): `one output: fixed"):
            files.load(tmp_path / "model.onnx")

    def test_bias_of_matmul_is_the_layers_own(self, tmp_path: Path) -> None:
        model = dense(nn.Tanh()).double()
        graph = Graph(6)
        for layer in model:
            if isinstance(layer, nn.Linear):
                graph("MatMul", layer.weight.T)
                graph("Add", layer.bias)
            else:
                graph("Tanh")
        found = files.load(graph.save(tmp_path))
        assert [type(layer) for layer in found.layers] == [Dense, Dense, Dense]
        assert_same(model, found, (6,))

    @pytest.mark.parametrize(
        ("node", "message"),
        [
            (("Conv", np.ones((2, 1, 2, 2)), {"pads": [0, 0, 1, 1]}), "same on opposite sides"),
            (("Conv", np.ones((2, 1, 2, 2)), {"auto_pad": "SAME_UPPER"}), "auto_pad must be"),
            (("Conv", np.ones((2, 1, 9, 9)), {}), r"\(Conv\): `kernel fits into the padded image`"),
            (("Conv", np.ones((2, 3, 2, 2)), {}), "as many channels as its kernel takes"),
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
            files.load(graph.save(tmp_path))
