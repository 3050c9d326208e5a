"""Rows with infinite radii, and rows beside masked classes: the honest ones pass, forged ones do
not."""

from math import inf

import pytest
import torch

from raycrt.evaluation import report
from raycrt.margins.constant import constant_margins
from raycrt.verify import verify_run
from raycrt.verify.constant import constant_margins as checked_margins
from tests.models import random_network
from tests.verify.runs import rewrite_rows, rows_of, spec_of, write_run
from tests.verify.seen import seen

LIVE = 2


def _mask(number, *kinds):
    def change(model):
        for kind in kinds:
            model.layers[-1].bias[kind] = number

    return change


def _all_rows_equal(model):
    last = model.layers[-1]
    last.weight.copy_(last.weight[:1].expand_as(last.weight))


def _two_rows_equal(model):
    last = model.layers[-1]
    last.weight[1] = last.weight[0]
    last.bias[0] = 1.0


def _one_left(model):
    _mask(-inf, *(i for i in range(10) if i != LIVE))(model)


def _changes():
    masks = {f"mask {m:g}": _mask(m, 3, 7) for m in (-inf, -1e9, -1e30, -3.4e38)}
    return masks | {
        "equal": _all_rows_equal,
        "two equal": _two_rows_equal,
        "one left": _one_left,
        "one above -1e30": _mask(-1e30, *(i for i in range(10) if i != LIVE)),
    }


CHANGES = _changes()


@pytest.mark.parametrize(
    ("name", "deployment"),
    [
        *((name, "exact") for name in ("mask -inf", "equal")),
        *(
            pytest.param(name, "exact", marks=pytest.mark.slow)
            for name in CHANGES
            if name not in ("mask -inf", "equal")
        ),
        *((name, "float32") for name in ("mask -inf", "equal")),
    ],
)
def test_honest_rows_pass(tmp_path, name, deployment):
    spec = spec_of(depth=3, rows=4, width=12, deployment=deployment)
    run = write_run(tmp_path, spec, change=CHANGES[name])
    rows = rows_of(run).to_pylist()
    assert all(row["radius"] > 0 for row in rows)
    constant = deployment == "exact" and name in ("equal", "one left")
    assert all((row["status"] == "constant") == constant for row in rows)
    assert verify_run(run).findings == ()


@pytest.mark.parametrize("name", ["mask -inf", "equal", "one left"])
def test_the_report_says_that_a_prediction_is_constant(tmp_path, name):
    run = write_run(tmp_path, spec_of(rows=10, width=12), change=CHANGES[name])
    written = report.write(run / "certificates", tmp_path / "report")
    assert written.plot.is_file() and "nan" not in written.headline
    told = "10 of 10 rows: The prediction is the same for every input." in written.remarks
    assert told == (name != "mask -inf")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask -inf", "mask -1e+30", "two equal"])
def test_honest_rows_of_two_layers_and_of_local_regions_pass(tmp_path, name):
    two = write_run(tmp_path / "two", spec_of(rows=20), change=CHANGES[name])
    assert verify_run(two).findings == ()
    spec = spec_of(depth=4, rows=6, width=8, region="local", at=[0.3, 1.0])
    assert verify_run(write_run(tmp_path / "local", spec, change=CHANGES[name])).findings == ()


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("masked")
    return write_run(run, spec_of(rows=12, width=12), change=CHANGES["mask -inf"])


@pytest.mark.parametrize(
    ("forged", "sentence"),
    [
        ({"status": "constant", "radius": inf, "radius_runner_up": inf}, "no more than"),
        ({"radius": inf}, "radius is inf with the status 'certified'"),
        ({"status": "constant"}, "with the status 'constant'"),
        ({"radius_runner_up": inf}, "no more than"),
        ({"radius_runner_up": float("nan")}, "radius_runner_up is nan"),
        ({"prediction": 3}, "the predicted class is"),
        ({"runner_up": 7}, "does not have the second-largest logit"),
        ({"status": "non_finite_network", "radius": 0.0, "radius_runner_up": 0.0}, "are finite"),
    ],
)
def test_forged_rows_do_not(masked_run, forged, sentence):
    rows = rows_of(masked_run).to_pylist()
    rewrite_rows(masked_run, [{**rows[0], **forged}, *rows[1:]])
    found = verify_run(masked_run).findings
    rewrite_rows(masked_run, rows)
    assert {finding.index for finding in found} == {0}
    assert any(sentence in finding.sentence for finding in found)


def test_no_row_of_a_network_whose_classes_differ_is_constant(tmp_path):
    """By one unit in the last place of one weight."""

    def change(model):
        _all_rows_equal(model)
        weight = model.layers[-1].weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(inf))

    run = write_run(tmp_path, spec_of(rows=4, width=12), change=change)
    rows = rows_of(run).to_pylist()
    assert all(row["status"] == "certified" for row in rows)
    assert verify_run(run).sound
    everywhere = {"status": "constant", "radius": inf, "radius_runner_up": inf}
    rewrite_rows(run, [{**row, **everywhere} for row in rows])
    failed = {finding.index for finding in verify_run(run).findings}
    assert failed == {row["index"] for row in rows}


def test_both_sides_tell_the_same_margins_constant():
    for seed in range(20):
        network = random_network(3, seed=seed, width=6, classes=5)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in network.layers:
                kept = torch.rand(layer.weight.shape, generator=generator) < 0.25
                layer.weight.mul_(kept)
            network.layers[-1].weight[1] = network.layers[-1].weight[0]
        ours = checked_margins(seen(network))
        assert (ours == constant_margins(network).numpy()).all() and ours[0, 1]
