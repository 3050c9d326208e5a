"""The matrices of a stored network, from its tensors and the layers that its spec lists.

Map K of the network has the tensors `maps.K.weight` and `maps.K.bias`; the two maps of a residual
layer, `[W; I]` and `[V I]`, have those of W and V as `maps.K.parts.0.weight` and so on. So have the
maps of a block, `[W_1; I]`, then `[W_k 0; 0 I]`, and `[W_n S]` with S as `maps.K.parts.1.weight`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raycrt.activations import FAMILIES, activation
from raycrt.errors import require
from raycrt.specs import ModelSpec
from raycrt.specs.affine import LINEAR, AffineLayer, FlattenLayer, UnflattenLayer
from raycrt.specs.layers import BlockLayer, LayerSpec, ResidualLayer, SideBySide
from raycrt.verify.computed import Affine, rescaled
from raycrt.verify.convolution import Geometry
from raycrt.verify.hidden import Hidden
from raycrt.verify.side_by_side import direct, identity, stacked, summed
from raycrt.verify.stored_affine import chain_of, check_size, maps_of, reshaped
from raycrt.verify.stored_tensors import StoredTensors, image

_STANDARDIZATION = ("mean", "std")


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
            self.shape = reshaped(layer, self.shape)
        elif isinstance(layer, ResidualLayer):
            self._residual(layer)
        elif isinstance(layer, BlockLayer):
            self._block(layer)
        else:
            self._affine(layer)

    def add_normalization(self) -> None:
        """Read `(x - mean) / std` of each channel or feature."""
        channels = self.shape[0]
        mean, std = (
            np.repeat(part, self.features // channels)
            for part in self.source.vectors(self._name(), channels, *_STANDARDIZATION)
        )
        ones = np.ones(self.features)
        self._follow([rescaled(ones, std, mean, np.zeros_like(mean), rounds=0)], LINEAR)

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

    def _affine(self, layer: AffineLayer | SideBySide) -> None:
        maps, acted, self.shape = maps_of(layer, self.source, self._name(), self.shape)
        self._follow(maps, layer.activation, acted, layer.beta)

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
        skip = [identity(self.features)]
        self._follow(stacked([[inner], skip]), layer.activation, inner.outputs, layer.beta)
        self._follow(summed([[outer], skip]), LINEAR)

    def _block(self, layer: BlockLayer) -> None:
        skip, shape = [identity(self.features)], self.shape
        join = stacked
        *inner, outer = layer.stages
        for stage in inner:
            chain, shape = chain_of(stage, self.source, f"{self._name()}.parts.0", shape)
            acting: Any = stage[-1]
            self._follow(join([chain, skip]), acting.activation, chain[-1].outputs, acting.beta)
            join = direct
        last, made = chain_of(outer, self.source, f"{self._name()}.parts.0", shape)
        passed, kept = skip, self.shape
        if layer.shortcut:
            passed, kept = chain_of(
                layer.shortcut, self.source, f"{self._name()}.parts.1", self.shape
            )
        kept = kept if len(made) > 1 else (math.prod(kept),)
        require(made == kept, "the parts of a block have one shape", branch=made, shortcut=kept)
        self._follow(summed([last, passed]), layer.activation, beta=layer.beta)
        self.shape = made

    def _follow(
        self,
        maps: Sequence[Affine],
        name: str | None,
        active: int | None = None,
        beta: float | None = None,
    ) -> None:
        """Append a map of the file, that of `maps` one after the other, whose first `active`
        features, or all, the activation `name` acts on."""
        self.maps += 1
        *inner, last = maps
        for each in inner:
            self._append(each)
            self._act(LINEAR, None, None)
        self._append(last)
        if name != LINEAR:
            self.layers[-1] = self._whole(self.layers[-1])
        self._act(name, active, beta)

    def _act(self, name: str | None, active: int | None, beta: float | None) -> None:
        """Put the activation `name` after the last layer; with none it is a joint."""
        width = self.layers[-1].outputs
        own = self.spec.activation if name in (None, LINEAR) else name
        if name == LINEAR:
            self.joints.add(len(self.layers) - 1)
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
        place = len(self.layers) - 1
        if place in self.joints and 1 in (affine.weight.ndim, self.layers[-1].weight.ndim):
            self.joints.discard(place)
            self.hidden.pop()
            affine = affine.after(self.layers.pop())
        self.layers.append(affine)

    def _whole(self, affine: Affine) -> Affine:
        if affine.weight.ndim == 1:
            check_size(affine.inputs)
        return affine.full()

    def _name(self) -> str:
        return f"maps.{self.maps}"
