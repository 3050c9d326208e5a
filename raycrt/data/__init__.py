"""Inputs and labels: named data sets, sources of any other, and batches of images from callers."""

from raycrt.data.datasets import (
    check,
    class_names,
    described,
    load,
    located,
    require_training_rows,
    runs_code,
    shape,
    uses,
)
from raycrt.data.sources.source import DIRECTORY_VARIABLE
from raycrt.data.splits import Dataset, Split

__all__ = [
    "DIRECTORY_VARIABLE",
    "Dataset",
    "Split",
    "check",
    "class_names",
    "described",
    "load",
    "located",
    "require_training_rows",
    "runs_code",
    "shape",
    "uses",
]
