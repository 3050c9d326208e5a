"""Consistency rules between sections of a spec, checked by command before any work starts."""

from __future__ import annotations

import math

from raycrt import data
from raycrt.errors import InvalidInput, require
from raycrt.specs import Spec
from raycrt.training import effects


def check_training(spec: Spec) -> None:
    """Raise `InvalidInput` if the model of `spec` cannot be trained as `spec.train` states."""
    effects.check(spec)
    model, train = spec.model, spec.train
    shape = data.shape(spec.data)
    if len(shape) != 3 and (model.channels or train.augmentation.moves):
        raise InvalidInput(
            "model.channels and train.augmentation must be left out unless the data is images "
            f"(channels, height, width), but its shape is {shape}"
        )
    if model.channels:
        if train.components is not None or train.linear_layers:
            raise InvalidInput(
                "train.components and train.linear_layers must be left out where model.channels "
                "has convolutions, which need images"
            )
        if train.optimizer == "muon" and model.depth < 2:
            raise InvalidInput(
                "train.optimizer muon must have a hidden dense layer to update: model.depth >= 2"
            )
        return
    pixels = math.prod(shape)
    inputs = train.components or pixels
    require(
        inputs <= pixels,
        "train.components <= pixels of an image",
        components=inputs,
        pixels=pixels,
    )
    require(
        train.linear_layers <= model.depth - 2,
        "train.linear_layers must leave at least 2 of the model.depth layers",
        linear_layers=train.linear_layers,
        depth=model.depth,
    )
    require(
        train.linear_layers == 0 or inputs <= model.width,
        "train.linear_layers needs no more inputs (or train.components) than model.width",
        inputs=inputs,
        width=model.width,
    )


def check_certification(spec: Spec) -> None:
    """Raise `InvalidInput` if the model of `spec` cannot be certified as `spec.certify` states."""
    if spec.model.channels and spec.certify.deployment != "exact":
        raise InvalidInput(
            "certify.deployment must be exact where model.channels has convolutions, which "
            "libraries may compute by transforms"
        )
