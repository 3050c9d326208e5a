"""Networks that others trained and published as ONNX files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import raycrt
from raycrt import data
from raycrt.cli import main as cli
from raycrt.data import Split
from raycrt.foreign import files
from raycrt.networks.layers.diagonal import Scaling
from raycrt.networks.network import Network
from raycrt.specs import DataSpec
from raycrt.verify import verify_run

SHAPE = (1, 28, 28)


def network_file(name: str) -> Path:
    file = Path(os.environ.get("RAYCRT_DATA", ".")) / "networks" / name
    if not file.is_file():
        pytest.skip("RAYCRT_DATA names no directory that holds networks")
    return file


@pytest.fixture(scope="module")
def digits() -> Split:
    try:
        return data.load(DataSpec(name="mnist")).test
    except raycrt.InvalidInput:
        pytest.skip("RAYCRT_DATA names no directory that holds MNIST")


@pytest.fixture(scope="module")
def deep(digits: Split) -> Network:
    file = network_file("mnist-sigmoid-6x200.onnx")
    return files.load(file, None, SHAPE, images=digits.images)


@pytest.mark.slow
def test_six_layers_of_200_that_normalise(deep: Network, digits: Split) -> None:
    steps = [part for part in deep.layers[0].modules() if isinstance(part, Scaling)]
    assert deep.depth == 7 and len(steps) == 2
    right = deep(digits.images[:200]).argmax(1) == digits.labels[:200]
    assert int(right.sum()) == 198


@pytest.mark.slow
def test_radii_of_six_layers(deep: Network, digits: Split) -> None:
    found = raycrt.certify(deep, digits.images[:3])
    assert (found.radius > 0).all()
    assert (found.radius < raycrt.attack(deep, digits.images[:3]).distance).all()


@pytest.mark.parametrize(
    ("name", "widths"),
    [("mnist-sigmoid-256x2.onnx", [256, 256, 10]), ("sigmoid-50-25.onnx", [5, 7, 10])],
)
def test_batch_of_one_in_the_file(digits: Split, name: str, widths: list[int]) -> None:
    network = files.load(network_file(name), None, SHAPE, images=digits.images)
    assert [layer.out_features for layer in network.layers] == widths
    images = digits.images[:3]
    if max(widths) < 100:
        found = raycrt.certify(network, images)
        assert torch.equal(found.prediction, network(images).argmax(1))
        assert (found.radius > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist-sigmoid-256x2.onnx", "sigmoid-50-25.onnx"])
def test_a_second_program_proves_them(tmp_path: Path, digits: Split, name: str) -> None:
    options = ["data.limit=4", "run.workers=1"]
    cli.certify(out=tmp_path, model=network_file(name), recipe="mnist-2", set_=options)
    report = verify_run(tmp_path)
    assert report.sound and report.checked == 4
