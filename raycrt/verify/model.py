"""The stored network in numpy: its weights, its forward pass and the gradients of margins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from raycrt.errors import InvalidInput, require
from raycrt.specs import ModelSpec, Place
from raycrt.verify import stored_layers
from raycrt.verify.computed import Affine, Computed
from raycrt.verify.hidden import Hidden
from raycrt.verify.norms import absolute_norm


@dataclass(frozen=True, kw_only=True)
class Model:
    """`z_k = W_k h_{k-1} + b_k` and `h_k` its `hidden[k]`, counted from 0 with h_{-1} the flat
    input; the last z is the logits.

    `weights[k]` (outputs, inputs) and `biases[k]` (outputs,) are the stored numbers as float64, or
    computed from these with the errors `computed[k]`. `joints` are the k with nothing between z_k
    and the next layer: all features are passed on. `stored` are all numbers of the file, `sha256`
    is the identity of its content.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    hidden: tuple[Hidden, ...]
    sha256: str
    stored: tuple[np.ndarray, ...] = ()
    computed: Mapping[int, Computed] = field(default_factory=dict)
    joints: frozenset[int] = frozenset()

    @staticmethod
    def load(file: Place, spec: ModelSpec, shape: Sequence[int]) -> Model:
        """Read a `model.safetensors` whose tensors are those of the layers of `spec`.

        `shape` is that of an input: (features,) or (channels, height, width). Convolutions are
        unrolled into matrices; one with more than 2^25 entries is refused.
        """
        if not file.is_file():
            raise InvalidInput(f"a model file must exist, but there is none at {file}")
        try:
            tensors = load(file.read_bytes())
        except (SafetensorError, OSError, TypeError, KeyError) as error:
            # Numpy lacks some of the types that the format allows, among them bfloat16.
            raise InvalidInput(
                f"{file} must be a safetensors file of float64, float32 or float16: {error}"
            ) from None
        found = stored_layers.read(tensors, spec, shape)
        require(
            all(before.outputs == after.inputs for before, after in pairwise(found.layers)),
            "the layers fit together",
            sizes=[layer.weight.shape for layer in found.layers],
        )
        return Model(
            **of_layers(found.layers),
            hidden=tuple(found.hidden),
            sha256=weights_sha256(tensors),
            stored=tuple(found.source.stored),
            joints=frozenset(found.joints),
        )

    @cached_property
    def joined(self) -> Model:
        """The same function with all layers that have nothing between them as one, whose matrix is
        the product of theirs; the model itself where there are none."""
        if not self.joints:
            return self
        layers: list[Affine] = []
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            layer = Affine(weight=weight, bias=bias, computed=self.computed.get(k))
            layers.append(layer.after(layers.pop()) if k - 1 in self.joints else layer)
        return Model(
            **of_layers(layers),
            hidden=tuple(each for k, each in enumerate(self.hidden) if k not in self.joints),
            sha256=self.sha256,
            stored=self.stored,
        )

    def weight_error(self, k: int) -> np.ndarray | float:
        """Bounds on the errors of the entries of `weights[k]`; 0 where they are exact."""
        return self.computed[k].weight if k in self.computed else 0.0

    def bias_error(self, k: int) -> np.ndarray | float:
        """Bounds on the errors of the entries of `biases[k]`; 0 where they are exact."""
        return self.computed[k].bias if k in self.computed else 0.0

    def largest(self, k: int) -> np.ndarray:
        """Upper bounds on the entries of `weights[k]` in size."""
        return np.abs(self.weights[k]) + self.weight_error(k)

    def loose(self, k: int) -> float:
        """An upper bound on the 2-norm of the error of `weights[k]`."""
        return absolute_norm(self.computed[k].weight) if k in self.computed else 0.0

    def gain(self, k: int) -> float:
        """The size of intermediate results of layer k for inputs of size 1, at least 1."""
        return self.computed[k].gain if k in self.computed else 1.0

    @property
    def depth(self) -> int:
        return len(self.weights)

    @property
    def features(self) -> int:
        return self.weights[0].shape[1]

    @property
    def classes(self) -> int:
        return self.weights[-1].shape[0]

    @cached_property
    def masked(self) -> np.ndarray:
        """Mask (classes,) of classes with a bias of -inf, whose logit is -inf at every input."""
        return np.isneginf(self.biases[-1])

    @property
    def finite(self) -> bool:
        """Whether all weights are finite and each array's largest is 0 or in 1e-100 .. 1e100.

        Some, but not all, classes may have a bias of -inf. Outside this range the squares in the
        bounds may underflow or overflow.
        """
        last = self.biases[-1][~self.masked]
        arrays = (*self.weights, *self.biases[:-1], last, *self.stored)
        largest = [float(np.abs(a).max(initial=0.0)) for a in arrays]
        errors = (e for made in self.computed.values() for e in (made.weight, made.bias))
        known = all(np.isfinite(error).all() for error in errors)
        return (
            known and len(last) > 0 and all(size == 0 or 1e-100 < size < 1e100 for size in largest)
        )

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits (n, classes) and the slopes s'(z_k) of all hidden layers at x (n, features)."""
        z = x @ self.weights[0].T + self.biases[0]
        slopes = []
        for hidden, weight, bias in zip(
            self.hidden, self.weights[1:], self.biases[1:], strict=True
        ):
            slopes.append(hidden.slope(z))
            z = hidden.value(z) @ weight.T + bias
        return z, slopes

    def margin_gradient(
        self, slopes: list[np.ndarray], label: np.ndarray, target: np.ndarray
    ) -> np.ndarray:
        """Gradient in x of `z_label - z_target`, (n, features), for label and target (n,)."""
        gradient = self.weights[-1][label] - self.weights[-1][target]
        for weight, slope in zip(self.weights[-2::-1], reversed(slopes), strict=True):
            gradient = (gradient * slope) @ weight
        return gradient


def of_layers(layers: Sequence[Affine]) -> dict[str, Any]:
    """The fields of a `Model` that state `layers`."""
    return {
        "weights": tuple(layer.weight for layer in layers),
        "biases": tuple(layer.bias for layer in layers),
        "computed": {k: each.computed for k, each in enumerate(layers) if each.computed},
    }


def weights_sha256(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over `name (shape) torch.dtype;` and the raw bytes of each tensor, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.shape} torch.{tensor.dtype.name};".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
