"""`data.normalize` as the first layer of a network, and `data.scale` of the data itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import raycrt
from raycrt import Certifier, data
from raycrt.errors import InvalidInput
from raycrt.networks import checkpoint
from raycrt.networks.layers.diagonal import Standardization
from raycrt.specs import validate
from raycrt.training import loop
from raycrt.training.folding.part import fresh
from raycrt.training.objectives import OBJECTIVES
from raycrt.verify import verify_run
from raycrt.verify.model import Model
from tests.verify.runs import edit_manifest, manifest_of, write_run

MODELS = {
    "short": {"depth": 2, "width": 16},
    "convolutions": {"channels": [3], "depth": 1},
    "listed": {
        "layers": [
            {"kind": "convolution", "channels": 3, "padding": 1},
            {"kind": "average_pool", "window": 3},
        ]
    },
}
LAYERS = [{"kind": "dense", "width": 5}]


def _spec(name="short", **sections):
    tree = {
        "model": MODELS[name],
        "data": {"name": "digits", "normalize": "auto"},
        "train": {"epochs": 1, "radius": 0.3, "batch_size": 256},
        "certify": {"at": [0.1], "steps": 5},
    }
    tree = {key: part | sections.get(key, {}) for key, part in tree.items()}
    return data.described(validate(tree))


def _stating(spec):
    """A change of a model, to the numbers of `spec`."""
    stated = spec.data.normalize
    return lambda model: model.maps[0].state(stated.mean, stated.std)


def test_numbers_are_those_of_the_training_rows():
    spec = _spec()
    rows = data.load(spec.data).train.images.double()
    assert spec.data.normalize.mean == (pytest.approx(float(rows.mean()), rel=1e-12),)
    assert spec.data.normalize.std == (pytest.approx(float(rows.std(correction=0)), rel=1e-9),)
    assert spec.model.normalize and data.described(spec) == spec


@pytest.mark.parametrize("model", MODELS)
def test_it_is_the_first_layer_and_is_not_trained(tmp_path, model):
    spec = _spec(model)
    made = loop.train(spec, data.load(spec.data).train)
    first = made.maps[0]
    assert isinstance(first, Standardization) and made.depth == 2
    assert torch.equal(first.mean, torch.tensor(spec.data.normalize.mean))
    assert torch.equal(first.std, torch.tensor(spec.data.normalize.std))
    checkpoint.save_model(tmp_path, made, spec)
    images = data.load(spec.data).test.images[:8].double()
    read = Model.load(tmp_path / checkpoint.MODEL, spec.model, (1, 8, 8))
    ours = read.joined.forward(images.flatten(1).numpy())[0]
    theirs = checkpoint.load_model(tmp_path)[0].double()(images).detach().numpy()
    assert np.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        *({"objective": name} for name in ("crt-all", "ibp")),
        {"objective": "crt-all", "precision": "bfloat16"},
        {"objective": "crt-all", "averaging": 0.9},
    ],
    ids=str,
)
def test_every_objective_trains_behind_it(train):
    assert train["objective"] in OBJECTIVES
    spec = _spec(train=train)
    made = loop.train(spec, data.load(spec.data).train)
    assert torch.equal(made.maps[0].std, torch.tensor(spec.data.normalize.std))


def test_it_is_certified_as_one_layer_with_the_next_and_verified(tmp_path):
    spec = _spec(data={"limit": 12}, certify={"steps": 20})
    run = write_run(tmp_path, spec, change=_stating(spec))
    report = verify_run(run)
    assert report.sound, report.findings[:3]
    assert Model.load(run / "train" / checkpoint.MODEL, spec.model, (1, 8, 8)).joined.depth == 2


def test_a_uniform_scale_changes_no_radius():
    """Radii are in the units of the data, whatever scale the weights are behind."""
    numbers = {"mean": [0.25], "std": [0.5]}
    plain = fresh(_spec(data={"normalize": None}))
    behind = fresh(_spec(data={"normalize": numbers}))
    with torch.no_grad():
        behind.maps[1].weight.copy_(plain.maps[0].weight * 0.5)
        behind.maps[1].bias.copy_(plain.maps[0].bias + plain.maps[0].weight.sum(1) * 0.25)
        for old, new in zip(plain.maps[1:], behind.maps[2:], strict=True):
            new.load_state_dict(old.state_dict())
    images = data.load(_spec().data).test.images[:16]
    found = [Certifier(made, steps=20)(images).radius for made in (plain, behind)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"normalize": {"mean": [0.1, 0.2], "std": [1.0, 1.0]}}}, "for each channel"),
        ({"data": {"normalize": {"mean": [0.1], "std": [0.0]}}}, "must be above 0"),
        ({"data": {"normalize": {"mean": [0.1], "std": [1.0, 2.0]}}}, "one number each"),
        ({"data": {"normalize": {"mean": [0.1]}}}, "std: must be given"),
        ({"train": {"components": 5}}, "train.components and train.linear_layers must be left out"),
        ({"data": {"normalize": None}, "model": {"normalize": True}}, "data.normalize states it"),
        ({"model": {"width": 1024, "layers": [{"kind": "permutation"}, *LAYERS]}}, "elsewhere"),
        ({"data": {"normalize": {"mean": [0.1], "std": [1e-60]}}}, "type of the weights holds"),
    ],
)
def test_what_makes_no_sense_is_refused(sections, message):
    with pytest.raises(InvalidInput, match=message):
        spec = _spec(**sections)
        loop.train(spec, data.load(spec.data).train)


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3)) * [1.0, 1000.0, 0.0] + [0.0, 5000.0, 7.0]
    np.savez(tmp_path / "rows.npz", x=x.astype(np.float32), y=(x[:, 0] > 0).astype(np.int64))
    return {"source": "arrays", "path": tmp_path / "rows.npz"}


def test_features_are_scaled_by_the_training_rows(table):
    spec = data.described(validate({"data": {**table, "scale": "auto"}}))
    rows = data.load(spec.data).train.images
    assert rows.mean(0).abs().max() < 1e-5
    assert torch.allclose(rows.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-5)
    assert spec.data.scale.std[2] == 1 and "feature" in spec.data.units
    assert data.described(spec) == spec and not spec.model.normalize
    plain = data.load(spec.data.model_copy(update={"scale": None})).test.images.double()
    used = spec.data.scale
    mean, std = (torch.tensor(n, dtype=torch.float64) for n in (used.mean, used.std))
    assert torch.equal(data.load(spec.data).test.images, ((plain - mean) / std).float())


def test_scaled_rows_are_certified_and_verified(tmp_path, table):
    tree = {
        "model": {"depth": 2, "width": 8},
        "data": {**table, "scale": "auto", "normalize": "auto"},
        "certify": {"at": [0.1], "steps": 10},
    }
    spec = data.described(validate(tree))
    run = write_run(tmp_path / "run", spec, change=_stating(spec))
    report = verify_run(run)
    assert report.sound, report.findings[:3]


def test_a_statement_of_other_numbers_than_the_weights_have_is_found(tmp_path):
    spec = _spec(data={"limit": 12}, certify={"steps": 20})
    run = write_run(tmp_path, spec, change=_stating(spec))
    assert not verify_run(run).findings
    told = manifest_of(run)["spec"]
    told["data"]["normalize"]["std"] = [0.5]
    edit_manifest(run, spec=told)
    said = [finding.sentence for finding in verify_run(run).findings]
    assert any("spec.data.normalize must be the mean and std in the weights" in s for s in said)


def test_a_network_with_a_normalisation_is_trained_on_from_python():
    spec = _spec()
    rows = data.load(spec.data).train
    made = loop.train(spec, rows)
    again = raycrt.train(made, rows, epochs=1, radius=0.3)
    assert isinstance(again.maps[0], Standardization)
    for name in ("mean", "std"):
        assert torch.equal(getattr(again.maps[0], name), getattr(made.maps[0], name))
    assert not torch.equal(again.maps[1].matrix(), made.maps[1].matrix())
