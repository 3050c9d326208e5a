"""Stored certificates as arrays: the manifest, and the rows of one Parquet file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycrt.errors import InvalidInput, require
from raycrt.specs import Place
from raycrt.verify.pages import Footer

# The versions of the format that are read here, see docs/certificates.md. From 4 on a class may be
# proved from the curvature matrix, from 5 on radii may be infinite, from 6 on each row has the hash
# of its input, from 7 on its key in the source of the data, and from 8 on the ball of an enclosure.
VERSIONS = (3, 4, 5, 6, 7, 8)
WITHOUT_HASHES = (3, 4, 5)
WITHOUT_KEYS = (*WITHOUT_HASHES, 6)
WITHOUT_ENCLOSURES = (*WITHOUT_KEYS, 7)
MANIFEST = "manifest.json"
ROWS = "rows"
STATUSES = ("certified", "constant", "non_finite_input", "non_finite_network", "tied", "no_radius")
_INTEGERS = ("index", "label", "prediction", "binding", "runner_up")
_FLOATS = ("radius", "radius_runner_up", "curvature", "region_radius")
_COLUMNS = {
    **dict.fromkeys(_INTEGERS, pa.int64()),
    **dict.fromkeys(_FLOATS, pa.float64()),
    "status": pa.string(),
    "witness_classes": pa.list_(pa.int64()),
    "witness_points": pa.list_(pa.float16()),
    "witness_curvatures": pa.list_(pa.float64()),
}
_HASH = {"input_sha256": pa.binary(32)}
_KEY = {"key": pa.string()}
_ENCLOSURE = {"enclosure_radius": pa.float64()}
# Most bytes of a key.
_KEY_BYTES = 1024
# A manifest of 1,000 classes has some 20 MB.
_JSON_BYTES = 2**26
# Most bytes of a value, which is a number or a status, and most further bytes of a column.
_BYTES, _BESIDE = 64, 2**16
# Files beside the rows: those of the format, and those that name the writer and mark its end.
_BESIDE_ROWS = (MANIFEST, "spec.yaml", "driver", ".driver.lock", ".finished")
# Left behind by a writer that died: a hidden name that no reader takes for rows.
_PARTIAL = re.compile(r"\..*\.partial")


class Malformed(ValueError):
    """A file violates the format; the message is a sentence."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows as arrays (n,); `witness_row` and `witness_class` (k,) give the row and class of each
    `witness_point` (k, features) and `witness_curvature` (k,). `input_sha256` holds bytes and `key`
    texts; None in versions without them. `enclosure_radius` is 0 where there is no enclosure."""

    index: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    radius: np.ndarray
    radius_runner_up: np.ndarray
    binding: np.ndarray
    runner_up: np.ndarray
    curvature: np.ndarray
    region_radius: np.ndarray
    enclosure_radius: np.ndarray
    status: np.ndarray
    witness_row: np.ndarray
    witness_class: np.ndarray
    witness_point: np.ndarray
    witness_curvature: np.ndarray
    input_sha256: np.ndarray | None = None
    key: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)


def read_manifest(directory: Place) -> dict[str, Any]:
    """The manifest of a certificates directory; `InvalidInput` if missing, large or malformed."""
    file = directory / MANIFEST
    if not file.is_file():
        raise InvalidInput(
            f"a certificates directory must hold {MANIFEST}, {directory} does not; "
            f"`raycrt certify --out {directory.parent}` makes it of the model there"
        )
    return read_json(file)


def read_json(file: Place) -> dict[str, Any]:
    """The object in a file of JSON; `InvalidInput` if it is large or malformed."""
    size = file.stat().st_size
    require(size <= _JSON_BYTES, f"{file.name} <= {_JSON_BYTES} bytes", bytes=size)
    try:
        found = json.loads(file.read_text("utf-8"), object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} must be JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{file} must hold an object")
    return found


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object with distinct keys: readers differ in which of two equal keys counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key occurs twice among {[key for key, _ in pairs][:9]}")
    return found


def row_files(directory: Place) -> list[Place]:
    """The Parquet files of a certificates directory, in order."""
    return sorted((file for file in _entries(directory / ROWS) if _is_rows(file)), key=str)


def unexpected_entries(directory: Place) -> list[Place]:
    """Entries of a certificates directory that are not part of the format, which another reader may
    take for rows. Unfinished files, and the markers and locks of a run, are left out."""
    beside = [entry for entry in _entries(directory) if not _is_known(entry)]
    among = [e for e in _entries(directory / ROWS) if not (_is_rows(e) or _is_partial(e))]
    return sorted(beside + among, key=str)


def _entries(directory: Place) -> list[Place]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _is_plain(entry: Place) -> bool:
    """Whether `entry` is a file itself, not a link to one."""
    return entry.is_file() and not entry.is_symlink()


def _is_rows(entry: Place) -> bool:
    named = entry.name.endswith(".parquet") and not entry.name.startswith((".", "_"))
    return named and entry.name.isprintable() and _is_plain(entry)


def _is_partial(entry: Place) -> bool:
    return bool(_PARTIAL.fullmatch(entry.name)) and _is_plain(entry)


def _is_known(entry: Place) -> bool:
    if entry.name == ROWS:
        return entry.is_dir() and not entry.is_symlink()
    return (entry.name in _BESIDE_ROWS and _is_plain(entry)) or _is_partial(entry)


def count_rows(file: Place) -> int:
    """The number of rows that a file's footer states; `Malformed` where it has none."""
    with _readable():
        return Footer.read(file).rows


def read_rows(
    file: Place, features: int, classes: int, at_once: int, *, version: int = VERSIONS[-1]
) -> Iterator[Rows]:
    """The rows of one file, `at_once` at a time; `Malformed` where the format is broken.

    `version` is that of the format.

    Memory is bounded by `at_once`, whatever the file states: more numbers than those of a witness
    for each class of a row are refused before they are unpacked.
    """
    with _readable():
        _check_sizes(file, features, classes)
        with file.open("rb") as opened, pq.ParquetFile(opened) as parquet:
            columns = _COLUMNS | (_HASH if version not in WITHOUT_HASHES else {})
            columns |= _KEY if version not in WITHOUT_KEYS else {}
            columns |= _ENCLOSURE if version not in WITHOUT_ENCLOSURES else {}
            _check_columns(parquet.schema_arrow, columns)
            for batch in parquet.iter_batches(at_once, columns=list(columns)):
                yield _rows(pa.Table.from_batches([batch]), features)


@contextmanager
def _readable() -> Iterator[None]:
    """Raise `Malformed` for any error in reading a malformed file."""
    try:
        yield
    except Malformed:
        raise
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        message = " ".join(str(error).split())[:200]
        raise Malformed(f"the file cannot be read as Parquet: {message}") from None


def _check_columns(schema: pa.Schema, columns: dict[str, pa.DataType]) -> None:
    for name, kind in columns.items():
        if name not in schema.names:
            raise Malformed(f"the column {name!r} is missing")
        if schema.names.count(name) > 1:
            raise Malformed(f"the column {name!r} occurs twice")
        if not schema.field(name).type.equals(kind):
            raise Malformed(f"the column {name!r} must be {kind}")
    more = [name for name in schema.names if name not in columns]
    if more:
        raise Malformed(f"the column {more[0]!r} does not belong to the format")


def _check_sizes(file: Place, features: int, classes: int) -> None:
    """Refuse lists of more numbers than rows can have, and text longer than a status, according to
    the footer and to the pages themselves, which the footer may misstate."""
    most = {"witness_classes": classes, "witness_curvatures": classes}
    most["witness_points"] = classes * features
    for column in Footer.read(file).columns:
        numbers, size = column.unpacked(file)
        holds = f"the column {column.name!r} holds"
        if numbers != column.numbers:
            raise Malformed(f"{holds} {numbers} numbers, but its footer states {column.numbers}")
        # An empty list counts as a number too.
        if numbers > column.rows * max(1, most.get(column.name, 1)):
            raise Malformed(f"{holds} {numbers} numbers, too many")
        if size > _BESIDE + (_KEY_BYTES if column.name in _KEY else 0) * numbers + _BYTES * numbers:
            raise Malformed(f"{holds} {size} bytes, too many")


def _rows(table: pa.Table, features: int) -> Rows:
    for name in table.column_names:
        if table.column(name).null_count:
            raise Malformed(f"the column {name!r} holds nulls")
    plain = {name: table.column(name).to_numpy() for name in (*_INTEGERS, *_FLOATS)}
    for name in _ENCLOSURE:
        given = name in table.column_names
        plain[name] = table.column(name).to_numpy() if given else np.zeros(len(table))
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
    texts = {
        name: np.array(table.column(name).to_pylist(), object)
        for name in table.column_names
        if name in _HASH | _KEY
    }
    if flat_classes.null_count or flat_points.null_count or flat_curvatures.null_count:
        raise Malformed("a witness holds nulls")
    return Rows(
        **plain,
        # Fixed-width text arrays would drop zero bytes at the end.
        status=np.array(table.column("status").to_pylist(), dtype=object),
        witness_row=np.repeat(np.arange(len(table)), counts),
        witness_class=flat_classes.to_numpy(),
        witness_point=flat_points.to_numpy().reshape(-1, features),
        witness_curvature=flat_curvatures.to_numpy(),
        **texts,
    )
