"""What torch's exporters write is read, with either exporter and at old and new opsets."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raycrt.foreign import files
from raycrt.foreign.modules.elementwise import Elementwise
from tests.foreign.models import assert_same


class Standardised(nn.Module):
    """A small convolutional network as people write it: normalising, and with its softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3, 0.6]).view(1, 2, 1, 1))
        self.register_buffer("std", torch.tensor([0.3, 0.2]).view(1, 2, 1, 1))
        self.body = nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(3),
            nn.Softplus(),
            nn.Conv2d(3, 4, 3),
            nn.Softplus(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.last = nn.Linear(4, 3)
        norm = self.body[1]
        norm.running_mean, norm.running_var = torch.randn(3), torch.rand(3) + 0.2

    def logits(self, x: Tensor) -> Tensor:
        return self.last(self.body((x - self.mean) / self.std).view(x.size(0), -1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.logits(x), dim=1)


def dense(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), activation, nn.Linear(5, 4), activation, nn.Linear(4, 3)
    )


def exported(model: nn.Module, shape: tuple[int, ...], file: Path, **options: Any) -> Path:
    x = torch.rand(2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(model.eval(), (x,), file, verbose=False, **options)
        finally:
            logging.disable(logging.NOTSET)
    return file


def by_dynamo(model: nn.Module, shape: tuple[int, ...], file: Path) -> Path:
    """With the default exporter, which keeps weights in a second file."""
    sizes = ({0: torch.export.Dim("batch")},)
    return exported(model, shape, file, dynamo=True, dynamic_shapes=sizes)


def by_tracing(
    model: nn.Module, shape: tuple[int, ...], file: Path, opset: int, **options: Any
) -> Path:
    axes = {"x": {0: "batch"}}
    return exported(
        model,
        shape,
        file,
        dynamo=False,
        opset_version=opset,
        input_names=["x"],
        dynamic_axes=axes,
        **options,
    )


ACTIVATIONS = {
    "softplus": nn.Softplus(),
    "sharp softplus": nn.Softplus(beta=4, threshold=30),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "arctan": Elementwise("arctan"),
    "erf": Elementwise("erf"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("opset", [13, 17, 21])
def test_traced_activations(tmp_path: Path, name: str, opset: int) -> None:
    model = dense(ACTIVATIONS[name])
    found = files.load(by_tracing(model, (1, 2, 3), tmp_path / "model.onnx", opset))
    assert_same(model, found, (1, 2, 3))


def test_weight_norm(tmp_path: Path) -> None:
    """Written as the operations that compute the weights."""
    model = dense(nn.Tanh())
    nn.utils.parametrizations.weight_norm(model[1])
    file = by_tracing(model, (1, 2, 3), tmp_path / "model.onnx", 17, do_constant_folding=False)
    weight = files.load(file).layers[0].matrix()
    torch.testing.assert_close(weight, model[1].weight, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_threshold_by_dynamo(tmp_path: Path) -> None:
    model = dense(ACTIVATIONS["sharp softplus"])
    file = by_dynamo(model, (1, 2, 3), tmp_path / "model.onnx")
    assert_same(model, files.load(file), (1, 2, 3))


@pytest.fixture(scope="module")
def standardised() -> Standardised:
    torch.manual_seed(0)
    return Standardised()


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["dynamo", 13, 18])
def test_convolutional(tmp_path: Path, standardised: Standardised, exporter: str | int) -> None:
    file = tmp_path / "model.onnx"
    if exporter == "dynamo":
        by_dynamo(standardised, (2, 9, 8), file)
    else:
        by_tracing(standardised, (2, 9, 8), file, int(exporter))
    found = files.load(file, images=torch.rand(5, 2, 9, 8))
    x = torch.rand(5, 2, 9, 8)
    with torch.no_grad():
        wanted = standardised.logits(x)
    # Batch normalisation is folded by the exporter, in float32.
    torch.testing.assert_close(found.in_float64()(x.double()), wanted.double(), rtol=0, atol=1e-5)
