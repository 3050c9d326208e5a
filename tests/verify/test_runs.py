"""The checker accepts what the certifier wrote and nothing that was changed since."""

import hashlib
import shutil
from functools import cache, partial

import numpy as np
import pytest
import typer
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from raycrt import data
from raycrt.activations import ACTIVATIONS
from raycrt.cli.verify import proved, verify
from raycrt.errors import InvalidInput
from raycrt.networks import checkpoint
from raycrt.training.folding.part import fresh
from raycrt.verify import verify_run
from raycrt.verify.model import weights_sha256
from tests.verify.runs import (
    edit_manifest,
    manifest_of,
    rewrite_rows,
    rows_of,
    spec_of,
    write_run,
)

NO_WITNESSES = {"witness_classes": [], "witness_points": [], "witness_curvatures": []}
APP = typer.Typer()
APP.command()(verify)


def _invoke(run, *options):
    return CliRunner().invoke(APP, [str(run), *options])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The honest run of a kind of network, written once."""

    @cache
    def write(kind):
        model = {"channels": [6]} if kind == "convolutional" else {}
        return write_run(tmp_path_factory.mktemp("honest") / "run", spec_of(model=model))

    return write


@pytest.fixture(params=["dense", "convolutional"])
def honest(written, request):
    return written(request.param)


@pytest.fixture
def run(honest, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(honest, tmp_path / "run")


@pytest.mark.parametrize(
    ("depth", "name"),
    [(2 + i % 2, name) for i, name in enumerate(ACTIVATIONS)] + [(4, "tanh")],
)
def test_honest_runs_pass(tmp_path, depth, name):
    run = write_run(tmp_path, spec_of(depth, name, rows=20), seed=depth)
    assert sum(row["status"] == "certified" for row in rows_of(run).to_pylist()) >= 15
    report = verify_run(run)
    assert report.sound, report.findings[:3]
    assert (report.checked, report.failed) == (20, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "gain", "deployment"),
    [(2, 12.0, "exact"), (4, 2.0, "exact"), (3, 2.0, "float32")],
)
def test_honest_runs_with_local_curvature_pass(tmp_path, depth, gain, deployment):
    spec = spec_of(depth, "silu", rows=20, region="local", at=(0.5, 2.0), deployment=deployment)
    run = write_run(tmp_path, spec, gain=gain, seed=depth)
    assert sum(np.isfinite(row["region_radius"]) for row in rows_of(run).to_pylist()) >= 1
    report = verify_run(run)
    assert report.sound, report.findings[:3]


CONVOLUTIONS = [
    {"channels": [4], "depth": 1, "width": 1024},
    {"channels": [4]},
    {"channels": [3, 5], "kernel": 4},
    {"channels": [3], "kernel": 5, "stride": 1},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "region"),
    [*((model, "global") for model in CONVOLUTIONS), (CONVOLUTIONS[1], "local")],
)
def test_honest_runs_of_convolutions_pass(tmp_path, model, region):
    run = write_run(tmp_path, spec_of(rows=20, model=model, region=region))
    assert sum(row["status"] == "certified" for row in rows_of(run).to_pylist()) >= 15
    report = verify_run(run)
    assert report.sound, report.findings[:3]
    assert (report.checked, report.failed) == (20, 0)


def test_float32_is_not_claimed_for_convolutions(tmp_path):
    run = write_run(tmp_path, spec_of(rows=20, model={"channels": [4]}))
    edit_manifest(run, deployment="float32")
    sentences = [finding.sentence for finding in verify_run(run).findings]
    assert "deployment must be exact for a model with convolutions in the manifest." in sentences


def test_a_kernel_of_another_size_is_refused(tmp_path):
    run = write_run(tmp_path, spec_of(rows=20, model={"channels": [4]}))
    checkpoint.save_model(
        run / "train", fresh(spec_of(model={"channels": [4], "kernel": 5})), spec_of()
    )
    spec_of(rows=20, model={"channels": [4]}).save(run / "train")
    with pytest.raises(
        InvalidInput, match=r"a kernel is \(outputs, channels / groups, side, side\)"
    ):
        verify_run(run)


@pytest.fixture(scope="module")
def honest_local(tmp_path_factory):
    run = tmp_path_factory.mktemp("honest") / "run"
    return write_run(run, spec_of(3, rows=20, region="local", at=(1.0, 2.0)), gain=2.0)


def _first_local(run, rows):
    """A row whose radius rests on a curvature of its ball, and the number of that witness."""
    stated = manifest_of(run)["margin_curvature"]
    for row in rows:
        here = stated[row["prediction"]]
        pairs = zip(row["witness_classes"], row["witness_curvatures"], strict=True)
        for number, (target, m) in enumerate(pairs):
            if target == row["binding"] and m < here[target]:
                return row, number
    raise AssertionError("no local row")


def _lower_local_curvature(run, rows):
    row, number = _first_local(run, rows)
    row["witness_curvatures"][number] *= 0.99


def _widen_ball(run, rows):
    row, _ = _first_local(run, rows)
    row["region_radius"] *= 1.5


def _shrink_ball(run, rows):
    row, _ = _first_local(run, rows)
    row["region_radius"] = row["radius"] * 0.9


def _hold_everywhere(run, rows):
    row, _ = _first_local(run, rows)
    row["region_radius"] = float("inf")


def _raise_local_radius(run, rows):
    row, _ = _first_local(run, rows)
    row["radius"] *= 1.01


def _no_ball(run, rows):
    row, _ = _first_local(run, rows)
    row["region_radius"] = float("nan")


def _forget_region(run, rows):
    edit_manifest(run, region="global")


@pytest.mark.slow
@pytest.mark.parametrize(
    "tamper, message",
    [
        (_lower_local_curvature, "can be proved"),
        (_widen_ball, "can be proved"),
        (_shrink_ball, "no more than"),
        (_hold_everywhere, "everywhere, but"),
        (_raise_local_radius, "no more than"),
        (_no_ball, "region_radius is nan"),
        (_forget_region, "which does not fit the manifest"),
    ],
)
def test_tampering_with_local_rows_is_caught(honest_local, tmp_path, tamper, message):
    assert verify_run(honest_local).sound
    run = shutil.copytree(honest_local, tmp_path / "run")
    rows = rows_of(run).to_pylist()
    tamper(run, rows)
    rewrite_rows(run, rows)
    result = _invoke(run)
    assert result.exit_code == 1, result.output
    assert message in result.output


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_honest_runs_pass_whatever_the_size_of_the_weights(tmp_path, scale):
    run = write_run(tmp_path, spec_of(3, "tanh", rows=20), gain=scale)
    report = verify_run(run)
    assert report.sound, report.findings[:3]


def test_the_command_exits_with_0_and_counts(honest):
    result = _invoke(honest)
    assert result.exit_code == 0, result.output
    assert "40 rows checked against 40 images of digits: each is proved." in result.output


def test_witnesses_are_needed(run):
    """Some stored radii rest on a witness: without them the checker proves less."""
    rows = rows_of(run).to_pylist()
    assert any(row["witness_classes"] for row in rows)
    rewrite_rows(run, [{**row, **NO_WITNESSES} for row in rows])
    assert verify_run(run).failed > 0


def _raise_radius(run, rows):
    rows[7]["radius"] *= 1.01


def _raise_runner_up(run, rows):
    rows[7]["radius_runner_up"] *= 1.01


def _drop_row(run, rows):
    del rows[11]


def _double_row(run, rows):
    rows[11] = rows[3]


def _replace_row_by_another(run, rows):
    rows[3] = {**rows[4], "index": rows[3]["index"]}


def _swap_witnesses(run, rows):
    classes = [set(row["witness_classes"]) for row in rows]
    a, b = next(
        (i, j)
        for i in range(len(rows))
        for j in range(i)
        if classes[i] == classes[j] and rows[i]["binding"] in classes[i]
    )
    for key in ("witness_points",):
        rows[a][key], rows[b][key] = rows[b][key], rows[a][key]


def _alter_prediction(run, rows):
    rows[5]["prediction"] = rows[5]["binding"]


def _alter_label(run, rows):
    rows[5]["label"] = (rows[5]["label"] + 1) % 10


def _alter_status(run, rows):
    rows[5]["status"] = "tied"


def _excuse_row(run, rows):
    rows[5] |= {"status": "non_finite_input", "radius": 0.0, "radius_runner_up": 0.0}


def _alter_runner_up(run, rows):
    row = rows[5]
    row["runner_up"] = next(t for t in range(10) if t not in (row["runner_up"], row["prediction"]))
    row["radius_runner_up"] = row["radius"] / 2


def _alter_curvature_column(run, rows):
    rows[5]["curvature"] *= 0.9


def _zero_byte_in_status(run, rows):
    rows[5]["status"] += "\0"


def _space_in_status(run, rows):
    rows[5]["status"] += " "


def _call_tied(run, rows):
    rows[5] |= {"status": "tied", "radius": 0.0, "radius_runner_up": 0.0, **NO_WITNESSES}


def _bind_runner_up(run, rows):
    """With the curvature of that class, but another radius than against it alone."""
    row = rows[5]
    matrix = manifest_of(run)["margin_curvature"]
    row |= {"binding": row["runner_up"], "radius": row["radius"] * 0.9}
    row["curvature"] = matrix[row["prediction"]][row["runner_up"]]


def _runner_up_below(run, rows):
    rows[5]["radius_runner_up"] = rows[5]["radius"] * 0.5


def _witness(row, target):
    """As a witness that proves nothing: a point that is the image."""
    row["witness_classes"] = row["witness_classes"] + [target]
    row["witness_points"] = row["witness_points"] + [0.0] * 64
    row["witness_curvatures"] = row["witness_curvatures"] + [1.0]


def _witness_of_no_class(run, rows):
    _witness(rows[5], 10)


def _witness_of_the_prediction(run, rows):
    _witness(rows[5], rows[5]["prediction"])


def _witness_twice(run, rows):
    row = next(row for row in rows if row["witness_classes"])
    for key in ("classes", "points", "curvatures"):
        row[f"witness_{key}"] = 2 * row[f"witness_{key}"]


def _witness_of_nothing(run, rows):
    row = next(row for row in rows if row["witness_classes"])
    row |= {"status": "no_radius", "radius": 0.0, "radius_runner_up": 0.0}


def _curvature_of_nothing(run, rows):
    zero = {"status": "no_radius", "radius": 0.0, "radius_runner_up": 0.0, **NO_WITNESSES}
    rows[5] |= {**zero, "curvature": rows[5]["curvature"] * 2}


def _region_of_nothing(run, rows):
    edit_manifest(run, region="local")
    zero = {"status": "no_radius", "radius": 0.0, "radius_runner_up": 0.0, **NO_WITNESSES}
    rows[5] |= {**zero, "region_radius": 1.0}


def _curvature_of_the_diagonal(run, rows):
    matrix = manifest_of(run)["margin_curvature"]
    matrix[3][3] = 1.0
    edit_manifest(run, margin_curvature=matrix)


def _curvature_in_words(run, rows):
    matrix = manifest_of(run)["margin_curvature"]
    edit_manifest(run, margin_curvature=[[str(m) for m in row] for row in matrix])


def _rows_in_floats(run, rows):
    edit_manifest(run, rows=40.0)


def _other_spec_beside(run, rows):
    spec_of(rows=40, at=(0.25,)).save(run / "certificates")


def _infinite_radius(run, rows):
    rows[5]["radius"] = float("inf")


def _nan_radius(run, rows):
    rows[5]["radius"] = float("nan")


def _lower_curvature(run, rows):
    matrix = manifest_of(run)["margin_curvature"]
    edit_manifest(run, margin_curvature=(0.98 * np.array(matrix)).tolist())


def _change_weights(run, rows):
    """The hash is made to fit, so that only the mathematics can tell."""
    file = run / "train" / "model.safetensors"
    tensors = load_file(file)
    tensors["maps.0.weight"] = tensors["maps.0.weight"].copy()
    tensors["maps.0.weight"][0] += 0.02
    save_file(tensors, file)
    edit_manifest(run, weights_sha256=weights_sha256(tensors))


def _forget_hash(run, rows):
    edit_manifest(run, weights_sha256="0" * 64)


def _incomplete(run, rows):
    edit_manifest(run, complete=False)


def _other_version(run, rows):
    edit_manifest(run, schema_version=1)


def _other_region(run, rows):
    edit_manifest(run, region="somewhere")


def _claim_deployment(run, rows):
    """Radii of exact arithmetic are a little too large for float32."""
    edit_manifest(run, deployment="float32")


TAMPERED = {
    _raise_radius: "row 7: radius is",
    _raise_runner_up: "row 7: radius_runner_up is",
    _drop_row: "row 11: the row is missing",
    _double_row: "row 3: the row occurs 2 times",
    _replace_row_by_another: "row 3:",
    _swap_witnesses: "no more than",
    _alter_prediction: "row 5: the predicted class is",
    _alter_label: "row 5: the label is",
    _alter_status: "row 5: radius is",
    _excuse_row: "row 5: the status is 'non_finite_input', but the image is finite",
    _alter_runner_up: "row 5: the runner-up",
    _alter_curvature_column: "row 5: the curvature is",
    _zero_byte_in_status: "row 5: 'certified\\x00' is not a known status",
    _space_in_status: "row 5: 'certified ' is not a known status",
    _call_tied: "row 5: the status is 'tied', but the two largest logits are",
    _bind_runner_up: "but radius is the minimum over all classes",
    _runner_up_below: "row 5: radius is",
    _witness_of_no_class: "row 5: the witnesses must be of distinct classes",
    _witness_of_the_prediction: "row 5: the witnesses must be of distinct classes",
    _witness_twice: "the witnesses must be of distinct classes other than the predicted one",
    _witness_of_nothing: "witnesses or a region are given with the status 'no_radius'",
    _region_of_nothing: "witnesses or a region are given with the status 'no_radius'",
    _curvature_of_nothing: "row 5: the curvature is",
    _curvature_of_the_diagonal: "margin_curvature[3][3] is 1.0, but 0.0",
    _rows_in_floats: "rows must be 40",
    _other_spec_beside: "certify must be that of the manifest in certificates/spec.yaml",
    _infinite_radius: "row 5: radius is inf",
    _nan_radius: "row 5: radius is nan",
    _lower_curvature: "margin_curvature[0][1] is",
    _change_weights: "can be proved",
    _forget_hash: "weights_sha256 must be that of the model",
    _incomplete: "complete must be true",
    _other_version: "schema_version must be 3 or 4 or 5 or 6",
    _other_region: "region must be one of",
    _claim_deployment: "no more than",
}
OF_CONVOLUTIONS = (_raise_radius, _swap_witnesses, _lower_curvature, _change_weights)


@pytest.mark.parametrize(
    ("honest", "tamper"),
    [("dense", tamper) for tamper in TAMPERED]
    + [("convolutional", tamper) for tamper in OF_CONVOLUTIONS],
    indirect=["honest"],
)
def test_tampering_is_caught(run, tamper):
    rows = rows_of(run).to_pylist()
    tamper(run, rows)
    rewrite_rows(run, rows)
    result = _invoke(run)
    assert result.exit_code == 1, result.output
    assert TAMPERED[tamper] in result.output


def test_curvature_in_words_is_bad_input(run):
    _curvature_in_words(run, [])
    with pytest.raises(InvalidInput, match="must be a matrix of numbers"):
        verify_run(run)


def test_a_broken_file_is_a_finding_and_its_rows_are_missing(run):
    file = sorted((run / "certificates" / "rows").iterdir())[1]
    file.write_bytes(file.read_bytes()[:-100])
    report = verify_run(run)
    assert "cannot be read" in report.findings[0].sentence
    assert (report.checked, report.failed) == (24, 16)


def test_weights_that_are_not_finite_prove_nothing(run):
    file = run / "train" / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(file).items()}
    tensors["maps.1.bias"][2] = np.nan
    save_file(tensors, file)
    edit_manifest(run, weights_sha256=weights_sha256(tensors))
    assert verify_run(run).failed == 40


def test_a_missing_part_is_bad_input(run):
    (run / "certificates" / "manifest.json").unlink()
    with pytest.raises(InvalidInput, match=r"must hold manifest\.json"):
        verify_run(run)


def test_the_hash_is_the_one_that_the_certifier_writes(honest):
    tensors = load_file(honest / "train" / "model.safetensors")
    assert weights_sha256(tensors) == manifest_of(honest)["weights_sha256"]


@pytest.mark.cluster
def test_actors_find_what_one_process_finds(tmp_path, local_ray):
    from raycrt.distributed import verification

    run = write_run(tmp_path, spec_of())
    rows = rows_of(run).to_pylist()
    for i in (2, 19, 33):
        rows[i]["radius"] *= 1.01
    rewrite_rows(run, rows, in_a_file=16)
    alone = verify_run(run)
    shared = verify_run(run, check=partial(verification.check_files, workers=2))
    assert shared == alone
    assert {finding.index for finding in alone.findings} == {2, 19, 33}


def test_a_row_of_another_input_is_refused_in_its_own_words(run):
    rows = rows_of(run).to_pylist()
    rows[5]["input_sha256"] = rows[6]["input_sha256"]
    rewrite_rows(run, rows)
    (finding,) = verify_run(run).findings
    assert finding.index == 5
    assert "the input is not the one that was certified" in finding.sentence
    assert finding.sentence.endswith(f"that of the row {rows[6]['input_sha256'].hex()}.")


def test_a_key_that_the_data_does_not_have_is_refused(run):
    rows = rows_of(run).to_pylist()
    rows[5]["key"] = "another.png"
    rewrite_rows(run, rows)
    (finding,) = verify_run(run).findings
    assert finding.index == 5 and "the key is '' in the data, not 'another.png'" in finding.sentence


@pytest.mark.parametrize(
    "place", ["certificates/rows", "certificates/rows/records", "train/spec.yaml"]
)
def test_records_are_in_a_directory_apart_from_the_certificates(run, place):
    with pytest.raises(InvalidInput, match=r"records are not among|must be a directory"):
        proved(run, workers=1, data_dir=None, arrays=None, run_code=False, records=run / place)
    assert verify_run(run).sound


def test_the_hash_is_that_of_float32_numbers(run):
    images = data.read(spec_of().data).test.images
    digests = [hashlib.sha256(image.astype("<f4").tobytes()).digest() for image in images]
    assert rows_of(run).column("input_sha256").to_pylist() == digests
    assert manifest_of(run)["input_shape"] == [1, 8, 8]


def test_rows_of_the_version_before_have_no_hashes(run):
    rows = rows_of(run).to_pylist()
    edit_manifest(run, schema_version=5)
    assert "does not belong" in verify_run(run).findings[0].sentence
    rewrite_rows(run, rows)
    assert verify_run(run).sound
    edit_manifest(run, schema_version=6)
    assert "'input_sha256' is missing" in verify_run(run).findings[0].sentence
