"""Data sets that are read some rows at a time, and their training rows in files.

Only labels and the numbers of rows are in memory, so that a data set may be larger than that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raycrt.data import sources
from raycrt.data.classified import Classified, classified
from raycrt.data.sources.source import Rows
from raycrt.data.splits import Arrays
from raycrt.data.values import checks
from raycrt.data.values.statistics import scaled_inputs, used
from raycrt.errors import InvalidInput
from raycrt.specs import DataSpec

_INPUTS, _SHAPE = "inputs.f32", "shape.json"


def survey(
    spec: DataSpec, keep: Callable[[np.ndarray], object] = lambda inputs: None
) -> Classified:
    """Read and check a source's data set, and `keep` its inputs, some rows at a time.

    The splits are those of `data.load`, with the number of a row in place of each input, counted
    over all splits in the order in which they are read. Raises `InvalidInput` as that does.
    """
    source, scale = sources.of(spec), used(None, spec).get("scale")
    first: Rows | None = None
    found: dict[str, Rows] = {}
    total = 0
    try:
        for split in source.splits():
            parts: list[Rows] = []
            for rows in source.parts(split):
                first = first or rows
                checks.check_inputs(rows, first, spec.shape)
                keep(rows.inputs if scale is None else scaled_inputs(rows.inputs, scale))
                parts.append(_numbered(rows, total))
                total += len(rows.inputs)
            if not parts:
                raise InvalidInput(
                    f"there must be at least one row, but {split} of {spec.title} has none"
                )
            found[split] = _joined(parts)
    except OSError as error:
        raise InvalidInput(f"the files of {spec.title} must be readable: {error}") from None
    assert first is not None
    return classified(found, source, spec, first.inputs.shape[1:])


def _numbered(rows: Rows, first: int) -> Rows:
    """`rows` with numbers from `first` on in place of inputs."""
    numbers = np.arange(first, first + len(rows.inputs))
    return Rows(
        inputs=numbers,
        labels=rows.labels,
        where=rows.where,
        place=rows.place,
        columns=rows.columns,
    )


def _joined(parts: Sequence[Rows]) -> Rows:
    """Numbered parts of a split as one."""
    starts = np.cumsum([0, *(len(rows.inputs) for rows in parts)])

    def place(row: int) -> str:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return parts[part].place(row - int(starts[part]))

    whole: list[Any] = [label for rows in parts for label in rows.labels]
    return Rows(
        inputs=np.concatenate([rows.inputs for rows in parts]),
        labels=whole,
        where=parts[0].where,
        place=place,
        columns=parts[0].columns,
    )


def store(spec: DataSpec, part: str, directory: Path) -> int:
    """Write the rows of `part`, "train" or "fit", and those of validation into `directory`, for
    `Stored`; return the number of the former."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _INPUTS).open("wb") as file:
        found = survey(spec, lambda inputs: inputs.tofile(file))
    (directory / _SHAPE).write_text(json.dumps(found.shape))
    for name in (part, "validation"):
        split = getattr(found.splits, name)
        np.savez(directory / f"{name}.npz", numbers=split.images, labels=split.labels)
    return len(getattr(found.splits, part))


class Stored:
    """The rows of a `part` that `store` wrote; inputs are read where they are needed."""

    def __init__(self, directory: Path, part: str) -> None:
        self.shape: tuple[int, ...] = tuple(json.loads((directory / _SHAPE).read_text()))
        self._inputs = np.memmap(directory / _INPUTS, np.float32, "r").reshape(-1, *self.shape)
        with np.load(directory / f"{part}.npz") as kept:
            self._numbers, self._labels = kept["numbers"], kept["labels"]

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, rows: np.ndarray | slice) -> Arrays:
        """The rows with the numbers `rows`, or in that slice, in memory."""
        return Arrays(images=self._inputs[self._numbers[rows]], labels=self._labels[rows])
