"""Inputs and labels: named data sets, sources of any other, and batches of images from callers.

Data sets are read as numpy arrays, which a checker takes as they are. `load` makes tensors of them,
and it alone needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raycrt.data.datasets import (
    check,
    class_names,
    described,
    features,
    label,
    located,
    opened,
    placed,
    read,
    require_training_rows,
    runs_code,
    shape,
    uses,
    with_numbers,
)
from raycrt.data.parts.reader import Reader, opened_for_test, test_rows
from raycrt.data.sources.source import DIRECTORY_VARIABLE
from raycrt.data.splits import Arrays
from raycrt.specs import DataSpec

if TYPE_CHECKING:
    from raycrt.data.tensors import Dataset, Split

__all__ = [
    "DIRECTORY_VARIABLE",
    "Arrays",
    "Dataset",
    "Reader",
    "Split",
    "check",
    "class_names",
    "described",
    "features",
    "label",
    "load",
    "located",
    "opened",
    "opened_for_test",
    "placed",
    "read",
    "require_training_rows",
    "runs_code",
    "shape",
    "test_rows",
    "uses",
    "with_numbers",
]


def load(spec: DataSpec) -> Dataset:
    """`read` as tensors."""
    from raycrt.data import tensors

    return tensors.Dataset.of(read(spec))


def __getattr__(name: str) -> Any:
    if name in ("Dataset", "Split"):
        from raycrt.data import tensors

        return getattr(tensors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
