"""Two classes with one logit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raycrt import Certifier, attack, data
from raycrt.errors import InvalidInput
from raycrt.networks.layers.affine import OneLogit
from raycrt.networks.network import build
from raycrt.specs import ModelSpec, validate
from raycrt.training import loop
from raycrt.verify import verify_run
from tests.verify.runs import rewrite_rows, rows_of, write_run


@pytest.fixture
def spec(tmp_path):
    x = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=(x[:, 0] + x[:, 1] ** 2 > 1).astype(np.int64))
    tree = {
        "model": {"depth": 2, "width": 8, "logits": 1},
        "data": {"source": "arrays", "path": tmp_path / "rows.npz"},
        "train": {"epochs": 30, "radius": 0.1, "batch_size": 32},
        "certify": {"at": [0.1], "steps": 20, "batch_size": 16},
    }
    return data.described(validate(tree))


def test_it_learns_and_its_radii_hold(spec):
    rows = data.load(spec.data)
    made = loop.train(spec, rows.train)
    last = made.layers[-1]
    assert isinstance(last, OneLogit) and last.weight.shape == (1, 8)
    logits = made(rows.test.images)
    assert not logits[:, 0].any()
    assert torch.equal(logits.argmax(1), (logits[:, 1] > 0).long())
    assert (logits.argmax(1) == rows.test.labels).float().mean() > 0.7
    found = Certifier(made, steps=20)(rows.test.images)
    assert (found.radius > 0).all()
    assert (found.radius <= attack(made, rows.test.images).distance).all()


def test_rows_are_proved_again(tmp_path, spec):
    run = write_run(tmp_path / "run", spec)
    report = verify_run(run)
    assert report.sound, report.findings[:3]
    rows = rows_of(run).to_pylist()
    rows[0]["radius"] *= 1.01
    rows[0]["radius_runner_up"] = rows[0]["radius"]
    rewrite_rows(run, rows)
    assert verify_run(run).failed == 1


def test_other_numbers_of_classes_are_refused():
    with pytest.raises(InvalidInput, match="for two classes"):
        build(ModelSpec(logits=1), (4,), 3)
    with pytest.raises(InvalidInput, match="logits"):
        validate({"model": {"logits": 2}})
