"""The assessment of a network on a few rows: shares that certificates and attacks give alone."""

import pytest
import torch

from raycrt import Certifier
from raycrt.data import Split, load
from raycrt.evaluation.assessment import assess
from raycrt.evaluation.attacks import attack
from raycrt.specs import CertifySpec, validate
from raycrt.training import loop
from raycrt.training.folding.part import fresh

SPEC = validate({"model": {"width": 24}, "train": {"epochs": 3}, "data": {"limit": 200}})


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "least"), [([], 0.5), ([4], 0.0)])
def test_shares_are_those_of_the_certifier_and_the_attack(channels, least):
    spec = SPEC.override({"model.channels": channels})
    split = load(spec.data).validation.take(slice(40))
    network = loop.train(spec, load(spec.data).train)
    found = assess(network, split, CertifySpec(at=(0.05, 0.2)))
    proved = Certifier(network)(split.images)
    right = proved.prediction == split.labels
    assert found["clean"] == pytest.approx(float(right.double().mean()))
    for r in (0.05, 0.2):
        share = float((right & (proved.radius > r)).double().mean())
        assert found[f"certified_{r:g}"] == pytest.approx(share)
    assert found["clean"] >= found["certified_0.05"] >= found["certified_0.2"]
    assert found["mean_radius"] > 0 and found["curvature"] > 0
    nearest = attack(network, split.images).distance
    assert found["met"] <= float((nearest <= proved.radius * 1.0011).double().mean())
    assert found["met"] >= least


def test_weights_that_prove_nothing_meet_nothing():
    network = fresh(SPEC)
    with torch.no_grad():
        network.layers[0].weight[0, 0] = torch.nan
    split = Split(images=torch.rand(5, 1, 8, 8), labels=torch.zeros(5, dtype=torch.long))
    found = assess(network, split, CertifySpec())
    assert found["met"] == found["mean_radius"] == 0
