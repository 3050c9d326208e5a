"""The freshly initialised layers of a network, from the list that a recipe states."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from raycrt.activations import FAMILIES, Activation, activation
from raycrt.errors import InvalidInput, require
from raycrt.networks.layers.affine import AffineMap, Dense, OneLogit
from raycrt.networks.layers.convolution import AveragePool, Convolution
from raycrt.networks.layers.diagonal import (
    Identity,
    Normalization,
    Permutation,
    Scaling,
    Standardization,
)
from raycrt.networks.layers.residual import DirectSum, Parts, Stack, Sum
from raycrt.networks.nonlinearity import Nonlinearity
from raycrt.specs import ModelSpec
from raycrt.specs.layers import (
    LINEAR,
    AffineLayer,
    BatchNormalizationLayer,
    BlockLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    LayerSpec,
    PermutationLayer,
    PoolLayer,
    ResidualLayer,
    ScalingLayer,
    UnflattenLayer,
    pair,
)

Shape = tuple[int, ...]


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
            case FlattenLayer():
                self.shape = (math.prod(self.shape),)
            case UnflattenLayer():
                require(
                    math.prod(layer.shape) == math.prod(self.shape),
                    "shape has as many numbers as the input",
                    shape=layer.shape,
                    input=self.shape,
                )
                self.shape = layer.shape
            case ResidualLayer():
                inner, outer = self._branch(layer)
                skip = inner.in_features
                self._follow(
                    Stack([inner, Identity(skip)]),
                    layer.activation,
                    inner.out_features,
                    beta=layer.beta,
                )
                self._follow(Sum([outer, Identity(skip)]), None, 0)
            case BlockLayer():
                self._block(layer)
            case _:
                made, self.shape = _affine(layer, self.shape)
                self._follow(made, layer.activation, beta=layer.beta)

    def _block(self, layer: BlockLayer) -> None:
        skip = Identity(math.prod(self.shape))
        shape: Shape = self.shape
        parallel: type[Parts] = Stack
        for each in layer.branch[:-1]:
            made, shape = _affine(each, shape)
            acted = 0 if each.activation == LINEAR else made.out_features
            self._follow(parallel([made, skip]), _named(each.activation), acted, each.beta)
            parallel = DirectSum
        last, shape = _affine(layer.branch[-1], shape)
        shortcut: AffineMap = skip
        kept = self.shape if len(shape) > 1 else (skip.out_features,)
        if layer.shortcut is not None:
            shortcut, kept = _affine(layer.shortcut, self.shape)
            # The branch's own bias does the same.
            nn.init.zeros_(shortcut.get_parameter("bias")).requires_grad_(False)
        require(shape == kept, "the parts of a block have one shape", branch=shape, shortcut=kept)
        acted = 0 if layer.activation == LINEAR else last.out_features
        self._follow(Sum([last, shortcut]), _named(layer.activation), acted, layer.beta)
        self.shape = shape

    def _branch(self, layer: ResidualLayer) -> tuple[AffineMap, AffineMap]:
        """W and V of `x + V s(W x + b)`."""
        if layer.kernel is None:
            features = math.prod(self.shape)
            return Dense(features, layer.width), Dense(layer.width, features)
        image, side, half = _image(self.shape), (layer.kernel,) * 2, (layer.kernel // 2,) * 2
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


def _affine(layer: AffineLayer, shape: Shape) -> tuple[AffineMap, Shape]:
    """The map of a layer of inputs of `shape`, and the shape of its results."""
    features = math.prod(shape)
    match layer:
        case DenseLayer():
            return Dense(features, layer.width), (layer.width,)
        case ConvolutionLayer():
            convolution = Convolution(
                _image(shape),
                layer.channels,
                pair(layer.kernel),
                stride=pair(layer.stride),
                padding=pair(layer.padding),
                dilation=pair(layer.dilation),
                groups=layer.groups,
            )
            return convolution, convolution.out_shape
        case PoolLayer():
            window = layer.of(_image(shape))
            pool = AveragePool(
                _image(shape),
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


def _named(name: str | None) -> str | None:
    """The activation of a layer of a block; where none acts, the stage is kept all the same."""
    return None if name == LINEAR else name


def _image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise InvalidInput(
            f"it must be given images (channels, height, width), but is given {shape}"
        )
    return shape[0], shape[1], shape[2]
