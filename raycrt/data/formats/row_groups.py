"""The rows of Parquet files by their numbers: only the row groups that hold them are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from raycrt.errors import InvalidInput


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Within it a `file` that pyarrow cannot read is `InvalidInput`."""
    try:
        yield
    except InvalidInput:
        raise
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(f"{file} must be a table that can be read: {said:.200}") from None


@dataclass(frozen=True, kw_only=True)
class _Group:
    """A row group: number `group` of the file, its rows `first` .. `last` - 1 among all, and the
    number `of_file` of the first of these in the file."""

    file: Path
    group: int
    first: int
    last: int
    of_file: int


@dataclass(frozen=True, kw_only=True)
class RowGroups:
    """The row groups of some files, one after the other, of one schema."""

    groups: tuple[_Group, ...]
    schema: pa.Schema

    @staticmethod
    def of(files: Sequence[Path]) -> RowGroups | None:
        """The row groups of `files`; None where columns or their types differ between files.
        `InvalidInput` names a file that is no Parquet."""
        found: list[_Group] = []
        rows = 0
        schema: pa.Schema | None = None
        for file in files:
            with readable(file), parquet.ParquetFile(file) as opened:
                facts, own = opened.metadata, opened.schema_arrow
            schema = schema or own
            if own.names != schema.names or own.types != schema.types:
                return None
            of_file = 0
            for group in range(facts.num_row_groups):
                number = facts.row_group(group).num_rows
                found.append(
                    _Group(file=file, group=group, first=rows, last=rows + number, of_file=of_file)
                )
                rows, of_file = rows + number, of_file + number
        assert schema is not None
        return RowGroups(groups=tuple(found), schema=schema)

    @property
    def rows(self) -> int:
        return self.groups[-1].last if self.groups else 0

    def between(
        self, first: int, last: int, step: int, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Path, pa.Table]]:
        """The rows `first` .. `last` - 1, `step` at a time, or fewer at the end of a row group or a
        file; with each table its file and the number of its first row there. `InvalidInput` names a
        file that is damaged."""
        for group in self.groups:
            if group.last <= first or group.first >= last:
                continue
            with readable(group.file), parquet.ParquetFile(group.file) as opened:
                start = group.first
                names = None if columns is None else list(columns)
                for batch in opened.iter_batches(step, row_groups=[group.group], columns=names):
                    low, high = max(first - start, 0), min(last - start, len(batch))
                    if low < high:
                        table = pa.Table.from_batches([batch.slice(low, high - low)])
                        yield group.of_file + start + low - group.first, group.file, table
                    start += len(batch)
                    if start >= last:
                        break
