"""Runs that programs write: the checker, the report and the commands read them."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import raycrt
from raycrt import data
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec
from tests.verify.runs import rewrite_rows, rows_of


@pytest.fixture(scope="module")
def rows():
    test = data.load(DataSpec(name="digits")).test
    return test.images[:12], test.labels[:12]


def _module(classes: int = 10) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(256, classes)
    )


@pytest.mark.parametrize("options", [{}, {"at": [0.1], "region": "local"}])
def test_what_is_saved_is_proved_a_second_time(tmp_path, rows, options):
    run = raycrt.save(tmp_path / "run", _module(), rows, **options)
    report = raycrt.verify(run)
    assert (report.sound, report.checked, report.images) == (True, 12, 12)
    kept = rows_of(run)
    if not options:
        found = raycrt.certify(_module(), rows[0])
        assert np.array_equal(kept["radius"].to_numpy(), found.radius.numpy())
    assert kept["label"].to_pylist() == rows[1].tolist()
    forged = kept.to_pylist()
    forged[3]["radius"] *= 1.02
    forged[3]["radius_runner_up"] = max(forged[3]["radius"], forged[3]["radius_runner_up"])
    rewrite_rows(run, forged)
    assert raycrt.verify(run).failed == 1


def test_the_commands_read_it(tmp_path, rows, shell):
    run = raycrt.save(tmp_path / "run", _module(), rows, at=[0.25])
    assert "each is proved" in shell("verify", run)
    assert "0.25" in shell("report", run)


def test_other_rows_than_those_that_were_saved_are_found_out(tmp_path, rows):
    run = raycrt.save(tmp_path / "run", _module(), rows)
    file = run / "rows.npz"
    with np.load(file) as kept:
        arrays = dict(kept)
    arrays["test_images"] = 1 - arrays["test_images"]
    np.savez(file, **arrays)
    assert not raycrt.verify(run).sound


def test_it_writes_into_a_new_directory_alone(tmp_path, rows):
    (tmp_path / "note").write_text("")
    with pytest.raises(InvalidInput, match="new directory"):
        raycrt.save(tmp_path, _module(), rows)


def test_labels_need_not_have_every_class(tmp_path, rows):
    run = raycrt.save(tmp_path / "run", _module(), (rows[0][:2], [7, 7]))
    assert raycrt.verify(run).sound
    manifest = json.loads((run / "certificates" / "manifest.json").read_text())
    assert manifest["spec"]["data"]["class_names"] == [str(k) for k in range(10)]
    assert manifest["training"] is None and manifest["spec"]["train"] is None


def test_labels_beyond_the_classes_are_refused(tmp_path, rows):
    with pytest.raises(InvalidInput, match=r"labels are 0 \.\. 9, counted from 0"):
        raycrt.save(tmp_path / "run", _module(), (rows[0], rows[1] + 10))
    assert not (tmp_path / "run").exists()


def test_options_are_checked_first(tmp_path, rows):
    with pytest.raises(InvalidInput, match=r"certify\.steps"):
        raycrt.save(tmp_path / "run", _module(), rows, steps=-1)
    with pytest.raises(InvalidInput, match="exact"):
        raycrt.save(tmp_path / "run", _module(), rows, deployment="float32")
    assert not (tmp_path / "run").exists()
