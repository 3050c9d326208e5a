"""Shards of a table of certificates: each a file of consecutive rows, done by whoever is free.

A shard is read, certified and written by one process. Its file appears whole or not at all, under a
name that its rows determine, so that a shard which is done twice is the same file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raycrt.certification.certifier import Certifier
from raycrt.certification.table import storage
from raycrt.certification.table.journal import Journal
from raycrt.data import Arrays, Reader
from raycrt.errors import InvalidInput
from raycrt.system.places.outputs import replacing
from raycrt.system.places.storage import Place

# The number of shards, as far as none has more than so many rows or less than a batch.
_SHARDS, _ROWS = 250, 65_536


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The rows `first` .. `last` - 1."""

    first: int
    last: int

    def file(self, directory: Place) -> Place:
        """Its file in a certificates directory."""
        return directory / storage.ROWS / f"{self.first:09d}.parquet"


def rows_of_a_shard(rows: int, batch: int) -> int:
    """The number of rows of each of the shards of `rows` rows: whole batches."""
    return -(-min(max(rows // _SHARDS, 1), _ROWS) // batch) * batch


def shards(rows: int, size: int) -> list[Shard]:
    """The shards of `size` rows, the last one perhaps of fewer."""
    return [Shard(first=k, last=min(k + size, rows)) for k in range(0, rows, size)]


def is_written(shard: Shard, directory: Place) -> bool:
    """Whether the file of `shard` is there with all of its rows."""
    file = shard.file(directory)
    return file.is_file() and storage.rows_of(file) == shard.last - shard.first


def _is_of(shard: Shard, directory: Place, reader: Reader) -> bool:
    """Whether the first row in the file of `shard` is the one that `reader` has there now."""
    columns = ["index", "label", "input_sha256", "key"]
    with shard.file(directory).open("rb") as opened, pq.ParquetFile(opened) as rows:
        held = next(rows.iter_batches(1, columns=columns)).to_pylist()
    found = next(iter(reader.between(shard.first, shard.first + 1, 1)))
    now = {
        "index": shard.first,
        "label": int(found.labels[0]),
        "input_sha256": storage.input_sha256(found.images[0]),
        "key": "" if found.keys is None else str(found.keys[0]),
    }
    return held == [now]


def refuse_other_rows(
    kept: list[Shard], directory: Place, reader: Reader, *, stated: int | None
) -> None:
    """Raise `InvalidInput` where the data has changed since the shards `kept` were written: it has
    another number of rows than `stated` beside them, or another first row of one of them."""
    remedy = "the data of a run stays as it is; other data goes into another --out"
    if kept and stated != len(reader):
        raise InvalidInput(
            f"{directory} holds rows of a test split of {stated} rows, but it has {len(reader)} "
            f"now: {remedy}"
        )
    for shard in kept:
        if not _is_of(shard, directory, reader):
            raise InvalidInput(
                f"{shard.file(directory)} begins with another row than {shard.first} of the data "
                f"is now: {remedy}"
            )


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is told of a shard that was written: its number of `rows`, those `right`ly predicted,
    those `certified` at the first stated radius, the `sha256` of its file, and the rows `lost`."""

    first: int
    rows: int
    right: int
    certified: int
    sha256: str
    lost: tuple[int, ...] = ()


class ShardCertifier:
    """Certifies shards of the rows of `reader` into the certificates directory `out`.

    Rows are certified in batches of `batch` that begin at multiples of it, so that each row is
    computed by the same products however rows are shared out. Memory is that of a batch. `at` is
    the radius at which rows are counted.
    """

    def __init__(
        self, certifier: Certifier, reader: Reader, out: Place, *, batch: int, at: float
    ) -> None:
        self.certifier, self.reader, self.out = certifier, reader, out
        self.batch, self.at = batch, at

    def __call__(self, shard: Shard) -> Written:
        """Certify and write a shard. `InvalidInput` where a row cannot be read."""
        file = shard.file(self.out)
        journal = Journal.of(file)
        try:
            return self._written(file, shard, journal)
        except InvalidInput:
            # The process goes on.
            journal.end()
            raise

    def _written(self, file: Place, shard: Shard, journal: Journal) -> Written:
        rows = right = certified = 0
        with replacing(file) as partial:
            with pq.ParquetWriter(partial, storage.SCHEMA) as writer:
                for table in self._tables(shard, journal):
                    writer.write_table(table)
                    label, prediction, radius = (
                        table.column(name).to_numpy() for name in ("label", "prediction", "radius")
                    )
                    rows += len(table)
                    right += int((label == prediction).sum())
                    certified += int(((label == prediction) & (radius > self.at)).sum())
            with partial.open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
        journal.end()
        return Written(
            first=shard.first,
            rows=rows,
            right=right,
            certified=certified,
            sha256=digest,
            lost=journal.lost(shard.first, shard.last),
        )

    def _tables(self, shard: Shard, journal: Journal) -> Iterator[pa.Table]:
        if not journal.careful:
            first = shard.first
            for arrays in self.reader.between(shard.first, shard.last, self.batch):
                yield self._certified(arrays, first)
                first += len(arrays)
            return
        for first in range(shard.first, shard.last, self.batch):
            last = min(first + self.batch, shard.last)
            for start, stop in journal.steps(first, last):
                yield self._certified(self._read(start, stop), start)

    def _read(self, first: int, last: int) -> Arrays:
        return next(iter(self.reader.between(first, last, last - first)))

    def _certified(self, arrays: Arrays, first: int) -> pa.Table:
        images = torch.from_numpy(np.ascontiguousarray(arrays.images)).to(self.certifier.device)
        found = self.certifier(images)
        return storage.to_table(found, first, arrays.labels, arrays.images, arrays.keys)
