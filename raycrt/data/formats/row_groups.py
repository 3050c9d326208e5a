"""The rows of Parquet files by their numbers: only the row groups that hold them are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from raycrt.errors import InvalidInput
from raycrt.system.places.reading import opened
from raycrt.system.places.storage import Place


@contextmanager
def readable(file: Place) -> Iterator[IO[bytes]]:
    """`file`, open within it, where a file that pyarrow cannot read is `InvalidInput`."""
    with reported(file), opened(file) as content:
        yield content


@contextmanager
def reported(file: Place) -> Iterator[None]:
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
    """A row group: number `group` of the `groups` of a file, its rows `first` .. `last` - 1 among
    all, and the number `of_file` of the first of these in the file."""

    file: Place
    group: int
    groups: int
    first: int
    last: int
    of_file: int


class _Passage:
    """Reads the rows of a `group` in order, `step` at a time, once; `at` is the next one."""

    def __init__(self, group: _Group, step: int, columns: tuple[str, ...] | None) -> None:
        self.what = group, step, columns
        self.group, self.at = group, group.first
        self.left: pa.Table | None = None
        with reported(group.file):
            self.content = opened(group.file)
            self.parts = parquet.ParquetFile(self.content)
            facts = self.parts.metadata
            if (
                facts.num_row_groups != group.groups
                or facts.row_group(group.group).num_rows != group.last - group.first
            ):
                raise InvalidInput(
                    f"data must stay as it is, but {group.file} has other row groups now"
                )
            names = None if columns is None else list(columns)
            self.batches = self.parts.iter_batches(step, row_groups=[group.group], columns=names)

    def read(self, first: int, last: int) -> Iterator[tuple[int, pa.Table]]:
        """The rows `first` .. `last` - 1 of the group, none before `at`; with each table the number
        of its first row in the file."""
        while self.at < last:
            if self.left is None:
                with reported(self.group.file):
                    self.left = pa.Table.from_batches([next(self.batches)])
            table, start = self.left, self.at
            end = start + len(table)
            self.at, self.left = min(end, last), None if end <= last else table.slice(last - start)
            low, high = max(first - start, 0), min(last - start, len(table))
            if low < high:
                yield (
                    self.group.of_file + start + low - self.group.first,
                    table.slice(low, high - low),
                )

    def close(self) -> None:
        self.parts.close()
        self.content.close()


@dataclass(kw_only=True)
class RowGroups:
    """The row groups of some files, one after the other, of one schema.

    A group is open from one call to the next, so that rows which are asked for in their order are
    read once.
    """

    groups: tuple[_Group, ...]
    schema: pa.Schema
    passage: _Passage | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(files: Sequence[Place]) -> RowGroups | None:
        """The row groups of `files`; None where columns or their types differ between files.
        `InvalidInput` names a file that is no Parquet."""
        found: list[_Group] = []
        rows = 0
        schema: pa.Schema | None = None
        for file in files:
            with readable(file) as content, parquet.ParquetFile(content) as parts:
                facts, own = parts.metadata, parts.schema_arrow
            schema = schema or own
            if own.names != schema.names or own.types != schema.types:
                return None
            of_file = 0
            for group in range(facts.num_row_groups):
                number = facts.row_group(group).num_rows
                found.append(
                    _Group(
                        file=file,
                        group=group,
                        groups=facts.num_row_groups,
                        first=rows,
                        last=rows + number,
                        of_file=of_file,
                    )
                )
                rows, of_file = rows + number, of_file + number
        assert schema is not None
        return RowGroups(groups=tuple(found), schema=schema)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "passage": None}

    @property
    def rows(self) -> int:
        return self.groups[-1].last if self.groups else 0

    def between(
        self, first: int, last: int, step: int, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Place, pa.Table]]:
        """The rows `first` .. `last` - 1, at most `step` at a time; with each table its file and
        the number of its first row there. `InvalidInput` names a file that is damaged or changed.
        """
        for group in self.groups:
            start, end = max(first, group.first), min(last, group.last)
            if start < end:
                passage = self._passage(group, step, None if columns is None else tuple(columns))
                if passage.at > start:
                    passage = self._begin(passage.what)
                try:
                    for row, table in passage.read(start, end):
                        yield row, group.file, table
                except InvalidInput:
                    self._close()
                    raise

    def _passage(self, group: _Group, step: int, columns: tuple[str, ...] | None) -> _Passage:
        what = group, step, columns
        if self.passage is not None and self.passage.what == what:
            return self.passage
        return self._begin(what)

    def _begin(self, what: tuple[_Group, int, tuple[str, ...] | None]) -> _Passage:
        self._close()
        self.passage = _Passage(*what)
        return self.passage

    def _close(self) -> None:
        if self.passage is not None:
            self.passage.close()
        self.passage = None
