"""Bundles that someone has changed."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raycrt.evidence import archive

ROWS = "certificates/rows/000000000.parquet"


def files_of(bundle: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(bundle) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def rehashed(files: dict[str, bytes]) -> dict[str, bytes]:
    """`files` with an index that lists what is there."""
    index = json.loads(files["bundle.json"])
    index["files"] = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in files.items()
        if name != "bundle.json"
    }
    return {**files, "bundle.json": json.dumps(index).encode()}


def forged(bundle: Path, place: Path, **changed: bytes) -> Path:
    """A copy of `bundle` in `place` with files `changed`, which its index lists."""
    return stored(place, rehashed({**files_of(bundle), **changed}))


def stored(place: Path, files: dict[str, bytes]) -> Path:
    file = place / "forged.zip"
    file.write_bytes(archive.packed(files))
    return file


def rows_of(files: dict[str, bytes]) -> list[dict]:
    return pq.read_table(io.BytesIO(files[ROWS])).to_pylist()


def with_rows(files: dict[str, bytes], rows: list[dict]) -> bytes:
    schema = pq.read_schema(io.BytesIO(files[ROWS]))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return buffer.getvalue()
