"""Images and labels: the data sets, and batches of images from callers."""

from raycrt.data.datasets import (
    CLASSES,
    DIRECTORY_VARIABLE,
    Dataset,
    Split,
    check,
    image_shape,
    load,
    located,
)

__all__ = [
    "CLASSES",
    "DIRECTORY_VARIABLE",
    "Dataset",
    "Split",
    "check",
    "image_shape",
    "load",
    "located",
]
