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
    BlockLayer,
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
        if isinstance(layer, DenseLayer | ConvolutionLayer):
            made, self.shape = self._affine(layer, self._name(), self.shape)
            self._follow(made, layer.activation)
        elif isinstance(layer, PoolLayer):
            geometry = Geometry.of_pool(layer, _image(self.shape))
            kernel = np.full((geometry.image[0], 1, layer.window, layer.window), layer.window**-2)
            self._follow(unrolled(kernel, np.zeros(len(kernel)), geometry), LINEAR)
            self.shape = geometry.made
        elif isinstance(layer, ResidualLayer):
            self._residual(layer)
        elif isinstance(layer, BlockLayer):
            self._block(layer)
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
            image = _image(self.shape)
            inner = Geometry.of_branch(layer, image, layer.width)
            outer = Geometry.of_branch(layer, inner.made, image[0])
            (w, b), (v, c) = self._convolution(name, inner), self._convolution(after, outer)
        skip = np.eye(self.features)
        stacked = np.concatenate([w, skip]), np.concatenate([b, np.zeros(len(skip))])
        self._follow(stacked, layer.activation, active=len(w))
        self._follow((np.concatenate([v, skip], axis=1), c), LINEAR)

    def _block(self, layer: BlockLayer) -> None:
        skip, shape = np.eye(self.features), self.shape
        nothing = np.zeros(len(skip))
        for number, each in enumerate(layer.branch[:-1]):
            (w, b), shape = self._affine(each, f"{self._name()}.parts.0", shape)
            above = w if number == 0 else np.pad(w, ((0, 0), (0, len(skip))))
            below = skip if number == 0 else np.pad(skip, ((0, 0), (w.shape[1], 0)))
            stacked = np.concatenate([above, below]), np.concatenate([b, nothing])
            self._follow(stacked, each.activation, active=len(w))
        (v, c), made = self._affine(layer.branch[-1], f"{self._name()}.parts.0", shape)
        (s, d), kept = (skip, nothing), self.shape if len(made) > 1 else (len(skip),)
        if layer.shortcut is not None:
            (s, d), kept = self._affine(layer.shortcut, f"{self._name()}.parts.1", self.shape)
            # The sum of two offsets would be rounded.
            require(not d.any(), "a shortcut has no bias beside that of its branch", bias=d.max())
        require(made == kept, "the parts of a block have one shape", branch=made, shortcut=kept)
        self._follow((np.concatenate([v, s], axis=1), c), layer.activation)
        self.shape = made

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

    def _affine(
        self, layer: DenseLayer | ConvolutionLayer, name: str, shape: tuple[int, ...]
    ) -> tuple[Affine, tuple[int, ...]]:
        """The map of a layer of inputs of `shape`, and the shape of its results."""
        if isinstance(layer, DenseLayer):
            return self._dense(name, layer.width, math.prod(shape)), (layer.width,)
        geometry = Geometry.of(layer, _image(shape))
        return self._convolution(name, geometry), geometry.made

    def _convolution(self, name: str, geometry: Geometry) -> Affine:
        return unrolled(*self._pair(name), geometry)


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    require(len(shape) == 3, "a convolution is given images", shape=shape)
    return shape[0], shape[1], shape[2]
