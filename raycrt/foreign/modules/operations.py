"""Layers that stand for the tensor operations in a traced `forward`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycrt.errors import require
from raycrt.foreign.modules.elementwise import Elementwise
from raycrt.foreign.modules.rescaling import Rescaling

Layers = list[nn.Module]


class Squeeze(nn.Module):
    """Reshapes outputs (n, 1) to (n,); leaves others (n, classes) as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1)


class Batch:
    """Placeholder for the batch size among the sizes of a shape."""

    def __repr__(self) -> str:
        return "batch"


def name_of(target: Any) -> str | None:
    """The name in the table of a torch function, a method or an operator; None for others."""
    if isinstance(target, str):
        return target.removesuffix("_") if target.removesuffix("_") in _OPERATIONS else None
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return name_of(target._schema.name.removeprefix("aten::"))
    return _FUNCTIONS.get(target)


def layers_of(name: str, *args: Any, **kwargs: Any) -> Layers:
    """The layers that compute operation `name` of the table; arguments are those after its input.

    Raises `InvalidInput` where no layers do, and `TypeError` for unknown arguments.
    """
    return _OPERATIONS[name](*args, **kwargs)


def normalization_layers(module: nn.Module) -> Layers:
    """The layers that compute torchvision's `Normalize`; none for other modules."""
    kind = type(module)
    if kind.__name__ != "Normalize" or not kind.__module__.startswith("torchvision.transforms."):
        return []
    mean, std = (
        torch.as_tensor(numbers, dtype=torch.float64)[:, None, None]
        for numbers in (module.mean, module.std)
    )
    return [Rescaling(offset=-mean), Rescaling(divisor=std)]


def reversed_layers_of(name: str, constant: Any) -> Layers:
    """The layers that compute `constant + x`, `constant * x` or `constant - x`."""
    require(name in ("add", "mul", "sub"), "the input comes first", operation=name)
    if name == "sub":
        return [Rescaling(factor=-1.0), Rescaling(offset=constant)]
    return _OPERATIONS[name](constant)


def _linear(weight: Tensor, bias: Tensor | None = None) -> Layers:
    require(weight.dim() == 2, "a weight is a matrix", shape=tuple(weight.shape))
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return [_with(layer, weight=weight, bias=bias)]


def _matmul(weight: Tensor) -> Layers:
    return _linear(weight.t())


def _conv2d(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Layers:
    require(weight.dim() == 4, "a kernel has four dimensions", shape=tuple(weight.shape))
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    return [_with(layer, weight=weight, bias=bias)]


def _with(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    for name, tensor in tensors.items():
        if tensor is not None:
            delattr(layer, name)
            layer.register_buffer(name, tensor.detach())
    return layer


def _batch_norm(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Layers:
    if training or running_mean is None or running_var is None:
        require(False, "statistics are fixed", training=training)
    layer = nn.BatchNorm2d(len(running_mean), eps=eps, device="meta")  # type: ignore[arg-type]
    ones = torch.ones_like(running_mean) if weight is None else weight  # type: ignore[arg-type]
    zeros = torch.zeros_like(ones) if bias is None else bias
    return [
        _with(layer, weight=ones, bias=zeros, running_mean=running_mean, running_var=running_var)
    ]


def _batch_norm_call(*given: Any, **named: Any) -> Layers:
    """`torch.nn.functional.batch_norm`, or the operation of that name in an exported program, which
    has one more argument and the weights first."""
    if len(given) != 8:
        return _batch_norm(*given, **named)
    weight, bias, mean, variance, *others, _ = given
    return _batch_norm(mean, variance, weight, bias, *others, **named)


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> Layers:
    require(not training or p == 0, "dropout is off in evaluation mode", p=p, training=training)
    return []


def _mean(dim: Any, keepdim: bool = False) -> Layers:
    dims = sorted(d % 4 for d in dim) if isinstance(dim, Sequence) else dim
    require(dims == [2, 3], "a mean is over an image's pixels, dims 2 and 3", dim=dim)
    return [nn.AdaptiveAvgPool2d(1), *([] if keepdim else [nn.Flatten()])]


def _reshape(*sizes: Any, shape: Any = None) -> Layers:
    if shape is not None:
        sizes = tuple(shape)
    if len(sizes) == 1 and isinstance(sizes[0], Sequence):
        sizes = tuple(sizes[0])
    if sizes == (-1,):
        return [nn.Flatten(0)]
    first, rest = (sizes[0], sizes[1:]) if sizes else (None, ())
    numbers = all(isinstance(size, int) and size > 0 for size in rest)
    require(
        (isinstance(first, Batch) and rest == (-1,))
        or ((isinstance(first, Batch) or first == -1) and len(rest) > 0 and numbers),
        "a shape is the batch's size and -1, or the batch's size or -1 and numbers",
        shape=sizes,
    )
    return [nn.Flatten()] if rest == (-1,) else [nn.Flatten(), nn.Unflatten(1, tuple(rest))]


def _squeeze(dim: int | None = None) -> Layers:
    require(dim in (None, 1, -1), "only a single output is squeezed", dim=dim)
    return [Squeeze()]


def _select(index: Any) -> Layers:
    plain = isinstance(index, tuple) and not any(isinstance(part, Tensor) for part in index)
    require(
        plain and index == (slice(None), 0),
        "an index is [:, 0], all of one output",
        index=str(index),
    )
    return [nn.Flatten(0)]


def _add(other: Any, alpha: float = 1) -> Layers:
    require(alpha == 1, "a sum or difference is taken without a factor alpha", alpha=alpha)
    return [Rescaling(offset=other)]


def _sub(other: Any, alpha: float = 1) -> Layers:
    require(alpha == 1, "a sum or difference is taken without a factor alpha", alpha=alpha)
    return [Rescaling(offset=-other)]


def _div(other: Any, rounding_mode: str | None = None) -> Layers:
    require(rounding_mode is None, "a quotient is not rounded", rounding_mode=rounding_mode)
    return [Rescaling(divisor=other)]


def _activation(make: Callable[..., nn.Module]) -> Callable[..., Layers]:
    def layers(*args: Any, **kwargs: Any) -> Layers:
        kwargs.pop("inplace", None)
        return [make(*args, **kwargs)]

    return layers


def _unchanged(*args: Any, **kwargs: Any) -> Layers:
    kinds = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
    kinds += [value.dtype for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    require(all(kind.is_floating_point for kind in kinds), "a type of real numbers", got=kinds)
    return []


def _softmax(make: Callable[..., nn.Module]) -> Callable[..., Layers]:
    def layers(dim: int | None = None, dtype: Any = None, **kwargs: Any) -> Layers:
        return [make(dim)]

    return layers


# By name, for functions of torch, torch.nn.functional and operator, and for methods of tensors.
_OPERATIONS: dict[str, Callable[..., Layers]] = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "conv2d": _conv2d,
    "avg_pool2d": lambda *args, **kwargs: [nn.AvgPool2d(*args, **kwargs)],
    "adaptive_avg_pool2d": lambda output_size: [nn.AdaptiveAvgPool2d(output_size)],
    "batch_norm": _batch_norm_call,
    "dropout": _dropout,
    "dropout1d": _dropout,
    "dropout2d": _dropout,
    "alpha_dropout": _dropout,
    "mean": _mean,
    "flatten": lambda start_dim=0, end_dim=-1: [nn.Flatten(start_dim, end_dim)],
    "unflatten": lambda dim, sizes: [nn.Unflatten(dim, sizes)],
    "reshape": _reshape,
    "view": _reshape,
    "squeeze": _squeeze,
    "getitem": _select,
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "mul": lambda other: [Rescaling(factor=other)],
    "multiply": lambda other: [Rescaling(factor=other)],
    "div": _div,
    "divide": _div,
    "truediv": _div,
    "neg": lambda: [Rescaling(factor=-1.0)],
    "sigmoid": _activation(nn.Sigmoid),
    "tanh": _activation(nn.Tanh),
    "softplus": _activation(nn.Softplus),
    "silu": _activation(nn.SiLU),
    "gelu": _activation(nn.GELU),
    "atan": _activation(lambda: Elementwise("arctan")),
    "arctan": _activation(lambda: Elementwise("arctan")),
    "erf": _activation(lambda: Elementwise("erf")),
    "softmax": _softmax(nn.Softmax),
    "log_softmax": _softmax(nn.LogSoftmax),
    # Operations that change no number, which a comparison with the model's own call confirms.
    **dict.fromkeys(("contiguous", "clone", "detach", "float", "double", "to"), _unchanged),
}
_FUNCTIONS: dict[Any, str] = {
    getattr(space, name): name
    for space in (torch, F, operator)
    for name in _OPERATIONS
    if callable(getattr(space, name, None))
}
