"""Training and certificates on another device: the same numbers, nothing left in main memory."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from raycrt import Certifier, attack, data
from raycrt.data import Split
from raycrt.evaluation.assessment import assess
from raycrt.networks.network import Network
from raycrt.specs import CertifySpec, Spec
from raycrt.training import loop
from raycrt.training.inputs.batches import Batch, InMemory
from raycrt.training.objectives import OBJECTIVES
from raycrt.training.options import effects
from raycrt.verify import verify_run
from tests.distributed.test_data_parallel import SPEC
from tests.models import MIXED, MIXED_IMAGES, mixed_network, random_network
from tests.verify.runs import spec_of, write_run

# Most of them train or certify twice.
pytestmark = pytest.mark.slow

# Networks, and the shapes of their inputs.
NETWORKS = {
    "dense": (lambda: random_network(3, name="tanh"), (5,)),
    "in a span": (lambda: random_network(2, features=40, width=8), (40,)),
    "many classes": (lambda: random_network(2, classes=24), (5,)),
    "convolutions": (
        lambda: mixed_network(MIXED_IMAGES["convolutions and pools"], shape=(2, 8, 6)),
        (2, 8, 6),
    ),
    "blocks": (lambda: mixed_network(MIXED["block"]), (5,)),
    "normalised": (lambda: mixed_network(MIXED["normalised"]), (5,)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "closed form": {"steps": 0},
    "solver": {},
    "float32": {"deployment": "float32", "steps": 5},
    "balls": {"region": "local", "radii": (0.05, 0.2), "steps": 5},
}
SHORT = {("dense", "solver"), ("dense", "balls"), ("in a span", "solver")}
ROWS = 4
# As of rows in other batches: where the solver stops depends on the last bits.
CLOSE = {"rtol": 1e-5, "atol": 1e-7}

TRAININGS = {name: effects.override(SPEC, {"train.objective": name}) for name in OBJECTIVES} | {
    "convolutions": effects.override(SPEC, {"model.channels": [4]}),
    "components": SPEC.override({"train.components": 8, "train.linear_layers": 1}),
    "averaged": SPEC.override({"train.averaging": 0.9}),
    "moved": SPEC.override({"train.augmentation.rotation": 10.0}),
    "normalised": SPEC.override(
        {"model": {"layers": [{"kind": "dense", "width": 9}, {"kind": "batch_normalization"}]}}
    ),
}
LOW = {
    "float32": {"train.precision": "float32"},
    "tf32": {"train.precision": "tf32"},
    "bfloat16": {"train.precision": "bfloat16"},
    "muon": {"train.precision": "float32", "train.optimizer": "muon"},
}


def inputs(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(*each, marks=[] if each in SHORT else pytest.mark.slow, id=" ".join(each))
        for each in product(NETWORKS, OPTIONS)
        if each != ("convolutions", "float32")  # They are no plain sums of products.
    ],
)
def test_certificates_are_those_of_the_cpu(device: str, name: str, options: str) -> None:
    make, shape = NETWORKS[name]
    x, given = inputs(shape), OPTIONS[options]
    here = Certifier(make().requires_grad_(False).eval(), examples=x, **given)(x)
    there = x.to(device)
    certify = Certifier(make().requires_grad_(False).eval().to(device), examples=there, **given)
    found = certify(there)
    assert found.radius.device.type == torch.device(device).type
    assert torch.equal(found.status.cpu(), here.status)
    assert torch.equal(found.prediction.cpu(), here.prediction)
    assert float(here.radius.amax()) > 0
    # Without a solver everything is float64 and nothing is iterated.
    close = {"rtol": 1e-9, "atol": 0.0} if options == "closed form" else CLOSE
    torch.testing.assert_close(found.radius.cpu(), here.radius, **close)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec_of(rows=8, width=8), id="solver"),
        pytest.param(
            spec_of(3, "tanh", rows=8, width=8, region="local", at=(0.2, 0.5), steps=5),
            id="balls",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            spec_of(rows=8, width=8, model={"channels": [2]}, steps=5),
            id="convolutions",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_checker_proves_certificates_of_another_device(
    device: str, spec: Spec, tmp_path: Path
) -> None:
    report = verify_run(write_run(tmp_path, spec, device=device))
    assert report.sound, report.findings[:3]


def test_attacks_and_assessments_are_those_of_the_cpu(device: str) -> None:
    network, x = random_network(3), inputs((5,))
    rows = Split(images=x, labels=torch.arange(ROWS))
    network.requires_grad_(False)
    reached, found = attack(network, x, steps=9).distance, assess(network, rows, CertifySpec())
    there = network.to(device)
    again = attack(there, x.to(device), steps=9).distance.cpu()
    torch.testing.assert_close(again, reached, rtol=1e-2, atol=0.0)
    seen = assess(there, rows, CertifySpec())
    # A row may lie on either side of the threshold of `met`.
    assert {**seen, "met": 0} == pytest.approx({**found, "met": 0}, rel=1e-3)


def trained(spec: Spec, device: str) -> tuple[Network, list[dict[str, float]]]:
    seen: list[dict[str, float]] = []
    split = data.load(spec.data).train
    network = loop.train(spec, split, device=device, report=lambda end: seen.append(end.metrics))
    return network, seen


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_takes_the_steps_of_the_cpu(device: str, name: str) -> None:
    (here, _), (there, _) = (trained(TRAININGS[name], each) for each in ("cpu", device))
    assert there.device.type == torch.device(device).type
    for key, value in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[key].cpu(), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOW)
def test_a_training_in_low_precision_ends_near_that_of_the_cpu(device: str, name: str) -> None:
    spec = SPEC.override({**LOW[name], "train.epochs": 2})
    (_, here), (_, there) = (trained(spec, each) for each in ("cpu", device))
    assert there[-1]["loss"] == pytest.approx(here[-1]["loss"], rel=0.05)


def test_a_streamed_batch_is_moved_and_one_in_memory_stays(device: str) -> None:
    images, labels = torch.rand(6, 2), torch.arange(6)
    like = torch.zeros(1, dtype=torch.float64).to(device)
    x, y = Batch(inputs=images, labels=labels, rows=6).moved_to(like)
    assert (x.device.type, x.dtype, y.dtype) == (like.device.type, torch.float64, torch.int64)
    assert x.cpu().tolist() == images.double().tolist() and y.cpu().tolist() == labels.tolist()
    split = Split(images=x, labels=y)
    [batch] = InMemory(split=split, batch_size=6, seed=0, rank=0, size=1).epoch(0)
    assert batch.moved_to(like)[0] is batch.inputs
