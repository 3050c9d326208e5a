"""The test rows of a data set, read by their numbers where they are needed.

A source of files is read some rows at a time, so that a data set may be larger than memory; any
other is held in memory. A reader travels to another process as what it is made of, without rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from raycrt.data import sources
from raycrt.data.datasets import check_effects, described, read, with_numbers
from raycrt.data.parts.outline import Outline, outline
from raycrt.data.sources.source import Indexed, Rows
from raycrt.data.splits import Arrays
from raycrt.data.values import checks, labels
from raycrt.data.values.statistics import scaled_inputs
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec, Spec
from raycrt.specs.data import Statistics


def test_rows(spec: DataSpec) -> Reader:
    """The reader of the test rows of the data set that a described `spec` names.

    Rows are read where they are needed if the source can do that, has a test split and no limit is
    set. Then only the labels of all rows are read here; an input that is not finite is left for
    the certifier, which gives such a row no radius. `InvalidInput` as in `raycrt.data.read`.
    """
    return _reader(spec, None if spec.limit is not None else outline(spec))


def opened_for_test(spec: Spec) -> tuple[Spec, Reader]:
    """`spec` as `described`, and the reader of its test rows.

    Inputs of a source in files are left unread, if no number follows from them.
    """
    check_effects(spec.data)
    drawn = "auto" in (spec.data.normalize, spec.data.scale)
    seen = None if drawn or spec.run.stream else outline(spec.data)
    if seen is None:
        found = described(spec)
        return found, test_rows(found.data)
    known = {"data.shape": seen.shape, "data.class_names": seen.numbering.names}
    found, _ = with_numbers(spec.override(known | sources.of(spec.data).placed()), None)
    return found, _reader(found.data, seen)


def _reader(spec: DataSpec, seen: Outline | None) -> Reader:
    if seen is None or spec.limit is not None or "test" not in seen.splits:
        return InMemory(spec)
    described = spec.model_copy(update={"shape": seen.shape})
    return InFiles(described, seen.numbering, seen.splits["test"])


class Reader:
    """Reads the test rows of `spec`: `len(reader)` inputs of `shape`."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec

    @property
    def shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def between(self, first: int, last: int, step: int) -> Iterator[Arrays]:
        """The rows `first` .. `last` - 1 in order, `step` at a time."""
        raise NotImplementedError

    def first(self, number: int) -> Arrays:
        """The first rows, `number` of them or all."""
        number = min(number, len(self))
        return next(iter(self.between(0, number, number)))


class InMemory(Reader):
    """All rows in memory, from their first use in a process on."""

    @cached_property
    def _test(self) -> Arrays:
        return read(self.spec).test

    def __getstate__(self) -> dict[str, Any]:
        return {"spec": self.spec}

    @property
    def shape(self) -> tuple[int, ...]:
        return self._test.images.shape[1:]

    def __len__(self) -> int:
        return len(self._test)

    def between(self, first: int, last: int, step: int) -> Iterator[Arrays]:
        for start in range(first, last, step):
            yield self._test.take(slice(start, min(start + step, last)))


class InFiles(Reader):
    """Rows in files, of which only those that are asked for are read: the rows `test`, with the
    classes of all labels in `numbering`."""

    def __init__(self, spec: DataSpec, numbering: labels.Numbering, test: Indexed) -> None:
        super().__init__(spec)
        self.numbering, self.test = numbering, test

    @property
    def shape(self) -> tuple[int, ...]:
        assert self.spec.shape is not None
        return self.spec.shape

    def __len__(self) -> int:
        return self.test.number

    def between(self, first: int, last: int, step: int) -> Iterator[Arrays]:
        kept: Arrays | None = None
        number = 0
        for rows in self.test.between(first, last, step):
            if not len(rows.inputs):
                break
            found = self._checked(rows)
            number += len(found)
            kept = found if kept is None else kept.with_rows(found)
            if len(kept) >= step:
                yield kept.take(slice(step))
                kept = kept.take(slice(step, None)) if len(kept) > step else None
        if kept is not None:
            yield kept
        if number != last - first:
            raise InvalidInput(
                f"data must stay as it is, but {self.spec.title} has {number} rows where "
                f"{last - first} were, from row {first} on"
            )

    def _checked(self, rows: Rows) -> Arrays:
        checks.check_shape(rows, self.shape)
        scale = self.spec.scale
        inputs = scaled_inputs(rows.inputs, scale) if isinstance(scale, Statistics) else rows.inputs
        return Arrays(images=inputs, labels=self.numbering.of(rows), keys=rows.keys)
