"""The README's table is what the stored rows make; a recorded run states no more than it proved."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from raycrt import recipes
from raycrt.errors import InvalidInput
from raycrt.evaluation.tally import summarise
from raycrt.specs.provenance import Training
from tests import results
from tests.verify.runs import rewrite_rows, rows_of, spec_of, write_run


def test_the_readme_has_the_table_of_the_stored_rows():
    readme = results.README.read_text()
    assert results.with_table(readme, results.stored()) == readme


def test_every_result_is_of_a_recipe_and_its_seed():
    for result in results.stored():
        spec = recipes.load(result.recipe)
        assert result.seed == spec.run.seed
        assert result.layers == results.layers_of(spec)
        assert f"--recipe {result.recipe} " in result.command
        assert result.summary.rows == 10_000


@pytest.fixture
def run(tmp_path, monkeypatch):
    spec = spec_of(rows=20)
    monkeypatch.setattr(recipes, "load", lambda name: spec)
    return write_run(tmp_path / "run", spec, training=Training.of(spec))


def test_a_run_is_recorded_with_radii_rounded_down(run, tmp_path):
    results.record(run, "tiny", "2 cores", tmp_path)
    kept, proved = pq.read_table(tmp_path / "tiny.parquet"), rows_of(run)
    for name in ("radius", "radius_runner_up"):
        ratio = kept[name].to_numpy().astype(float) / proved[name].to_numpy()
        assert (ratio <= 1).all() and (ratio > 1 - 1e-6).all()
    (found,) = results.stored(tmp_path)
    assert (found.recipe, found.layers, found.radius) == ("tiny", 2, 0.5)
    assert found.summary.clean == summarise(proved, (1.0,)).clean
    shares = found.summary
    assert f"| `tiny` | 2 | {100 * shares.clean:.2f} % |" in results.table([found])


def test_a_run_that_is_not_proved_or_of_another_recipe_is_not_recorded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "load", lambda name: spec_of(rows=20, width=25))
    with pytest.raises(InvalidInput, match="the run is the recipe's"):
        results.record(run, "tiny", "2 cores", tmp_path)
    monkeypatch.setattr(recipes, "load", lambda name: spec_of(rows=20))
    rows = rows_of(run).to_pylist()
    rows[3]["radius"] *= 1.1
    rewrite_rows(run, rows)
    with pytest.raises(InvalidInput, match="every row is proved"):
        results.record(run, "tiny", "2 cores", tmp_path)
    assert not list(tmp_path.glob("*.parquet"))


def test_the_larger_radius_is_rounded_down():
    radius = np.array([1.58 - 1e-12, 1.58, 0.0, 0.1])
    assert (results._down(radius) <= radius).all()
    assert np.allclose(results._down(radius), radius, rtol=1e-6, atol=0)
