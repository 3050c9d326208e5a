"""Every activation: its formulas are derivatives of each other, its ranges hold and are tight."""

import numpy as np
import pytest
import torch

from raycrt.activations import ACTIVATIONS, Activation, activation, softplus
from raycrt.errors import InvalidInput
from raycrt.networks.nonlinearity import TORCH
from tests.activations.laws import ActivationLaws

EVERY = [*ACTIVATIONS.values(), softplus(4.0), softplus(0.3)]


class TestEvery(ActivationLaws):
    @pytest.fixture(params=EVERY, ids=lambda record: record.name)
    def record(self, request: pytest.FixtureRequest) -> Activation:
        return request.param


def test_softplus_is_exact_far_from_the_origin():
    z = torch.tensor([-60.0, 25.0, 39.0, 41.0, 60.0], dtype=torch.float64)
    assert np.allclose(softplus().value(z, TORCH), np.logaddexp(0, z.numpy()), rtol=1e-15)


def test_bad_names_and_sharpness_are_refused():
    with pytest.raises(InvalidInput, match=r"activation must be one of .* but got 'relu'"):
        activation("relu")
    with pytest.raises(InvalidInput, match=r"`beta > 0 and finite` must hold, .*beta=-1"):
        softplus(-1)
