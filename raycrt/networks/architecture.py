"""The freshly initialised layers of a network, from the list that a recipe states."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from raycrt.activations import FAMILIES, Activation, activation
from raycrt.errors import InvalidInput, require
from raycrt.networks.layers.affine import AffineMap, Dense
from raycrt.networks.layers.convolution import AveragePool, Convolution
from raycrt.networks.layers.diagonal import Identity
from raycrt.networks.layers.residual import DirectSum, Parts, Stack, Sum
from raycrt.networks.nonlinearity import Nonlinearity
from raycrt.specs import ModelSpec
from raycrt.specs.layers import (
    LINEAR,
    BlockLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    LayerSpec,
    PoolLayer,
    ResidualLayer,
)

Shape = tuple[int, ...]


class Architecture:
    """The layers of `spec` for inputs of `shape`, up to the dense one that makes the logits.

    `maps[k]` is followed by `nonlinearities[k]`; the last map has none after it. Draws from torch's
    global generator. `InvalidInput` names the layer that does not fit.
    """

    def __init__(self, spec: ModelSpec, shape: Sequence[int], classes: int) -> None:
        self.spec, self.shape = spec, tuple(shape)
        self.maps: list[AffineMap] = []
        self.nonlinearities: list[Nonlinearity] = []
        for number, layer in enumerate(spec.hidden_layers):
            try:
                self._add(layer)
            except InvalidInput as error:
                raise InvalidInput(f"layer {number} of the model: {error}") from None
        self.maps.append(Dense(math.prod(self.shape), classes))

    def _add(self, layer: LayerSpec) -> None:
        match layer:
            case DenseLayer() | ConvolutionLayer():
                made, self.shape = _affine(layer, self.shape)
                self._follow(made, layer.activation)
            case PoolLayer():
                window = (layer.window, layer.window)
                pool = AveragePool(_image(self.shape), window, stride=window)
                self._follow(pool, LINEAR)
                self.shape = pool.out_shape
            case FlattenLayer():
                self.shape = (math.prod(self.shape),)
            case ResidualLayer():
                inner, outer = self._branch(layer)
                skip = inner.in_features
                self._follow(Stack([inner, Identity(skip)]), layer.activation, inner.out_features)
                self._follow(Sum([outer, Identity(skip)]), LINEAR)
            case BlockLayer():
                self._block(layer)

    def _block(self, layer: BlockLayer) -> None:
        skip = Identity(math.prod(self.shape))
        shape: Shape = self.shape
        parallel: type[Parts] = Stack
        for each in layer.branch[:-1]:
            made, shape = _affine(each, shape)
            self._follow(parallel([made, skip]), each.activation, made.out_features)
            parallel = DirectSum
        last, shape = _affine(layer.branch[-1], shape)
        shortcut: AffineMap = skip
        kept = self.shape if len(shape) > 1 else (skip.out_features,)
        if layer.shortcut is not None:
            shortcut, kept = _affine(layer.shortcut, self.shape)
            # The branch's own bias does the same.
            nn.init.zeros_(shortcut.get_parameter("bias")).requires_grad_(False)
        require(shape == kept, "the parts of a block have one shape", branch=shape, shortcut=kept)
        self._follow(Sum([last, shortcut]), layer.activation)
        self.shape = shape

    def _branch(self, layer: ResidualLayer) -> tuple[AffineMap, AffineMap]:
        """W and V of `x + V s(W x + b)`."""
        if layer.kernel is None:
            features = math.prod(self.shape)
            return Dense(features, layer.width), Dense(layer.width, features)
        image, side, half = _image(self.shape), (layer.kernel,) * 2, (layer.kernel // 2,) * 2
        inner = Convolution(image, layer.width, side, padding=half)
        return inner, Convolution(inner.out_shape, image[0], side, padding=half)

    def _follow(self, layer: AffineMap, name: str | None, active: int | None = None) -> None:
        """Add `layer`, whose first `active` features, or all, the activation `name` acts on."""
        width = layer.out_features
        acted = 0 if name == LINEAR else width if active is None else active
        self.maps.append(layer)
        self.nonlinearities.append(
            Nonlinearity(activation=self._activation(name), active=acted, width=width)
        )

    def _activation(self, name: str | None) -> Activation:
        own = self.spec.activation if name in (None, LINEAR) else name
        return activation(own, self.spec.beta if own in FAMILIES else 1.0)


def _affine(layer: DenseLayer | ConvolutionLayer, shape: Shape) -> tuple[AffineMap, Shape]:
    """The map of a layer of inputs of `shape`, and the shape of its results."""
    if isinstance(layer, DenseLayer):
        return Dense(math.prod(shape), layer.width), (layer.width,)
    convolution = Convolution(
        _image(shape),
        layer.channels,
        (layer.kernel, layer.kernel),
        stride=(layer.stride, layer.stride),
        padding=(layer.padding, layer.padding),
        groups=layer.groups,
    )
    return convolution, convolution.out_shape


def _image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise InvalidInput(
            f"it must be given images (channels, height, width), but is given {shape}"
        )
    return shape[0], shape[1], shape[2]
