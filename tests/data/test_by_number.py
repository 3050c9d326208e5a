"""Rows read by their numbers: refused where a reading of the whole is refused, before any work."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from raycrt import data
from raycrt.data import sources
from raycrt.data.formats import row_groups
from raycrt.data.parts import reader as readers
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec
from raycrt.system.places.storage import place


def _table(*names: str) -> pa.Table:
    draws = np.random.default_rng(0)
    columns = [*(draws.normal(size=12) for _ in names), np.arange(12) % 3]
    return pa.Table.from_arrays([pa.array(c) for c in columns], names=[*names, "label"])


def _stored(folder: Path, **tables: pa.Table) -> DataSpec:
    for split, table in tables.items():
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=5)
    return DataSpec(source="table", path=folder)


def _refused(spec: DataSpec, said: str) -> None:
    for reading in (data.read, readers.test_rows):
        with pytest.raises(InvalidInput, match=said):
            reading(spec)


def test_features_in_another_order_than_those_of_training_are_refused(tmp_path):
    spec = _stored(tmp_path, train=_table("a", "b"), test=_table("b", "a"))
    _refused(spec, "the same columns in one order")


def test_inputs_of_another_shape_than_those_of_training_are_refused(tmp_path):
    short, long = (pa.table({"x": [[0.5] * n] * 9, "label": np.arange(9) % 3}) for n in (2, 3))
    _refused(_stored(tmp_path, train=long, test=short), "all inputs must have one shape")


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="a column must be there once"):
        readers.test_rows(_stored(tmp_path, test=_table("a", "b", "a")))


@pytest.mark.parametrize("labels", [np.arange(12) % 3, np.arange(8) % 3])
def test_labels_are_as_many_as_inputs(tmp_path, labels):
    np.save(tmp_path / "test-images.npy", np.zeros((10, 4), np.float32))
    np.save(tmp_path / "test-labels.npy", labels)
    _refused(DataSpec(source="arrays", path=tmp_path), "label.* input")


def test_an_array_without_rows_is_refused(tmp_path):
    np.save(tmp_path / "test-images.npy", np.float32(0.5))
    np.save(tmp_path / "test-labels.npy", np.arange(3))
    _refused(DataSpec(source="arrays", path=tmp_path), "an array must have rows")


def test_tensors_are_read_by_row_groups(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 1, 4, 5)).astype(np.uint8)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    spec = _stored(tmp_path, test=pa.table({"x": tensors, "label": np.arange(12) % 3}))
    reader = readers.test_rows(spec)
    assert isinstance(reader, readers.InFiles)
    found = np.concatenate([part.images for part in reader.between(0, 12, 4)])
    assert np.array_equal(found, data.read(spec).test.images)


def _tar(file: Path, labels: list[str], again: str | None = None) -> DataSpec:
    image = io.BytesIO()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(image, "PNG")
    entries = [(f"{k}.png", image.getvalue()) for k in range(len(labels))]
    entries += [(f"{k}.cls", label.encode()) for k, label in enumerate(labels)]
    entries += [] if again is None else [("0.cls", again.encode())]
    with tarfile.open(file, "w") as opened:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return DataSpec(source="webdataset", path=file.parent)


def test_labels_of_tar_files_are_texts_where_one_is_no_number(tmp_path):
    spec = _tar(tmp_path / "test.tar", ["0", "1", "cat", "0"])
    found = [part.labels.tolist() for part in readers.test_rows(spec).between(0, 4, 1)]
    assert found == [[0], [1], [2], [0]] and data.read(spec).test.labels.tolist() == [0, 1, 2, 0]


def test_a_key_of_a_tar_file_has_one_label(tmp_path):
    _refused(_tar(tmp_path / "test.tar", ["0", "1"], again="1"), "a key has one label")


def test_a_table_that_is_damaged_since_is_named(tmp_path):
    spec = _stored(tmp_path, test=_table("a", "b"))
    reader = readers.test_rows(spec)
    file = tmp_path / "test.parquet"
    content = bytearray(file.read_bytes())
    content[4:40] = bytes(36)
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"test\.parquet must be a table that can be read"):
        list(reader.between(0, 12, 4))
    file.unlink()
    with pytest.raises(InvalidInput, match=r"test\.parquet must be a table that can be read"):
        list(reader.between(0, 12, 4))


def test_rows_of_a_row_group_that_are_asked_for_in_order_are_read_once(tmp_path, monkeypatch):
    pq.write_table(_table("a", "b"), tmp_path / "test.parquet", row_group_size=12)
    reader = readers.test_rows(DataSpec(source="table", path=tmp_path))
    whole = data.read(reader.spec).test.images
    asked: list[object] = []
    own = row_groups.opened
    monkeypatch.setattr(row_groups, "opened", lambda file: asked.append(file) or own(file))
    parts = [part for first in (0, 3, 7) for part in reader.between(first, first + 3, 2)]
    assert len(asked) == 1
    assert np.array_equal(np.concatenate([p.images for p in parts]), whole[[*range(6), 7, 8, 9]])
    again = np.concatenate([part.images for part in reader.between(1, 12, 2)])
    assert np.array_equal(again, whole[1:]) and len(asked) == 2


def test_row_groups_that_are_others_since_are_refused(tmp_path):
    reader = readers.test_rows(_stored(tmp_path, test=_table("a", "b")))
    pq.write_table(_table("a", "b"), tmp_path / "test.parquet", row_group_size=4)
    with pytest.raises(InvalidInput, match=r"data must stay as it is, .*test\.parquet"):
        list(reader.between(5, 12, 4))


def test_arrays_that_have_become_shorter_are_refused(tmp_path):
    for name, array in (("images", np.zeros((12, 4), np.float32)), ("labels", np.arange(12) % 3)):
        np.save(tmp_path / f"test-{name}.npy", array)
    reader = readers.test_rows(DataSpec(source="arrays", path=tmp_path))
    for name, array in (("images", np.zeros((9, 4), np.float32)), ("labels", np.arange(9) % 3)):
        np.save(tmp_path / f"test-{name}.npy", array)
    with pytest.raises(InvalidInput, match="has 4 rows where 7 were, from row 5 on"):
        list(reader.between(5, 12, 4))


def test_labels_of_tar_files_that_are_no_numbers_any_more_are_refused(tmp_path):
    reader = readers.test_rows(_tar(tmp_path / "test.tar", ["0", "1"]))
    _tar(tmp_path / "test.tar", ["0", "cat"])
    with pytest.raises(InvalidInput, match="which were whole numbers, have 'cat' now"):
        list(pickle.loads(pickle.dumps(reader)).between(0, 2, 2))


def test_rows_of_arrays_on_a_store_are_asked_for_alone(monkeypatch):
    uri = f"memory://asked/{uuid.uuid4().hex}"
    there = place(uri).fs
    for name, array in (("images", np.ones((600, 9), np.float32)), ("labels", np.arange(600) % 3)):
        with there.open(f"{place(uri).path}/test-{name}.npy", "wb") as file:
            np.save(file, array)
    reader = readers.test_rows(DataSpec(source="arrays", path=uri))
    asked: list[tuple[str, int, int]] = []
    own = MemoryFileSystem.cat_file

    def cat_file(self, path, start=None, end=None, **more):
        asked.append((path, start, end))
        return own(self, path, start, end, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    list(reader.between(100, 300, 50))
    rows = [end - start for path, start, end in asked if "images" in path and start > 0]
    assert rows == [50 * 9 * 4] * 4


def test_hidden_folders_are_not_looked_into(tmp_path, monkeypatch):
    for name in ("ape", "bat", ".Trash-1000/ape"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / name / "0.png")
    own = os.scandir

    def scandir(path):
        assert ".Trash" not in str(path)
        return own(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert sources.detect(tmp_path) == "folder"
    spec = DataSpec(source="folder", path=tmp_path)
    assert [*sources.of(spec).class_names()] == ["ape", "bat"]


def test_whole_numbers_that_no_label_can_be_are_refused(tmp_path):
    np.save(tmp_path / "test-images.npy", np.zeros((2, 4), np.float32))
    np.save(tmp_path / "test-labels.npy", np.array([1, 2**63], np.uint64))
    _refused(DataSpec(source="arrays", path=tmp_path), r"a label must be below 2\^63")


def test_arrays_have_the_suffix_of_numpy_as_it_writes_it(tmp_path):
    np.save(tmp_path / "test-images.npy", np.zeros((2, 4), np.float32))
    np.save(tmp_path / "test-labels.npy", np.arange(2))
    (tmp_path / "X_TEST.NPY").write_bytes(b"no array")
    assert len(readers.test_rows(DataSpec(source="arrays", path=tmp_path))) == 2
