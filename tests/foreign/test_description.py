"""Networks from elsewhere, described by a spec and proved a second time by it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import Normalize

from raycrt import as_network
from raycrt.foreign.description import spec_of
from raycrt.networks import checkpoint
from raycrt.specs import validate
from raycrt.verify.model import Model
from tests.verify.runs import (
    assert_rows_hold_and_raised_ones_do_not,
    write_run,
)

SHAPE = (1, 8, 8)


class Standardised(nn.Module):
    """A constant is subtracted and divided by in the call itself."""

    def __init__(self, rest: nn.Module) -> None:
        super().__init__()
        self.rest = rest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest((x - 0.1307) / 0.3081)


def _settled(model: nn.Module) -> nn.Module:
    """`model` with statistics as after a training."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.3, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return model.eval()


MODELS = {
    "convolutions": lambda: nn.Sequential(
        Normalize((0.3,), (0.37,)),
        nn.Conv2d(1, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.AvgPool2d(3, stride=1, padding=(1, 0)),
        nn.Flatten(),
        nn.Linear(64, 9),
        nn.BatchNorm1d(9),
        nn.Softplus(),
        nn.Linear(9, 10),
    ),
    "no dense layer": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.SiLU(),
        nn.Conv2d(6, 10, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ),
    "divided": lambda: Standardised(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 14), nn.Softplus(2.0), nn.Linear(14, 10))
    ),
    "unflattened": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 20),
        nn.BatchNorm1d(20),
        nn.Linear(20, 18),
        nn.GELU(),
        nn.Unflatten(1, (2, 3, 3)),
        nn.Conv2d(2, 5, 2),
        nn.AvgPool2d(2, divisor_override=3),
        nn.Flatten(),
        nn.Linear(5, 10),
    ),
}
MOST = [
    name if name == "convolutions" else pytest.param(name, marks=pytest.mark.slow)
    for name in MODELS
]


def _read(name: str):
    torch.manual_seed(0)
    network = as_network(_settled(MODELS[name]()), SHAPE)
    return network, spec_of(network, SHAPE)


@pytest.mark.parametrize("name", MODELS)
def test_a_second_program_reads_the_same_function(tmp_path, name):
    network, spec = _read(name)
    assert spec is not None
    whole = validate({"model": spec.model_dump(), "data": {"name": "digits"}})
    checkpoint.save_model(tmp_path, network, whole)
    again = checkpoint.load_model(tmp_path)[0]
    assert checkpoint.weights_hash(again) == checkpoint.weights_hash(network)
    assert again.depth == network.depth
    images = torch.rand(20, *SHAPE, dtype=torch.float64)
    wanted = network.double()(images).detach().numpy()
    model = Model.load(tmp_path / checkpoint.MODEL, spec, SHAPE)
    for read in (model, model.joined):
        assert np.allclose(read.forward(images.flatten(1).numpy())[0], wanted, rtol=0, atol=1e-12)
    assert model.joined.depth == network.depth


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST)
@pytest.mark.parametrize("region", ["global", pytest.param("local", marks=pytest.mark.slow)])
def test_honest_rows_pass_and_raised_ones_do_not(tmp_path, name, region):
    network, spec = _read(name)

    def weights(model) -> None:
        model.to(network.dtype).load_state_dict(network.state_dict())

    whole = validate(
        {
            "model": spec.model_dump(),
            "data": {"name": "digits", "limit": 8},
            "certify": {"steps": 20, "at": [0.05, 0.3], "region": region},
        }
    )
    run = write_run(tmp_path, whole, change=weights)
    assert_rows_hold_and_raised_ones_do_not(run)


def test_entries_lie_within_the_errors_that_the_checker_states(tmp_path):
    """Compared with fractions: means over nine pixels, divisors that no float64 number inverts."""
    torch.manual_seed(0)
    model = nn.Sequential(
        Normalize((0.1307,), (0.3081,)),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(16, 3),
        nn.Tanh(),
        nn.Linear(3, 2),
    )
    network = as_network(model, SHAPE)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    read = Model.load(tmp_path / "model.safetensors", spec_of(network, SHAPE), SHAPE).joined
    first, error = read.weights[0], read.weight_error(0)
    *scalings, pool, kept, _ = network.in_float64().maps
    exact_scale, exact_shift = Fraction(1), Fraction(0)
    for scaling in scalings:
        factor = Fraction(float(scaling.weight[0])) / Fraction(float(scaling.divisor[0]))
        exact_scale, exact_shift = exact_scale * factor, exact_shift * factor
        exact_shift += Fraction(float(scaling.bias[0]))
    windows = (pool.matrix() > 0).numpy()
    for row in range(3):
        weights = [Fraction(float(w)) for w in kept.weight[row]]
        offset = Fraction(float(kept.bias[row]))
        for window, weight in zip(windows, weights, strict=True):
            offset += weight * int(window.sum()) * exact_shift / 9
        assert abs(offset - Fraction(read.biases[0][row])) <= Fraction(read.bias_error(0)[row])
        for pixel in range(64):
            exact = sum(w for w, own in zip(weights, windows[:, pixel], strict=True) if own)
            apart = exact * exact_scale / 9 - Fraction(first[row, pixel])
            assert abs(apart) <= Fraction(error[row, pixel])
    assert (error < 1e-13).all()
