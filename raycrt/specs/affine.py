"""The affine layers of a network as a recipe lists them, one record for each kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from raycrt.activations import ACTIVATIONS, refusal
from raycrt.specs.record import NEURONS, Record

# Largest kernel or stride, in pixels.
SIDE = 2**10
# The activation of a layer that has none.
LINEAR = "none"
Side = Annotated[int, Field(ge=1, le=NEURONS, strict=True)]
# A height and a width, and how specs state them: by one number if they are the same.
Pair = tuple[int, int]
_Step = Annotated[int, Field(ge=1, le=SIDE, strict=True)]
_Padding = Annotated[int, Field(ge=0, le=SIDE, strict=True)]
Sides = _Step | tuple[_Step, _Step]
Paddings = _Padding | tuple[_Padding, _Padding]

Sharpness = Annotated[
    Annotated[float, Field(gt=0, strict=True)] | None,
    Field(description="sharpness of the layer's softplus; else the model's"),
]


def pair(sides: int | Pair) -> Pair:
    """Height and width of what one number or two state."""
    return (sides, sides) if isinstance(sides, int) else sides


def known_activation(name: str | None) -> str | None:
    """`name` if it is that of an activation; `ValueError` otherwise."""
    if name is not None and name not in ACTIVATIONS:
        raise ValueError(refusal(name))
    return name


class Acting(Record):
    """A layer that an activation follows: its own, or that of the model."""

    activation: str | None = Field(
        None, description=f"one of raycrt.activations.ACTIVATIONS, or {LINEAR}; else the model's"
    )

    beta: Sharpness = None

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return name if name == LINEAR else known_activation(name)


class Linear(Acting):
    """A layer that no activation follows unless it names one."""

    activation: str | None = Field(
        LINEAR, description=f"one of raycrt.activations.ACTIVATIONS; else {LINEAR}"
    )


class DenseLayer(Acting):
    """A fully connected layer of the flattened input."""

    kind: Literal["dense"]
    width: int = Field(ge=1, le=NEURONS, description="neurons")


class ConvolutionLayer(Acting):
    """A convolution of images, padded with zeros, the same on opposite sides."""

    kind: Literal["convolution"]
    channels: int = Field(ge=1, le=NEURONS, description="output channels")
    kernel: Sides = Field(3, description="of the kernel; one number, or height and width")
    stride: Sides = Field(1, description="step of the kernel")
    padding: Paddings = Field(0, description="zeros on each side of the images")
    dilation: Sides = Field(1, description="distance of neighbouring entries of the kernel")
    groups: int = Field(
        1, ge=1, le=NEURONS, description="parts of the channels that are convolved apart"
    )


class PoolLayer(Linear):
    """Sums over windows of each channel, divided by the number of their pixels; padding counts."""

    kind: Literal["average_pool"]
    window: Sides | Literal["global"] = Field(
        2, description="of the windows; one number, height and width, or global: the whole image"
    )
    stride: Sides | None = Field(None, description="step of the windows; none: side by side")
    padding: Paddings = Field(0, description="zeros on each side of the images")
    divisor: Annotated[int, Field(ge=1, le=NEURONS, strict=True)] | None = Field(
        None, description="in place of the number of pixels of a window"
    )

    def of(self, image: tuple[int, int, int]) -> Pair:
        """Height and width of a window in images (channels, height, width)."""
        return (image[1], image[2]) if self.window == "global" else pair(self.window)


class BatchNormalizationLayer(Linear):
    """`weight (x - mean) / sqrt(variance + eps) + bias` with stored statistics."""

    kind: Literal["batch_normalization"]
    eps: float = Field(1e-5, ge=0, description="added to the variance")
    per: Literal["channel", "feature"] = Field(
        "channel", description="what has a mean and a variance of its own"
    )

    def numbers(self, shape: Sequence[int]) -> int:
        """How many means an input of `shape` has."""
        return shape[0] if self.per == "channel" else math.prod(shape)


class ScalingLayer(Linear):
    """`weight x / divisor + bias`, with a number of each for every feature."""

    kind: Literal["scaling"]


class PermutationLayer(Linear):
    """The features in another order, which is stored with the weights."""

    kind: Literal["permutation"]


class SelectionLayer(Linear):
    """Some of the consecutive pieces of the features, in their order, as a vector."""

    kind: Literal["selection"]
    sizes: tuple[Side, ...] = Field(min_length=1, description="features of each piece")
    kept: tuple[Annotated[int, Field(ge=0, strict=True)], ...] = Field(
        min_length=1, description="numbers of the pieces in the result, counted from 0"
    )

    @field_validator("kept")
    @classmethod
    def _in_order(cls, kept: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        known = range(len(info.data.get("sizes", kept)))
        if list(kept) != sorted(set(kept) & set(known)):
            raise ValueError("must name pieces of sizes, each once and in their order")
        return kept


class IdentityLayer(Linear):
    """The features as they are: for an activation in front of a layer, or as a skip connection."""

    kind: Literal["identity"]


class FlattenLayer(Record):
    """Images as vectors of features, in the order channel, row, column."""

    kind: Literal["flatten"]


class UnflattenLayer(Record):
    """Vectors of features as images."""

    kind: Literal["unflatten"]
    shape: tuple[Side, Side, Side] = Field(description="channels, height, width")


# The layers with one matrix, whose entries are stored or computed.
AffineLayer = (
    DenseLayer
    | ConvolutionLayer
    | PoolLayer
    | BatchNormalizationLayer
    | ScalingLayer
    | PermutationLayer
    | SelectionLayer
    | IdentityLayer
)
Reshaping = FlattenLayer | UnflattenLayer
