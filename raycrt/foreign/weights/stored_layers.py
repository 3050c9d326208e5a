"""Layers of a state dict: their tensors by role, and the torch modules that they make."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raycrt.errors import InvalidInput
from raycrt.specs import ModelSpec

# Shape of one input, without the batch; empty while it is not known.
Shape = tuple[int, ...]

# `fc1.weight`, `fc1_weight`, `weight`; then `W1`, `weight_1`, `weights.1`.
_AFTER = re.compile(
    r"(?:(?P<layer>.*?)[._])?(?P<role>weight|bias|running_mean|running_var|mean|std|[Ww]|[Bb])"
)
_NUMBERED = re.compile(
    r"(?P<layer>.*[._]|)(?P<role>weights?|bias(?:es)?|[Ww]|[Bb])[._]?(?P<number>\d+)"
)
_ROLES = {"w": "weight", "weights": "weight", "b": "bias", "biases": "bias"}


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """A layer called `name` with its tensors by role: `weight`, `bias`, `running_mean`, ..."""

    name: str
    tensors: Mapping[str, Tensor]

    def after(self, shape: Shape, spec: ModelSpec) -> Shape | None:
        """The output shape for inputs of `shape`; None if the layer does not accept these."""
        raise NotImplementedError

    def module(self, shape: Shape, spec: ModelSpec) -> nn.Module:
        """The torch module for inputs of `shape`."""
        raise NotImplementedError

    def __str__(self) -> str:
        main = self.tensors.get("weight", next(iter(self.tensors.values())))
        return f"{self.name} {tuple(main.shape)}"


class StoredDense(StoredLayer):
    """`weight` (outputs, inputs) and, perhaps, `bias`."""

    def after(self, shape: Shape, spec: ModelSpec) -> Shape | None:
        outputs, inputs = self.tensors["weight"].shape
        return (outputs,) if shape == () or math.prod(shape) == inputs else None

    def module(self, shape: Shape, spec: ModelSpec) -> nn.Module:
        outputs, inputs = self.tensors["weight"].shape
        with torch.device("meta"):
            layer = nn.Linear(inputs, outputs)
        return _filled(layer, self.tensors)


class StoredConvolution(StoredLayer):
    """`weight` (outputs, inputs, height, width), perhaps `bias`; stride and padding of `spec`."""

    def after(self, shape: Shape, spec: ModelSpec) -> Shape | None:
        outputs, inputs, *kernel = self.tensors["weight"].shape
        if len(shape) != 3 or shape[0] != inputs or kernel != [spec.kernel, spec.kernel]:
            return None
        room = [n + 2 * spec.padding - spec.kernel for n in shape[1:]]
        return (outputs, *(r // spec.stride + 1 for r in room)) if min(room) >= 0 else None

    def module(self, shape: Shape, spec: ModelSpec) -> nn.Module:
        outputs, inputs, *_ = self.tensors["weight"].shape
        with torch.device("meta"):
            layer = nn.Conv2d(
                inputs, outputs, spec.kernel, stride=spec.stride, padding=spec.padding
            )
        return _filled(layer, self.tensors)


@dataclass(frozen=True, kw_only=True)
class StoredBatchNorm(StoredLayer):
    """`running_mean` and `running_var`, perhaps `weight` and `bias`; files do not store `eps`."""

    eps: float

    @property
    def channels(self) -> int:
        return len(self.tensors["running_mean"])

    def after(self, shape: Shape, spec: ModelSpec) -> Shape | None:
        if shape == () or shape[0] == self.channels:
            return shape or (self.channels,)
        return (self.channels,) if math.prod(shape) == self.channels else None

    def module(self, shape: Shape, spec: ModelSpec) -> nn.Module:
        kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
        layer = kind(self.channels, eps=self.eps, affine="weight" in self.tensors)
        layer.running_mean = self.tensors["running_mean"]
        layer.running_var = self.tensors["running_var"]
        return _filled(layer, self.tensors) if "weight" in self.tensors else layer


class StoredNormaliser(StoredLayer):
    """`mean` and `std` of the inputs: it computes `(x - mean) / std`, before all other layers.

    Its module is a batch normalisation with variance `std` squared, which is exact in float64, as
    `std` must consist of float32 numbers.
    """

    def after(self, shape: Shape, spec: ModelSpec) -> Shape | None:
        return shape

    def module(self, shape: Shape, spec: ModelSpec) -> nn.Module:
        if not shape:
            raise InvalidInput(f"input_shape must be given where {self.name} normalises inputs")
        mean, std = (self._spread(role, shape).double() for role in ("mean", "std"))
        if not (bool((std > 0).all()) and torch.equal(std, std.float().double())):
            raise InvalidInput(f"{self.name}std must consist of positive float32 numbers")
        layer = nn.BatchNorm1d(len(mean), eps=0.0, affine=False)
        layer.running_mean, layer.running_var = mean, std.square()
        return nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, shape))

    def _spread(self, role: str, shape: Shape) -> Tensor:
        """One number for each pixel; stored is one for all, for each channel or for each pixel."""
        tensor = self.tensors[role]
        features = math.prod(shape)
        if tensor.shape in ((features,), (1, features)):
            return tensor.flatten()
        wrong = InvalidInput(
            f"{self.name}{role} must be for all inputs of shape {shape}, each channel or each "
            f"pixel, but has shape {tuple(tensor.shape)}"
        )
        if tensor.dim() == 1 and len(tensor) > 1:
            # Meant for channels; torch itself would broadcast it over columns, if as long as a row.
            if len(shape) != 3 or len(tensor) != shape[0] or shape[0] == shape[2]:
                raise wrong
            tensor = tensor[:, None, None]
        try:
            return tensor.expand(1, *shape).flatten()
        except RuntimeError:
            raise wrong from None


def read_layers(tensors: Mapping[str, Tensor], eps: float | None) -> list[StoredLayer]:
    """The layers to which `tensors` belong, in their order; `eps` is that of batch normalisations.

    Raises `InvalidInput` naming tensors that belong to no such layer.
    """
    roles: dict[str, dict[str, Tensor]] = {}
    names: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        layer, role = _split(name)
        if role in roles.setdefault(layer, {}):
            raise InvalidInput(f"{name} must be the only {role} of its layer")
        roles[layer][role] = tensor
        names.setdefault(layer, []).append(f"{name} {tuple(tensor.shape)}")
    return [_layer(layer, roles[layer], eps, ", ".join(names[layer])) for layer in roles]


def _split(name: str) -> tuple[str, str]:
    """Layer and role of a tensor, by its name; a tensor without a role is its own layer."""
    if found := _NUMBERED.fullmatch(name):
        layer, role = found["layer"] + found["number"], found["role"].lower()
    elif found := _AFTER.fullmatch(name):
        layer, role = found["layer"] or "", found["role"].lower()
    else:
        return name, ""
    return layer, _ROLES.get(role, role)


def _layer(name: str, of: dict[str, Tensor], eps: float | None, present: str) -> StoredLayer:
    sizes = {role: tensor.dim() for role, tensor in of.items()}
    if sizes.keys() == {"mean", "std"}:
        return StoredNormaliser(name=name, tensors=of)
    vectors = {role: tuple(tensor.shape) for role, tensor in of.items() if role != "weight"}
    if {"running_mean", "running_var"} <= sizes.keys() <= {"running_mean", "running_var", *_BOTH}:
        shapes = {tuple(tensor.shape) for tensor in of.values()}
        if len(shapes) == 1 and set(sizes.values()) == {1}:
            if eps is None:
                raise InvalidInput(
                    "batch_norm_eps must be given, as files of weights do not hold it (torch's own "
                    f"is 1e-5), where there is batch normalisation: {present}"
                )
            return StoredBatchNorm(name=name, tensors=of, eps=eps)
    kinds = {2: StoredDense, 4: StoredConvolution}
    if {"weight"} <= sizes.keys() <= _BOTH and sizes["weight"] in kinds:
        outputs = (of["weight"].shape[0],)
        if 0 not in of["weight"].shape and vectors in ({}, {"bias": outputs}):
            return kinds[sizes["weight"]](name=name, tensors=of)
    raise InvalidInput(
        "weights must be those of dense layers, convolutions, batch normalisation, or mean and std "
        f"of the inputs, but there are {present}"
    )


_BOTH = {"weight", "bias"}


def _filled(layer: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """`layer` with the stored weight and bias; the bias is zero where none is stored."""
    weight = tensors["weight"]
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(tensors.get("bias", weight.new_zeros(weight.shape[0])))
    return layer
