"""Files that are damaged, or hold more than one chain, are refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from raycrt.errors import InvalidInput
from raycrt.foreign import files
from tests.foreign.models import assert_same
from tests.foreign.onnx_graph.models import (
    Graph,
    flat,
    head,
)


def flat_again() -> nn.Sequential:
    torch.manual_seed(0)
    return flat()


class TestFiles:
    @pytest.fixture
    def model(self):
        return head(Graph(16), flat()).model()

    @staticmethod
    def refused(directory: Path, model, message: str) -> None:
        (directory / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(InvalidInput, match=message):
            files.load(directory / "model.onnx")

    @pytest.mark.parametrize("content", [b"not a model at all", b"", b"\x08\x0a" * 40])
    def test_damaged(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(InvalidInput, match="must be a valid ONNX file"):
            files.load(tmp_path / "model.onnx")

    def test_truncated(self, tmp_path: Path, model) -> None:
        content = model.SerializeToString()
        for length in range(1, len(content), 97):
            (tmp_path / "model.onnx").write_bytes(content[:length])
            with pytest.raises(InvalidInput, match="must be a valid ONNX file"):
                files.load(tmp_path / "model.onnx")

    def test_external_data(self, tmp_path: Path, model) -> None:
        whole = files.load(head(Graph(16), flat_again()).save(tmp_path))
        file = tmp_path / "model.onnx"
        onnx.save(
            head(Graph(16), flat_again()).model(),
            file,
            save_as_external_data=True,
            location="weights.data",
            size_threshold=0,
        )
        assert torch.equal(files.load(file).layers[0].matrix(), whole.layers[0].matrix())
        data = tmp_path / "weights.data"
        data.write_bytes(data.read_bytes()[:100])
        with pytest.raises(InvalidInput, match="must be a valid ONNX file"):
            files.load(file)
        data.unlink()
        with pytest.raises(InvalidInput, match=r"must be a valid ONNX file.*weights\.data"):
            files.load(file)

    def test_initializers_as_inputs(self, tmp_path: Path, model) -> None:
        for tensor in model.graph.initializer:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.input.append(info)
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        assert files.load(tmp_path / "model.onnx").features == 16

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
        self.refused(
            tmp_path, model, r"node '/nt1' \(com.example.Tanh\): operations of custom domains"
        )

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
        found = files.load(tmp_path / "model.onnx")
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
        with pytest.raises(InvalidInput, match="from the input, but no node uses 'x'"):
            files.load(head(graph, flat()).save(tmp_path))

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
        assert files.load(graph.save(tmp_path)).features == 16

    def test_sizes_that_are_added(self, tmp_path: Path) -> None:
        graph = Graph(16)
        graph("Gemm", np.ones((16, 1)))
        graph("Add", on=("x", graph("Tanh")))
        with pytest.raises(InvalidInput, match=r"one shape: \[\(1, 16\), \(1, 1\)\]"):
            files.load(graph.save(tmp_path))
