"""The freshly initialised layers of a network, from the list that a recipe states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from raycrt.activations import FAMILIES, Activation, activation
from raycrt.errors import InvalidInput, require
from raycrt.networks.affine_layers import Shape, affine_of, chain_of, image_of, reshaped
from raycrt.networks.layers.affine import AffineMap, Dense, OneLogit
from raycrt.networks.layers.convolution import Convolution
from raycrt.networks.layers.diagonal import Identity, Standardization
from raycrt.networks.layers.residual import DirectSum, Parts, Stack, Sum
from raycrt.networks.nonlinearity import Nonlinearity
from raycrt.specs import ModelSpec
from raycrt.specs.affine import LINEAR, FlattenLayer, UnflattenLayer
from raycrt.specs.layers import BlockLayer, LayerSpec, ResidualLayer


class Architecture:
    """The layers of `spec` for inputs of `shape`, up to what makes the logits.

    `maps[k]` is followed by `nonlinearities[k]`, or by nothing where that is None; the last map has
    none after it. Draws from torch's global generator. `InvalidInput` names the layer that does not
    fit.
    """

    def __init__(self, spec: ModelSpec, shape: Sequence[int], classes: int) -> None:
        self.spec, self.shape = spec, tuple(shape)
        self.maps: list[AffineMap] = []
        self.nonlinearities: list[Nonlinearity | None] = []
        if spec.normalize:
            self._follow(Standardization(self.shape[0], math.prod(self.shape[1:])), LINEAR)
        for number, layer in enumerate(spec.hidden_layers):
            try:
                self._add(layer)
            except InvalidInput as error:
                raise InvalidInput(f"layer {number} of the model: {error}") from None
        if spec.logits == 1:
            require(classes == 2, "model.logits is 1 for two classes", classes=classes)
            self.maps.append(OneLogit(math.prod(self.shape)))
            return
        if spec.head:
            self.maps.append(Dense(math.prod(self.shape), classes))
            return
        self.nonlinearities.pop()
        require(
            math.prod(self.shape) == classes,
            "the last layer of the model has a logit for each class",
            logits=math.prod(self.shape),
            classes=classes,
        )

    def _add(self, layer: LayerSpec) -> None:
        match layer:
            case UnflattenLayer() | FlattenLayer():
                self.shape = reshaped(layer, self.shape)
            case ResidualLayer():
                inner, outer = self._branch(layer)
                skip = inner.in_features
                self._follow(
                    Stack([inner, Identity(skip)]),
                    layer.activation,
                    inner.out_features,
                    beta=layer.beta,
                )
                self._follow(Sum([outer, Identity(skip)]), LINEAR)
            case BlockLayer():
                self._block(layer)
            case _:
                made, self.shape = affine_of(layer, self.shape)
                first = made.maps[0] if isinstance(made, Stack | DirectSum) else made
                self._follow(made, layer.activation, first.out_features, beta=layer.beta)

    def _block(self, layer: BlockLayer) -> None:
        skip = Identity(math.prod(self.shape))
        shape: Shape = self.shape
        parallel: type[Parts] = Stack
        *inner, outer = layer.stages
        for stage in inner:
            made, shape = chain_of(stage, shape)
            acting: Any = stage[-1]
            self._follow(parallel([made, skip]), acting.activation, made.out_features, acting.beta)
            parallel = DirectSum
        last, shape = chain_of(outer, shape)
        shortcut, kept = (
            chain_of(layer.shortcut, self.shape) if layer.shortcut else (skip, self.shape)
        )
        kept = kept if len(shape) > 1 else (math.prod(kept),)
        require(shape == kept, "the parts of a block have one shape", branch=shape, shortcut=kept)
        self._follow(Sum([last, shortcut]), layer.activation, beta=layer.beta)
        self.shape = shape

    def _branch(self, layer: ResidualLayer) -> tuple[AffineMap, AffineMap]:
        """W and V of `x + V s(W x + b)`."""
        if layer.kernel is None:
            features = math.prod(self.shape)
            return Dense(features, layer.width), Dense(layer.width, features)
        image, side, half = image_of(self.shape), (layer.kernel,) * 2, (layer.kernel // 2,) * 2
        inner = Convolution(image, layer.width, side, padding=half)
        return inner, Convolution(inner.out_shape, image[0], side, padding=half)

    def _follow(
        self,
        layer: AffineMap,
        name: str | None,
        active: int | None = None,
        beta: float | None = None,
    ) -> None:
        """Add `layer`, whose first `active` features, or all, the activation `name` acts on."""
        width = layer.out_features
        acted = width if active is None else active
        self.maps.append(layer)
        self.nonlinearities.append(
            None
            if name == LINEAR
            else Nonlinearity(activation=self._activation(name, beta), active=acted, width=width)
        )

    def _activation(self, name: str | None, beta: float | None) -> Activation:
        own = name or self.spec.activation
        return activation(own, beta or self.spec.beta if own in FAMILIES else 1.0)
