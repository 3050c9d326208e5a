"""The matrices of a stored network, from its tensors and the layers that its spec lists.

Map K of the network has the tensors `maps.K.weight` and `maps.K.bias`; the two maps of a residual
layer, `[W; I]` and `[V I]`, have those of W and V as `maps.K.parts.0.weight` and so on. So have the
maps of a block, `[W_1; I]`, then `[W_k 0; 0 I]`, and `[W_n S]` with S as `maps.K.parts.1.weight`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from raycrt.activations import FAMILIES, activation
from raycrt.errors import require
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
    PoolLayer,
    ResidualLayer,
    ScalingLayer,
    UnflattenLayer,
)
from raycrt.verify.computed import Affine, averaged, rescaled
from raycrt.verify.convolution import ENTRIES, Geometry, unrolled
from raycrt.verify.hidden import Hidden
from raycrt.verify.stored_tensors import StoredTensors, image

_SCALING = ("weight", "divisor", "bias")
_STANDARDIZATION = ("mean", "std")
_NORMALIZATION = ("weight", "bias", "mean", "variance")


def read(tensors: dict[str, np.ndarray], spec: ModelSpec, shape: Sequence[int]) -> StoredLayers:
    """The layers of `spec` for inputs of `shape`, with the numbers in `tensors` as float64.

    `InvalidInput` where a tensor is missing, unused or of another shape.
    """
    source = StoredTensors(given=tensors)
    found = StoredLayers(source=source, spec=spec, shape=tuple(shape))
    if spec.normalize:
        found.add_normalization()
    for layer in spec.hidden_layers:
        found.add(layer)
    found.add_logits()
    source.require_all_used()
    return found


@dataclass(kw_only=True)
class StoredLayers:
    """`layers[k]` is followed by `hidden[k]`, or by nothing if k is among the `joints`; the last
    one makes the logits. `shape` is that of the result so far, `maps` the number of maps read."""

    source: StoredTensors
    spec: ModelSpec
    shape: tuple[int, ...]
    layers: list[Affine] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    joints: set[int] = field(default_factory=set)
    maps: int = 0

    @property
    def features(self) -> int:
        return math.prod(self.shape)

    def add(self, layer: LayerSpec) -> None:
        """Read one more layer."""
        if isinstance(layer, FlattenLayer | UnflattenLayer):
            self._reshape(layer)
        elif isinstance(layer, ResidualLayer):
            self._residual(layer)
        elif isinstance(layer, BlockLayer):
            self._block(layer)
        else:
            self._follow(self._affine(layer), layer.activation, beta=layer.beta)

    def add_normalization(self) -> None:
        """Read `(x - mean) / std` of each channel or feature."""
        channels = self.shape[0]
        mean, std = (
            np.repeat(part, self.features // channels)
            for part in self.source.vectors(self._name(), channels, *_STANDARDIZATION)
        )
        ones = np.ones(self.features)
        self._follow(rescaled(ones, std, mean, np.zeros_like(mean), rounds=0), LINEAR)

    def add_logits(self) -> None:
        """Read the last layer."""
        if self.spec.logits == 1:
            one = self.source.dense(self._name(), 1, self.features)
            weight = np.concatenate([np.zeros_like(one.weight), one.weight])
            self._append(Affine(weight=weight, bias=np.concatenate([[0.0], one.bias])))
        elif self.spec.head:
            self._append(self.source.dense(self._name(), None, self.features))
        else:
            self.hidden.pop()
            self.joints.discard(len(self.layers) - 1)
        self.layers[-1] = self._whole(self.layers[-1])

    def _affine(self, layer: AffineLayer) -> Affine:
        """The map of a layer; `shape` becomes that of its result."""
        name = self._name()
        if isinstance(layer, DenseLayer | ConvolutionLayer):
            found, self.shape = self.source.layer(layer, name, self.shape)
        elif isinstance(layer, PoolLayer):
            geometry = Geometry.of_pool(layer, image(self.shape))
            kernel = np.broadcast_to(1.0, (geometry.image[0], 1, *geometry.kernel))
            sums, _ = unrolled(kernel, np.zeros(len(kernel)), geometry)
            found = averaged(sums, layer.divisor or math.prod(geometry.kernel))
            self.shape = geometry.made
        elif isinstance(layer, BatchNormalizationLayer):
            found = self._normalization(name, layer)
        elif isinstance(layer, ScalingLayer):
            weight, divisor, bias = self.source.vectors(name, self.features, *_SCALING)
            found = rescaled(weight, divisor, np.zeros_like(bias), bias, rounds=0)
        else:
            found = self._permutation(name)
        return found

    def _normalization(self, name: str, layer: BatchNormalizationLayer) -> Affine:
        numbers = layer.numbers(self.shape)
        weight, bias, mean, variance = (
            np.repeat(part, self.features // numbers)
            for part in self.source.vectors(name, numbers, *_NORMALIZATION)
        )
        # A sum of a negative variance and eps may cancel: nothing is proved of it.
        spread = np.where(variance >= 0, variance + layer.eps, np.nan)
        return rescaled(weight, np.sqrt(spread), mean, bias, rounds=3, divisors=(spread,))

    def _permutation(self, name: str) -> Affine:
        order = self.source.tensor(f"{name}.order")
        require(
            order.dtype.kind == "i" and np.array_equal(np.sort(order), np.arange(self.features)),
            f"{name}.order holds every feature once",
            features=self.features,
            shape=order.shape,
        )
        _check_size(self.features)
        return Affine(weight=np.eye(self.features)[order], bias=np.zeros(self.features))

    def _reshape(self, layer: FlattenLayer | UnflattenLayer) -> None:
        shape = (self.features,) if isinstance(layer, FlattenLayer) else layer.shape
        require(
            math.prod(shape) == self.features,
            "the layers fit together: unflatten has as many numbers as its input",
            shape=shape,
            input=self.shape,
        )
        self.shape = shape

    def _residual(self, layer: ResidualLayer) -> None:
        name = f"{self._name()}.parts.0"
        after = f"maps.{self.maps + 1}.parts.0"
        if layer.kernel is None:
            features = self.features
            inner = self.source.dense(name, layer.width, features)
            outer = self.source.dense(after, features, layer.width)
        else:
            first = Geometry.of_branch(layer, image(self.shape), layer.width)
            second = Geometry.of_branch(layer, first.made, image(self.shape)[0])
            inner, outer = (
                self.source.convolution(name, first),
                self.source.convolution(after, second),
            )
        skip = np.eye(self.features)
        width = inner.outputs
        stacked = Affine(
            weight=np.concatenate([inner.weight, skip]),
            bias=np.concatenate([inner.bias, np.zeros(len(skip))]),
        )
        added = Affine(weight=np.concatenate([outer.weight, skip], axis=1), bias=outer.bias)
        self._follow(stacked, layer.activation, active=width, beta=layer.beta)
        # What is passed on here is no joint: the skip connection is a layer of its own.
        self._follow(added, None, active=0)

    def _block(self, layer: BlockLayer) -> None:
        skip, shape = np.eye(self.features), self.shape
        nothing = np.zeros(len(skip))
        for number, each in enumerate(layer.branch[:-1]):
            inner, shape = self.source.layer(each, f"{self._name()}.parts.0", shape)
            above = inner.weight if number == 0 else np.pad(inner.weight, ((0, 0), (0, len(skip))))
            below = skip if number == 0 else np.pad(skip, ((0, 0), (inner.inputs, 0)))
            stacked = Affine(
                weight=np.concatenate([above, below]), bias=np.concatenate([inner.bias, nothing])
            )
            self._act(stacked, each, inner.outputs)
        last, made = self.source.layer(layer.branch[-1], f"{self._name()}.parts.0", shape)
        passed, kept = skip, self.shape if len(made) > 1 else (len(skip),)
        if layer.shortcut is not None:
            short, kept = self.source.layer(layer.shortcut, f"{self._name()}.parts.1", self.shape)
            # The sum of two offsets would be rounded.
            require(
                not short.bias.any(),
                "a shortcut has no bias beside that of its branch",
                bias=short.bias.max(),
            )
            passed = short.weight
        require(made == kept, "the parts of a block have one shape", branch=made, shortcut=kept)
        added = Affine(weight=np.concatenate([last.weight, passed], axis=1), bias=last.bias)
        self._act(added, layer, last.outputs)
        self.shape = made

    def _act(
        self, affine: Affine, layer: DenseLayer | ConvolutionLayer | BlockLayer, active: int
    ) -> None:
        """Append a layer of a block; where no activation acts, it is no joint all the same."""
        linear = layer.activation == LINEAR
        name = None if linear else layer.activation
        self._follow(affine, name, active=0 if linear else active, beta=layer.beta)

    def _follow(
        self,
        affine: Affine,
        name: str | None,
        active: int | None = None,
        beta: float | None = None,
    ) -> None:
        """Append `affine`, whose first `active` features, or all, the activation `name` acts on."""
        self._append(affine)
        width, place = affine.outputs, len(self.layers) - 1
        own = self.spec.activation if name in (None, LINEAR) else name
        if name == LINEAR:
            self.joints.add(place)
        else:
            self.layers[-1] = self._whole(self.layers[-1])
        self.hidden.append(
            Hidden(
                activation=activation(own, beta or self.spec.beta if own in FAMILIES else 1.0),
                active=0 if name == LINEAR else width if active is None else active,
                width=width,
            )
        )

    def _append(self, affine: Affine) -> None:
        """Append a map. With a neighbour that acts on each feature by itself it is one layer, which
        costs a bound nothing."""
        self.maps += 1
        place = len(self.layers) - 1
        if place in self.joints and 1 in (affine.weight.ndim, self.layers[-1].weight.ndim):
            self.joints.discard(place)
            self.hidden.pop()
            affine = affine.after(self.layers.pop())
        self.layers.append(affine)

    def _whole(self, affine: Affine) -> Affine:
        if affine.weight.ndim == 1:
            _check_size(affine.inputs)
        return affine.full()

    def _name(self) -> str:
        return f"maps.{self.maps}"


def _check_size(features: int) -> None:
    require(
        features**2 <= ENTRIES,
        f"a checked matrix has at most {ENTRIES} entries",
        entries=features**2,
    )
