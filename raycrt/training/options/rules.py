"""Consistency rules between sections of a spec, checked by command before any work starts."""

from __future__ import annotations

import math

import torch

from raycrt import data
from raycrt.data.values import statistics
from raycrt.errors import InvalidInput, require
from raycrt.networks.architecture import Architecture
from raycrt.specs import Spec
from raycrt.specs.affine import LINEAR, DenseLayer, PermutationLayer
from raycrt.specs.data import Statistics
from raycrt.specs.layers import LayerSpec, ResidualLayer, with_inner
from raycrt.training.folding.shifts import SHIFTS
from raycrt.training.options import effects


def check_training(spec: Spec, *, fresh: bool = True) -> None:
    """Raise `InvalidInput` if the model of `spec` cannot be trained as `spec.train` states; from
    drawn weights, if they are `fresh`."""
    effects.check(spec)
    model, train = spec.model, spec.train
    shape = data.shape(spec.data)
    if len(shape) != 3 and (model.convolves or train.augmentation.moves):
        raise InvalidInput(
            "convolutions, pools and train.augmentation must be left out unless the data is images "
            f"(channels, height, width), but its shape is {shape}"
        )
    if model.normalize != (spec.data.normalize is not None) or spec.data.normalize == "auto":
        raise InvalidInput(
            "model.normalize must be left out: data.normalize states it, and raycrt.data.described "
            "sets it"
        )
    if train.mirror_invariant or train.shift_averaged:
        _check_symmetry(spec, shape)
    layers = (each for layer in model.layers for each in with_inner(layer))
    if fresh and any(isinstance(layer, PermutationLayer) for layer in layers):
        raise InvalidInput(
            "model.layers must be left without permutation, for models that were trained "
            "elsewhere: nothing here learns an order"
        )
    if isinstance(spec.data.normalize, Statistics):
        statistics.check(spec.data.normalize, shape, "normalize")
    if model.normalize and (train.components is not None or train.linear_layers):
        raise InvalidInput(
            "train.components and train.linear_layers must be left out where data.normalize puts a "
            "layer in front"
        )
    with torch.device("meta"):  # Layers that do not fit are refused; no weight is made.
        Architecture(model, shape, len(data.class_names(spec.data)))
    if model.convolves or model.layers:
        if model.convolves and (train.components is not None or train.linear_layers):
            raise InvalidInput(
                "train.components and train.linear_layers must be left out where model.channels or "
                "model.layers has convolutions, which need images"
            )
        if train.linear_layers:
            raise InvalidInput(
                "train.linear_layers must be left out where model.layers lists the layers"
            )
        if train.components is not None:
            _check_projection(model.layers[0], train.components, math.prod(shape))
        if train.optimizer == "muon" and not any(map(_has_matrices, model.hidden_layers)):
            raise InvalidInput(
                "train.optimizer muon must have a hidden dense layer to update: model.depth >= 2"
            )
        return
    pixels = math.prod(shape)
    inputs = train.components or pixels
    _check_components(inputs, pixels)
    require(
        train.linear_layers <= model.depth - 2,
        "train.linear_layers must leave at least 2 of the model.depth layers",
        linear_layers=train.linear_layers,
        depth=model.depth,
    )
    shifts = SHIFTS if train.shift_averaged else 1
    require(
        train.linear_layers == 0 or inputs <= model.width // shifts,
        "train.linear_layers needs no more inputs (or train.components) than model.width"
        + (f" / {shifts}, as train.shift_averaged is set" if shifts > 1 else ""),
        inputs=inputs,
        width=model.width,
    )


def _check_symmetry(spec: Spec, shape: tuple[int, ...]) -> None:
    model, mirrored, pixels = spec.model, spec.train.mirror_invariant, spec.train.shift_averaged
    parts = {"train.mirror_invariant": 2} if mirrored else {}
    parts |= {"train.shift_averaged": SHIFTS} if pixels else {}
    keys = " and ".join(parts)
    if len(shape) != 3 or model.convolves or model.layers or model.normalize:
        raise InvalidInput(
            f"{keys} must be left out unless the data is images (channels, height, width) and all "
            "layers are dense, without model.channels, model.layers and data.normalize, but the "
            f"data's shape is {shape} and the model is {model!r}"
        )
    divisor = math.prod(parts.values())
    require(
        model.width % divisor == 0,
        f"model.width is a multiple of {divisor} where {keys} is set",
        width=model.width,
    )
    require(
        pixels < min(shape[1:]),
        "train.shift_averaged < height and width of an image",
        shift_averaged=pixels,
        shape=shape,
    )
    if mirrored and spec.train.augmentation.mirror:
        raise InvalidInput(
            "train.augmentation.mirror must be left out where train.mirror_invariant is set: "
            "mirrored images have the same loss"
        )


def _check_components(components: int, pixels: int) -> None:
    require(
        components <= pixels,
        "train.components <= pixels of an image",
        components=components,
        pixels=pixels,
    )


def _check_projection(first: LayerSpec, components: int, pixels: int) -> None:
    """The first layer of a list is the projection onto the components, which is not trained."""
    _check_components(components, pixels)
    dense = first if isinstance(first, DenseLayer) else None
    if dense is None or dense.activation != LINEAR or dense.width != components:
        raise InvalidInput(
            "model.layers must begin with the projection onto train.components, {kind: dense, "
            f"width: {components}, activation: none}}, but its first layer is {first!r}"
        )


def _has_matrices(layer: LayerSpec) -> bool:
    return any(
        isinstance(each, DenseLayer) or (isinstance(each, ResidualLayer) and each.kernel is None)
        for each in with_inner(layer)
    )


def check_certification(spec: Spec) -> None:
    """Raise `InvalidInput` if the model of `spec` cannot be certified as `spec.certify` states."""
    if spec.model.convolves and spec.certify.deployment != "exact":
        raise InvalidInput(
            "certify.deployment must be exact where the model has convolutions, which "
            "libraries may compute by transforms"
        )
