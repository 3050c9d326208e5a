"""Another activation in an ONNX model is found even where it agrees at the points compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from raycrt.evidence import onnx_model as written
from raycrt.networks import network as networks
from raycrt.specs import ModelSpec
from raycrt.verify.bundle import onnx_model
from raycrt.verify.model import Model

SHAPE = (64,)


def _swapped(graph, *kinds):
    for node in graph.node:
        if node.op_type in kinds:
            node.op_type = kinds[1 - kinds.index(node.op_type)]


def _sharpnesses(graph):
    names = {
        f"{left}beta {beta}": f"{left}beta {5.0 - beta}"
        for left in ("", "1 / ")
        for beta in (2.0, 3.0)
    }
    for node in graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = names.get(name, name)


@pytest.mark.parametrize(
    ("activations", "change", "message"),
    [
        ([("tanh", None), ("erf", None)], lambda g: _swapped(g, "Tanh", "Erf"), "activation 0 erf"),
        (
            [("softplus", 2.0), ("softplus", 3.0)],
            _sharpnesses,
            "activation 0 softplus of sharpness 3",
        ),
    ],
    ids=["kinds", "sharpnesses"],
)
def test_activations_that_are_exchanged(tmp_path: Path, activations, change, message) -> None:
    layers = [
        {"kind": "dense", "width": 2, "activation": name, "beta": beta}
        for name, beta in activations
    ]
    spec = ModelSpec.model_validate({"layers": layers})
    network = networks.build(spec, SHAPE, 2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        # Far from 0 at random points, but not at all images.
        network.maps[0].weight[0], network.maps[0].bias[0] = 5.4, -45.0
        network.maps[1].weight[0, 0], network.maps[1].bias[0] = (
            8.0,
            40.0 * (activations[0][0] != "tanh"),
        )
        network.maps[2].weight[0, 0] = 1.0
    file, graph = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    save_file(dict(network.state_dict()), file)
    tensors, model = load_file(file), Model.load(file, spec, SHAPE)
    made = written.written(tensors, spec, SHAPE)
    graph.write_bytes(made.SerializeToString())
    assert onnx_model.check(graph, tensors, spec, model, SHAPE) == []
    change(made.graph)
    graph.write_bytes(made.SerializeToString())
    (found,) = onnx_model.check(graph, tensors, spec, model, SHAPE)
    assert message in found.sentence
