"""Sources that are read some rows at a time: the same rows, never all of them in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from pyarrow import csv

from raycrt.data import sources
from raycrt.data.formats import typed_csv
from raycrt.data.parts import streaming
from raycrt.data.sources.source import Source
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec

ROWS = 60_000
COLUMNS = {
    "whole": lambda k: str(2**53 + 1 + k),
    "float at the end": lambda k: "0.1" if k == ROWS - 1 else str(2**53 + 1 + k),
    "empty at first": lambda k: "" if k < ROWS - 9 else f"{k}.5",
    "text at the end": lambda k: "no" if k == ROWS - 1 else str(k % 2),
    "Booleans at the end": lambda k: "true" if k == ROWS - 1 else str(k % 2),
    "dates": lambda k: "" if k < ROWS - 9 else "2026-01-01",
    "labels": lambda k: "ape" if k % 2 else "bat",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV file of several blocks, whose columns change type in the last one."""
    file = tmp_path_factory.mktemp("csv") / "train.csv"
    lines = (",".join(make(k) for make in COLUMNS.values()) for k in range(ROWS))
    file.write_text("\n".join([",".join(COLUMNS), *lines]))
    return file


def test_columns_of_a_csv_file_have_the_types_of_all_their_values(table):
    whole = csv.read_csv(table)
    assert typed_csv.schema(table) == whole.schema
    first = 0
    for part in typed_csv.tables(table, whole.schema):
        assert part.equals(whole.slice(first, len(part)))
        assert len(part) < ROWS / 2
        first += len(part)
    assert first == ROWS


def test_features_of_a_csv_file_are_those_of_the_whole(table):
    names = tuple(COLUMNS)[:2]
    source = sources.of(DataSpec(source="table", path=table, input=names, label="labels"))
    whole, parts = source.splits()["train"](), [*source.parts("train")]
    assert len(parts) > 2
    assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs)
    assert [label for part in parts for label in part.labels] == whole.labels
    assert parts[-1].place(len(parts[-1].labels) - 1) == f"row {ROWS - 1} of {table}"


def test_files_of_a_split_have_the_types_of_all_of_them(tmp_path):
    odd = 2**24 + 2**53 + 1
    (tmp_path / "train-0.csv").write_text(f"x,label\n{odd},0\n3,1\n")
    (tmp_path / "train-1.csv").write_text("x,label\n0.5,0\n4,1.0\n")
    source = sources.of(DataSpec(source="table", path=tmp_path))
    for read in (source.splits()["train"], lambda: list(source.parts("train"))):
        with pytest.raises(InvalidInput, match="must have types in common"):
            read()
    (tmp_path / "train-0.csv").write_text("x,label\n2,0\n3,1\n")
    parts = list(source.parts("train"))
    assert [type(label) for part in parts for label in part.labels] == [float] * 4


KINDS = {"deflated": np.savez_compressed, "stored": np.savez}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_an_npz_file_are_those_of_the_whole(kind, order, tmp_path, monkeypatch):
    monkeypatch.setattr(Source, "at_a_time", 7)
    x = np.asarray(np.random.default_rng(0).random((30, 4, 6)), order=order)
    KINDS[kind](tmp_path / "set.npz", x=x, y=np.arange(30) % 2)
    source = sources.of(DataSpec(source="arrays", path=tmp_path / "set.npz"))
    parts = [*source.parts("train")]
    assert [len(part.inputs) for part in parts] == [7, 7, 7, 7, 2]
    assert np.array_equal(
        np.concatenate([part.inputs for part in parts]), source.splits()["train"]().inputs
    )
    assert parts[-1].place(1).startswith("row 29 of 'x'")


@pytest.mark.parametrize("kind", KINDS)
def test_an_npz_file_is_never_in_memory_as_a_whole(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(Source, "at_a_time", 100)
    x = np.zeros((10_000, 1, 20, 20), np.uint8)
    KINDS[kind](tmp_path / "set.npz", x=x, y=np.arange(10_000) % 2)
    assert _peak(DataSpec(source="arrays", path=tmp_path / "set.npz")) < x.nbytes / 2


def test_a_memory_map_of_a_function_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(Source, "at_a_time", 100)
    np.save(tmp_path / "x.npy", np.zeros((10_000, 400), np.float32))
    (tmp_path / "mapped_rows.py").write_text(
        "import numpy as np\n"
        f"x = np.load({str(tmp_path / 'x.npy')!r}, mmap_mode='r')\n"
        "def load():\n    return {'train': (x, np.arange(10_000) % 2)}\n"
    )
    spec = DataSpec(source="mapped_rows:load", path=tmp_path)
    assert _peak(spec) < 10_000 * 400 * 4 / 2


def _peak(spec: DataSpec) -> int:
    """The most bytes that reading a data set in parts takes at a time."""
    streaming.survey(spec.model_copy(update={"limit": 10}))  # Imports what it needs.
    tracemalloc.start()
    try:
        streaming.survey(spec)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rows", [29, 31])
def test_another_number_of_labels_is_refused(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(Source, "at_a_time", 10)
    np.savez(tmp_path / "set.npz", x=np.zeros((30, 4)), y=np.arange(rows) % 2)
    (tmp_path / f"rows_{rows}.py").write_text(
        "import numpy as np\n"
        f"def load():\n    return {{'train': (np.zeros((30, 4)), np.arange({rows}) % 2)}}\n"
    )
    for spec in (
        DataSpec(source="arrays", path=tmp_path / "set.npz"),
        DataSpec(source=f"rows_{rows}:load", path=tmp_path),
    ):
        with pytest.raises(InvalidInput, match="label"):
            streaming.survey(spec)


def test_a_changed_byte_of_an_npz_file_is_noticed(tmp_path):
    file = tmp_path / "set.npz"
    np.savez(file, x=np.ones((30, 4)), y=np.arange(30) % 2)
    content = bytearray(file.read_bytes())
    content[content.index(np.ones(4).tobytes()) + 6] ^= 1
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match="whole file of numpy arrays"):
        streaming.survey(DataSpec(source="arrays", path=file))
