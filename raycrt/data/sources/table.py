"""Tables: Parquet or CSV files with images, lists of numbers, or a column for each feature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from raycrt.data.formats import typed_csv
from raycrt.data.formats.row_groups import RowGroups, readable
from raycrt.data.sources.columns import Columns, label_among
from raycrt.data.sources.source import (
    Indexed,
    Rows,
    Source,
    files_with,
    of_splits,
    register,
)
from raycrt.errors import InvalidInput
from raycrt.system.places.storage import Place

_SUFFIXES = (".csv", ".parquet", ".pq")


@register("table", uses=("path", "input", "label", "key", "resize"))
class Table(Source):
    """A file, or a directory with `train.csv`, `test.parquet` and the like; several files of a
    split (`train-0.parquet`, `train-1.parquet`) are read in the order of their names.

    The input is a column with the bytes of image files or with lists of numbers, or else all
    columns but the label, which then are numbers and are left as they are.
    """

    @classmethod
    def recognises(cls, path: Place) -> bool:
        return path.suffix.lower() in _SUFFIXES or bool(files_with(path, _SUFFIXES))

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        return {split: partial(self._rows, files) for split, files in self._files().items()}

    def _files(self) -> dict[str, list[Place]]:
        """The files of each split."""
        return of_splits(self.path, _SUFFIXES)

    def parts(self, split: str) -> Iterator[Rows]:
        files = self._files()[split]
        schemas = [_schema(file) for file in files]
        # Numbers have the types that they have in all files together.
        shared = _concatenated([_empty(schema) for schema in schemas], files)
        for file, schema in zip(files, schemas, strict=True):
            first = 0
            for table in _tables(file, schema, self.at_a_time):
                if len(table):
                    place = partial(_place, first, file)
                    table = _concatenated([shared, table], files)
                    yield Columns(table, self.options, str(file), place).rows()
                first += len(table)

    def indexed(self, split: str) -> Indexed | None:
        files = self._files()[split]
        if any(file.suffix.lower() == ".csv" for file in files):
            return None
        groups = RowGroups.of(files)
        if groups is None:
            return None
        _once(groups.schema, files[0])
        return Indexed(
            number=groups.rows,
            between=partial(self._between, groups),
            labels=partial(self._labels, groups, files[0]),
        )

    def _between(self, groups: RowGroups, first: int, last: int, step: int) -> Iterator[Rows]:
        for start, file, table in groups.between(first, last, step):
            yield Columns(table, self.options, str(file), partial(_place, start, file)).rows()

    def _labels(self, groups: RowGroups, file: Place) -> Iterator[list[Any]]:
        label = label_among(groups.schema.names, self.options.label, str(file))
        for start, file, table in groups.between(0, groups.rows, self.at_a_time, [label]):
            place = partial(_place, start, file)
            yield Columns(table, self.options, str(file), place).labels()

    def label(self) -> str:
        file = next(iter(self._files().values()))[0]
        with readable(file) as content:
            found = typed_csv.names(file) if _is_csv(file) else parquet.read_schema(content).names
        return label_among(found, self.options.label, str(file))

    def features(self) -> tuple[str, ...]:
        file = next(iter(self._files().values()))[0]
        table = _empty(_schema(file))
        return Columns(table, self.options, str(file), partial(_place, 0, file)).features

    def _rows(self, files: Sequence[Place]) -> Rows:
        tables = [_read(file) for file in files]
        ends = np.cumsum([len(part) for part in tables])

        def place(row: int) -> str:
            file = int(np.searchsorted(ends, row, side="right"))
            return f"row {row - (int(ends[file - 1]) if file else 0)} of {files[file]}"

        return Columns(_concatenated(tables, files), self.options, _where(files), place).rows()


def _place(first: int, file: Place, row: int) -> str:
    return f"row {first + row} of {file}"


def _where(files: Sequence[Place]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and others"


def _concatenated(tables: Sequence[pa.Table], files: Sequence[Place]) -> pa.Table:
    """The tables of the `files` of one split as one."""
    if len({tuple(table.column_names) for table in tables}) > 1:
        raise InvalidInput(f"files of one split must have the same columns, not so {_where(files)}")
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        said = " ".join(str(error).split())
        raise InvalidInput(
            "columns of the files of one split must have types in common, not so "
            f"{_where(files)}: {said:.200}"
        ) from None


def _is_csv(file: Place) -> bool:
    return file.suffix.lower() == ".csv"


def _schema(file: Place) -> pa.Schema:
    """The columns of a file with their types; none of them twice."""
    with readable(file) as content:
        found = typed_csv.schema(file) if _is_csv(file) else parquet.read_schema(content)
    return _once(found, file)


def _tables(file: Place, schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """The rows of a file of this `schema` in order, so many or a block at a time."""
    with readable(file) as content:
        if _is_csv(file):
            yield from typed_csv.tables(file, schema)
            return
        with parquet.ParquetFile(content) as parts:
            for batch in parts.iter_batches(rows):
                yield pa.Table.from_batches([batch])


def _read(file: Place) -> pa.Table:
    with readable(file) as content:
        table = csv.read_csv(content) if _is_csv(file) else parquet.read_table(content)
    _once(table.schema, file)
    return table


def _empty(schema: pa.Schema) -> pa.Table:
    """A table without rows; pyarrow's own cannot have tensors."""
    return pa.Table.from_arrays(
        [pa.chunked_array([], kind) for kind in schema.types], schema=schema
    )


def _once(schema: pa.Schema, file: Place) -> pa.Schema:
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise InvalidInput(f"a column must be there once, but {file} has two of {twice[0]!r}")
    return schema
