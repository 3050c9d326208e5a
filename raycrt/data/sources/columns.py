"""Columns of a table as inputs and labels: images, lists of numbers, or a column per feature."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types as kinds

from raycrt.data.sources.source import Rows
from raycrt.data.values import pixels
from raycrt.errors import InvalidInput, nearest

# Names under which pandas stores the index of a table.
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+")
_LABELS = ("label", "labels", "class", "target", "y")
# Columns that an error names of many, from the beginning and from the end.
_ENDS = 8


class Columns:
    """A `table` from `where`, with `place(row)` of each row; `options` has the keys `input`,
    `label`, `key`, `resize` and `shape` of `data`."""

    def __init__(
        self, table: pa.Table, options: SimpleNamespace, where: str, place: Callable[[int], str]
    ) -> None:
        self.table, self.options, self.where, self.place = table, options, where, place

    def rows(self) -> Rows:
        """Inputs and labels; `InvalidInput` where a column or a value is missing."""
        if not len(self.table):
            raise InvalidInput(f"a table must have at least one row, but {self.where} has none")
        names, whole = self._inputs()
        return Rows(
            inputs=self._whole(names[0]) if whole else self._features(names),
            labels=self.labels(),
            where=self.where,
            place=self.place,
            columns=() if whole else tuple(names),
            keys=self._keys(),
        )

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features, in order; none where one column has whole inputs."""
        names, whole = self._inputs()
        return () if whole else tuple(names)

    def _inputs(self) -> tuple[list[str], bool]:
        """The columns with the inputs, and whether it is one with a whole input in each row."""
        beside = (self.label, self.options.key)
        names = list(self.options.input or (n for n in self.table.column_names if n not in beside))
        index = [name for name in names if not name or _INDEX.fullmatch(name)]
        if index and self.options.input is None:
            raise InvalidInput(
                "a feature must have a name, but "
                f"{self.where} has an index as column {index[0]!r}; write the table without it, or "
                "name the columns to use in data.input"
            )
        missing = [name for name in names if name not in self.table.column_names]
        if missing or not names:
            near = nearest(missing[0], self.table.column_names) if missing else ""
            raise InvalidInput(
                f"{self.where} must have the columns of data.input, but has no "
                f"{', '.join(map(repr, missing)) or 'column besides the label'}{near}"
            )
        whole = [name for name in names if _is_whole(self.table.schema.field(name).type)]
        if len(whole) > 1 or (whole and self.options.input not in (None, (whole[0],))):
            raise InvalidInput(
                "data.input must name one column of images or lists, or only columns of numbers, "
                f"but {self.where} has {_shown(names)}"
            )
        return (whole, True) if whole else (names, False)

    def labels(self) -> list[Any]:
        """The labels alone."""
        return self.table.column(self.label).to_pylist()

    def _keys(self) -> np.ndarray | None:
        """The values of the column `data.key` as text."""
        name = self.options.key
        if name is None:
            return None
        if name not in self.table.column_names:
            raise InvalidInput(
                f"data.key must name a column, but {self.where} has no {name!r}: its columns are "
                f"{_shown(self.table.column_names)}"
            )
        return np.array([str(value) for value in self.table.column(name).to_pylist()], object)

    @property
    def label(self) -> str:
        """The name of the column of labels."""
        return label_among(self.table.column_names, self.options.label, self.where)

    def _column(self, name: str) -> Any:
        """A column as one array; `InvalidInput` if a value is missing."""
        column = self.table.column(name).combine_chunks()
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise InvalidInput(
                f"each input must have a value, but {self.place(row)} has no {name!r}"
            )
        return column

    def _features(self, names: Sequence[str]) -> np.ndarray:
        columns = []
        for name in names:
            kind = self.table.schema.field(name).type
            if not (kinds.is_integer(kind) or kinds.is_floating(kind)):
                raise InvalidInput(
                    f"a feature must be a column of numbers, but {name!r} in {self.where} is "
                    f"{kind}; data.input names the columns to use"
                )
            columns.append(pixels.single_precision(self._column(name).to_numpy()))
        return pixels.resized(np.stack(columns, 1), self.options.resize, self.where)

    def _whole(self, name: str) -> np.ndarray:
        """The inputs of a column that has a whole one in each row."""
        column, size, place = self._column(name), self.options.resize, self.place
        if _is_image(column.type):
            images = (pixels.decoded(_bytes(v, place(k)), place(k)) for k, v in enumerate(column))
            return pixels.stacked(images, place, size)
        if isinstance(column.type, pa.FixedShapeTensorType):
            return pixels.of_arrays(column.to_numpy_ndarray(), self.where, size, self.options.shape)
        kind = _element(column.type).to_pandas_dtype()

        def single(row: int, value: Any) -> np.ndarray:
            try:
                numbers = np.array(value.as_py(), kind)
            except (TypeError, ValueError, OverflowError):
                raise InvalidInput(
                    f"an input must be a full list of numbers, but {place(row)} is not"
                ) from None
            return pixels.of_array(numbers, place(row), None if size else self.options.shape)

        return pixels.stacked((single(k, v) for k, v in enumerate(column)), place, size)


def label_among(columns: Sequence[str], stated: str | None, where: str) -> str:
    """The column of labels: the one `stated`, or the one with a usual name."""
    names = (stated,) if stated else _LABELS
    found = [name for name in columns if name in names]
    if len(found) != 1:
        raise InvalidInput(
            f"{where} must have one column of labels, {' or '.join(map(repr, names))} "
            f"(the key data.label){nearest(stated or '', columns)}, but its columns are "
            f"{_shown(columns)}"
        )
    return found[0]


def _is_image(kind: Any) -> bool:
    """Whether values are the bytes of image files, alone or as Hugging Face stores them."""
    if kinds.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))


def _is_list(kind: Any) -> bool:
    return bool(
        kinds.is_list(kind)
        or kinds.is_large_list(kind)
        or kinds.is_fixed_size_list(kind)
        or isinstance(kind, pa.FixedShapeTensorType)
    )


def _is_whole(kind: Any) -> bool:
    return _is_image(kind) or _is_list(kind)


def _element(kind: Any) -> Any:
    """The type of the numbers in a list of lists of any depth."""
    while _is_list(kind):
        kind = kind.value_type
    return kind


def _bytes(value: Any, place: str) -> bytes:
    found = value.as_py()
    found = found.get("bytes") if isinstance(found, dict) else found
    if found is None:
        raise InvalidInput(f"each row must have an input, but {place} has no bytes of an image")
    return bytes(found)


def _shown(names: Sequence[str]) -> str:
    """`names` in one line; of many the first and the last ones, among which labels usually are."""
    quoted = [repr(name) for name in names]
    if len(names) > 2 * _ENDS:
        left = len(names) - 2 * _ENDS
        quoted = [*quoted[:_ENDS], f"... ({left} more) ...", *quoted[-_ENDS:]]
    return ", ".join(quoted)
