"""The layers of a network as a recipe lists them, one record for each kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raycrt.activations import ACTIVATIONS
from raycrt.errors import nearest
from raycrt.specs.record import NEURONS, Record

# Largest kernel or stride, in pixels.
SIDE = 2**10
# The activation of a layer that has none.
LINEAR = "none"


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

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return name if name == LINEAR else known_activation(name)


class DenseLayer(_Acting):
    """A fully connected layer of the flattened input."""

    kind: Literal["dense"]
    width: int = Field(ge=1, le=NEURONS, description="neurons")


class ConvolutionLayer(_Acting):
    """A convolution of images, padded with zeros on each side."""

    kind: Literal["convolution"]
    channels: int = Field(ge=1, le=NEURONS, description="output channels")
    kernel: int = Field(3, ge=1, le=SIDE, description="height and width of the kernel")
    stride: int = Field(1, ge=1, le=SIDE)
    padding: int = Field(0, ge=0, le=SIDE, description="zeros on each side of the images")
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


class PoolLayer(Record):
    """Means over windows of each channel that do not overlap; no activation follows.

    The number of pixels in a window is a power of two, so that a mean is a product with a number
    that is stored exactly.
    """

    kind: Literal["average_pool"]
    window: Literal[2, 4, 8, 16] = Field(2, description="height, width and step of the windows")


class FlattenLayer(Record):
    """Images as vectors of features, in the order channel, row, column."""

    kind: Literal["flatten"]


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

    _known = field_validator("activation")(known_activation)

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int | None) -> int | None:
        if kernel is not None and kernel % 2 == 0:
            raise ValueError("must be odd, so that height and width are kept")
        return kernel


class BlockLayer(Record):
    """`s(S x + f(x))`: f is `branch`, whose last layer is linear, and S is `shortcut`, a linear
    layer whose bias is 0, or x itself. There is no `s` unless it is named."""

    kind: Literal["block"]
    branch: tuple[BranchSpec, ...] = Field(min_length=2)
    shortcut: BranchSpec | None = None
    activation: str | None = Field(
        LINEAR, description="one of raycrt.activations.ACTIVATIONS; null is the model's"
    )

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
    | Annotated[FlattenLayer, Tag("flatten")]
    | Annotated[ResidualLayer, Tag("residual")]
    | Annotated[BlockLayer, Tag("block")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="a layer's kind must be dense, convolution, average_pool, flatten, "
        "residual or block",
    ),
]


def acts(layer: LayerSpec) -> bool:
    """Whether an activation follows `layer`."""
    if isinstance(layer, BlockLayer):
        return True
    return isinstance(layer, _Acting | ResidualLayer) and layer.activation != LINEAR


def convolves(layer: LayerSpec) -> bool:
    """Whether `layer` must be given images."""
    if isinstance(layer, BlockLayer):
        return any(isinstance(each, ConvolutionLayer) for each in (*layer.branch, layer.shortcut))
    if isinstance(layer, ResidualLayer):
        return layer.kernel is not None
    return isinstance(layer, ConvolutionLayer | PoolLayer)
