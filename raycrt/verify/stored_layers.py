"""The matrices of a stored network, from its tensors and the layers that its spec lists.

Map K of the network has the tensors `maps.K.weight` and `maps.K.bias`; the two maps of a residual
layer, `[W; I]` and `[V I]`, have those of W and V as `maps.K.parts.0.weight` and so on.
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
    ConvolutionLayer,
    DenseLayer,
    LayerSpec,
    PoolLayer,
    ResidualLayer,
)
from raycrt.verify.convolution import Geometry, unrolled
from raycrt.verify.hidden import Hidden

# Matrix and offset.
Affine = tuple[np.ndarray, np.ndarray]


def read(tensors: dict[str, np.ndarray], spec: ModelSpec, shape: Sequence[int]) -> StoredLayers:
    """The layers of `spec` for inputs of `shape`, with the numbers in `tensors` as float64.

    `InvalidInput` where a tensor is missing, unused or of another shape.
    """
    found = StoredLayers(tensors=tensors, spec=spec, shape=tuple(shape))
    for layer in spec.hidden_layers:
        found.add(layer)
    found.add_logits()
    require(
        set(tensors) == found.used,
        "the tensors are those of the layers of the spec",
        tensors=sorted(tensors),
        layers=sorted(found.used),
    )
    return found


@dataclass(kw_only=True)
class StoredLayers:
    """`weights[k]` and `biases[k]` of each layer, followed by `hidden[k]`; the last one makes the
    logits. `shape` is that of the result so far, `used` the names of the tensors read."""

    tensors: dict[str, np.ndarray]
    spec: ModelSpec
    shape: tuple[int, ...]
    weights: list[np.ndarray] = field(default_factory=list)
    biases: list[np.ndarray] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    @property
    def features(self) -> int:
        return math.prod(self.shape)

    def add(self, layer: LayerSpec) -> None:
        """Read one more layer."""
        if isinstance(layer, DenseLayer):
            self._follow(self._dense(self._name(), layer.width, self.features), layer.activation)
            self.shape = (layer.width,)
        elif isinstance(layer, ConvolutionLayer):
            geometry = Geometry.of(layer, self._image())
            self._follow(self._convolution(self._name(), geometry), layer.activation)
            self.shape = geometry.made
        elif isinstance(layer, PoolLayer):
            geometry = Geometry.of_pool(layer, self._image())
            kernel = np.full((geometry.image[0], 1, layer.window, layer.window), layer.window**-2)
            self._follow(unrolled(kernel, np.zeros(len(kernel)), geometry), LINEAR)
            self.shape = geometry.made
        elif isinstance(layer, ResidualLayer):
            self._residual(layer)
        else:
            self.shape = (self.features,)

    def add_logits(self) -> None:
        """Read the last layer."""
        self._append(self._dense(self._name(), None, self.features))

    def _residual(self, layer: ResidualLayer) -> None:
        name = f"{self._name()}.parts.0"
        after = f"maps.{len(self.weights) + 1}.parts.0"
        if layer.kernel is None:
            features = self.features
            w, b = self._dense(name, layer.width, features)
            v, c = self._dense(after, features, layer.width)
        else:
            inner = Geometry.of_branch(layer, self._image(), layer.width)
            outer = Geometry.of_branch(layer, inner.made, self._image()[0])
            (w, b), (v, c) = self._convolution(name, inner), self._convolution(after, outer)
        skip = np.eye(self.features)
        stacked = np.concatenate([w, skip]), np.concatenate([b, np.zeros(len(skip))])
        self._follow(stacked, layer.activation, active=len(w))
        self._follow((np.concatenate([v, skip], axis=1), c), LINEAR)

    def _follow(self, affine: Affine, name: str | None, active: int | None = None) -> None:
        """Append `affine`, whose first `active` features, or all, the activation `name` acts on."""
        self._append(affine)
        width = len(affine[0])
        own = self.spec.activation if name in (None, LINEAR) else name
        self.hidden.append(
            Hidden(
                activation=activation(own, self.spec.beta if own in FAMILIES else 1.0),
                active=0 if name == LINEAR else width if active is None else active,
                width=width,
            )
        )

    def _append(self, affine: Affine) -> None:
        self.weights.append(affine[0])
        self.biases.append(affine[1])

    def _name(self) -> str:
        return f"maps.{len(self.weights)}"

    def _pair(self, name: str) -> Affine:
        found = []
        for tensor in (f"{name}.weight", f"{name}.bias"):
            require(
                tensor in self.tensors,
                "the tensors are those of the layers of the spec",
                missing=tensor,
                tensors=sorted(self.tensors),
            )
            self.used.add(tensor)
            found.append(self.tensors[tensor].astype(np.float64))
        return found[0], found[1]

    def _dense(self, name: str, outputs: int | None, inputs: int) -> Affine:
        """A matrix of `inputs` columns, and of `outputs` rows if that is given."""
        weight, bias = self._pair(name)
        rows = bias.size if outputs is None else outputs
        require(
            weight.shape == (rows, inputs) and bias.shape == (rows,),
            f"the layers fit together: {name}.weight is (outputs, inputs), its bias (outputs,)",
            weight=weight.shape,
            bias=bias.shape,
            outputs=rows,
            inputs=inputs,
        )
        return weight, bias

    def _convolution(self, name: str, geometry: Geometry) -> Affine:
        return unrolled(*self._pair(name), geometry)

    def _image(self) -> tuple[int, int, int]:
        require(len(self.shape) == 3, "a convolution is given images", shape=self.shape)
        return self.shape[0], self.shape[1], self.shape[2]
