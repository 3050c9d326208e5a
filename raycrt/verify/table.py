"""Stored certificates as arrays: the manifest, and the rows of one Parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycrt.errors import InvalidInput

# The versions of the format that are read here, see docs/certificates.md. Since 4 a class may be
# proved by the curvature matrix, since 5 radii may be infinite; the columns are those of 3.
VERSIONS = (3, 4, 5)
MANIFEST = "manifest.json"
ROWS = "rows"
STATUSES = ("certified", "constant", "non_finite_input", "non_finite_network", "tied", "no_radius")
_INTEGERS = ("index", "label", "prediction", "binding", "runner_up")
_FLOATS = ("radius", "radius_runner_up", "curvature", "region_radius")


class Malformed(ValueError):
    """A file does not hold what the format says; the message is a sentence."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows, arrays (n,); `witness_row` and `witness_class` (k,) say which row and class each
    `witness_point` (k, features) and `witness_curvature` (k,) belongs to."""

    index: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    radius: np.ndarray
    radius_runner_up: np.ndarray
    binding: np.ndarray
    runner_up: np.ndarray
    curvature: np.ndarray
    region_radius: np.ndarray
    status: np.ndarray
    witness_row: np.ndarray
    witness_class: np.ndarray
    witness_point: np.ndarray
    witness_curvature: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a certificates directory."""
    file = directory / MANIFEST
    if not file.is_file():
        raise InvalidInput(f"a certificates directory must hold {MANIFEST}, {directory} does not")
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise InvalidInput(f"{file} must be JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise InvalidInput(f"{file} must hold an object")
    return manifest


def row_files(directory: Path) -> list[Path]:
    """The Parquet files of a certificates directory, in order."""
    return sorted((directory / ROWS).glob("*.parquet"))


def read_rows(file: Path, features: int, at_once: int) -> Iterator[Rows]:
    """The rows of one file, `at_once` at a time; `Malformed` where the format is broken."""
    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise Malformed(f"the file cannot be read as Parquet: {error}") from None
    columns = {
        **dict.fromkeys(_INTEGERS, pa.int64()),
        **dict.fromkeys(_FLOATS, pa.float64()),
        "status": pa.string(),
        "witness_classes": pa.list_(pa.int64()),
        "witness_points": pa.list_(pa.float16()),
        "witness_curvatures": pa.list_(pa.float64()),
    }
    for name, kind in columns.items():
        if name not in table.column_names:
            raise Malformed(f"the column {name!r} is missing")
        if not table.schema.field(name).type.equals(kind):
            raise Malformed(f"the column {name!r} must be {kind}")
        if table.column(name).null_count:
            raise Malformed(f"the column {name!r} holds nulls")
    for start in range(0, len(table), at_once):
        yield _rows(table.slice(start, at_once), features)


def _rows(table: pa.Table, features: int) -> Rows:
    plain = {name: table.column(name).to_numpy() for name in (*_INTEGERS, *_FLOATS)}
    classes = table.column("witness_classes").combine_chunks()
    points = table.column("witness_points").combine_chunks()
    counts = classes.value_lengths().to_numpy()
    wrong = np.nonzero(points.value_lengths().to_numpy() != counts * features)[0]
    if len(wrong):
        raise Malformed(
            f"row {plain['index'][wrong[0]]} must hold {features} numbers for each witness class"
        )
    curvatures = table.column("witness_curvatures").combine_chunks()
    wrong = np.nonzero(curvatures.value_lengths().to_numpy() != counts)[0]
    if len(wrong):
        raise Malformed(
            f"row {plain['index'][wrong[0]]} must hold a curvature for each witness class"
        )
    flat_classes, flat_points = classes.flatten(), points.flatten()
    flat_curvatures = curvatures.flatten()
    if flat_classes.null_count or flat_points.null_count or flat_curvatures.null_count:
        raise Malformed("a witness holds nulls")
    return Rows(
        **plain,
        status=np.array(table.column("status").to_pylist()),
        witness_row=np.repeat(np.arange(len(table)), counts),
        witness_class=flat_classes.to_numpy(),
        witness_point=flat_points.to_numpy().reshape(-1, features),
        witness_curvature=flat_curvatures.to_numpy(),
    )
