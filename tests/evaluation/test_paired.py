"""Differences of two runs on the same rows, counted by hand."""

import shutil

import pytest

from raycrt.evaluation.certified import Certified
from raycrt.evaluation.intervals import paired_difference
from raycrt.evaluation.paired import Judged
from tests.evaluation.page.runs import change_rows
from tests.verify.runs import spec_of, write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("paired") / "run", spec_of(rows=20, at=(0.1,)))
    right = {"label": 3, "prediction": 3, "radius": 0.2, "radius_runner_up": 0.2}
    change_rows(run, dict.fromkeys(range(20), right))
    return run


@pytest.fixture
def other(made, tmp_path):
    return shutil.copytree(made, tmp_path / "other")


def _judged(run):
    return Judged.of(Certified.of(run / "certificates"))


def test_rows_that_one_run_alone_certifies_are_counted_in_any_order_of_files(made, other):
    lower, wrong = {"radius": 0.1, "radius_runner_up": 0.1}, {"prediction": 4}
    change_rows(other, {0: wrong, 1: lower, 2: lower})
    clean, certified = _judged(other).against(_judged(made), [0.1])
    assert (clean.rows, clean.won, clean.lost) == (20, 0, 1)
    assert (certified.won, certified.lost) == (0, 3) and certified.gap == -0.15
    assert certified.interval == paired_difference(17, 0, 3, 0)
    clean, certified = _judged(made).against(_judged(other), [0.1])
    assert (clean.won, certified.won, certified.lost) == (1, 3, 0)


def test_a_run_that_goes_on_is_compared_on_the_rows_it_has(made, other):
    change_rows(other, {0: {"prediction": 4}}, kept=8)
    clean, _ = _judged(other).against(_judged(made), [0.1])
    assert (clean.rows, clean.lost) == (8, 1)


@pytest.mark.parametrize("change", [{"label": 5}, {"input_sha256": bytes(32)}])
def test_other_labels_or_inputs_are_not_paired(made, other, change):
    change_rows(other, {7: change})
    assert _judged(other).against(_judged(made), [0.1]) is None
