"""Rows of data sets that give an input and its label for each index, as torch's do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raycrt.data.sources.source import Rows
from raycrt.data.values import pixels
from raycrt.errors import InvalidInput


def rows(
    dataset: Any,
    where: str,
    size: tuple[int, int] | None,
    stated: Sequence[int] | None,
    some: range | None = None,
) -> Rows:
    """All rows of `dataset`, which has a length and items (input, label), or `some` of them.

    An input is a PIL image, an array or a tensor; images are resized to `size` if it is given.
    `stated` is the shape of an input where a spec states it.
    """
    numbers = range(len(sized(dataset, where))) if some is None else some
    labels: list[Any] = []

    def place(row: int) -> str:
        return f"row {numbers[row]} of {where}"

    def single(row: int) -> np.ndarray:
        try:
            value, label = dataset[numbers[row]]
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"an item must be an input and its label, but {place(row)} is not: {error}"
            ) from None
        except OSError as error:
            raise InvalidInput(f"{place(row)} must be readable: {error}") from None
        labels.append(label.item() if hasattr(label, "item") else label)
        return pixels.of_anything(value, place(row), None if size else stated)

    inputs = pixels.stacked(map(single, range(len(numbers))), place, size)
    return Rows(inputs=inputs, labels=labels, where=where, place=place)


def sized(dataset: Any, where: str) -> Any:
    """`dataset`; `InvalidInput` unless it has a length."""
    if not hasattr(dataset, "__len__"):
        raise InvalidInput(f"a data set must have a length and items by index, but not so {where}")
    return dataset
