"""The layers of a network as a recipe lists them, one record for each kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raycrt.activations import ACTIVATIONS
from raycrt.errors import nearest
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
        raise ValueError(f"must be one of {sorted(ACTIVATIONS)}{nearest(name, ACTIVATIONS)}")
    return name


class _Acting(Record):
    """A layer that an activation follows: its own, or that of the model."""

    activation: str | None = Field(
        None, description=f"one of raycrt.activations.ACTIVATIONS, or {LINEAR}; else the model's"
    )

    beta: Sharpness = None

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return name if name == LINEAR else known_activation(name)


class _Linear(_Acting):
    """A layer that no activation follows unless it names one."""

    activation: str | None = Field(
        LINEAR, description=f"one of raycrt.activations.ACTIVATIONS; else {LINEAR}"
    )


class DenseLayer(_Acting):
    """A fully connected layer of the flattened input."""

    kind: Literal["dense"]
    width: int = Field(ge=1, le=NEURONS, description="neurons")


class ConvolutionLayer(_Acting):
    """A convolution of images, padded with zeros, the same on opposite sides."""

    kind: Literal["convolution"]
    channels: int = Field(ge=1, le=NEURONS, description="output channels")
    kernel: Sides = Field(3, description="of the kernel; one number, or height and width")
    stride: Sides = Field(1, description="step of the kernel")
    padding: Paddings = Field(0, description="zeros on each side of the images")
    dilation: Sides = Field(1, description="distance of neighbouring entries of the kernel")
    groups: int = Field(1, ge=1, le=NEURONS)


def _kind(layer: Any) -> Any:
    return layer.get("kind") if isinstance(layer, dict) else getattr(layer, "kind", None)


_Dense = Annotated[DenseLayer, Tag("dense")]
_Convolution = Annotated[ConvolutionLayer, Tag("convolution")]
BranchSpec = Annotated[
    _Dense | _Convolution,
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="a layer's kind in a block must be dense or convolution",
    ),
]


class PoolLayer(_Linear):
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


class BatchNormalizationLayer(_Linear):
    """`weight (x - mean) / sqrt(variance + eps) + bias` with stored statistics."""

    kind: Literal["batch_normalization"]
    eps: float = Field(1e-5, ge=0, description="added to the variance")
    per: Literal["channel", "feature"] = Field(
        "channel", description="what has a mean and a variance of its own"
    )

    def numbers(self, shape: Sequence[int]) -> int:
        """How many means an input of `shape` has."""
        return shape[0] if self.per == "channel" else math.prod(shape)


class ScalingLayer(_Linear):
    """`weight x / divisor + bias`, with a number of each for every feature."""

    kind: Literal["scaling"]


class PermutationLayer(_Linear):
    """The features in another order, which is stored with the weights."""

    kind: Literal["permutation"]


class FlattenLayer(Record):
    """Images as vectors of features, in the order channel, row, column."""

    kind: Literal["flatten"]


class UnflattenLayer(Record):
    """Vectors of features as images."""

    kind: Literal["unflatten"]
    shape: tuple[Side, Side, Side] = Field(description="channels, height, width")


class ResidualLayer(Record):
    """`x + V s(W x + b) + c`: W and V are dense, or convolutions that keep height and width."""

    kind: Literal["residual"]
    width: int = Field(ge=1, le=NEURONS, description="neurons, or channels, between W and V")
    kernel: Annotated[int, Field(ge=1, le=SIDE)] | None = Field(
        None, description="odd height and width of both kernels; none: W and V are dense"
    )
    activation: str | None = Field(
        None, description="one of raycrt.activations.ACTIVATIONS; else the model's"
    )

    beta: Sharpness = None

    _known = field_validator("activation")(known_activation)

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int | None) -> int | None:
        if kernel is not None and kernel % 2 == 0:
            raise ValueError("must be odd, so that height and width are kept")
        return kernel


# The layers with one matrix, whose entries are stored or computed.
AffineLayer = (
    DenseLayer
    | ConvolutionLayer
    | PoolLayer
    | BatchNormalizationLayer
    | ScalingLayer
    | PermutationLayer
)
Reshaping = FlattenLayer | UnflattenLayer


class BlockLayer(Record):
    """`s(S x + f(x))`: f is `branch`, whose last layer is linear, and S is `shortcut`, a linear
    layer whose bias is 0, or x itself. There is no `s` unless it is named."""

    kind: Literal["block"]
    branch: tuple[BranchSpec, ...] = Field(min_length=2)
    shortcut: BranchSpec | None = None
    activation: str | None = Field(
        LINEAR, description="one of raycrt.activations.ACTIVATIONS; null is the model's"
    )
    beta: Sharpness = None

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return name if name == LINEAR else known_activation(name)

    @model_validator(mode="after")
    def _ends_linear(self) -> BlockLayer:
        if any(layer.activation != LINEAR for layer in (self.branch[-1], self.shortcut) if layer):
            raise ValueError(
                f"the last layer of branch, and shortcut, must have activation {LINEAR}"
            )
        if not any(layer.activation != LINEAR for layer in self.branch):
            raise ValueError("branch must have a layer with an activation")
        return self


LayerSpec = Annotated[
    _Dense
    | _Convolution
    | Annotated[PoolLayer, Tag("average_pool")]
    | Annotated[BatchNormalizationLayer, Tag("batch_normalization")]
    | Annotated[ScalingLayer, Tag("scaling")]
    | Annotated[PermutationLayer, Tag("permutation")]
    | Annotated[FlattenLayer, Tag("flatten")]
    | Annotated[UnflattenLayer, Tag("unflatten")]
    | Annotated[ResidualLayer, Tag("residual")]
    | Annotated[BlockLayer, Tag("block")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="a layer's kind must be dense, convolution, average_pool, "
        "batch_normalization, scaling, permutation, flatten, unflatten, residual or block",
    ),
]


def acts(layer: LayerSpec) -> bool:
    """Whether an activation follows `layer`."""
    if isinstance(layer, BlockLayer):
        return True
    return isinstance(layer, AffineLayer | ResidualLayer) and layer.activation != LINEAR


def convolves(layer: LayerSpec) -> bool:
    """Whether `layer` must be given images."""
    if isinstance(layer, BlockLayer):
        return any(isinstance(each, ConvolutionLayer) for each in (*layer.branch, layer.shortcut))
    if isinstance(layer, ResidualLayer):
        return layer.kernel is not None
    return isinstance(layer, ConvolutionLayer | PoolLayer)
