"""The layers of a network as a recipe lists them: affine ones, blocks with a skip connection, and
maps side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raycrt.specs.affine import (
    LINEAR,
    SIDE,
    Acting,
    BatchNormalizationLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    IdentityLayer,
    Linear,
    PermutationLayer,
    PoolLayer,
    ScalingLayer,
    SelectionLayer,
    Sharpness,
    Side,
    UnflattenLayer,
    known_activation,
)
from raycrt.specs.record import NEURONS, Record


def _kind(layer: Any) -> Any:
    return layer.get("kind") if isinstance(layer, dict) else getattr(layer, "kind", None)


def _one_of(where: str, *kinds: str) -> Discriminator:
    *most, last = kinds
    return Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message=f"a layer's kind{where} must be {', '.join(most)} or {last}",
    )


_AFFINE = (
    *("dense", "convolution", "average_pool", "batch_normalization", "scaling"),
    *("permutation", "selection", "identity", "flatten", "unflatten"),
)
_SIDE_BY_SIDE = ("stack", "sum", "direct_sum")
_Affine = (
    Annotated[DenseLayer, Tag("dense")]
    | Annotated[ConvolutionLayer, Tag("convolution")]
    | Annotated[PoolLayer, Tag("average_pool")]
    | Annotated[BatchNormalizationLayer, Tag("batch_normalization")]
    | Annotated[ScalingLayer, Tag("scaling")]
    | Annotated[PermutationLayer, Tag("permutation")]
    | Annotated[SelectionLayer, Tag("selection")]
    | Annotated[IdentityLayer, Tag("identity")]
    | Annotated[FlattenLayer, Tag("flatten")]
    | Annotated[UnflattenLayer, Tag("unflatten")]
)
BranchSpec = Annotated[_Affine, _one_of(" in a block", *_AFFINE)]


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


class BlockLayer(Linear):
    """`s(S(x) + f(x))`: f is `branch`, which ends in a linear layer, and S the linear layers of
    `shortcut`, or x itself. There is no `s` unless it is named; null is the model's."""

    kind: Literal["block"]
    branch: tuple[BranchSpec, ...] = Field(
        min_length=2, description="the layers of f, the last one linear"
    )
    shortcut: tuple[BranchSpec, ...] = Field((), description="a layer or a list; none: x itself")

    @field_validator("shortcut", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return () if given is None else given if isinstance(given, list | tuple) else (given,)

    @model_validator(mode="after")
    def _ends_linear(self) -> BlockLayer:
        if any(acts(layer) for layer in (self.branch[-1], *self.shortcut)):
            raise ValueError(
                f"the last layer of branch, and shortcut, must have activation {LINEAR}"
            )
        if not any(acts(layer) for layer in self.branch):
            raise ValueError("branch must have a layer with an activation")
        return self

    @property
    def stages(self) -> list[list[BranchSpec]]:
        """The layers of `branch` up to and including each that an activation follows, then the
        rest."""
        found: list[list[BranchSpec]] = [[]]
        for layer in self.branch:
            found[-1].append(layer)
            if acts(layer):
                found.append([])
        return found


class _SideBySide(Linear):
    """Maps side by side, each the layers of one of `parts`, one after the other."""

    parts: tuple[tuple[PartSpec, ...], ...] = Field(
        min_length=1, description="a list of linear layers for each map"
    )

    @model_validator(mode="after")
    def _linear(self) -> _SideBySide:
        if any(not part or any(acts(layer) for layer in part) for part in self.parts):
            raise ValueError(f"parts must be lists of layers that have activation {LINEAR}")
        return self


class StackLayer(_SideBySide):
    """Maps of one input, their results one after the other. An activation acts on the first."""

    kind: Literal["stack"]


class _OfPieces(_SideBySide):
    sizes: tuple[Side, ...] = Field(description="features of the input of each part")

    @model_validator(mode="after")
    def _one_for_each(self) -> _OfPieces:
        if len(self.sizes) != len(self.parts):
            raise ValueError("sizes must have a number for each of parts")
        return self


class SumLayer(_OfPieces):
    """The sum of maps of consecutive pieces of the input."""

    kind: Literal["sum"]


class DirectSumLayer(_OfPieces):
    """Maps of consecutive pieces of the input, their results one after the other. An activation
    acts on the first."""

    kind: Literal["direct_sum"]


_SideBySideSpec = (
    Annotated[StackLayer, Tag("stack")]
    | Annotated[SumLayer, Tag("sum")]
    | Annotated[DirectSumLayer, Tag("direct_sum")]
)
PartSpec = Annotated[_Affine | _SideBySideSpec, _one_of(" in parts", *_AFFINE, *_SIDE_BY_SIDE)]
LayerSpec = Annotated[
    _Affine
    | _SideBySideSpec
    | Annotated[ResidualLayer, Tag("residual")]
    | Annotated[BlockLayer, Tag("block")],
    _one_of("", *_AFFINE, "residual", "block", *_SIDE_BY_SIDE),
]
SideBySide = StackLayer | SumLayer | DirectSumLayer
for _record in (StackLayer, SumLayer, DirectSumLayer):
    _record.model_rebuild()


def acts(layer: LayerSpec) -> bool:
    """Whether an activation follows `layer`."""
    return isinstance(layer, Acting) and layer.activation != LINEAR


def curves(layer: LayerSpec) -> bool:
    """Whether an activation follows `layer` or acts in it."""
    return any(acts(each) or isinstance(each, ResidualLayer) for each in with_inner(layer))


def with_inner(layer: LayerSpec) -> Iterator[LayerSpec]:
    """`layer` and all layers in it."""
    yield layer
    inner: tuple[Sequence[LayerSpec], ...] = ()
    if isinstance(layer, BlockLayer):
        inner = (layer.branch, layer.shortcut)
    elif isinstance(layer, SideBySide):
        inner = layer.parts
    for part in inner:
        for each in part:
            yield from with_inner(each)


def convolves(layer: LayerSpec) -> bool:
    """Whether `layer` must be given images."""
    return any(
        isinstance(each, ConvolutionLayer | PoolLayer)
        or (isinstance(each, ResidualLayer) and each.kernel is not None)
        for each in with_inner(layer)
    )
