"""Tables: Parquet or CSV files with images, lists of numbers, or a column for each feature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from raycrt.data.row_groups import RowGroups
from raycrt.data.sources.columns import Columns
from raycrt.data.sources.source import (
    Indexed,
    Rows,
    Source,
    files_with,
    of_splits,
    register,
)
from raycrt.errors import InvalidInput

_SUFFIXES = (".csv", ".parquet", ".pq")


@register("table", uses=("path", "input", "label", "key", "resize"))
class Table(Source):
    """A file, or a directory with `train.csv`, `test.parquet` and the like; several files of a
    split (`train-0.parquet`, `train-1.parquet`) are read in the order of their names.

    The input is a column with the bytes of image files or with lists of numbers, or else all
    columns but the label, which then are numbers and are left as they are.
    """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.suffix.lower() in _SUFFIXES or bool(files_with(path, _SUFFIXES))

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        return {split: partial(self._rows, files) for split, files in self._files().items()}

    def _files(self) -> dict[str, list[Path]]:
        """The files of each split."""
        return of_splits(self.path, _SUFFIXES)

    def parts(self, split: str) -> Iterator[Rows]:
        for file in self._files()[split]:
            first = 0
            for table in _tables(file, self.at_a_time):
                if len(table):
                    place = partial(_place, first, file)
                    yield Columns(table, self.options, str(file), place).rows()
                first += len(table)

    def indexed(self, split: str) -> Indexed | None:
        files = self._files()[split]
        if any(file.suffix.lower() == ".csv" for file in files):
            return None
        groups = RowGroups.of(files)

        def between(first: int, last: int, step: int) -> Iterator[Rows]:
            for start, file, table in groups.between(first, last, step):
                yield Columns(table, self.options, str(file), partial(_place, start, file)).rows()

        def labels() -> Iterator[Any]:
            label = Columns(groups.schema.empty_table(), self.options, str(files[0]), str).label
            for start, file, table in groups.between(0, groups.rows, self.at_a_time, [label]):
                place = partial(_place, start, file)
                yield Columns(table, self.options, str(file), place).labels()

        return Indexed(number=groups.rows, between=between, labels=labels)

    def _rows(self, files: Sequence[Path]) -> Rows:
        tables = [_read(file) for file in files]
        where = str(files[0]) if len(files) == 1 else f"{files[0]} and others"
        if len({tuple(table.column_names) for table in tables}) > 1:
            raise InvalidInput(f"files of one split must have the same columns, not so {where}")
        ends = np.cumsum([len(part) for part in tables])

        def place(row: int) -> str:
            file = int(np.searchsorted(ends, row, side="right"))
            return f"row {row - (int(ends[file - 1]) if file else 0)} of {files[file]}"

        table = pa.concat_tables(tables, promote_options="permissive")
        return Columns(table, self.options, where, place).rows()


def _place(first: int, file: Path, row: int) -> str:
    return f"row {first + row} of {file}"


def _tables(file: Path, rows: int) -> Iterator[pa.Table]:
    """The rows of a file in order, so many at a time; all at once of a CSV file, whose columns have
    the types of all their values."""
    if file.suffix.lower() == ".csv":
        yield _read(file)
        return
    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(rows):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(_unreadable(file, error)) from None


def _unreadable(file: Path, error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{file} must be a table that can be read: {said:.200}"


def _read(file: Path) -> pa.Table:
    try:
        table = csv.read_csv(file) if file.suffix.lower() == ".csv" else parquet.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(_unreadable(file, error)) from None
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise InvalidInput(f"a column must be there once, but {file} has two of {twice[0]!r}")
    return table
