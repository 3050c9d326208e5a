"""The freshly initialised maps of the affine layers of a recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from raycrt.errors import InvalidInput, require
from raycrt.networks.layers.affine import AffineMap, Chain, Dense
from raycrt.networks.layers.convolution import AveragePool, Convolution
from raycrt.networks.layers.diagonal import Identity, Normalization, Permutation, Scaling
from raycrt.networks.layers.residual import DirectSum, Selection, Stack, Sum
from raycrt.specs.affine import (
    AffineLayer,
    BatchNormalizationLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    IdentityLayer,
    PermutationLayer,
    PoolLayer,
    ScalingLayer,
    SelectionLayer,
    UnflattenLayer,
    pair,
)
from raycrt.specs.layers import DirectSumLayer, PartSpec, SideBySide, StackLayer, SumLayer

Shape = tuple[int, ...]


def reshaped(layer: FlattenLayer | UnflattenLayer, shape: Shape) -> Shape:
    if isinstance(layer, FlattenLayer):
        return (math.prod(shape),)
    require(
        math.prod(layer.shape) == math.prod(shape),
        "shape has as many numbers as the input",
        shape=layer.shape,
        input=shape,
    )
    return layer.shape


def chain_of(layers: Sequence[PartSpec], shape: Shape) -> tuple[AffineMap, Shape]:
    """The map of the layers one after the other, of inputs of `shape`, and the shape of its
    results."""
    maps: list[AffineMap] = []
    for layer in layers:
        if isinstance(layer, FlattenLayer | UnflattenLayer):
            shape = reshaped(layer, shape)
        else:
            made, shape = affine_of(layer, shape)
            maps.append(made)
    if not maps:
        return Identity(math.prod(shape)), shape
    return maps[0] if len(maps) == 1 else Chain(maps), shape


def _parts(layer: SumLayer | DirectSumLayer, features: int) -> list[AffineMap]:
    """The maps side by side of consecutive pieces of the input."""
    require(
        sum(layer.sizes) == features,
        "sizes are those of the pieces of the input",
        sizes=layer.sizes,
        input=features,
    )
    given = zip(layer.parts, layer.sizes, strict=True)
    return [chain_of(part, (size,))[0] for part, size in given]


def affine_of(layer: AffineLayer | SideBySide, shape: Shape) -> tuple[AffineMap, Shape]:
    """The map of a layer of inputs of `shape`, and the shape of its results."""
    features = math.prod(shape)
    match layer:
        case DenseLayer():
            return Dense(features, layer.width), (layer.width,)
        case ConvolutionLayer():
            convolution = Convolution(
                image_of(shape),
                layer.channels,
                pair(layer.kernel),
                stride=pair(layer.stride),
                padding=pair(layer.padding),
                dilation=pair(layer.dilation),
                groups=layer.groups,
            )
            return convolution, convolution.out_shape
        case PoolLayer():
            window = layer.of(image_of(shape))
            pool = AveragePool(
                image_of(shape),
                window,
                stride=window if layer.stride is None else pair(layer.stride),
                padding=pair(layer.padding),
                divisor=layer.divisor,
            )
            return pool, pool.out_shape
        case BatchNormalizationLayer():
            channels = layer.numbers(shape)
            return Normalization(channels, features // channels, layer.eps), shape
        case ScalingLayer():
            one = torch.ones(features)
            return Scaling(one.clone(), one.clone(), torch.zeros_like(one)), shape
        case PermutationLayer():
            return Permutation(torch.arange(features)), shape
        case IdentityLayer():
            return Identity(features), shape
        case SelectionLayer():
            require(
                sum(layer.sizes) == features,
                "sizes are those of the pieces of the input",
                sizes=layer.sizes,
                input=features,
            )
            selection = Selection(layer.sizes, layer.kept)
            return selection, (selection.out_features,)
        case StackLayer():
            stack = Stack([chain_of(part, shape)[0] for part in layer.parts])
            return stack, (stack.out_features,)
        case SumLayer() | DirectSumLayer():
            kind = Sum if isinstance(layer, SumLayer) else DirectSum
            made = kind(_parts(layer, features))
            return made, (made.out_features,)


def image_of(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise InvalidInput(
            f"it must be given images (channels, height, width), but is given {shape}"
        )
    return shape[0], shape[1], shape[2]
