"""The names of rows in their source, and tar files, whose members have names."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from raycrt import data
from raycrt.cli.data import named
from raycrt.errors import InvalidInput
from raycrt.specs import Spec, validate
from tests.data.stores import png


def _table(directory: Path, **options: object) -> Spec:
    columns = {"a": [0.5, 1, 2], "b": [3.0, 4, 5], "id": [7, 8, 9], "label": ["x", "y", "x"]}
    parquet.write_table(pa.table(columns), directory / "test.parquet")
    return validate({"data": {"source": "table", "path": str(directory), **options}})


def test_a_column_names_the_rows_and_is_no_feature(tmp_path):
    described = data.described(_table(tmp_path, key="id"))
    assert described.data.shape == (2,)
    assert data.read(described.data).test.keys.tolist() == ["7", "8", "9"]
    assert data.read(_table(tmp_path).data).test.keys is None
    assert data.described(_table(tmp_path)).data.shape == (3,)


def test_a_key_that_is_no_column_is_refused(tmp_path):
    for read in (data.read, data.test_rows):
        with pytest.raises(
            InvalidInput, match=r"data\.key must name a column, but .* has no 'name'"
        ):
            read(_table(tmp_path, key="name", shape=[3]).data)


def _tar(file: Path, members: dict[str, bytes], mode: str = "w") -> Spec:
    with tarfile.open(file, mode) as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return validate({"data": {"source": "webdataset", "path": str(file.parent)}})


@pytest.fixture
def images() -> dict[str, bytes]:
    """Three images of the classes 2, 10 and 1, under names in the order of the file."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    found = {}
    for name, image, label in zip("cab", pixels, (2, 10, 1), strict=True):
        found |= {f"{name}.cls": f"{label}\n".encode(), f"{name}.PNG": png(image)}
    return found


def test_numbers_in_tar_files_are_in_the_order_of_numbers(tmp_path, images):
    described = data.described(_tar(tmp_path / "test-0.tar", images)).data
    assert described.class_names == ("1", "2", "10")
    test = data.read(described).test
    assert test.labels.tolist() == [1, 2, 0]
    assert test.keys.tolist() == [f"test-0.tar/{name}" for name in "cab"]


@pytest.mark.parametrize(
    ("change", "mode", "said"),
    [
        ({"d.png": b""}, "w", "each image has a label, but d in .* has no cls"),
        ({"a.jpg": b""}, "w", "a key has one image, but a in .* has two"),
        ({}, "w:gz", "must be a tar file that is not compressed"),
        ({"c.cls": b"\xff"}, "w", "must be a tar file"),
    ],
)
def test_tar_files_that_are_not_as_they_must_be_are_named(tmp_path, images, change, mode, said):
    spec = _tar(tmp_path / "test-0.tar", {**images, **change}, mode)
    for read in (data.read, data.test_rows):
        with pytest.raises(InvalidInput, match=said):
            read(spec.data)


def test_a_uri_of_data_has_no_credentials_and_is_for_sources_alone():
    stated = validate({"data": {"source": "folder", "path": "s3://bucket/photos"}})
    assert stated.data.path == "s3://bucket/photos" and stated.data.title == "folder photos"
    for secret in ("s3://key:secret@bucket/photos", "s3://bucket/photos?token=secret"):
        with pytest.raises(InvalidInput, match="must hold no credentials") as raised:
            validate({"data": {"source": "folder", "path": secret}})
        assert "secret" not in str(raised.value)
        with pytest.raises(InvalidInput, match="must hold no credentials"):
            named(secret)
    with pytest.raises(InvalidInput, match="must be a path: this data is read from a disk"):
        validate({"data": {"name": "mnist", "directory": "s3://bucket/mnist"}})
    with pytest.raises(InvalidInput, match="a URI must be given as text"):
        validate({"data": {"source": "folder", "path": Path("s3://bucket/photos")}})
    with pytest.raises(InvalidInput, match=r"data\.path must exist"):
        named("memory://nothing/here")
