"""An activation of one's own takes one record: everything else follows from it."""

import math

import pytest
import torch

import raycrt
from raycrt import data
from raycrt.activations import ACTIVATIONS, Activation
from raycrt.errors import InvalidInput
from raycrt.foreign.modules.elementwise import Elementwise
from raycrt.specs import validate
from raycrt.training import loop
from raycrt.verify import verify_run
from tests.activations.laws import ISRU, ActivationLaws
from tests.models import random_network
from tests.verify.runs import rows_of, spec_of, write_run

HALF = Activation(
    name="half-erf",
    value=lambda z, xp: xp.erf(z / 2),
    slope=lambda z, xp: xp.exp(-z * z / 4) / math.sqrt(math.pi),
    curvature=lambda z, xp: -z * xp.exp(-z * z / 4) / (2 * math.sqrt(math.pi)),
    slope_critical=(0.0,),
    curvature_critical=(-math.sqrt(2), math.sqrt(2)),
    slope_limits=(0.0, 0.0),
)


@pytest.fixture(params=[ISRU, HALF], ids=lambda record: record.name)
def own(request, monkeypatch):
    """A record that was added as a user would, for the time of a test."""
    monkeypatch.setitem(ACTIVATIONS, request.param.name, request.param)
    return request.param


class TestOwn(ActivationLaws):
    @pytest.fixture
    def record(self, own: Activation) -> Activation:
        return own


@pytest.mark.parametrize("depth", [2, 3])
def test_radii_lie_below_attacks(own, depth):
    network = random_network(depth, name=own.name, gain=1.5)
    images = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    found = raycrt.certify(network, images)
    assert (found.radius > 0).all()
    assert (found.radius <= raycrt.attack(network, images).distance).all()


@pytest.mark.parametrize("certify", [{}, {"region": "local", "at": (0.5, 1.0)}])
def test_rows_are_verified(own, tmp_path, certify):
    run = write_run(tmp_path, spec_of(3, own.name, rows=20, **certify))
    assert sum(row["status"] == "certified" for row in rows_of(run).to_pylist()) >= 15
    report = verify_run(run)
    assert report.sound, report.findings[:3]


def test_a_network_is_trained_and_a_module_made(own):
    spec = validate({"model": {"width": 8, "activation": own.name}, "train": {"epochs": 1}})
    parts = data.load(spec.data).train
    assert loop.train(spec, parts).activation is own
    module = torch.nn.Sequential(torch.nn.Linear(5, 6), Elementwise(own), torch.nn.Linear(6, 3))
    assert (raycrt.certify(module, torch.randn(4, 5)).radius > 0).all()


def test_without_the_record_its_name_is_refused():
    with pytest.raises(InvalidInput, match=r"model.activation: must be one of .*, but got 'isru'"):
        validate({"model": {"activation": "isru"}})
