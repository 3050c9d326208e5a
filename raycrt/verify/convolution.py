"""Convolutions unrolled into matrices, whose entries are stored weights or zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raycrt.errors import require
from raycrt.specs.affine import ConvolutionLayer, Pair, PoolLayer, pair
from raycrt.specs.layers import ResidualLayer

# A float64 matrix with this many entries takes 256 MB.
ENTRIES = 2**25

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A convolution of images of shape `image` into `outputs` channels; shapes are (channels,
    height, width), the others pairs of a height and a width."""

    image: Shape
    outputs: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @staticmethod
    def of(layer: ConvolutionLayer, image: Shape) -> Geometry:
        return Geometry(
            image=image,
            outputs=layer.channels,
            kernel=pair(layer.kernel),
            stride=pair(layer.stride),
            padding=pair(layer.padding),
            dilation=pair(layer.dilation),
            groups=layer.groups,
        )

    @staticmethod
    def of_pool(layer: PoolLayer, image: Shape) -> Geometry:
        """Each channel by itself."""
        window = layer.of(image)
        return Geometry(
            image=image,
            outputs=image[0],
            kernel=window,
            stride=window if layer.stride is None else pair(layer.stride),
            padding=pair(layer.padding),
            groups=image[0],
        )

    @staticmethod
    def of_branch(layer: ResidualLayer, image: Shape, outputs: int) -> Geometry:
        """One that keeps height and width."""
        assert layer.kernel is not None
        side = layer.kernel
        return Geometry(
            image=image, outputs=outputs, kernel=(side, side), padding=(side // 2, side // 2)
        )

    @property
    def made(self) -> Shape:
        """The shape of the result."""
        sides = zip(
            self.image[1:], self.kernel, self.stride, self.padding, self.dilation, strict=True
        )
        rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
        return self.outputs, rows, columns

    def taps(self, axis: int) -> list[tuple[int, int, int]]:
        """The rows (axis 0) or columns of a result, of an image and of the kernel that meet."""
        stride, padding, apart = self.stride[axis], self.padding[axis], self.dilation[axis]
        found = []
        for out, place in np.ndindex(self.made[axis + 1], self.image[axis + 1]):
            tap, rest = divmod(place + padding - out * stride, apart)
            if rest == 0 and 0 <= tap < self.kernel[axis]:
                found.append((out, place, tap))
        return found


def unrolled(
    kernel: np.ndarray, bias: np.ndarray, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset of a convolution of flat images.

    `kernel` is (outputs, channels / groups, height, width), `bias` (outputs,). Output (o, i, j) is
    `bias[o]` plus the sum of `kernel[o, c, a, b]` times pixel (c', i * stride + a * dilation -
    padding, j * stride + b * dilation - padding), with the numbers of rows and of columns, which is
    0 outside the image; c' is channel c of those of o's group.
    """
    channels = geometry.image[0]
    groups = geometry.groups
    require(
        channels % groups == 0 and geometry.outputs % groups == 0,
        "groups divides the channels of a convolution",
        channels=channels,
        outputs=geometry.outputs,
        groups=groups,
    )
    each = channels // groups
    require(
        kernel.shape == (geometry.outputs, each, *geometry.kernel)
        and bias.shape == (geometry.outputs,),
        "a kernel is (outputs, channels / groups, side, side), its bias (outputs,)",
        kernel=kernel.shape,
        bias=bias.shape,
        expected=(geometry.outputs, each, *geometry.kernel),
    )
    made = geometry.made
    require(min(made) > 0, "a kernel fits into the padded image", image=geometry.image, made=made)
    entries = math.prod(made) * math.prod(geometry.image)
    require(
        entries <= ENTRIES,
        f"the matrix of a checked convolution has at most {ENTRIES} entries",
        entries=entries,
        image=geometry.image,
        made=made,
    )
    matrix = np.zeros((*made, *geometry.image))
    of_group = geometry.outputs // groups
    j, x, b = np.array(geometry.taps(1)).reshape(-1, 3).T
    for i, y, a in geometry.taps(0):
        for group in range(groups):
            rows = slice(group * of_group, (group + 1) * of_group)
            columns = slice(group * each, (group + 1) * each)
            matrix[rows, i, j, columns, y, x] = kernel[rows, :, a, b].transpose(2, 0, 1)
    flat = matrix.reshape(math.prod(made), math.prod(geometry.image))
    return flat, np.repeat(bias, made[1] * made[2])
