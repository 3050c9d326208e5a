"""Training from Python: modules, recipes, rows of every form, and the page that shows it."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import raycrt
from raycrt import data
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec, validate
from raycrt.training import loop

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def _module(width: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))


@pytest.fixture(scope="module")
def rows():
    fit = data.load(DataSpec(name="digits", limit=300)).fit
    return fit.images, fit.labels


def test_a_module_is_trained_from_its_own_weights(rows):
    model = _module()
    before = copy.deepcopy(model.state_dict())
    # A rate so small that the weights hardly move.
    near = raycrt.train(model, rows, objective="standard", epochs=1, learning_rate=1e-9)
    assert torch.allclose(near(rows[0]), model(rows[0]), atol=1e-4)
    options = {"objective": "standard", "epochs": 10, "learning_rate": 0.01, "batch_size": 32}
    far = raycrt.train(model, rows, **options)
    right = (far(rows[0]).argmax(1) == rows[1]).double().mean()
    assert right > 0.8 > (model(rows[0]).argmax(1) == rows[1]).double().mean()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_every_form_of_rows_gives_the_same_weights(rows):
    images, labels = rows
    forms = [
        rows,
        (images.numpy(), labels.numpy().astype(np.uint8)),
        [images.double(), labels.tolist()],
        TensorDataset(*rows),
        data.Split(images=images, labels=labels),
    ]
    options = {"objective": "crt-all", "radius": 0.3, "gamma": 0.01, "epochs": 2, "seed": 3}
    first, *others = [raycrt.train(_module(), form, **options) for form in forms]
    for other in others:
        for mine, theirs in zip(first.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_a_recipe_is_trained_as_the_loop_trains_it():
    spec = validate(
        {
            "model": {"width": 8},
            "train": {"objective": "standard", "epochs": 2},
            "data": {"limit": 200},
        }
    )
    expected = loop.train(
        spec.override({"train.epochs": 3}), data.load(spec.data).fit, workers=loop.Workers()
    )
    trained = raycrt.train(spec, epochs=3)
    assert all(map(torch.equal, trained.parameters(), expected.parameters()))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "must be given rows"),
        (torch.zeros(3, 64), "must be a pair"),
        ((torch.zeros(3, 64),), "must be a pair"),
        ((torch.zeros(3, 8, 8), torch.zeros(3)), "inputs are"),
        ((torch.zeros(3, 64), torch.zeros(3)), "labels must be 3 whole numbers"),
        ((torch.zeros(3, 64), [0, 1]), "labels must be 3 whole numbers"),
        ((torch.zeros(3, 64), [0, -1, 1]), "labels are numbers from 0"),
        ((torch.zeros(3, 64), [0, 1, 10]), r"labels are 0 \.\. 9"),
        ((torch.full((3, 64), torch.nan), [0, 1, 2]), "row 0 is not"),
        ((torch.full((3, 64), 1e300, dtype=torch.float64), [0, 1, 2]), "finite in float32"),
        ((torch.zeros(3, 64, dtype=torch.uint8), [0, 1, 2]), "floating-point"),
    ],
)
def test_rows_that_do_not_fit_end_in_a_sentence(rows, said):
    with pytest.raises(InvalidInput, match=said):
        raycrt.train(_module(), rows, epochs=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epoch": 3}, r"train\.epoch: unknown key"),
        ({"epochs": 0}, "must be at least 1"),
        ({"objective": "standard", "gamma": 0.1}, "gamma"),
        ({"components": 5}, "left out where weights are given|must be left out"),
    ],
)
def test_options_that_do_not_fit_end_in_a_sentence(rows, options, said):
    with pytest.raises(InvalidInput, match=said):
        raycrt.train(_module(), rows, **options)


def test_a_module_with_constants_and_batch_normalisation_is_trained(rows):
    class Scaled(nn.Module):
        def forward(self, x):
            return (x - 0.3) / 0.7

    torch.manual_seed(0)
    model = nn.Sequential(
        Scaled(), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10)
    )
    options = {"objective": "standard", "epochs": 1, "learning_rate": 1e-9, "batch_size": 1000}
    network = raycrt.train(model, rows, **options)
    # One batch, whose statistics are those of `model` in training mode.
    assert torch.allclose(network(rows[0]), model.train()(rows[0]), atol=1e-3)


def test_a_module_that_no_spec_lists_is_refused_before_training(rows):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
    with pytest.raises(InvalidInput, match="ReLU"):
        raycrt.train(model, rows)


@pytest.mark.slow
def test_the_example_with_lightning_runs():
    pytest.importorskip("lightning", reason="Lightning is not installed")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(names["found"]) == 5
