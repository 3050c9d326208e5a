"""Graphs with skip connections are read, certified and verified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import raycrt
from raycrt.cli import main as cli
from raycrt.foreign import files
from raycrt.verify import verify_run
from tests.foreign.models import assert_same
from tests.foreign.modules.test_blocks import MADE, Block
from tests.foreign.onnx_graph.models import (
    Graph,
    Of,
    gelu_half_last,
    gelu_two_branches,
    sharp,
    silu,
    softplus_below,
)
from tests.foreign.onnx_graph.test_exports import by_dynamo, by_tracing

ACTIVATIONS = {
    "silu": (nn.SiLU(), silu),
    "gelu": (nn.GELU(), gelu_half_last),
    "gelu in two branches": (nn.GELU(), gelu_two_branches),
    "sharp softplus": (nn.Softplus(4), sharp),
    "softplus with its threshold": (nn.Softplus(), softplus_below(20)),
}


@pytest.mark.parametrize(("activation", "nodes"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_an_activation_of_what_is_passed_on_too(tmp_path: Path, activation, nodes) -> None:
    """Its nodes share their input with a sum and a difference."""
    torch.manual_seed(0)
    first, last = nn.Linear(6, 6).double(), nn.Linear(6, 3).double()
    graph = Graph(6)
    z = graph("Gemm", first.weight, first.bias, transB=1)
    nodes(graph)
    graph("Add", on=(z, graph.last))
    graph("Sub", on=(graph.last, "x"))
    graph("Gemm", last.weight, last.bias, transB=1)

    def forward(x):
        z = first(x)
        return last(z + activation(z) - x)

    assert_same(Of(forward), files.load(graph.save(tmp_path)), (6,))


def test_an_activation_and_its_parts(tmp_path: Path) -> None:
    """The sigmoid inside of a SiLU is used by itself: only their sum could be read."""
    graph = Graph(6)
    z = graph("Gemm", np.ones((6, 6)))
    s = graph("Sigmoid")
    graph("Add", on=(graph("Mul", on=(z, s)), s))
    graph("Gemm", np.ones((6, 3)))
    with pytest.raises(raycrt.InvalidInput, match=r"\(Mul\): input 1 must be a constant"):
        files.load(graph.save(tmp_path))


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        ("strided", 13),
        *(pytest.param(name, opset, marks=pytest.mark.slow) for name in MADE for opset in (17, 21)),
    ],
)
def test_traced(tmp_path: Path, name: str, opset: int) -> None:
    make, shape = MADE[name]
    torch.manual_seed(0)
    model = make().eval()
    found = files.load(by_tracing(model, shape, tmp_path / "model.onnx", opset), None, shape)
    x = torch.rand(5, *shape)
    with torch.no_grad():
        got, wanted = found.in_float64()(x.double()), model.double()(x.double())
    torch.testing.assert_close(got[:, 1] if wanted.dim() == 1 else got, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "strided", "preactivated"])
def test_by_dynamo(tmp_path: Path, name: str) -> None:
    make, shape = MADE[name]
    torch.manual_seed(0)
    model = make().eval()
    found = files.load(by_dynamo(model, shape, tmp_path / "model.onnx"), None, shape)
    x = torch.rand(5, *shape, dtype=torch.float64)
    torch.testing.assert_close(found.in_float64()(x), model.double()(x), rtol=0, atol=1e-5)


def test_channels_last_as_keras_writes_them(tmp_path: Path) -> None:
    """Images with channels last, transposed for each convolution, and MatMul with Add."""
    torch.manual_seed(0)
    first, second = (nn.Conv2d(2, 2, 3, padding=1).double() for _ in range(2))
    last = nn.Linear(40, 3).double()
    graph = Graph(4, 5, 2, opset=13)
    x = "x"
    for layer in (first, second):
        graph("Transpose", perm=[0, 3, 1, 2])
        graph("Conv", layer.weight, layer.bias, pads=[1, 1, 1, 1])
        graph("Transpose", perm=[0, 2, 3, 1])
        if layer is first:
            graph("Softplus")
    graph("Add", on=(graph.last, x))
    graph("Reshape", np.array([-1, 40]))
    graph("MatMul", last.weight.T)
    graph("Add", last.bias)
    graph("Softmax")

    def forward(x):
        z = second(nn.functional.softplus(first(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)
        return last((z + x).flatten(1))

    assert_same(Of(forward), files.load(graph.save(tmp_path)), (4, 5, 2))


@pytest.mark.slow
def test_certified_and_verified_by_the_commands(tmp_path: Path) -> None:
    torch.manual_seed(0)
    branch = [nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 16)]
    model = nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 16), nn.Softplus()),
        Block(nn.Linear(16, 8), nn.Softplus(), nn.Linear(8, 16)),
        Block(*branch, finish=torch.tanh),
        nn.Linear(16, 10),
    )
    file = by_tracing(model, (1, 8, 8), tmp_path / "model.onnx", 17)
    cli.certify(out=tmp_path / "run", model=file, set_=["data.limit=4"])
    report = verify_run(tmp_path / "run")
    assert report.sound and report.checked == 4
