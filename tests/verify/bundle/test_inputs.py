"""Where the inputs of a bundle come from, and what is said without any."""

import io
import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from raycrt.cli.verify import verify
from raycrt.errors import InvalidInput
from raycrt.verify.bundle import verify_bundle
from tests.verify.bundle.forged import ROWS, files_of, forged, rows_of, with_rows

APP = typer.Typer()
APP.command()(verify)
PROVED = "12 rows checked against 12 images of {}: each is proved."


def _told(file, *options, code):
    done = CliRunner().invoke(APP, [str(file), *map(str, options)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture
def test_rows(bundle):
    """The certified inputs and labels."""
    files = files_of(bundle)
    names = ("data/inputs.npy", "data/labels.npy")
    return tuple(np.load(io.BytesIO(files[name])) for name in names)


def test_with_data_it_is_proved_and_says_whose_they_are(bundle):
    told = _told(bundle, code=0).splitlines()
    assert PROVED.format("arrays rows") in told
    assert "not checked: that the inputs and labels in the bundle are those of arrays rows" in told
    assert "not checked: the content of README.md; data, code and verdict in bundle.json" in told


def test_without_any_inputs_nothing_is_proved(bare_bundle):
    told = _told(bare_bundle, code=3)
    assert "12 rows read, and no radius proved." in told
    assert (
        "not checked: radii, predictions, labels and hashes of inputs (the data is arrays" in told
    )
    assert "--data-dir or --data must give" in told and "each is proved" not in told


def test_without_any_inputs_what_can_be_checked_is(bare_bundle, tmp_path):
    files = files_of(bare_bundle)
    rows = rows_of(files)
    rows[3]["status"] = "proved"
    del rows[7]
    found = verify_bundle(forged(bare_bundle, tmp_path, **{ROWS: with_rows(files, rows)})).findings
    assert {finding.index for finding in found} == {3, 7}
    _told(tmp_path / "forged.zip", code=1)


def test_the_data_set_of_the_reader(bare_bundle, small_run):
    told = _told(bare_bundle, "--data-dir", small_run.parent / "rows", code=0)
    assert PROVED.format("arrays rows") in told and "those of" not in told


@pytest.mark.parametrize("names", [("inputs", "labels"), ("images", "labels"), ("x", "y")])
def test_arrays_of_the_reader(bare_bundle, test_rows, tmp_path, names):
    np.savez(tmp_path / "test.npz", **dict(zip(names, test_rows, strict=True)))
    assert PROVED.format("test.npz") in _told(bare_bundle, "--data", tmp_path / "test.npz", code=0)


def test_pixels_of_the_reader_are_scaled(bare_bundle, test_rows, tmp_path):
    pixels = np.round(255 * test_rows[0]).astype(np.uint8)
    np.save(tmp_path / "test.npy", np.moveaxis(pixels, 1, 3))
    told = _told(bare_bundle, "--data", tmp_path / "test.npy", code=0)
    assert "not checked: labels, which test.npy does not hold" in told


def test_the_reader_s_inputs_count_more_than_those_in_the_bundle(bundle, test_rows, tmp_path):
    inputs, labels = test_rows
    np.savez(tmp_path / "test.npz", inputs=inputs[::-1], labels=labels)
    told = _told(bundle, "--data", tmp_path / "test.npz", code=1)
    assert told.count("the input is not the one that was certified") >= 10


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((12, 3, 4, 9), np.float32)}, "inputs have the shape"),
        ({"labels": np.zeros(12, int)}, "must hold an array inputs, images or x"),
        ({"x": np.zeros((12, 3, 4, 6), np.int64)}, "uint8, uint16 or floating-point"),
        ({"x": np.zeros((12, 3, 4, 6)), "y": np.zeros(11, int)}, "labels are whole numbers"),
        ({"x": np.zeros((12, 3, 4, 6)), "y": np.zeros(12)}, "labels are whole numbers"),
        ({"x": np.array([{}])}, "must be a file of numpy arrays"),
    ],
)
def test_arrays_that_are_none_of_the_run(bare_bundle, tmp_path, arrays, message, test_rows):
    shape = test_rows[0].shape[1:]
    fitting = {
        k: v.reshape(12, -1)[:, :1].repeat(np.prod(shape), 1).reshape(12, *shape)
        if v.ndim == 4 and v.shape[1:] == (3, 4, 6)
        else v
        for k, v in arrays.items()
    }
    np.savez(tmp_path / "test.npz", **fitting)
    with pytest.raises(InvalidInput, match=message):
        verify_bundle(bare_bundle, arrays=tmp_path / "test.npz")


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\3\4"])
def test_data_that_is_no_array(bare_bundle, tmp_path, content):
    (tmp_path / "test.npz").write_bytes(content)
    with pytest.raises(InvalidInput, match="must be a file of numpy arrays"):
        verify_bundle(bare_bundle, arrays=tmp_path / "test.npz")


def test_options_that_do_not_go_together(bundle, small_run, tmp_path):
    for words, message in (
        ([bundle, "--data", "x.npz", "--data-dir", "y"], "leave one out"),
        ([small_run, "--data", "x.npz"], "--data goes with a bundle"),
    ):
        done = CliRunner().invoke(APP, list(map(str, words)))
        assert isinstance(done.exception, InvalidInput) and message in str(done.exception)


@pytest.mark.parametrize("rows", [0, 10**12, -1, "12", None])
def test_the_number_of_rows_is_bounded_without_inputs(bare_bundle, tmp_path, rows):

    manifest = json.loads(files_of(bare_bundle)["certificates/manifest.json"]) | {"rows": rows}
    changed = {"certificates/manifest.json": json.dumps(manifest).encode()}
    with pytest.raises(InvalidInput, match=r"0 < rows <= 10000000 in the manifest"):
        verify_bundle(forged(bare_bundle, tmp_path, **changed))
