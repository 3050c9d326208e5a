"""The stored network in numpy: its weights, its forward pass and the gradients of margins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from raycrt.activations import NUMPY, Activation, activation
from raycrt.errors import InvalidInput, require
from raycrt.specs import ModelSpec
from raycrt.verify import convolution, ranges


@dataclass(frozen=True, kw_only=True)
class Model:
    """`z_k = W_k h_{k-1} + b_k`, `h_k = s(z_k)`, counted from 0 with h_{-1} the flat input.

    `weights[k]` (outputs, inputs) and `biases[k]` (outputs,) are the stored numbers as float64,
    `sha256` the identity of the file's content.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    activation: Activation
    sha256: str

    @staticmethod
    def load(file: Path, spec: ModelSpec, shape: tuple[int, ...]) -> Model:
        """Read a `model.safetensors` whose tensors are `maps.K.weight` and `maps.K.bias`.

        `shape` is that of an input, (channels, height, width) if there are convolutions. These are
        unrolled into matrices; one with more than 2^25 entries is refused.
        """
        if not file.is_file():
            raise InvalidInput(f"a model file must exist, but there is none at {file}")
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError, TypeError, KeyError) as error:
            # Numpy lacks some types of the format, among them bfloat16.
            raise InvalidInput(
                f"{file} must be a safetensors file of float64, float32 or float16: {error}"
            ) from None
        for name, tensor in tensors.items():
            require(tensor.dtype.kind == "f", f"{name} holds real numbers", type=str(tensor.dtype))
        layers = len(spec.channels) + spec.depth
        names = [(f"maps.{k}.weight", f"maps.{k}.bias") for k in range(layers)]
        require(
            set(tensors) == {name for pair in names for name in pair},
            "the tensors are maps.K.weight and maps.K.bias, one K for each layer of the spec",
            tensors=sorted(tensors),
            layers=layers,
        )
        weights, biases = [], []
        for k, pair in enumerate(names):
            weight, bias = (tensors[name].astype(np.float64) for name in pair)
            if k < len(spec.channels):
                weight, bias, shape = convolution.unrolled(weight, bias, shape, spec)
            weights.append(weight)
            biases.append(bias)
        require(
            all(
                w.ndim == 2 and b.shape == w.shape[:1] for w, b in zip(weights, biases, strict=True)
            )
            and all(a.shape[0] == b.shape[1] for a, b in pairwise(weights)),
            "the layers fit together",
            sizes=[w.shape for w in weights],
        )
        return Model(
            weights=tuple(weights),
            biases=tuple(biases),
            activation=activation(spec.activation, spec.beta),
            sha256=weights_sha256(tensors),
        )

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
    def slopes(self) -> ranges.Range:
        """Proved ranges of the activation's slope."""
        return ranges.of_slope(self.activation)

    @cached_property
    def curvatures(self) -> ranges.Range:
        """Proved ranges of the activation's curvature."""
        return ranges.of_curvature(self.activation)

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
        arrays = (*self.weights, *self.biases[:-1], last)
        largest = [float(np.abs(a).max(initial=0.0)) for a in arrays]
        return len(last) > 0 and all(size == 0 or 1e-100 < size < 1e100 for size in largest)

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits (n, classes) and the slopes s'(z_k) of all hidden layers at x (n, features)."""
        z = x @ self.weights[0].T + self.biases[0]
        slopes = []
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            slopes.append(self.activation.slope(z, NUMPY))
            z = self.activation.value(z, NUMPY) @ weight.T + bias
        return z, slopes

    def margin_gradient(
        self, slopes: list[np.ndarray], label: np.ndarray, target: np.ndarray
    ) -> np.ndarray:
        """Gradient in x of `z_label - z_target`, (n, features), for label and target (n,)."""
        gradient = self.weights[-1][label] - self.weights[-1][target]
        for weight, slope in zip(self.weights[-2::-1], reversed(slopes), strict=True):
            gradient = (gradient * slope) @ weight
        return gradient


def weights_sha256(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over `name (shape) torch.dtype;` and the raw bytes of each tensor, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.shape} torch.{tensor.dtype.name};".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
