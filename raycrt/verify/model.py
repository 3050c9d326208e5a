"""The stored network in numpy: its weights, its forward pass and the gradients of margins."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from raycrt.errors import InvalidInput, require
from raycrt.specs import ModelSpec
from raycrt.verify import stored_layers
from raycrt.verify.hidden import Hidden


@dataclass(frozen=True, kw_only=True)
class Model:
    """`z_k = W_k h_{k-1} + b_k` and `h_k` its `hidden[k]`, counted from 0 with h_{-1} the flat
    input; the last z is the logits.

    `weights[k]` (outputs, inputs) and `biases[k]` (outputs,) are the stored numbers as float64,
    `sha256` the identity of the file's content.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    hidden: tuple[Hidden, ...]
    sha256: str

    @staticmethod
    def load(file: Path, spec: ModelSpec, shape: Sequence[int]) -> Model:
        """Read a `model.safetensors` whose tensors are those of the layers of `spec`.

        `shape` is that of an input: (features,) or (channels, height, width). Convolutions are
        unrolled into matrices; one with more than 2^25 entries is refused.
        """
        if not file.is_file():
            raise InvalidInput(f"a model file must exist, but there is none at {file}")
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError, TypeError, KeyError) as error:
            # Numpy lacks some of the types that the format allows, among them bfloat16.
            raise InvalidInput(
                f"{file} must be a safetensors file of float64, float32 or float16: {error}"
            ) from None
        for name, tensor in tensors.items():
            require(tensor.dtype.kind == "f", f"{name} holds real numbers", type=str(tensor.dtype))
        found = stored_layers.read(tensors, spec, shape)
        require(
            all(len(w) == len(b) for w, b in zip(found.weights, found.biases, strict=True))
            and all(a.shape[0] == b.shape[1] for a, b in pairwise(found.weights)),
            "the layers fit together",
            sizes=[w.shape for w in found.weights],
        )
        return Model(
            weights=tuple(found.weights),
            biases=tuple(found.biases),
            hidden=tuple(found.hidden),
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


def weights_sha256(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over `name (shape) torch.dtype;` and the raw bytes of each tensor, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.shape} torch.{tensor.dtype.name};".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
