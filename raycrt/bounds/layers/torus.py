"""A proved norm bound for convolutions that forms no dense matrix.

A zero-padded convolution is a circular convolution on a larger torus, between an embedding of its
input and a restriction of its output, neither of which increases norms. On the torus the Fourier
transform splits it into one small matrix per frequency (Sedghi, Gupta & Long, ICLR 2019); with a
stride, the blocks of aliasing frequencies are concatenated. The largest norm of these matrices
bounds |W|.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from raycrt.bounds.spectral import EPS, SLACK, cholesky_upper, gamma
from raycrt.networks.layers.convolution import Pair

_POWER_STEPS = 60
# Number of float64 entries of frequency blocks that are proved together.
_BLOCK_ENTRIES = 2**23


def torus_norm_upper(kernel: Tensor, size: Pair, stride: Pair, dilation: Pair) -> float:
    """A number >= the norm of the circular convolution with `kernel` on a torus of `size`.

    `kernel` is float64 (out_channels, in_channels, height, width), `stride` divides `size`. The
    rounding errors of the transform (with angles reduced exactly, so that each factor has an error
    of a few eps) and of the Gram matrices are added; the largest eigenvalue is proved as in
    `raycrt.bounds.spectral`.
    """
    if not torch.isfinite(kernel).all():
        return math.inf
    taps = math.prod(kernel.shape[2:])
    absolute = float(kernel.abs().sum((2, 3)).norm()) * SLACK
    if absolute == 0:
        return 0.0
    transform_error = (64 + 4 * taps) * EPS * absolute
    guess = max(_power_estimate(b) for b in _frequencies(kernel, size, stride, dilation))
    step = 1e-6 * max(guess, absolute**2 * 1e-6)
    if not math.isfinite(step):
        return math.inf
    while True:
        bounds = []
        for blocks in _frequencies(kernel, size, stride, dilation):
            proved = _gram_proved(blocks, guess + step)
            if proved is None:
                break
            bounds.append(proved)
        else:
            return (math.sqrt(max(bounds)) + transform_error) * SLACK
        step *= 4


def _frequencies(kernel: Tensor, size: Pair, stride: Pair, dilation: Pair) -> Iterator[Tensor]:
    """The convolution's blocks (frequencies, out_channels, in_channels * aliases), complex128.

    Blocks at opposite frequencies are conjugate, so half of the second axis suffices.
    """
    out_channels, in_channels, tall, wide = kernel.shape
    coarse = (size[0] // stride[0], size[1] // stride[1])
    aliases = math.prod(stride)
    second = _wave(size[1], wide, dilation[1]).view(stride[1], coarse[1], wide)
    second = second[:, : coarse[1] // 2 + 1]
    first = _wave(size[0], tall, dilation[0]).view(stride[0], coarse[0], tall)
    complex_kernel = kernel.to(torch.complex128)
    half = torch.einsum("oiyx,bgx->oiybg", complex_kernel, second)
    row_entries = 4 * out_channels * in_channels * aliases * second.shape[1]
    for rows in first.split(max(1, _BLOCK_ENTRIES // row_entries), dim=1):
        blocks = torch.einsum("oiybg,afy->fgoiab", half, rows) / math.sqrt(aliases)
        yield blocks.reshape(-1, out_channels, in_channels * aliases)


def _wave(size: int, taps: int, dilation: int) -> Tensor:
    """exp(-2 pi i f t dilation / size) for all frequencies f and taps t."""
    turns = torch.arange(size)[:, None] * torch.arange(taps)[None] * dilation % size
    angle = -2 * math.pi * turns.double() / size
    return torch.complex(angle.cos(), angle.sin())


def _power_estimate(blocks: Tensor) -> float:
    """An estimate from below of the largest eigenvalue of A A^H over all blocks A."""
    vectors = torch.ones(*blocks.shape[::2], 1, dtype=blocks.dtype)
    vectors = vectors + 0.5j * torch.linspace(-1, 1, blocks.shape[2]).to(blocks)[:, None]
    largest = 0.0
    for _ in range(_POWER_STEPS):
        vectors = blocks.mH @ (blocks @ nn.functional.normalize(vectors, dim=1))
        largest = float(torch.linalg.vector_norm(vectors, dim=1).max())
    return largest


def _gram_proved(blocks: Tensor, bound: float) -> float | None:
    """A number >= the largest eigenvalue of A A^H over all blocks A, if `bound` can be proved.

    A complex matrix has the singular values of the real one [[Re, -Im], [Im, Re]], each twice.
    """
    small = blocks if blocks.shape[1] <= blocks.shape[2] else blocks.mH
    real = torch.cat(
        [torch.cat([small.real, -small.imag], 2), torch.cat([small.imag, small.real], 2)], 1
    )
    mass = float(real.square().sum((1, 2)).max())
    proved = cholesky_upper(real @ real.mT, bound)
    if proved is None:
        return None
    return (proved + gamma(real.shape[2] + 3) * mass * SLACK) * SLACK
