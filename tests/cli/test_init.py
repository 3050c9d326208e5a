"""`raycrt init`: a recipe that can be trained, with radii in reach of the rows."""

import sys

import numpy as np
import pytest
import torch

from raycrt import data
from raycrt.api import recipe
from raycrt.data import Split
from raycrt.specs import Spec
from raycrt.training.options import rules
from raycrt.tuning.trials import space


def _rows(directory, shape, apart=1.0, rows=60):
    """Rows of three classes whose means are `apart` from each other, in `rows.npz`."""
    generator = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    means = np.zeros((3, int(np.prod(shape))))
    means[:, :3] = np.eye(3) * apart / np.sqrt(2)
    noise = generator.normal(0, 1e-4, (rows, means.shape[1]))
    inputs = (means[labels] + noise).astype(np.float32).reshape(-1, *shape)
    np.savez(directory / "rows.npz", x=inputs, y=np.array(["ape", "bat", "cow"])[labels])
    return directory / "rows.npz"


@pytest.mark.parametrize(("shape", "convolves"), [((5,), False), ((3, 40, 40), True)])
def test_the_recipe_can_be_searched_and_trained(shell, tmp_path, shape, convolves):
    file, out = _rows(tmp_path, shape), tmp_path / "run"
    said = shell("init", out, "--data", file, "--minutes", "0.5", "--set", "data.scale=null")
    assert f"raycrt demo --recipe {out / 'recipe.yaml'} --out {out}" in said
    spec = data.described(Spec.load(out / "recipe.yaml"))
    rules.check_training(spec)
    space.check(spec)
    assert spec.model.convolves == convolves and spec.data.normalize is None
    assert (spec.data.shape, spec.data.class_names) == (shape, ("ape", "bat", "cow"))
    # The nearest row of another class is 1 away.
    assert spec.train.radius == spec.search.radius == spec.certify.at[1] == 0.25
    assert spec.search.rungs[-1] < spec.train.epochs <= 60


@pytest.mark.parametrize(("minutes", "longer"), [(0.3, True), (1, False), (5, False)])
def test_a_time_that_is_too_short_is_said_to_be(shell, tmp_path, monkeypatch, minutes, longer):
    monkeypatch.setattr(recipe, "_seconds_of_an_epoch", lambda *given: 0.02)
    out = tmp_path / "run"
    said = shell("init", out, "--data", _rows(tmp_path, (5,)), "--minutes", minutes)
    assert (f"more than the {minutes} asked for, with the fewest epochs" in said) == longer
    assert said.count("#") - 1 == (out / "recipe.yaml").read_text().count("#")


def test_the_distance_is_that_of_the_nearest_row_of_another_class():
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [3.0, 4.0], [3.0, 5.0], [3.0, 4.5]])
    split = Split(images=points, labels=torch.tensor([0, 0, 1, 1, 1]))
    distances = [(x - y).norm() for x, y in ((points[k], points[2]) for k in (0, 1))]
    others = [min((points[k] - points[j]).norm() for j in (0, 1)) for k in (2, 3, 4)]
    expected = torch.stack([*distances, *others]).median()
    assert recipe.nearest_of_another_class(split) == pytest.approx(float(expected))


def test_rows_that_cannot_be_told_apart_are_refused(shell, tmp_path):
    inputs = np.zeros((30, 4), np.float32)
    np.savez(tmp_path / "rows.npz", x=inputs, y=np.arange(30) % 2)
    said = shell("init", tmp_path / "run", "--data", tmp_path / "rows.npz", code=2)
    assert "most rows differ from all rows of other classes" in said


def test_a_recipe_is_not_overwritten(shell, tmp_path):
    file = _rows(tmp_path, (5,))
    (tmp_path / "recipe.yaml").write_text("mine")
    assert "must not exist yet" in shell("init", tmp_path, "--data", file, code=2)
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_a_test_split_alone_is_refused(shell, tmp_path):
    np.savez(tmp_path / "rows.npz", test_x=np.eye(4), test_y=np.arange(4) % 2)
    said = shell("init", tmp_path / "run", "--data", tmp_path / "rows.npz", code=2)
    assert "has a test split alone" in said


@pytest.mark.parametrize(("shape", "key"), [((5,), "scale"), ((1, 2, 2), "normalize")])
def test_features_are_scaled_and_images_normalised(shell, tmp_path, shape, key):
    file, out = _rows(tmp_path, shape, apart=40.0), tmp_path / "run"
    shell("init", out, "--data", file, "--minutes", "0.1")
    spec = data.described(Spec.load(out / "recipe.yaml"))
    chosen = {name for name in ("scale", "normalize") if getattr(spec.data, name) is not None}
    assert chosen == {key} and spec.model.normalize == (key == "normalize")
    # In units of the data the nearest row of another class is 40 away.
    assert (spec.train.radius == 10.0) == (key == "normalize")
    rules.check_training(spec)


def test_the_data_is_read_once(shell, tmp_path, monkeypatch):
    (tmp_path / "counted_rows.py").write_text(
        "import numpy as np\n"
        "calls = []\n"
        "def load():\n"
        "    calls.append(1)\n"
        "    y = np.arange(60) % 3\n"
        "    x = np.eye(3, 5)[y] + np.random.default_rng(0).normal(0, 1e-3, (60, 5))\n"
        "    return {'train': (x, y)}\n"
    )
    monkeypatch.chdir(tmp_path)
    shell("init", tmp_path / "run", "--data", "counted_rows:load", "--minutes", "0.1")
    assert len(sys.modules["counted_rows"].calls) == 1
    spec = Spec.load(tmp_path / "run" / "recipe.yaml")
    assert spec.data.scale is not None and spec.data.validation == 0.15
