"""Affine steps of single features and changes of shape are what the graph states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import raycrt
from raycrt.errors import InvalidInput
from raycrt.foreign import files
from raycrt.networks.layers.diagonal import Permutation
from tests.foreign.models import assert_same
from tests.foreign.onnx_graph.models import (
    Graph,
    Of,
    flat,
    head,
)


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
        assert_same(model, files.load(head(graph, model).save(tmp_path)), (2, 4, 4))

    def test_division_is_not_a_rounded_factor(self, tmp_path: Path) -> None:
        """1 / 3 is no float32, and x / 3 is what the graph states."""
        model = flat().float()
        graph = Graph(4, 4)
        graph("Div", np.float32(3))
        graph("Flatten")
        found = files.load(head(graph, model).save(tmp_path, onnx.TensorProto.FLOAT))
        exact = found.in_float64()
        x = torch.rand(5, 16, dtype=torch.float64)
        first = model[1].double()
        expected = (x / 3) @ first.weight.T + first.bias
        torch.testing.assert_close(exact.layers[0](x), expected, rtol=0, atol=1e-15)

    def test_radii_are_those_of_the_inputs_that_come_in(self, tmp_path: Path) -> None:
        """Those of the normalised images times the standard deviation."""
        model = flat()
        bare = head(Graph(16), model)
        found = raycrt.certify(files.load(bare.save(tmp_path)), torch.rand(4, 16) * 4 - 2)
        graph = Graph(4, 4)
        graph("Sub", np.array(0.5))
        graph("Div", np.array(0.25))
        graph("Flatten")
        torch.manual_seed(0)
        model = flat()
        normalising = files.load(head(graph, model).save(tmp_path))
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
        assert_same(model, files.load(head(graph, model).save(tmp_path)), (1, 4, 4))

    def test_squeeze_and_unsqueeze(self, tmp_path: Path) -> None:
        model = flat()
        graph = Graph(1, 4, 4)
        graph("Squeeze", np.array([1]))
        graph("Unsqueeze", np.array([-1, 1]))
        graph("Reshape", np.array([0, -1]))
        assert_same(model, files.load(head(graph, model).save(tmp_path)), (1, 4, 4))

    def test_axes_as_attributes(self, tmp_path: Path) -> None:
        model = flat()
        graph = Graph(1, 4, 4, opset=11)
        graph("Squeeze", axes=[1])
        graph("Unsqueeze", axes=[1])
        graph("Dropout", ratio=0.5)
        graph("Flatten")
        assert_same(model, files.load(head(graph, model).save(tmp_path)), (1, 4, 4))

    def test_open_batch_by_its_shape(self, tmp_path: Path) -> None:
        """What exporters make of `x.view(x.size(0), -1)`."""
        model = flat()
        graph = Graph(1, 4, 4)
        graph("Shape")
        size = graph("Gather", np.array(0), axis=0)
        front = graph("Unsqueeze", np.array([0]), on=(size,))
        sizes = graph("Concat", np.array([-1]), on=(front,), axis=0)
        graph("Reshape", on=("x", sizes))
        assert_same(model, files.load(head(graph, model).save(tmp_path)), (1, 4, 4))

    @pytest.mark.parametrize("batch", [1, "batch"])
    def test_batch_of_one_that_is_written_down(self, tmp_path: Path, batch: int | str) -> None:
        model = flat()
        graph = Graph(1, 4, 4, batch=batch)
        graph("Reshape", np.array([1, 16]))
        assert_same(model, files.load(head(graph, model).save(tmp_path)), (1, 4, 4))

    def test_transposition_that_moves_no_pixel(self, tmp_path: Path) -> None:
        conv, last = nn.Conv2d(1, 2, 3).double(), nn.Linear(8, 2).double()
        graph = Graph(4, 4, 1)
        graph("Transpose", perm=[0, 3, 1, 2])
        graph("Conv", conv.weight, conv.bias)
        graph("Tanh")
        graph("Flatten")
        graph("Gemm", last.weight.T, last.bias)
        found = files.load(graph.save(tmp_path), None, (1, 4, 4))
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
        found = files.load(graph.save(tmp_path))
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
        assert_same(model, files.load(file), (4, 4))


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
        assert files.load(self.file(tmp_path, *stated), None, given).features == 48

    @pytest.mark.parametrize(
        ("stated", "given", "message"),
        [
            ((48,), (3, 4, 4), r"takes inputs \(48,\), but those at hand are \(3, 4, 4\)"),
            ((4, 4, 3), (3, 4, 4), "the order of the pixels is ambiguous"),
            ((8, 6), (1, 6, 8), "the order of the pixels is ambiguous"),
            ((48,), (1, 8, 8), "the order of the pixels is ambiguous"),
            (("c", "h", "w"), None, "input_shape must be given"),
            (("h", "w"), (1, 6, 8), "input_shape must be given"),
        ],
    )
    def test_not_told(self, tmp_path: Path, stated: tuple, given: tuple, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            files.load(self.file(tmp_path, *stated), None, given)
