"""Data on an object store: read by the processes that train, certify and verify."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from raycrt import data
from raycrt.certification.table import storage
from raycrt.specs import Spec
from raycrt.system.places.storage import Place, place
from tests.cluster.test_object_store import raycrt
from tests.conftest import TINY
from tests.data.laws import part
from tests.data.stores import STORES

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROWS = {"train": part(60), "test": part(301, seed=1)}


def copied(path: str, uri: str) -> str:
    """The URI of a copy of the file or the directory `path`."""
    there = f"{uri}/{Path(path).name}"
    place(there).fs.put(path, place(there).path, recursive=True)
    return there


def check_rows(run: Place, local: Spec) -> None:
    """The rows of `run` are those of the test split that `local` reads on a disk."""
    whole = data.read(data.described(local).data).test
    table = storage.read(run / "certificates")[0]
    assert table.column("index").to_pylist() == list(range(len(whole)))
    assert table.column("label").to_pylist() == whole.labels.tolist()
    hashes = [storage.input_sha256(image) for image in whole.images]
    assert table.column("input_sha256").to_pylist() == hashes
    keys = [""] * len(whole) if whole.keys is None else whole.keys.tolist()
    assert table.column("key").to_pylist() == keys


@pytest.mark.timeout(840)
def test_all_commands_read_sources_on_a_store(object_store: str, tmp_path: Path) -> None:
    uri, recipe = f"{object_store}/{tmp_path.name}", tmp_path / "tiny.yaml"
    local: dict[str, Spec] = {}
    options: dict[str, list[str]] = {}
    for kind in ("parquet", "npy", "folder", "webdataset"):
        (tmp_path / kind).mkdir()
        local[kind] = STORES[kind].spec(tmp_path / kind, ROWS)
        there = copied(str(local[kind].data.path), uri)
        told = raycrt("data", there, "--out", tmp_path / "data.png")
        options[kind] = shlex.split(told.splitlines()[-1].removeprefix("options: "))
        assert options[kind][-1] == f"data.path={there}"
    recipe.write_text(TINY.replace("name: digits, ", ""))
    run = place(f"{uri}/run")
    raycrt("train", "--recipe", recipe, *options["parquet"], "--out", run)
    raycrt("certify", "--out", run, "--workers", 2)
    check_rows(run, local["parquet"])
    assert "each is proved" in raycrt("verify", run, "--workers", 2)
    moved = ("verify", run, "--data-dir", local["parquet"].data.path)
    assert "each is proved" in raycrt(*moved)
    assert "not proved" not in raycrt("report", run)
    for kind in ("folder", "webdataset"):
        other = tmp_path / "runs" / kind
        raycrt("certify", "--model", run / "train", *options[kind], "--out", other)
        check_rows(other, local[kind])
