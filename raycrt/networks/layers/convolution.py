"""Convolutions and average pools as affine maps of flat images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycrt.errors import require
from raycrt.networks.floating_point import plain_sums
from raycrt.networks.layers.affine import AffineMap

# A height and a width.
Pair = tuple[int, int]


class Correlation(AffineMap):
    """Cross-correlation, torch's convolution, of flattened images (channels, height, width).

    `kernel()` is (out_channels, in_channels / groups, height, width). Padding is with zeros, the
    same on opposite sides.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        out_channels: int,
        kernel: Pair,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__()
        channels, *size = in_shape
        require(
            channels % groups == 0 and out_channels % groups == 0,
            "groups divides in_channels and out_channels",
            in_channels=channels,
            out_channels=out_channels,
            groups=groups,
        )
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        room = [n + 2 * p - r for n, p, r in zip(size, padding, reach, strict=True)]
        require(min(room) >= 0, "kernel fits into the padded image", kernel=kernel, image=in_shape)
        self.in_shape = in_shape
        self.out_shape = (
            out_channels,
            room[0] // stride[0] + 1,
            room[1] // stride[1] + 1,
        )
        self.in_features, self.out_features = math.prod(in_shape), math.prod(self.out_shape)
        self.window, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.groups = groups
        self._rest = (room[0] % stride[0], room[1] % stride[1])

    def kernel(self) -> Tensor:
        raise NotImplementedError

    def linear(self, x: Tensor) -> Tensor:
        return self.apply_kernel(x, self.kernel())

    def transpose(self, cotangent: Tensor) -> Tensor:
        return self.apply_adjoint(cotangent, self.kernel())

    def transpose_absolute(self, weights: Tensor) -> Tensor:
        return self.apply_adjoint(weights, self.kernel().abs())

    def linear_absolute(self, x: Tensor) -> Tensor:
        return self.apply_kernel(x, self.kernel().abs())

    def row_norms(self) -> Tensor:
        kernel = self.kernel()
        return self.apply_kernel(kernel.new_ones(self.in_features), kernel.square()).sqrt()

    def matrix(self) -> Tensor:
        """W, dense; every entry is zero or an exact copy of an entry of the kernel."""
        kernel = self.ungrouped(self.kernel()).flatten(2)
        with_zero = F.pad(kernel, (0, 1))
        full = with_zero[:, :, self._taps().to(kernel.device)]
        return full.transpose(1, 2).reshape(self.out_features, self.in_features)

    @property
    def terms(self) -> int:
        channels = max(self.in_shape[0], self.out_shape[0]) // self.groups
        return channels * math.prod(self.window) + 1

    @property
    def sums_in_float32(self) -> bool:
        return False

    def apply_kernel(self, x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        images = x.reshape(-1, *self.in_shape)
        with plain_sums(images):
            z = F.conv2d(
                images, kernel, bias, self.stride, self.padding, self.dilation, self.groups
            )
        return z.reshape(*x.shape[:-1], self.out_features)

    def apply_adjoint(self, cotangent: Tensor, kernel: Tensor) -> Tensor:
        images = cotangent.reshape(-1, *self.out_shape)
        with plain_sums(images):
            x = F.conv_transpose2d(
                images,
                kernel,
                None,
                self.stride,
                self.padding,
                self._rest,
                self.groups,
                self.dilation,
            )
        return x.reshape(*cotangent.shape[:-1], self.in_features)

    def ungrouped(self, kernel: Tensor) -> Tensor:
        """The kernel (out_channels, in_channels, height, width) with zeros between groups."""
        if self.groups == 1:
            return kernel
        parts = kernel.chunk(self.groups)
        rows = []
        for index, part in enumerate(parts):
            width = part.shape[1]
            before, after = index * width, (self.groups - 1 - index) * width
            rows.append(F.pad(part, (0, 0, 0, 0, before, after)))
        return torch.cat(rows)

    def _taps(self) -> Tensor:
        """Index of the kernel's tap between each output and input position, (P, Q).

        The index past the last tap stands for none.
        """
        axes = []
        for n, m, k, s, p, d in zip(
            self.in_shape[1:],
            self.out_shape[1:],
            self.window,
            self.stride,
            self.padding,
            self.dilation,
            strict=True,
        ):
            distance = torch.arange(n)[None] - (torch.arange(m) * s - p)[:, None]
            tap = distance // d
            axes.append(torch.where((distance % d == 0) & (tap >= 0) & (tap < k), tap, -1))
        tall, wide = axes[0][:, None, :, None], axes[1][None, :, None, :]
        both = torch.where((tall >= 0) & (wide >= 0), tall * self.window[1] + wide, -1)
        none = math.prod(self.window)
        return torch.where(both >= 0, both, none).reshape(
            math.prod(self.out_shape[1:]), math.prod(self.in_shape[1:])
        )


class Convolution(Correlation):
    """A convolutional layer with trained kernel and one bias for each channel."""

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        out_channels: int,
        kernel: Pair,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__(
            in_shape,
            out_channels,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        fan_in = in_shape[0] // groups * math.prod(kernel)
        bound = 1 / math.sqrt(fan_in)
        shape = (out_channels, in_shape[0] // groups, *kernel)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound))

    def kernel(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_kernel(x, self.weight, self.bias)

    def offset(self) -> Tensor:
        return self.bias.repeat_interleave(math.prod(self.out_shape[1:]))


class AveragePool(Correlation):
    """Sums over windows of each channel divided by `divisor`; padding counts as zeros."""

    like: Tensor

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        window: Pair,
        *,
        stride: Pair,
        padding: Pair = (0, 0),
        divisor: int | None = None,
    ) -> None:
        super().__init__(
            in_shape, in_shape[0], window, stride=stride, padding=padding, groups=in_shape[0]
        )
        self.divisor = divisor or math.prod(window)
        # Nothing is trained here; this only carries the type and the device of the network.
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def kernel(self) -> Tensor:
        ones = self.like.new_ones(self.in_shape[0], 1, *self.window)
        return ones / self.divisor

    def offset(self) -> Tensor:
        return self.like.new_zeros(self.out_features)
