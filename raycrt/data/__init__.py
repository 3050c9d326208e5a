"""Images and labels: the data sets, and images as they come from a user."""

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
