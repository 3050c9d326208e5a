"""A graph is read as what it computes of one input, and compared with a second reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import raycrt
from raycrt.cli import main as cli
from raycrt.distributed import stages
from raycrt.errors import InvalidInput
from raycrt.foreign import description, files
from raycrt.foreign.onnx_graph import shapes
from raycrt.networks.layers.affine import Dense
from raycrt.networks.network import Network
from tests.foreign.models import assert_same
from tests.foreign.onnx_graph.models import (
    Graph,
    flat,
    head,
)


class TestTail:
    """What follows the logits is left out where it moves no prediction."""

    @staticmethod
    def load(directory: Path, tail, opset: int = 20, classes: int = 3) -> tuple[Network, Network]:
        model = flat(classes=classes)
        graph = head(Graph(16, opset=opset), model)
        whole = files.load(graph.save(directory))
        tail(graph)
        return files.load(graph.save(directory)), whole

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
        assert description.spec_of(found, (16,)) is not None

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
        found = files.load(graph.save(tmp_path))
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
            files.load(graph.save(tmp_path))


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
        found = files.load(graph.save(tmp_path))
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
        found = files.load(graph.save(tmp_path, onnx.TensorProto.FLOAT))
        assert torch.equal(found.layers[0].matrix(), model[1].weight)

    def test_random_weights(self, tmp_path: Path) -> None:
        graph = Graph(4)
        graph("MatMul", on=("x", graph.folded("RandomNormal", on=(), shape=[4, 3])))
        with pytest.raises(InvalidInput, match="input 1 must be a constant, but is computed"):
            files.load(graph.save(tmp_path))

    def test_weights_computed_from_the_input(self, tmp_path: Path) -> None:
        graph = Graph(4)
        graph("MatMul", on=("x", graph("Transpose", on=("x",))))
        with pytest.raises(InvalidInput, match=r"\(MatMul\): input 1 must be a constant"):
            files.load(graph.save(tmp_path))

    def test_constant_that_cannot_be_evaluated(self, tmp_path: Path) -> None:
        graph = Graph(4)
        weight = graph.folded("Reshape", np.ones(7), np.array([4, 2]))
        graph("MatMul", on=("x", weight))
        with pytest.raises(InvalidInput, match=r"\(Reshape\) cannot be evaluated: .*reshape"):
            files.load(graph.save(tmp_path))

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
        found = files.load(graph.save(tmp_path, number))
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
        files.load(file)
        monkeypatch.setattr(shapes, "reordered", lambda shape, axes: [])
        with pytest.raises(InvalidInput, match=r"they are [\d.]+ apart where rounding explains"):
            files.load(file)

    def test_rows_that_are_mixed(self, tmp_path: Path) -> None:
        """Of a batch of one the transpositions are nothing."""
        model = flat()
        graph = Graph(16)
        graph("Transpose", perm=[1, 0])
        graph("Reshape", np.array([-1, 16]))
        with pytest.raises(InvalidInput, match="apart where rounding explains"):
            files.load(head(graph, model).save(tmp_path))

    def test_at_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A difference far from the random inputs shows at an image alone."""
        from raycrt.foreign.onnx_graph.reference import Reference

        file = head(Graph(16), flat()).save(tmp_path)
        run = Reference._run
        monkeypatch.setattr(
            Reference, "_run", lambda self, x: run(self, np.where(np.abs(x) > 99, x * 1.01, x))
        )
        images = torch.rand(3, 1, 4, 4)
        files.load(file, None, (1, 4, 4), images=images)
        images[1] = 100
        with pytest.raises(InvalidInput, match="given input, number 1"):
            files.load(file, None, (1, 4, 4), images=images)


def test_the_command_compares_at_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat inputs of a network are the rows of the images, one after the other."""
    file = head(Graph(64), flat(features=64, classes=10)).save(tmp_path)
    compared, certified = [], []
    load = files.load

    def watched(*arguments, images: Tensor, **options) -> Network:
        compared.append(images)
        return load(*arguments, images=images, **options)

    monkeypatch.setattr(files, "load", watched)
    monkeypatch.setattr(stages, "certify", lambda spec, *rest, **named: certified.append(rest[0]))
    cli.certify(out=tmp_path / "run", model=file)
    assert compared[0].shape == (360, 1, 8, 8)
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(certified[0](x), load(file)(x.flatten(1)))
