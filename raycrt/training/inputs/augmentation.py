"""Random label-preserving rotations, shifts, rescalings and reflections of images."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from raycrt.specs import AugmentationSpec


def random_maps(rows: int, shape: tuple[int, ...], spec: AugmentationSpec, seed: int) -> Tensor:
    """Affine maps (rows, 2, 3) for images of `shape` (channels, height, width).

    Deterministic: the same seed gives the same maps, whatever was drawn before.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(5, rows, generator=generator, dtype=torch.float64).mul(2).sub(1)
    angle = draw[0] * math.radians(spec.rotation)
    width, height = 1 + spec.scaling * draw[1], 1 + spec.scaling * draw[2]
    if spec.mirror:
        width = width * torch.where(torch.rand(rows, generator=generator) < 0.5, -1, 1)
    # Coordinates run from -1 to 1 over the image.
    right, down = draw[3] * 2 * spec.shift / shape[2], draw[4] * 2 * spec.shift / shape[1]
    return torch.stack(
        [
            torch.stack([angle.cos() * width, -angle.sin() * height, right], 1),
            torch.stack([angle.sin() * width, angle.cos() * height, down], 1),
        ],
        1,
    )


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Images (n, channels, height, width) warped by `maps` (n, 2, 3), bilinear, zero outside."""
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
