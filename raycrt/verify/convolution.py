"""Convolutions unrolled into matrices, whose entries are stored weights or zero."""

from __future__ import annotations

import numpy as np

from raycrt.errors import require
from raycrt.specs import ModelSpec

# A float64 matrix with this many entries takes 256 MB.
_ENTRIES = 2**25

# (channels, height, width).
Shape = tuple[int, ...]


def unrolled(
    kernel: np.ndarray, bias: np.ndarray, shape: Shape, spec: ModelSpec
) -> tuple[np.ndarray, np.ndarray, Shape]:
    """Matrix and offset of a convolution of flat images of `shape`, and its output shape.

    `kernel` is (outputs, channels, height, width), `bias` (outputs,); all shapes are (channels,
    height, width). Output (o, i, j) is `bias[o]` plus the sum of `kernel[o, c, a, b]` times pixel
    (c, i * stride + a - padding, j * stride + b - padding), which is 0 outside the image.
    """
    require(len(shape) == 3, "shape is (channels, height, width)", shape=shape)
    channels, height, width = shape
    size, stride, padding = spec.kernel, spec.stride, spec.padding
    require(
        kernel.shape[1:] == (channels, size, size) and bias.shape == kernel.shape[:1],
        "a kernel is (outputs, channels, model.kernel, model.kernel), its bias (outputs,)",
        kernel=kernel.shape,
        bias=bias.shape,
        channels=channels,
        size=size,
    )
    outputs = len(kernel)
    rows = (height + 2 * padding - size) // stride + 1
    columns = (width + 2 * padding - size) // stride + 1
    made = (outputs, rows, columns)
    entries = outputs * rows * columns * channels * height * width
    require(
        entries <= _ENTRIES,
        f"the matrix of a checked convolution has at most {_ENTRIES} entries",
        entries=entries,
        image=shape,
        made=made,
    )
    matrix = np.zeros((*made, *shape))
    for i, j, a, b in np.ndindex(rows, columns, size, size):
        y, x = i * stride + a - padding, j * stride + b - padding
        if 0 <= y < height and 0 <= x < width:
            matrix[:, i, j, :, y, x] = kernel[:, :, a, b]
    flat = matrix.reshape(outputs * rows * columns, channels * height * width)
    return flat, np.repeat(bias, rows * columns), made
