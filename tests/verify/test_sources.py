"""Runs on data from sources: proved with the data that the manifest names, wherever it lies."""

import sys

import numpy as np
import pytest

from raycrt import data
from raycrt.errors import InvalidInput
from raycrt.specs import Spec
from raycrt.verify import verify_run
from tests.data.laws import part
from tests.data.stores import STORES
from tests.verify.runs import edit_manifest, manifest_of, spec_of, write_run


def _run(run, store: str, directory) -> Spec:
    directory.mkdir()
    stored = STORES[store].spec(directory, {"train": part(60)})
    spec = data.described(spec_of().override({"data": stored.data.model_dump()}))
    write_run(run, spec)
    return spec


@pytest.mark.parametrize("store", ["folder", "csv"])
def test_images_and_features_are_proved_in_three_classes(store, tmp_path):
    _run(tmp_path / "run", store, tmp_path / "rows")
    report = verify_run(tmp_path / "run")
    assert report.sound and report.images == report.checked == 12
    assert report.data.startswith(("folder rows", "table rows"))


def test_data_that_has_moved_is_named_and_other_data_is_not_accepted(tmp_path):
    _run(tmp_path / "run", "npy", tmp_path / "rows")
    (tmp_path / "rows").rename(tmp_path / "moved")
    with pytest.raises(InvalidInput, match=r"data\.path must exist"):
        verify_run(tmp_path / "run")
    assert verify_run(tmp_path / "run", data_directory=tmp_path / "moved").sound
    np.save(tmp_path / "moved" / "train-images.npy", part(60, seed=1).pixels)
    assert not verify_run(tmp_path / "run", data_directory=tmp_path / "moved").sound


def test_shape_and_classes_in_the_manifest_must_be_those_of_the_data(tmp_path):
    run = tmp_path / "run"
    _run(run, "folder", tmp_path / "rows")
    whole = manifest_of(run)["spec"]
    for facts, said in (
        ({"class_names": ["ape", "bat"]}, r"data\.class_names states 'ape', 'bat', but"),
        ({"shape": [3, 5, 6]}, r"data\.shape states \(3, 5, 6\), but"),
        ({"shape": None}, r"data\.shape must be stated"),
    ):
        edit_manifest(run, spec={**whole, "data": {**whole["data"], **facts}})
        with pytest.raises(InvalidInput, match=said):
            verify_run(run)


def test_a_function_in_a_manifest_runs_only_if_it_is_trusted(tmp_path):
    spec = _run(tmp_path / "run", "function", tmp_path / "rows")
    sys.modules.pop(spec.data.source.partition(":")[0])
    with pytest.raises(InvalidInput, match=r"running mine_\d+:load in \S+rows, .*--run-code"):
        verify_run(tmp_path / "run")
    assert spec.data.source.partition(":")[0] not in sys.modules
    assert verify_run(tmp_path / "run", trusted=True).sound
