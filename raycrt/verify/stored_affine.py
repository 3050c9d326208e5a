"""The affine layers of a stored network as matrices, from the tensors under a layer's name.

Of several layers that make one part of a layer, layer j has its tensors at `NAME.maps.J`; part k of
maps side by side is at `NAME.parts.K`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raycrt.errors import require
from raycrt.specs.affine import (
    AffineLayer,
    BatchNormalizationLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    IdentityLayer,
    PoolLayer,
    ScalingLayer,
    SelectionLayer,
    UnflattenLayer,
)
from raycrt.specs.layers import PartSpec, SideBySide, StackLayer, SumLayer
from raycrt.verify.computed import Affine, averaged, rescaled
from raycrt.verify.convolution import ENTRIES, Geometry, unrolled
from raycrt.verify.side_by_side import direct, identity, stacked, summed
from raycrt.verify.stored_tensors import StoredTensors, image

Shape = tuple[int, ...]
_SCALING = ("weight", "divisor", "bias")
_NORMALIZATION = ("weight", "bias", "mean", "variance")


def reshaped(layer: FlattenLayer | UnflattenLayer, shape: Shape) -> Shape:
    """The shape of what a layer makes of inputs of `shape`."""
    made = (math.prod(shape),) if isinstance(layer, FlattenLayer) else layer.shape
    require(
        math.prod(made) == math.prod(shape),
        "the layers fit together: unflatten has as many numbers as its input",
        shape=made,
        input=shape,
    )
    return made


def maps_of(
    layer: AffineLayer | SideBySide, source: StoredTensors, name: str, shape: Shape
) -> tuple[list[Affine], int, Shape]:
    """The maps, one after the other, of a layer of inputs of `shape`, the number of its results
    that an activation after it acts on, and their shape."""
    if not isinstance(layer, SideBySide):
        found, shape = _affine(layer, source, name, shape)
        return [found], found.outputs, shape
    if isinstance(layer, StackLayer):
        shapes = [shape] * len(layer.parts)
    else:
        _check_pieces(layer.sizes, shape)
        shapes = [(size,) for size in layer.sizes]
    chains = [
        chain_of(part, source, f"{name}.parts.{k}", own)[0]
        for k, (part, own) in enumerate(zip(layer.parts, shapes, strict=True))
    ]
    if isinstance(layer, SumLayer):
        maps = summed(chains)
        return maps, maps[-1].outputs, (maps[-1].outputs,)
    maps = stacked(chains) if isinstance(layer, StackLayer) else direct(chains)
    return maps, chains[0][-1].outputs, (maps[-1].outputs,)


def chain_of(
    layers: Sequence[PartSpec], source: StoredTensors, name: str, shape: Shape
) -> tuple[list[Affine], Shape]:
    """The maps of several layers, and the shape of the last one's results.

    A map that acts on each feature by itself is one with its neighbour: no sum can cancel in an
    entry of their product.
    """
    several = sum(not isinstance(each, FlattenLayer | UnflattenLayer) for each in layers) > 1
    found: list[Affine] = []
    features, number = math.prod(shape), 0
    for layer in layers:
        if isinstance(layer, FlattenLayer | UnflattenLayer):
            shape = reshaped(layer, shape)
            continue
        own = f"{name}.maps.{number}" if several else name
        maps, _, shape = maps_of(layer, source, own, shape)
        number += 1
        for each in [] if isinstance(layer, IdentityLayer) else maps:
            if found and 1 in (each.weight.ndim, found[-1].weight.ndim):
                found[-1] = each.after(found[-1])
            else:
                found.append(each)
    return found or [identity(features)], shape


def _affine(
    layer: AffineLayer, source: StoredTensors, name: str, shape: Shape
) -> tuple[Affine, Shape]:
    features = math.prod(shape)
    if isinstance(layer, DenseLayer):
        return source.dense(name, layer.width, features), (layer.width,)
    if isinstance(layer, ConvolutionLayer):
        geometry = Geometry.of(layer, image(shape))
        return source.convolution(name, geometry), geometry.made
    if isinstance(layer, PoolLayer):
        geometry = Geometry.of_pool(layer, image(shape))
        kernel = np.broadcast_to(1.0, (geometry.image[0], 1, *geometry.kernel))
        sums, _ = unrolled(kernel, np.zeros(len(kernel)), geometry)
        return averaged(sums, layer.divisor or math.prod(geometry.kernel)), geometry.made
    if isinstance(layer, BatchNormalizationLayer):
        return _normalization(layer, source, name, shape), shape
    if isinstance(layer, ScalingLayer):
        weight, divisor, bias = source.vectors(name, features, *_SCALING)
        return rescaled(weight, divisor, np.zeros_like(bias), bias, rounds=0), shape
    if isinstance(layer, IdentityLayer):
        return identity(features), shape
    if isinstance(layer, SelectionLayer):
        return _selection(layer, shape)
    return _permutation(source, name, features), shape


def _normalization(
    layer: BatchNormalizationLayer, source: StoredTensors, name: str, shape: Shape
) -> Affine:
    features, numbers = math.prod(shape), layer.numbers(shape)
    weight, bias, mean, variance = (
        np.repeat(part, features // numbers)
        for part in source.vectors(name, numbers, *_NORMALIZATION)
    )
    # A sum of a negative variance and eps may cancel: nothing is proved of it.
    spread = np.where(variance >= 0, variance + layer.eps, np.nan)
    return rescaled(weight, np.sqrt(spread), mean, bias, rounds=3, divisors=(spread,))


def _permutation(source: StoredTensors, name: str, features: int) -> Affine:
    order = source.tensor(f"{name}.order")
    require(
        order.dtype.kind == "i" and np.array_equal(np.sort(order), np.arange(features)),
        f"{name}.order holds every feature once",
        features=features,
        shape=order.shape,
    )
    check_size(features)
    return Affine(weight=np.eye(features)[order], bias=np.zeros(features))


def _selection(layer: SelectionLayer, shape: Shape) -> tuple[Affine, Shape]:
    _check_pieces(layer.sizes, shape)
    check_size(sum(layer.sizes))
    first = np.cumsum([0, *layer.sizes])
    rows = np.concatenate([np.arange(first[k], first[k + 1]) for k in layer.kept])
    return Affine(weight=np.eye(first[-1])[rows], bias=np.zeros(len(rows))), (len(rows),)


def _check_pieces(sizes: Sequence[int], shape: Shape) -> None:
    require(
        sum(sizes) == math.prod(shape),
        "the layers fit together: sizes are those of the pieces of the input",
        sizes=sizes,
        input=shape,
    )


def check_size(features: int) -> None:
    """`InvalidInput` where a square matrix would be too large."""
    require(
        features**2 <= ENTRIES,
        f"a checked matrix has at most {ENTRIES} entries",
        entries=features**2,
    )
