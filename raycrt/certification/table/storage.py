"""Certificates on disk: a directory of Parquet files with one row per image, and a manifest.

The columns are a public format (docs/certificates.md), versioned by `SCHEMA_VERSION`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raycrt.certification.certificate import Certificates, Status
from raycrt.errors import InvalidInput, require
from raycrt.system.places.outputs import write_atomically
from raycrt.system.places.storage import Place

SCHEMA_VERSION = 8
MANIFEST = "manifest.json"
ROWS = "rows"
_KEY_BYTES = 1024
# Rows that are read at a time.
_AT_ONCE = 65_536
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("label", pa.int64()),
        ("prediction", pa.int64()),
        ("radius", pa.float64()),
        ("radius_runner_up", pa.float64()),
        ("binding", pa.int64()),
        ("runner_up", pa.int64()),
        ("curvature", pa.float64()),
        ("status", pa.string()),
        ("witness_classes", pa.list_(pa.int64())),
        ("witness_points", pa.list_(pa.float16())),
        ("witness_curvatures", pa.list_(pa.float64())),
        ("region_radius", pa.float64()),
        ("enclosure_radius", pa.float64()),
        ("input_sha256", pa.binary(32)),
        ("key", pa.string()),
    ]
)


def to_table(
    certificates: Certificates,
    first: int,
    labels: np.ndarray,
    images: np.ndarray,
    keys: np.ndarray | None = None,
) -> pa.Table:
    """The table rows of consecutive `images` (n, ...) float32, as they were certified, numbered
    from `first`; `keys` are the names of the rows in their source, if it has some."""
    witnesses = certificates.witnesses
    counts = torch.bincount(witnesses.row, minlength=len(certificates)).numpy(force=True)
    ends = np.concatenate([[0], counts.cumsum()])
    features = witnesses.point.shape[1]
    points = pa.array(witnesses.point.numpy(force=True).ravel(), pa.float16())
    return pa.table(
        {
            "index": np.arange(first, first + len(certificates)),
            "label": labels.astype(np.int64),
            "prediction": certificates.prediction.numpy(force=True),
            "radius": certificates.radius.numpy(force=True),
            "radius_runner_up": certificates.radius_runner_up.numpy(force=True),
            "binding": certificates.binding.numpy(force=True),
            "runner_up": certificates.runner_up.numpy(force=True),
            "curvature": certificates.curvature.numpy(force=True),
            "status": [Status(int(s)).name.lower() for s in certificates.status],
            "witness_classes": pa.ListArray.from_arrays(
                pa.array(ends, pa.int32()), pa.array(witnesses.target.numpy(force=True))
            ),
            "witness_points": pa.ListArray.from_arrays(
                pa.array(ends * features, pa.int32()), points
            ),
            "witness_curvatures": pa.ListArray.from_arrays(
                pa.array(ends, pa.int32()), pa.array(witnesses.curvature.numpy(force=True))
            ),
            "region_radius": certificates.region_radius.numpy(force=True),
            "enclosure_radius": certificates.enclosure_radius.numpy(force=True),
            "input_sha256": [input_sha256(image) for image in images],
            "key": [""] * len(certificates) if keys is None else [_key(key) for key in keys],
        },
        schema=SCHEMA,
    )


def _key(key: str) -> str:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"the key of a row is text in UTF-8, but one is {key!r}") from None
    require(size <= _KEY_BYTES, f"the key of a row has at most {_KEY_BYTES} bytes", bytes=size)
    return key


def input_sha256(image: np.ndarray) -> bytes:
    """SHA-256 of the numbers of an input as little-endian float32, the last axis fastest."""
    return hashlib.sha256(np.ascontiguousarray(image, "<f4").tobytes()).digest()


def read(directory: Place) -> tuple[pa.Table, dict[str, Any]]:
    """The rows, sorted by index, and the manifest; raises if rows are missing or duplicated."""
    manifest = read_manifest(directory)
    table = read_rows(directory)
    check_complete(table, manifest["rows"])
    return table, manifest


def read_manifest(directory: Place) -> dict[str, Any]:
    """The manifest, which holds what all rows share; `InvalidInput` where it is not whole."""
    file = directory / MANIFEST
    if not file.is_file():
        raise InvalidInput(
            f"a certificates directory must hold {MANIFEST}, {directory} does not; "
            f"`raycrt certify --out {directory.parent}` makes it of the model there"
        )
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} must be JSON: {str(error)[:200]}") from None
    if not isinstance(manifest, dict):
        raise InvalidInput(f"{file} must hold an object")
    return manifest


def read_rows(directory: Place, columns: tuple[str, ...] = tuple(SCHEMA.names)) -> pa.Table:
    """The `columns` of all rows written so far, sorted by index."""
    files = row_files(directory)
    if not files:
        return SCHEMA.empty_table().select(columns)
    return pa.concat_tables(_read(file, columns) for file in files).sort_by("index")


def _read(file: Place, columns: tuple[str, ...]) -> pa.Table:
    with file.open("rb") as opened:
        return pq.read_table(opened, schema=SCHEMA, columns=list(columns))


def row_files(directory: Place) -> list[Place]:
    """The row files of a certificates directory, in order, without the hidden, unfinished files of
    a writer that died. Raises `InvalidInput` if the folder holds anything else that another reader
    might take for rows."""
    folder = directory / ROWS
    found: list[Place] = list(folder.iterdir()) if folder.is_dir() else []
    found.sort(key=str)
    files = [file for file in found if not file.name.startswith(".")]
    for file in files:
        plain = file.is_file() and not file.is_symlink() and file.name.isprintable()
        named = file.name.endswith(".parquet") and not file.name.startswith("_")
        require(plain and named, f"{ROWS} holds plain .parquet files alone", found=str(file))
    return files


def check_complete(table: pa.Table, rows: int) -> None:
    """Raise unless `table` holds each of the indices 0 .. rows - 1 exactly once."""
    index = table.column("index").to_numpy()
    require(len(index) == rows, "as many certificates as images", got=len(index), images=rows)
    require(
        bool((index == np.arange(rows)).all()),
        "each index 0 .. n - 1 exactly once",
        unique=len(np.unique(index)),
        images=rows,
    )


def write_rows(file: Place, table: pa.Table) -> None:
    """Write rows atomically as one Parquet file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    write_atomically(file, buffer.getvalue().to_pybytes())


def write_manifest(directory: Place, content: Mapping[str, Any]) -> None:
    text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=2)
    write_atomically(directory / MANIFEST, text.encode())


def count(directory: Place) -> int:
    """The number of rows written so far, as the files state it."""
    return sum(map(rows_of, row_files(directory)))


def rows_of(file: Place) -> int:
    """The number of rows that a file states; `InvalidInput` where it is not whole."""
    try:
        with file.open("rb") as opened:
            return int(pq.read_metadata(opened).num_rows)
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(
            f"{file} must be whole, or be removed to have its rows certified again: {said:.200}"
        ) from None


def statuses(directory: Place) -> Counter[str]:
    """The number of rows written so far with each status."""
    found: Counter[str] = Counter()
    for table in batches(directory, ("status",)):
        found.update(table.column("status").to_pylist())
    return found


def batches(directory: Place, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The `columns` of all rows written so far, some rows at a time, in the order of the files."""
    for file in row_files(directory):
        with file.open("rb") as opened, pq.ParquetFile(opened) as parquet:
            for batch in parquet.iter_batches(_AT_ONCE, columns=list(columns)):
                yield pa.Table.from_batches([batch])


def remarks(counts: Counter[str]) -> list[str]:
    """One line per occurring status other than CERTIFIED: its number of rows and its meaning."""
    others = [status for status in Status if status is not Status.CERTIFIED]
    named = [(counts[status.name.lower()], status.sentence) for status in others]
    return [f"{n} of {counts.total()} rows: {sentence}" for n, sentence in named if n]
