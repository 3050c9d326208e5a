"""CSV files read some rows at a time, with the types that their columns have as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pyarrow as pa
from pyarrow import csv

from raycrt.system.places.reading import opened
from raycrt.system.places.storage import Place

# An integer is a float too, so that a column of both is one of floats. What else a column may be is
# decided by all of its values.
_WIDER = {pa.null(): pa.int64(), pa.int64(): pa.float64()}
_COLUMN = re.compile(r"In CSV column #(\d+)")


def schema(file: Place) -> pa.Schema:
    """The types that `csv.read_csv(file)` finds, which never holds more than a column of text.

    A type is that of the first block, made wider where a later one does not fit. Raises
    `ArrowException` as `read_csv` does.
    """
    types: dict[str, pa.DataType] = {}
    while True:
        with _reader(file, types) as reader:
            found: pa.Schema = reader.schema
            try:
                for _ in reader:
                    pass
            except pa.ArrowInvalid as error:
                column = _COLUMN.search(str(error))
                if column is None:
                    raise
                field = found.field(int(column[1]))
                wider = _WIDER.get(field.type) or _of_all(file, field.name)
                if wider == field.type:
                    raise
                types[field.name] = wider
                continue
        return found


def names(file: Place) -> list[str]:
    """The names of the columns."""
    with _reader(file, {}) as reader:
        return list(reader.schema.names)


def tables(file: Place, types: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a file in order, a block at a time, with the `types` of its `schema`."""
    with _reader(file, dict(zip(types.names, types.types, strict=True))) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


@contextmanager
def _reader(file: Place, types: dict[str, pa.DataType]) -> Iterator[csv.CSVStreamingReader]:
    stated = csv.ConvertOptions(column_types=types)
    with opened(file) as content, closing(csv.open_csv(content, convert_options=stated)) as reader:
        yield reader


def _of_all(file: Place, name: str) -> pa.DataType:
    with opened(file) as content:
        one = csv.read_csv(content, convert_options=csv.ConvertOptions(include_columns=[name]))
    return one.schema.field(name).type
