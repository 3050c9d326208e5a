"""Conversion and validation of the batches of images that callers pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raycrt.errors import InvalidInput, require

_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def batch_of_images(images: Any) -> Tensor:
    """`images` as a tensor (n, ...) of their own floating-point type, n > 0, without gradients.

    A numpy array or a list of tensors or arrays of one shape is converted exactly. Raises
    `InvalidInput` for everything else, including complex numbers, and integers, Booleans and PIL
    images, whose scale need not be the one on which the model was trained.
    """
    batch = _tensor(images)
    require(batch.layout == torch.strided, "images are dense: images.to_dense()", got=batch.layout)
    if batch.dtype not in _TYPES:
        raise InvalidInput(
            "images must be floating-point numbers on the scale that the model was trained on "
            f"(often pixels / 255), but are {batch.dtype}"
        )
    require(batch.device.type != "meta", "images have values", device=batch.device)
    require(batch.dim() >= 2, "images are a batch (n, ...)", shape=tuple(batch.shape))
    require(len(batch) > 0, "at least one image", images=tuple(batch.shape))
    return batch.as_subclass(Tensor)


def fits(images: Tensor, *, features: int, device: torch.device) -> Tensor:
    """`images` (n, ...); `InvalidInput` unless they fit a network of `features` on `device`."""
    if images[0].numel() != features and images.numel() == features:
        raise InvalidInput(one_image(tuple(images.shape)))
    require(
        images[0].numel() == features,
        "an image has as many numbers as the network takes",
        image=images[0].numel(),
        network=features,
    )
    require(
        images.device == device,
        "images are on the network's device",
        images=images.device,
        network=device,
    )
    return images


def one_image(shape: tuple[int, ...]) -> str:
    """The message that a tensor of `shape` is one image where a batch is required."""
    return f"images must be a batch (n, ...), but got one image {shape}: pass image[None]"


def _tensor(images: Any) -> Tensor:
    if isinstance(images, Tensor):
        return images.detach()
    if isinstance(images, np.ndarray):
        try:
            # A copy: torch takes neither read-only arrays nor negative strides.
            return torch.from_numpy(images.copy())
        except TypeError:
            raise InvalidInput(f"an array must hold numbers, but holds {images.dtype}") from None
    if isinstance(images, list | tuple) and len(images) > 0:
        if all(isinstance(image, Tensor | np.ndarray) for image in images):
            rows = [_tensor(image) for image in images]
            kinds = {(tuple(row.shape), row.dtype, row.device) for row in rows}
            if len(kinds) > 1:
                shapes = sorted({str(kind[0]) for kind in kinds})
                raise InvalidInput(
                    "images in a list must have one shape, type and device, but have shapes "
                    f"{', '.join(shapes[:3])}, {len(kinds)} kinds in all"
                )
            return torch.stack(rows)
        images = images[0]
    raise InvalidInput(
        "images must be a tensor (n, ...), a numpy array or a list of tensors of one shape, on the "
        f"scale that the model was trained on, but got {type(images).__name__}"
    )
