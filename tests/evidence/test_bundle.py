"""Bundles are made of runs that hold, the same bytes each time, with a card that hubs read."""

import json
import shutil
import zipfile

import pytest
import yaml

from raycrt.certification.table import storage
from raycrt.errors import InvalidInput
from raycrt.evidence import origin
from raycrt.evidence.bundle import pack
from raycrt.verify import verify_run
from tests.verify.bundle.forged import files_of
from tests.verify.runs import edit_manifest, rewrite_rows, rows_of


@pytest.fixture
def run(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "run")


def test_the_same_run_gives_the_same_bytes(run, bundle, tmp_path):
    pack(run, tmp_path / "b" / "again.zip", verify=verify_run, with_data=True, license="mit")
    assert (tmp_path / "b" / "again.zip").read_bytes() == bundle.read_bytes()
    with zipfile.ZipFile(bundle) as opened:
        assert opened.namelist() == sorted(opened.namelist()) and opened.testzip() is None


def test_what_is_packed(run, bundle):
    files = files_of(bundle)
    for name in ("train/model.safetensors", "train/spec.yaml", "certificates/manifest.json"):
        assert files[name] == (run / name).read_bytes()
    index = json.loads(files["bundle.json"])
    assert set(index["files"]) == set(files) - {"bundle.json"}
    assert index["verdict"] == {"checked": 12, "failed": 0, "images": 12, "proved": True}
    assert index["data"]["rows"] == 12 and index["code"]["raycrt"] and "model.onnx" in files


def test_the_card(bundle, run):
    _, front, text = files_of(bundle)["README.md"].decode().split("---\n", 2)
    stated = yaml.safe_load(front)
    (model,) = stated["model-index"]
    metrics = model["results"][0]["metrics"]
    rows = rows_of(run).to_pylist()
    right = [row for row in rows if row["label"] == row["prediction"]]
    assert metrics[0]["value"] == pytest.approx(len(right) / 12)
    certified = sum(row["radius"] > 0.5 for row in right) / 12
    assert metrics[1]["name"] == "certified accuracy at l2 radius 0.5, all classes"
    assert metrics[1]["value"] == pytest.approx(certified)
    assert stated["license"] == "mit" and stated["library_name"] == "raycrt"
    assert f"| 0.5 | {100 * certified:.2f} % |" in text and "raycrt verify FILE.zip\n" in text


def _refused(run, place, message, **options):
    with pytest.raises(InvalidInput, match=message):
        pack(run, place, verify=verify_run, **options)
    assert not place.exists()


def test_a_row_that_does_not_hold_is_not_packed(run, tmp_path):
    rows = rows_of(run).to_pylist()
    rows[2]["radius"] *= 1.01
    rows[2]["radius_runner_up"] = max(rows[2]["radius"], rows[2]["radius_runner_up"])
    rewrite_rows(run, rows)
    _refused(run, tmp_path / "a.zip", "only what is proved, but .* finds: radius is")


def test_rows_without_hashes_are_not_packed(run, tmp_path):
    rows = rows_of(run).to_pylist()
    edit_manifest(run, schema_version=5)
    rewrite_rows(run, rows)
    assert verify_run(run).sound
    _refused(run, tmp_path / "a.zip", "certificates of version 8, .* has version 5")


def test_a_run_without_certificates_and_another_name(run, tmp_path):
    _refused(run, tmp_path / "a.tar", r"must be a \.zip file")
    (run / "certificates" / storage.MANIFEST).unlink()
    _refused(run, tmp_path / "a.zip", "raycrt certify --out .* makes it")


def test_the_commit_is_that_of_the_source(tmp_path):
    assert origin.commit(tmp_path) is None
    stated = origin.stated()
    assert stated["commit"] is None or len(stated["commit"].partition("+")[0]) == 40
