"""Units and layout of inputs: float32, pixels of files in [0, 1], channels first."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raycrt.errors import InvalidInput

if TYPE_CHECKING:
    from PIL import Image

# Names of files of images end in one of these.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# Numbers of channels by which the axis of channels is recognised.
_CHANNELS = (1, 3, 4)
_WHOLE = {"uint8": 255, "uint16": 65535}
# Modes of PIL that hold an image as it is, and those that are another form of one of them.
_PLAIN, _CONVERTED = ("L", "RGB", "I;16", "I;16B", "F"), {"1": "L", "CMYK": "RGB", "YCbCr": "RGB"}
_ALPHA = {"LA": "L", "La": "L", "RGBA": "RGB", "RGBa": "RGB"}
_LAYOUTS = "(channels, height, width), (height, width, channels), (height, width) or (features,)"


def scaled(numbers: np.ndarray, place: str) -> np.ndarray:
    """`numbers` as float32: uint8 divided by 255, uint16 by 65535, floats as they are.

    Raises `InvalidInput` naming `place` for other types, whose range is unknown.
    """
    if numbers.dtype.kind != "f" and numbers.dtype.name not in _WHOLE:
        raise InvalidInput(
            f"inputs must be uint8, uint16 or floating-point numbers, but {place} has "
            f"{numbers.dtype}"
        )
    return single_precision(numbers) / np.float32(_WHOLE.get(numbers.dtype.name, 1))


def single_precision(numbers: np.ndarray) -> np.ndarray:
    """A copy of `numbers` as float32; those that are too large for it are infinite."""
    with np.errstate(over="ignore"):
        return np.array(numbers, np.float32, order="C")


def channels_first(inputs: np.ndarray, place: str, stated: Sequence[int] | None) -> np.ndarray:
    """Inputs (n, features), (n, height, width) or with channels first or last, channels first.

    The axis of channels is that with 1, 3 or 4 entries, or the one that makes the shape `stated`.
    """
    if inputs.ndim == 2:
        return inputs
    if inputs.ndim == 3:
        return inputs[:, None]
    if inputs.ndim != 4:
        raise InvalidInput(f"an input must be {_LAYOUTS}, but in {place} it is {inputs.shape[1:]}")
    turned = np.moveaxis(inputs, 3, 1)
    if stated is not None and inputs.shape[1:] != turned.shape[1:]:
        if tuple(stated) == inputs.shape[1:]:
            return inputs
        if tuple(stated) == turned.shape[1:]:
            return turned
    first, last = inputs.shape[1] in _CHANNELS, inputs.shape[3] in _CHANNELS
    if first and last:
        raise InvalidInput(
            f"data.shape must state (channels, height, width) where an input may be read either "
            f"way, but in {place} it is {inputs.shape[1:]}"
        )
    return turned if last else inputs


def of_arrays(
    inputs: np.ndarray, place: str, size: tuple[int, int] | None, stated: Sequence[int] | None
) -> np.ndarray:
    """Inputs (n, ...) `scaled`, with `channels_first` and `resized` to `size` if it is given."""
    numbers = channels_first(inputs, place, None if size else stated)
    return resized(scaled(numbers, place), size, place)


def decoded(content: bytes, place: str) -> np.ndarray:
    """The image in the bytes of a file as float32 (channels, height, width)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            return of_image(image, place)
    except UnidentifiedImageError:
        raise InvalidInput(f"{place} must be an image, but its format is not known") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, InvalidInput):
            raise
        said = " ".join(str(error).split())
        raise InvalidInput(f"{place} must be a whole image that can be read: {said}") from None


def of_image(image: Image.Image, place: str) -> np.ndarray:
    """A PIL image as float32 (channels, height, width): grey, or red, green and blue.

    Palettes are converted. An alpha channel is dropped if it is opaque everywhere.
    """
    # Known until the pixels are read, of which PIL keeps 8 bits for each colour.
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA" if image.mode != "L" else "LA")
    if image.mode in _ALPHA:
        if image.getchannel("A").getextrema() != (255, 255):
            raise InvalidInput(f"an image must be opaque, but {place} has transparent pixels")
        image = image.convert(_ALPHA[image.mode])
    image = image.convert(_CONVERTED[image.mode]) if image.mode in _CONVERTED else image
    if image.mode not in _PLAIN or (deep and image.mode == "RGB"):
        raise InvalidInput(
            "an image must have 8 bits for each colour, or 8, 16 or floating-point ones for grey, "
            f"but {place} is {'16-bit ' if deep else ''}{image.mode}"
        )
    numbers = np.asarray(image)
    return scaled(numbers[None] if numbers.ndim == 2 else np.moveaxis(numbers, 2, 0), place)


def of_anything(value: Any, place: str, stated: Sequence[int] | None) -> np.ndarray:
    """A PIL image, an array or a tensor of one input as float32, channels first."""
    from PIL import Image
    from torch import Tensor

    if isinstance(value, Image.Image):
        return of_image(value, place)
    numbers = value.numpy(force=True) if isinstance(value, Tensor) else np.asarray(value)
    if isinstance(value, Tensor) and value.dim() == 3:  # An image of torch has channels first.
        return scaled(numbers, place)
    return of_array(numbers, place, stated)


def of_array(numbers: np.ndarray, place: str, stated: Sequence[int] | None) -> np.ndarray:
    """The array of one input as float32, channels first."""
    return scaled(channels_first(numbers[None], place, stated)[0], place)


def resized(images: np.ndarray, size: tuple[int, int] | None, place: str) -> np.ndarray:
    """Images (n, channels, height, width) brought to `size` (height, width), bilinear with
    antialiasing; as they are without a size."""
    if size is None:
        return images
    if images.ndim != 4:
        raise InvalidInput(
            f"data.resize must be left out where inputs are not images, but {place} has inputs of "
            f"shape {tuple(images.shape[1:])}"
        )
    if images.shape[2:] == size:
        return images
    # Another implementation would have other last bits.
    import torch

    batch = torch.from_numpy(images)
    made = torch.nn.functional.interpolate(batch, list(size), mode="bilinear", antialias=True)
    return made.numpy()


def stacked(
    inputs: Iterable[np.ndarray], place: Callable[[int], str], size: tuple[int, int] | None
) -> np.ndarray:
    """Single inputs, `resized`, as one array (n, ...); `InvalidInput` names the first whose shape
    differs from that of the first input."""
    found: list[np.ndarray] = []
    for row, single in enumerate(inputs):
        found.append(resized(single[None], size, place(row))[0])
        if found[row].shape != found[0].shape:
            raise InvalidInput(another_shape(found[row], place(row), found[0], place(0)))
    return np.stack(found) if found else np.empty((0, 0), np.float32)


def another_shape(one: np.ndarray, place: str, first: np.ndarray, first_place: str) -> str:
    """The message that two inputs differ in shape, with the way out where that is data.resize."""
    ways = ""
    if one.ndim == 3 == first.ndim:
        same = one.shape[0] == first.shape[0]
        ways = "; data.resize gives all images one size" if same else "; grey or colour, not both"
    return (
        f"all inputs must have one shape, but {place} has {tuple(one.shape)} and {first_place} "
        f"has {tuple(first.shape)}{ways}"
    )
