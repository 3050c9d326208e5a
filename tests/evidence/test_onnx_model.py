"""The ONNX models that are written compute what the network computes, and the checker agrees."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file

from raycrt import as_network
from raycrt.activations import ACTIVATIONS
from raycrt.errors import InvalidInput
from raycrt.evidence import onnx_model
from raycrt.foreign.description import spec_of
from raycrt.networks import checkpoint, network
from raycrt.specs import validate
from raycrt.verify.bundle import onnx_model as reader
from raycrt.verify.model import Model
from tests.foreign.modules.test_blocks import DESCRIBED

CONVOLUTION = {"kind": "convolution", "channels": 4, "padding": 1, "stride": 2}
MODELS = {
    **{name: {"activation": name} for name in ACTIVATIONS},
    "beta": {"activation": "softplus", "beta": 5.0, "depth": 3},
    "channels": {"channels": [3, 5], "activation": "gelu"},
    "layers": {
        "activation": "tanh",
        "layers": [
            {**CONVOLUTION, "groups": 2, "activation": "silu"},
            {"kind": "residual", "width": 3, "kernel": 3},
            {"kind": "average_pool"},
            {"kind": "convolution", "channels": 3, "kernel": 1, "activation": "none"},
            {"kind": "flatten"},
            {"kind": "residual", "width": 7},
            {"kind": "dense", "width": 6, "activation": "arctan"},
        ],
    },
    "normalised": {
        "normalize": True,
        "layers": [
            {"kind": "convolution", "channels": 4, "kernel": [3, 2], "dilation": [1, 2]},
            {"kind": "batch_normalization", "activation": "softplus", "beta": 3.0},
            {"kind": "average_pool", "window": [3, 1]},
            {"kind": "average_pool", "window": "global"},
            {"kind": "dense", "width": 6, "activation": "none"},
            {"kind": "batch_normalization", "per": "feature", "activation": "tanh"},
        ],
    },
    "each feature": {
        "layers": [
            {"kind": "scaling", "activation": "tanh"},
            {**CONVOLUTION, "activation": "none"},
            {"kind": "permutation"},
            {"kind": "residual", "width": 3},
            {"kind": "batch_normalization", "per": "feature"},
            {
                "kind": "average_pool",
                "window": [4, 3],
                "stride": 2,
                "padding": 1,
                "divisor": 5,
                "activation": "silu",
            },
            {"kind": "flatten"},
            {"kind": "scaling"},
        ],
    },
    "blocks and no head": {
        "head": False,
        "layers": [
            {
                "kind": "block",
                "branch": [
                    {**CONVOLUTION, "stride": 2, "activation": "none"},
                    {"kind": "batch_normalization", "activation": "softplus", "beta": 3.0},
                    {"kind": "convolution", "channels": 3, "kernel": 1, "activation": "none"},
                    {"kind": "batch_normalization"},
                ],
                "shortcut": [
                    {**CONVOLUTION, "stride": 2, "channels": 3, "activation": "none"},
                    {"kind": "batch_normalization"},
                ],
                "activation": "silu",
            },
            {
                "kind": "block",
                "branch": [
                    {"kind": "dense", "width": 5, "activation": "tanh"},
                    {"kind": "flatten"},
                    {"kind": "dense", "width": 4, "activation": "none"},
                ],
                "shortcut": {"kind": "dense", "width": 4, "activation": "none"},
            },
        ],
    },
}


def _stored(place, model, change=lambda made: None):
    sizes = {} if "layers" in model else {"width": 9}
    spec, shape = validate({"model": {**sizes, **model}}).model, (2, 8, 12)
    made = network.build(spec, shape, 4).requires_grad_(False)
    change(made)
    checkpoint.save_model(place, made, validate({"model": spec.model_dump()}))
    return made, spec, shape, load_file(place / checkpoint.MODEL)


def _checked(place, made, spec, shape, tensors):
    written = onnx_model.written(tensors, spec, shape)
    onnx_model.check(written, made, shape, torch.rand(5, *shape))
    (place / "model.onnx").write_bytes(written.SerializeToString())
    seen = Model.load(place / checkpoint.MODEL, spec, shape)
    return reader.check(place / "model.onnx", tensors, spec, seen, shape)


@pytest.mark.parametrize("name", MODELS)
def test_writer_and_checker_agree(tmp_path, name):
    def change(made):
        for name, part in made.named_buffers():
            if name.endswith("order"):
                part.copy_(torch.randperm(len(part)))
            else:
                part.uniform_(0.5, 2)

    assert _checked(tmp_path, *_stored(tmp_path, MODELS[name], change)) == []


def test_float64_and_a_class_that_is_masked(tmp_path):
    def change(made):
        made.double()
        made.layers[-1].bias[2] = -torch.inf

    made, spec, shape, tensors = _stored(tmp_path, {}, change)
    assert tensors["maps.0.weight"].dtype == np.float64
    assert _checked(tmp_path, made, spec, shape, tensors) == []


def test_a_model_that_computes_something_else_is_refused():
    spec = validate({"model": {"width": 9}}).model
    made = network.build(spec, (5,), 4).requires_grad_(False)
    tensors = {name: tensor.numpy() for name, tensor in made.state_dict().items()}
    written = onnx_model.written(tensors, spec, (5,))
    for stored in written.graph.initializer:
        stored.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(stored), stored.name))
    with pytest.raises(InvalidInput):
        onnx_model.check(written, made, (5,), torch.rand(3, 5))


def test_what_has_no_operator_is_left_out(tmp_path):
    layers = [{"kind": "average_pool", "window": "global", "divisor": 3, "activation": "tanh"}]
    _, spec, shape, tensors = _stored(tmp_path, {"layers": layers})
    assert onnx_model.written(tensors, spec, shape) is None


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("two branches", "strided") else pytest.param(name, marks=pytest.mark.slow)
        for name in DESCRIBED
        if name != "one output"
    ],
)
def test_graphs_of_others_are_written_and_checked(tmp_path, name):
    make, shape = DESCRIBED[name]
    torch.manual_seed(0)
    made = as_network(make().eval(), shape).requires_grad_(False)
    spec = spec_of(made, shape)
    checkpoint.save_model(tmp_path, made, validate({"model": spec.model_dump()}))
    tensors = load_file(tmp_path / checkpoint.MODEL)
    assert _checked(tmp_path, made, spec, shape, tensors) == []


def test_one_logit_is_written_as_two(tmp_path):
    spec = validate({"model": {"width": 9, "logits": 1}}).model
    made = network.build(spec, (5,), 2).requires_grad_(False)
    checkpoint.save_model(tmp_path, made, validate({"model": spec.model_dump()}))
    assert _checked(tmp_path, made, spec, (5,), load_file(tmp_path / checkpoint.MODEL)) == []
