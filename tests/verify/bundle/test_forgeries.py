"""Bundles whose hashes agree, and whose content does not hold, are found out."""

import io
import json
import re

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import load, save

from raycrt.errors import InvalidInput
from raycrt.verify.bundle import verify_bundle
from raycrt.verify.bundle.names import ONNX
from raycrt.verify.model import weights_sha256
from tests.verify.bundle.forged import ROWS, files_of, forged, rows_of, with_rows

MODEL, MANIFEST = "train/model.safetensors", "certificates/manifest.json"


def _findings(file):
    report = verify_bundle(file)
    assert not report.sound
    return [(finding.index, finding.sentence) for finding in report.findings]


def test_a_raised_radius(bundle, tmp_path):
    files = files_of(bundle)
    rows = rows_of(files)
    rows[3]["radius"] *= 1.01
    rows[3]["radius_runner_up"] = max(rows[3]["radius"], rows[3]["radius_runner_up"])
    ((index, sentence),) = {
        (index, sentence.split(" is ")[0])
        for index, sentence in _findings(forged(bundle, tmp_path, **{ROWS: with_rows(files, rows)}))
        if sentence.startswith("radius is")
    }
    assert (index, sentence) == (3, "radius")


def test_two_rows_that_changed_places(bundle, tmp_path):
    files = files_of(bundle)
    rows = rows_of(files)
    rows[3]["index"], rows[4]["index"] = rows[4]["index"], rows[3]["index"]
    found = _findings(forged(bundle, tmp_path, **{ROWS: with_rows(files, rows)}))
    assert [index for index, _ in found] == [3, 4]
    assert all("not the one that was certified" in sentence for _, sentence in found)


def _saved(files, tensors):
    """Other tensors under the header of the model in `files`."""
    size = int.from_bytes(files[MODEL][:8], "little")
    return save(tensors, json.loads(files[MODEL][8 : 8 + size])["__metadata__"])


def _other_model(files):
    tensors = load(files[MODEL])
    other = {name: (1.5 * tensor).astype(tensor.dtype) for name, tensor in tensors.items()}
    model = onnx.load_model_from_string(files[ONNX])
    for stored in model.graph.initializer:
        stored.CopyFrom(numpy_helper.from_array(other[stored.name], stored.name))
    return {MODEL: _saved(files, other), ONNX: model.SerializeToString()}


def test_another_model(bundle, tmp_path):
    changed = _other_model(files_of(bundle))
    sentences = [sentence for _, sentence in _findings(forged(bundle, tmp_path, **changed))]
    assert "weights_sha256 must be that of the model in the manifest." in sentences


def test_another_model_that_the_manifest_names(bundle, tmp_path):
    files = files_of(bundle)
    changed = _other_model(files)
    manifest = json.loads(files[MANIFEST])
    manifest["weights_sha256"] = weights_sha256(load(changed[MODEL]))
    changed[MANIFEST] = json.dumps(manifest).encode()
    sentences = [sentence for _, sentence in _findings(forged(bundle, tmp_path, **changed))]
    assert any("no more than" in sentence for sentence in sentences)
    assert any("the least that can be proved" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_shape": [64]}, "input_shape must be"),
        ({"complete": False}, "complete must be true"),
        ({"rows": 11}, "rows must be 12"),
        ({"schema_version": 5}, "the rows of a bundle have the hashes of their inputs"),
        ({"margin_curvature": [[0.0] * 3] * 3}, "is the least that can be proved"),
        ({"deployment": "float32"}, "deployment must be that of spec.certify"),
    ],
)
def test_an_edited_manifest(bundle, tmp_path, change, message):
    manifest = json.loads(files_of(bundle)[MANIFEST]) | change
    found = _findings(forged(bundle, tmp_path, **{MANIFEST: json.dumps(manifest).encode()}))
    assert any(message in sentence for _, sentence in found)


def test_other_inputs(bundle, tmp_path):
    files = files_of(bundle)
    inputs = np.load(io.BytesIO(files["data/inputs.npy"]))
    inputs[5, 0, 0, 0] += 1e-6
    buffer = io.BytesIO()
    np.save(buffer, inputs)
    found = _findings(forged(bundle, tmp_path, **{"data/inputs.npy": buffer.getvalue()}))
    assert [(index, "SHA-256" in sentence) for index, sentence in found] == [(5, True)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4",
        b"\x93NUMPY\x01\x00\x0a\x00{'a': 1}\n ",
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 3, 4, 4), }".ljust(117)
        + b"\n",
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
        + b"\n",
    ],
)
def test_inputs_that_are_no_array(bundle, tmp_path, content):
    with pytest.raises(InvalidInput, match=r"inputs\.npy must be a file of numpy arrays"):
        verify_bundle(forged(bundle, tmp_path, **{"data/inputs.npy": content}))


# The ONNX model


def _weight(model):
    stored = next(w for w in model.graph.initializer if w.name == "maps.0.weight")
    numbers = numpy_helper.to_array(stored).copy()
    numbers[0, 0] = np.nextafter(numbers[0, 0], np.float32(9))
    stored.CopyFrom(numpy_helper.from_array(numbers, stored.name))


def _activation(model):
    next(node for node in model.graph.node if node.op_type == "Gelu").op_type = "Softplus"


def _approximate(model):
    node = next(node for node in model.graph.node if node.op_type == "Gelu")
    node.attribute.append(helper.make_attribute("approximate", "tanh"))


def _branch(model):
    model.graph.node.insert(0, helper.make_node("Clip", ["input"], ["clipped"]))
    model.graph.node[1].input[0] = "clipped"


def _constant(model):
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "more"))


def _scale(model):
    model.graph.initializer.append(numpy_helper.from_array(np.array(1.001, np.float32), "more"))
    model.graph.node.insert(0, helper.make_node("Mul", ["input", "more"], ["scaled"]))
    model.graph.node[1].input[0] = "scaled"


def _renamed(model):
    for stored in model.graph.initializer:
        stored.name = stored.name.replace("maps.0.bias", "bias")
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = name.replace("maps.0.bias", "bias")


def _elsewhere(model):
    stored = model.graph.initializer[0]
    stored.ClearField("raw_data")
    stored.data_location = onnx.TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="../../etc/passwd")


def _wide(model):
    node = next(node for node in model.graph.node if node.op_type == "Flatten")
    node.attribute[0].i = 2**40


def _broadcast(model):
    model.graph.node.append(
        helper.make_node("Add", [model.graph.node[-1].output[0], "input"], ["y"])
    )
    model.graph.output[0].name = "y"


def _twice(model):
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    again = helper.make_node("Gemm", list(gemm.input), ["again"], transB=1)
    model.graph.node.insert(1, again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_broadcast, "nodes 'Add'|must be a model of ONNX"),
        (_twice, "uses 'maps.0.(weight|bias)' 2 times, not once"),
        (_weight, "other numbers in 'maps.0.weight'"),
        (_activation, "has 0 nodes 'Gelu', and the layers 1"),
        (_approximate, "cannot be evaluated: .*Gelu is exact"),
        (_branch, "has a node 'Clip'"),
        (_constant, "has a weight 'more'"),
        (_scale, "has a weight 'more'"),
        (_renamed, "has a weight 'bias'"),
        (_elsewhere, "model.onnx"),
        (_wide, "a size of more than 1024|must be a model of ONNX"),
    ],
)
def test_an_onnx_model_that_is_another(bundle, tmp_path, change, message):
    model = onnx.load_model_from_string(files_of(bundle)[ONNX])
    change(model)
    found = _findings(forged(bundle, tmp_path, **{ONNX: model.SerializeToString()}))
    assert len(found) == 1
    assert re.search(message, found[0][1]), found


@pytest.mark.parametrize("content", [b"", b"model", b"\x08\x08" * 1000])
def test_an_onnx_model_that_is_none(bundle, tmp_path, content):
    ((_, sentence),) = _findings(forged(bundle, tmp_path, **{ONNX: content}))
    assert sentence.startswith("model.onnx must be a model of ONNX")
