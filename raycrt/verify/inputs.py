"""The test rows that certificates are about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from raycrt import data
from raycrt.data import Arrays, Reader
from raycrt.errors import InvalidInput
from raycrt.specs import Place, Spec

# Rows that are read at a time where they are in files.
_STEP = 128


@dataclass(frozen=True, kw_only=True)
class Found:
    """Some rows: `images` (n, features) float32, `labels` (n,) and `keys` (n,); None where they are
    not there."""

    images: np.ndarray | None
    labels: np.ndarray | None
    keys: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """`rows` inputs of `shape` from the data set `title`, of which nothing more is there.

    `unchecked` says in sentences what cannot be checked without it.
    """

    title: str
    shape: tuple[int, ...]
    rows: int
    unchecked: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.rows

    @property
    def given(self) -> bool:
        """Whether the inputs themselves are there."""
        return False

    def at(self, index: np.ndarray) -> Found:
        """The rows with the numbers `index` (n,)."""
        return Found(images=None, labels=None)


@dataclass(frozen=True, kw_only=True)
class InArrays(Inputs):
    """Inputs as `images` (rows, features) float32, with `labels` (rows,) if they are there."""

    images: np.ndarray
    labels: np.ndarray | None

    @staticmethod
    def of(
        title: str,
        images: np.ndarray,
        labels: np.ndarray | None,
        unchecked: tuple[str, ...] = (),
    ) -> InArrays:
        """Those of `images` (rows, *shape)."""
        return InArrays(
            title=title,
            shape=images.shape[1:],
            rows=len(images),
            images=images.reshape(len(images), -1),
            labels=labels,
            unchecked=unchecked,
        )

    @property
    def given(self) -> bool:
        return True

    def at(self, index: np.ndarray) -> Found:
        labels = None if self.labels is None else self.labels[index]
        return Found(images=self.images[index], labels=labels)


@dataclass(kw_only=True)
class _Cursor:
    """Reads rows of `reader` in their order: those that follow the rows read last are next, and for
    others reading begins anew."""

    reader: Reader
    left: Arrays | None = None
    next: int = -1
    parts: Iterator[Arrays] = field(default_factory=lambda: iter(()))

    def read(self, first: int, last: int) -> Arrays:
        """The rows `first` .. `last` - 1."""
        if first != self.next:
            self.left, self.parts = None, self.reader.between(first, len(self.reader), _STEP)
        found = self.left
        while found is None or len(found) < last - first:
            more = next(self.parts)
            found = more if found is None else found.with_rows(more)
        self.left, self.next = found.take(slice(last - first, None)), last
        return found.take(slice(last - first))

    def __getstate__(self) -> dict[str, Reader]:
        return {"reader": self.reader}

    def __setstate__(self, state: dict[str, Reader]) -> None:
        self.__init__(reader=state["reader"])  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class InReader(Inputs):
    """The rows of a data set, read where they are needed, best in their order."""

    cursor: _Cursor

    @staticmethod
    def of(title: str, reader: Reader) -> InReader:
        cursor = _Cursor(reader=reader)
        return InReader(title=title, shape=reader.shape, rows=len(reader), cursor=cursor)

    @property
    def given(self) -> bool:
        return True

    def at(self, index: np.ndarray) -> Found:
        order = np.unique(index)
        runs = np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)
        parts = [self.cursor.read(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
        found = parts[0]
        for part in parts[1:]:
            found = found.with_rows(part)
        found = found.take(np.searchsorted(order, index))
        # A source without keys has the empty one in each row.
        keys = np.full(len(index), "", object) if found.keys is None else found.keys
        images = found.images.reshape(len(index), -1)
        return Found(images=images, labels=found.labels, keys=keys)


def of_run(spec: Spec, directory: Place | None, trusted: bool) -> InReader:
    """The test rows of the data that `spec` names, as they are on this machine.

    `directory` replaces the one in `spec`, or the path of a source; a source that is a function is
    run only if the run is `trusted`. Nothing is downloaded, whatever `spec` says.
    """
    if data.runs_code(spec.data) and not trusted:
        raise InvalidInput(
            f"the data is read by running {spec.data.source} in {spec.data.path}, which is allowed "
            "only with --run-code, but this was not given"
        )
    return InReader.of(spec.data.title, data.test_rows(data.placed(spec, directory).data))
