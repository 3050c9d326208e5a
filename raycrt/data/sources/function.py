"""A function of the user's that returns the splits: `module:function`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from raycrt.data.sources import items
from raycrt.data.sources.source import SPLITS, Rows, Source, by_split, register
from raycrt.data.values import pixels
from raycrt.errors import InvalidInput
from raycrt.system.imports import imported

_NAMES = "class_names"


@register("function", uses=("path", "resize"))
class Function(Source):
    """`function()` returns a dictionary with `train`, and perhaps `validation` and `test`: for each
    the pair (images, labels) of arrays, or a torch Dataset of items (image, label).

    `class_names` in it, a list, names the classes. Its module is imported from `path`, by default
    the working directory, or from where Python finds it.
    """

    runs_code = True

    def splits(self) -> Mapping[str, Callable[[], Rows]]:
        found = self._parts()
        return {split: partial(self._rows, split, part) for split, part in found.items()}

    def parts(self, split: str) -> Iterator[Rows]:
        part = self._parts()[split]
        rows = len(self._checked(split, part))
        for first in range(0, rows, self.at_a_time):
            # What labels have more than inputs is left to the last rows, where it is refused.
            last = first + self.at_a_time >= rows
            yield self._rows(split, part, slice(first, None if last else first + self.at_a_time))

    def _parts(self) -> dict[str, Any]:
        """What the function returns for each split."""
        given = {name: part for name, part in self._returned.items() if name != _NAMES}
        strange = [name for name in given if str(name).lower() not in SPLITS]
        if strange:
            raise InvalidInput(
                f"{self._name} must return train, validation, test and {_NAMES} alone, but also "
                f"returns {strange[0]!r}"
            )
        return by_split(given, self._name)

    def class_names(self) -> Sequence[str] | None:
        names = self._returned.get(_NAMES)
        return None if names is None else list(names)

    def placed(self) -> dict[str, Any]:
        return {"data.path": self._directory}

    @property
    def _name(self) -> str:
        return str(self.options.source)

    @property
    def _directory(self) -> str:
        return os.getcwd() if self.options.path is None else str(self.local_path)

    @cached_property
    def _returned(self) -> Mapping[str, Any]:
        found = imported(self._name, "data.source", self._directory)
        returned = found()
        if not isinstance(returned, Mapping):
            raise InvalidInput(
                f"{self._name} must return a dictionary of splits, but returned "
                f"{type(returned).__name__}"
            )
        return returned

    def _checked(self, split: str, part: Any) -> Any:
        """The inputs of a split: a Dataset, or an array of all of them, not copied where it is one
        already."""
        from torch import Tensor
        from torch.utils.data import Dataset

        where = self._where(split)
        if isinstance(part, Dataset):
            return items.sized(part, where)
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise InvalidInput(
                f"{where} must be a pair (images, labels) or a torch Dataset, but is a "
                f"{type(part).__name__}"
            )
        images = part[0].numpy(force=True) if isinstance(part[0], Tensor) else part[0]
        try:
            return np.asarray(images)
        except ValueError:
            raise InvalidInput(f"all inputs must have one shape, but not so {where}") from None

    def _where(self, split: str) -> str:
        return f"{split!r} of {self._name}"

    def _rows(self, split: str, part: Any, some: slice = slice(None)) -> Rows:
        """All rows of a split, or `some` of them."""
        from torch import Tensor

        where, inputs = self._where(split), self._checked(split, part)
        size, stated = self.options.resize, self.options.shape
        if not isinstance(inputs, np.ndarray):
            numbers = range(len(inputs))[some]
            return items.rows(inputs, where, size, stated, numbers)
        labels = part[1].numpy(force=True) if isinstance(part[1], Tensor) else part[1]
        first = some.start or 0
        return Rows(
            inputs=pixels.of_arrays(inputs[some], where, size, stated),
            labels=labels[some],
            where=where,
            place=lambda row: f"row {first + row} of {where}",
        )
