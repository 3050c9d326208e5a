"""The facts of a page agree with the rows, counted by hand, and with what attacks found."""

import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from raycrt import data
from raycrt.certification.certificate import Status
from raycrt.evaluation.intervals import wilson
from raycrt.evaluation.page import scan
from raycrt.specs import validate
from tests.evaluation.page.runs import change_rows, facts_of
from tests.verify.runs import edit_manifest, rows_of, spec_of, write_run


def _balance(model):
    """Let the mean digit have equal logits, so that predictions differ."""
    images = torch.from_numpy(data.read(validate({"data": {"name": "digits"}}).data).test.images)
    list(model.parameters())[-1].sub_(model(images.flatten(1)).mean(0))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of digits of which three in four are called what the network predicts."""
    place = tmp_path_factory.mktemp("facts") / "run"
    run = write_run(place, spec_of(rows=40, at=(0.05, 0.1)), change=_balance)
    rows = rows_of(run).to_pylist()
    change_rows(
        run, {row["index"]: {"label": row["prediction"]} for row in rows if row["index"] % 4}
    )
    return run


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def test_curves_histogram_and_matrix_are_those_of_the_rows(run):
    inf = {"status": "constant", "radius": math.inf, "radius_runner_up": math.inf}
    none = {"status": "tied", "radius": 0.0, "radius_runner_up": 0.0}
    change_rows(run, {1: inf, 2: none, 30: none})
    rows, found = rows_of(run).to_pylist(), facts_of(run, number=0)
    right = [row["radius"] for row in rows if row["label"] == row["prediction"]]
    for point in found.points:
        share = sum(radius > point["radius"] for radius in right) / len(rows)
        assert point["certified"] == pytest.approx(100 * share)
        low, high = wilson(share, len(rows))
        assert (point["low"], point["high"]) == pytest.approx((100 * low, 100 * high))
        assert "attacked" not in point
    assert [point["radius"] for point in found.stated] == [0.05, 0.1]
    finite = [radius for radius in right if 0 < radius < math.inf]
    assert sum(bar["rows"] for bar in found.radii) == len(finite)
    for bar in found.radii:
        assert bar["rows"] == sum(bar["low"] < radius <= bar["high"] for radius in finite)
    pairs = Counter((r["prediction"], r["binding"]) for r in rows if r["status"] != "tied")
    assert found.matrix is not None and sum(map(sum, found.matrix)) == 38
    assert all(found.matrix[p][b] == n for (p, b), n in pairs.items())


def test_the_extremes_and_the_lists_are_those_of_the_rows_in_any_order(run, monkeypatch):
    change_rows(run, {5: {"status": "no_radius", "radius": 0.0, "radius_runner_up": 0.0}})
    rows, found = rows_of(run).to_pylist(), facts_of(run, number=0).scan
    for label in found.least:
        own = [
            (row["radius"], row["index"])
            for row in rows
            if row["label"] == row["prediction"] == label and row["status"] == "certified"
        ]
        assert (found.least[label].radius, found.least[label].index) == min(own)
        assert (found.most[label].radius, found.most[label].index) == max(own)
    assert [row.index for row in found.unproved.rows] == [5]
    wrong = [r["index"] for r in rows if r["label"] != r["prediction"] and r["index"] != 5]
    assert [row.index for row in found.wrong.rows] == wrong
    monkeypatch.setattr(scan, "SHOWN", 3)
    cut = facts_of(run, number=0).scan.wrong
    assert cut.number == len(wrong) and [row.index for row in cut.rows] == wrong[:3]


def test_an_attack_is_never_below_a_certificate(run):
    found = facts_of(run)
    assert not found.missing and not found.partial and not found.contradictions
    assert all(point["attacked"] >= point["certified"] for point in found.points)
    assert any(point["attacked"] < point["clean"] for point in found.points)
    assert len(found.ratios) and (found.ratios <= 1).all()
    shown = [item for item in found.exhibits if item.attacked]
    assert len(shown) == len(found.scan.least) + len(found.scan.most)
    assert all(len(item.pictures) == 3 for item in shown)
    assert all(item.attacked.found != item.row.prediction for item in shown)
    assert all(item.attacked.distance >= item.row.radius for item in shown)


def test_rows_are_drawn_with_a_fixed_seed_and_counted(run):
    found, again = facts_of(run, number=10), facts_of(run, number=10)
    assert found.partial and found.attacked == 10
    assert [row.index for row in found.scan.sample] == [row.index for row in again.scan.sample]
    at = found.found.spec.certify.at[0]
    certified = sum(r.right and r.radius > at for r in found.scan.sample) / 10
    assert found.certified_of_sample(at) == certified
    assert found.stated[0]["attacked"] >= 100 * certified


def test_a_radius_beyond_an_attack_is_a_contradiction(run):
    honest = facts_of(run)
    worst = next(item.attacked for item in honest.exhibits)
    raised = {"radius": worst.distance * 1.01, "radius_runner_up": worst.distance * 1.01}
    change_rows(run, {worst.row.index: raised})
    assert [a.row.index for a in facts_of(run).contradictions] == [worst.row.index]


def test_what_cannot_be_attacked_is_named_and_the_rest_is_there(run):
    stored = rows_of(run).to_pylist()
    change_rows(run, {3: {"input_sha256": bytes(32)}})
    assert stored[3]["label"] == stored[3]["prediction"]
    assert "row 3 of the data is not the one that was certified" in facts_of(run).missing
    change_rows(run, {3: {"input_sha256": stored[3]["input_sha256"]}})
    edit_manifest(run, weights_sha256="0" * 64)
    assert "not the one that was certified" in facts_of(run).missing
    shutil.rmtree(run / "train")
    found = facts_of(run)
    assert "model.safetensors" in found.missing and not found.exhibits
    assert found.points and "attacked" not in found.points[0]
    edit_manifest(run, spec={**found.found.manifest["spec"], "model": None})
    assert "not one that a spec can describe" in facts_of(run).missing


def test_data_is_not_read_by_code_unless_it_may(tmp_path):
    code = tmp_path / "rows.py"
    code.write_text(
        "import numpy as np\n"
        "def rows():\n"
        "    x = np.linspace(0, 1, 60, dtype='f4').reshape(30, 2)\n"
        "    return {'train': (x, np.arange(30) % 3)}\n"
    )
    tree = {"source": f"{code.stem}:rows", "path": str(tmp_path)}
    model, certify = {"depth": 2, "width": 4, "activation": "tanh"}, {"batch_size": 16}
    spec = data.described(validate({"model": model, "data": tree, "certify": certify}))
    run = write_run(tmp_path / "run", spec)
    assert "--run-code" in facts_of(run).missing
    assert not facts_of(run, trusted=True).missing


def test_features_that_are_no_image_are_named_by_their_columns(tmp_path):
    noise = np.random.default_rng(0).normal(size=(90, 3))
    table = noise * (5, 1, 1) + 100
    table[:, 2] += 3 * (np.arange(90) % 3)
    lines = [f"r{i},{w:.3f},{h:.3f},{d:.3f},k{i % 3}" for i, (w, h, d) in enumerate(table)]
    (tmp_path / "t.csv").write_text("\n".join(["name,w,h,d,kind", *lines]))
    tree = {"source": "table", "path": str(tmp_path / "t.csv"), "label": "kind", "key": "name"}
    tree |= {"scale": "auto"}
    model, certify = {"depth": 2, "width": 8, "activation": "tanh"}, {"batch_size": 16}
    spec = data.described(validate({"model": model, "data": tree, "certify": certify}))

    def balance(model):
        list(model.parameters())[-1].sub_(model(torch.zeros(1, 3)).mean(0))

    found = facts_of(write_run(tmp_path / "run", spec, change=balance))
    changed = [item for item in found.exhibits if item.changes]
    assert changed and all(not item.pictures for item in found.exhibits)
    deviations = dict(zip("whd", spec.data.scale.std, strict=True))
    values = {round(float(value), 3) for value in table.ravel()}
    for item in changed:
        assert {name for name, _, _ in item.changes} == {"w", "h", "d"}
        assert {round(before, 3) for _, before, _ in item.changes} <= values
        steps = [(after - before) / deviations[name] for name, before, after in item.changes]
        assert math.hypot(*steps) == pytest.approx(item.attacked.distance, rel=1e-4)
        assert steps == sorted(steps, key=abs, reverse=True)
    assert found.tried == "each of the 2 other classes"
    assert found.found.headline.endswith("test rows") and "rows/s" in found.found.headline


def test_each_row_that_does_not_count_has_a_reason(run):
    change_rows(run, {0: {"status": "non_finite_input", "radius": 0.0, "radius_runner_up": 0.0}})
    found = facts_of(run, number=0)
    reason = found.reason(found.scan.unproved.rows[0])
    assert reason == Status.NON_FINITE_INPUT.sentence
    wrong = found.scan.wrong.rows[0]
    assert found.reason(wrong).startswith(f"predicted as {wrong.prediction}, and so is every input")


def test_the_gallery_is_bounded(run, monkeypatch):
    monkeypatch.setattr("raycrt.evaluation.page.gallery.CLASSES", 2)
    found = facts_of(run)
    assert len({item.row.label for item in found.exhibits}) == 2 < len(found.scan.least)


def test_one_row_with_a_far_runner_up_or_an_infinite_radius_does_not_stretch_the_curves(run):
    before = facts_of(run, number=0).points[-1]["radius"]
    inf = {"status": "constant", "radius": math.inf, "radius_runner_up": math.inf}
    change_rows(run, {1: {"radius_runner_up": 1e6}, 2: inf})
    found = facts_of(run)
    assert found.points[-1]["radius"] <= before
    assert np.isfinite(found.ratios).all() and len(found.ratio_bins) == 20
