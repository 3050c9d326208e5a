"""Convolutions unrolled into matrices, whose entries are stored weights or zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raycrt.errors import require
from raycrt.specs.layers import ConvolutionLayer, PoolLayer, ResidualLayer

# A float64 matrix with this many entries takes 256 MB.
_ENTRIES = 2**25

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A convolution of images of shape `image` into `outputs` channels; shapes are (channels,
    height, width)."""

    image: Shape
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @staticmethod
    def of(layer: ConvolutionLayer, image: Shape) -> Geometry:
        return Geometry(
            image=image,
            outputs=layer.channels,
            kernel=layer.kernel,
            stride=layer.stride,
            padding=layer.padding,
            groups=layer.groups,
        )

    @staticmethod
    def of_pool(layer: PoolLayer, image: Shape) -> Geometry:
        """Each channel by itself."""
        side = layer.window
        return Geometry(image=image, outputs=image[0], kernel=side, stride=side, groups=image[0])

    @staticmethod
    def of_branch(layer: ResidualLayer, image: Shape, outputs: int) -> Geometry:
        """One that keeps height and width."""
        assert layer.kernel is not None
        side = layer.kernel
        return Geometry(image=image, outputs=outputs, kernel=side, padding=side // 2)

    @property
    def made(self) -> Shape:
        """The shape of the result."""
        rows, columns = (
            (n + 2 * self.padding - self.kernel) // self.stride + 1 for n in self.image[1:]
        )
        return self.outputs, rows, columns


def unrolled(
    kernel: np.ndarray, bias: np.ndarray, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset of a convolution of flat images.

    `kernel` is (outputs, channels / groups, height, width), `bias` (outputs,). Output (o, i, j) is
    `bias[o]` plus the sum of `kernel[o, c, a, b]` times pixel (c', i * stride + a - padding, j *
    stride + b - padding), which is 0 outside the image; c' is channel c of those of o's group.
    """
    channels, height, width = geometry.image
    size, stride, padding, groups = (
        *(geometry.kernel, geometry.stride, geometry.padding, geometry.groups),
    )
    require(
        channels % groups == 0 and geometry.outputs % groups == 0,
        "groups divides the channels of a convolution",
        channels=channels,
        outputs=geometry.outputs,
        groups=groups,
    )
    each = channels // groups
    require(
        kernel.shape == (geometry.outputs, each, size, size) and bias.shape == (geometry.outputs,),
        "a kernel is (outputs, channels / groups, side, side), its bias (outputs,)",
        kernel=kernel.shape,
        bias=bias.shape,
        expected=(geometry.outputs, each, size, size),
    )
    made = geometry.made
    require(min(made) > 0, "a kernel fits into the padded image", image=geometry.image, made=made)
    entries = math.prod(made) * math.prod(geometry.image)
    require(
        entries <= _ENTRIES,
        f"the matrix of a checked convolution has at most {_ENTRIES} entries",
        entries=entries,
        image=geometry.image,
        made=made,
    )
    matrix = np.zeros((*made, *geometry.image))
    of_group = geometry.outputs // groups
    for i, j, a, b in np.ndindex(*made[1:], size, size):
        y, x = i * stride + a - padding, j * stride + b - padding
        if 0 <= y < height and 0 <= x < width:
            for group in range(groups):
                rows = slice(group * of_group, (group + 1) * of_group)
                columns = slice(group * each, (group + 1) * each)
                matrix[rows, i, j, columns, y, x] = kernel[rows, :, a, b]
    flat = matrix.reshape(math.prod(made), math.prod(geometry.image))
    return flat, np.repeat(bias, made[1] * made[2])
