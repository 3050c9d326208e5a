"""Images and labels: the data sets, and batches of images from callers."""

from raycrt.data.datasets import (
    DIRECTORY_VARIABLE,
    Dataset,
    Split,
    check,
    class_names,
    load,
    located,
    shape,
)

__all__ = [
    "DIRECTORY_VARIABLE",
    "Dataset",
    "Split",
    "check",
    "class_names",
    "load",
    "located",
    "shape",
]
