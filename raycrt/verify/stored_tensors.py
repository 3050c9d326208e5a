"""The tensors of a stored network, and the affine maps whose entries they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from raycrt.errors import require
from raycrt.verify.computed import Affine
from raycrt.verify.convolution import Geometry, unrolled


@dataclass(kw_only=True)
class StoredTensors:
    """The tensors `given` by name. `used` has the names of those that were read, `stored` their
    numbers as float64, with 0 in place of a bias of -inf."""

    given: dict[str, np.ndarray]
    used: set[str] = field(default_factory=set)
    stored: list[np.ndarray] = field(default_factory=list)

    def require_all_used(self) -> None:
        """`InvalidInput` unless every tensor was read."""
        require(
            set(self.given) == self.used,
            "the tensors are those of the layers of the spec",
            tensors=sorted(self.given),
            layers=sorted(self.used),
        )

    def tensor(self, name: str) -> np.ndarray:
        require(
            name in self.given,
            "the tensors are those of the layers of the spec",
            missing=name,
            tensors=sorted(self.given),
        )
        self.used.add(name)
        return self.given[name]

    def numbers(self, name: str) -> np.ndarray:
        found = self.tensor(name)
        require(found.dtype.kind == "f", f"{name} holds real numbers", type=str(found.dtype))
        found = found.astype(np.float64)
        self.stored.append(np.where(np.isneginf(found), 0.0, found))
        return found

    def vectors(self, name: str, size: int, *roles: str) -> list[np.ndarray]:
        """The tensors of `roles`, each of `size` numbers."""
        found = [self.numbers(f"{name}.{role}") for role in roles]
        for role, vector in zip(roles, found, strict=True):
            require(
                vector.shape == (size,),
                f"the layers fit together: {name}.{role} has one number for each",
                shape=vector.shape,
                size=size,
            )
        return found

    def dense(self, name: str, outputs: int | None, inputs: int) -> Affine:
        """A matrix of `inputs` columns, and of `outputs` rows if that is given."""
        weight, bias = self.numbers(f"{name}.weight"), self.numbers(f"{name}.bias")
        rows = bias.size if outputs is None else outputs
        require(
            weight.shape == (rows, inputs) and bias.shape == (rows,),
            f"the layers fit together: {name}.weight is (outputs, inputs), its bias (outputs,)",
            weight=weight.shape,
            bias=bias.shape,
            outputs=rows,
            inputs=inputs,
        )
        return Affine(weight=weight, bias=bias)

    def convolution(self, name: str, geometry: Geometry) -> Affine:
        kernel, bias = self.numbers(f"{name}.weight"), self.numbers(f"{name}.bias")
        weight, bias = unrolled(kernel, bias, geometry)
        return Affine(weight=weight, bias=bias)


def image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """`shape` as (channels, height, width); `InvalidInput` where it is another one."""
    require(len(shape) == 3, "a convolution is given images", shape=shape)
    return shape[0], shape[1], shape[2]
