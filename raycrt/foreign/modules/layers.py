"""Torch layers as the affine maps and the activation that they compute in evaluation mode.

The theorem holds for the function that a layer states, in exact arithmetic with the stored weights.
`torch.nn.Softplus` becomes linear above its threshold; the theorem is about the exact softplus,
which differs from it by less than `exp(-threshold) / beta` (2.1e-9 / beta at the default of 20).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raycrt.activations import ACTIVATIONS, KINK, Activation, softplus
from raycrt.errors import InvalidInput, require
from raycrt.foreign.modules.elementwise import Elementwise
from raycrt.foreign.modules.rescaling import Rescaling
from raycrt.networks.layers.affine import AffineMap, Dense
from raycrt.networks.layers.convolution import AveragePool, Convolution, Pair
from raycrt.networks.layers.diagonal import Normalization, Scaling

# Shape of one input, without the batch; None while it is not known.
Shape = tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One layer of a model, and its place in the model for messages.

    It is applied to the sum of the results `given`: 0 is the model's input, k + 1 the result of its
    step k.
    """

    place: str
    layer: nn.Module
    given: tuple[int, ...]


def supported() -> list[str]:
    """Names of the layers that can be read."""
    kinds = [*_AFFINE, *_ACTIVATIONS]
    return [*(kind.__name__ for kind in kinds), "Sequential"]


def is_layer(module: nn.Module) -> bool:
    """Whether the `forward` of `module` is that of a supported layer; it may be of a subclass."""
    return _kind(module, _AFFINE) is not None or _kind(module, _ACTIVATIONS) is not None


_KINKED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh)


def activation_of(step: Step) -> Activation | None:
    """The activation that a layer computes; None for other layers."""
    kind = _kind(step.layer, _ACTIVATIONS)
    return None if kind is None else _ACTIVATIONS[kind](step.place, step.layer)


def affine_of(step: Step, shape: Shape) -> tuple[list[AffineMap], Shape]:
    """The maps of a layer for inputs of `shape`, none if it only reshapes, and the new shape."""
    layer = step.layer
    if isinstance(layer, AffineMap):
        return [layer], (layer.out_features,)
    kind = _kind(layer, _AFFINE)
    if kind is None:
        names = supported()
        other = f" of {type(layer).__module__}" if type(layer).__name__ in names else ""
        kink = f" ({KINK})" if isinstance(layer, _KINKED) else ""
        raise InvalidInput(
            f"{step.place}{other} is not supported{kink}; supported are {', '.join(names)}"
        )
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.dtype not in _TYPES or tensor.layout != torch.strided:
            raise InvalidInput(
                f"{step.place}: weights must be dense numbers of {_type_names()}, but {name} is "
                f"{tensor.dtype}, {tensor.layout}"
            )
    try:
        return _AFFINE[kind](layer, shape)
    except InvalidInput as error:
        raise InvalidInput(f"{step.place}: {error}") from None


# Types of weights that are read unchanged.
_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _type_names() -> str:
    return ", ".join(str(kind).removeprefix("torch.") for kind in _TYPES)


def _kind(module: nn.Module, kinds: Iterable[type[nn.Module]]) -> type[nn.Module] | None:
    """The first of `kinds` whose `forward` is the module's; None if its instance replaces it."""
    if "forward" in vars(module):
        return None
    own = type(module).forward
    return next((kind for kind in kinds if own is kind.forward), None)


def _softplus(place: str, layer: nn.Softplus) -> Activation:
    if layer.threshold < 20:
        raise InvalidInput(
            f"threshold >= 20 must hold for the theorem to hold for softplus, but "
            f"{place} has threshold={layer.threshold}"
        )
    return softplus(layer.beta)


def _gelu(place: str, layer: nn.GELU) -> Activation:
    if layer.approximate != "none":
        raise InvalidInput(f"approximate must be 'none', but {place} has {layer.approximate!r}")
    return ACTIVATIONS["gelu"]


_ACTIVATIONS: dict[type[nn.Module], Callable[..., Activation]] = {
    nn.Softplus: _softplus,
    nn.Sigmoid: lambda place, layer: ACTIVATIONS["sigmoid"],
    nn.Tanh: lambda place, layer: ACTIVATIONS["tanh"],
    nn.GELU: _gelu,
    nn.SiLU: lambda place, layer: ACTIVATIONS["silu"],
    Elementwise: lambda place, layer: layer.activation,
}


def _linear(layer: nn.Linear, shape: Shape) -> tuple[list[AffineMap], Shape]:
    shape = shape or (layer.in_features,)
    if shape != (layer.in_features,):
        flatten = ": put nn.Flatten() before it" if math.prod(shape) == layer.in_features else ""
        raise InvalidInput(
            f"a linear layer of {layer.in_features} features must have that many as its input, "
            f"but gets {shape}{flatten}"
        )
    with torch.device("meta"):
        dense = Dense(layer.in_features, layer.out_features)
    return [_fill(dense, layer.weight, layer.bias)], (layer.out_features,)


def _conv(layer: nn.Conv2d, shape: Shape) -> tuple[list[AffineMap], Shape]:
    image = _image(shape)
    require(
        layer.padding_mode == "zeros",
        "a convolution is padded with zeros",
        padding_mode=layer.padding_mode,
    )
    require(
        image[0] == layer.in_channels,
        "a convolution is given as many channels as it takes",
        channels=image[0],
    )
    kernel, dilation = _pair(layer.kernel_size), _pair(layer.dilation)
    if layer.padding == "valid":
        padding = (0, 0)
    elif layer.padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        require(not any(t % 2 for t in total), "padding is the same on both sides", total=total)
        padding = (total[0] // 2, total[1] // 2)
    else:
        padding = _pair(layer.padding)
    with torch.device("meta"):
        convolution = Convolution(
            image,
            layer.out_channels,
            kernel,
            stride=_pair(layer.stride),
            padding=padding,
            dilation=dilation,
            groups=layer.groups,
        )
    return [_fill(convolution, layer.weight, layer.bias)], convolution.out_shape


def _average(layer: nn.AvgPool2d, shape: Shape) -> tuple[list[AffineMap], Shape]:
    padding = _pair(layer.padding)
    require(not layer.ceil_mode, "ceil_mode is false", ceil_mode=layer.ceil_mode)
    require(
        layer.count_include_pad or padding == (0, 0) or layer.divisor_override is not None,
        "count_include_pad, or no padding",
        padding=padding,
    )
    pool = AveragePool(
        _image(shape),
        _pair(layer.kernel_size),
        stride=_pair(layer.stride),
        padding=padding,
        divisor=layer.divisor_override,
    )
    return [pool], pool.out_shape


def _adaptive(layer: nn.AdaptiveAvgPool2d, shape: Shape) -> tuple[list[AffineMap], Shape]:
    image = _image(shape)
    wanted = _pair(layer.output_size)
    tall, wide = wanted[0] or image[1], wanted[1] or image[2]
    require(
        image[1] % tall == 0 and image[2] % wide == 0,
        "output_size divides the image",
        output_size=(tall, wide),
        image=image,
    )
    window = (image[1] // tall, image[2] // wide)
    pool = AveragePool(image, window, stride=window)
    return [pool], pool.out_shape


def _normalization(layer: nn.BatchNorm2d, shape: Shape) -> tuple[list[AffineMap], Shape]:
    mean, variance = layer.running_mean, layer.running_var
    if mean is None or variance is None:
        raise InvalidInput("running statistics must be kept (track_running_stats)")
    shape = shape or (layer.num_features,)
    require(
        shape[0] == layer.num_features,
        "a normalisation is given as many channels as it has",
        channels=shape[0],
    )
    result = Normalization(layer.num_features, math.prod(shape[1:]), layer.eps)
    result.mean, result.variance = mean.detach().clone(), variance.detach().clone()
    weight = torch.ones_like(mean) if layer.weight is None else layer.weight
    return [_fill(result, weight, layer.bias)], shape


def _flatten(layer: nn.Flatten, shape: Shape) -> tuple[list[AffineMap], Shape]:
    require(
        layer.start_dim == 1 and layer.end_dim == -1,
        "flatten keeps the batch alone: start_dim=1, end_dim=-1",
        start_dim=layer.start_dim,
        end_dim=layer.end_dim,
    )
    return [], None if shape is None else (math.prod(shape),)


def _unflatten(layer: nn.Unflatten, shape: Shape) -> tuple[list[AffineMap], Shape]:
    sizes = tuple(layer.unflattened_size)
    require(
        layer.dim == 1 and min(sizes) > 0,
        "unflatten makes dimension 1 into sizes above 0",
        dim=layer.dim,
        got=sizes,
    )
    require(shape is None or shape == (math.prod(sizes),), "sizes fit", input=shape, sizes=sizes)
    return [], sizes


def _rescaling(layer: Rescaling, shape: Shape) -> tuple[list[AffineMap], Shape]:
    if shape is None:
        raise InvalidInput("input_shape must be given")
    parts = (layer.factor, layer.divisor, layer.offset)
    try:
        spread = [torch.broadcast_to(part, (1, *shape)).flatten().clone() for part in parts]
    except RuntimeError:
        got = [tuple(part.shape) for part in parts if part.dim() > 0]
        raise InvalidInput(f"constants must broadcast to an input {shape}, but are {got}") from None
    result = Scaling(*spread)
    # Constants that are float32 numbers do not require float64 for the rest of the network.
    held = all(torch.equal(part, part.float().double()) for part in spread)
    return [result.float() if held else result], shape


def _nothing(layer: nn.Module, shape: Shape) -> tuple[list[AffineMap], Shape]:
    return [], shape


_AFFINE: dict[type[nn.Module], Callable[..., tuple[list[AffineMap], Shape]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.AvgPool2d: _average,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.BatchNorm1d: _normalization,
    nn.BatchNorm2d: _normalization,
    nn.SyncBatchNorm: _normalization,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.Dropout1d: _nothing,
    nn.Dropout2d: _nothing,
    nn.AlphaDropout: _nothing,
    Rescaling: _rescaling,
}


def _image(shape: Shape) -> tuple[int, int, int]:
    if shape is None:
        raise InvalidInput("input_shape must be given, as (channels, height, width)")
    require(len(shape) == 3, "input is (channels, height, width)", input=shape)
    return shape[0], shape[1], shape[2]


def _pair(value: Any) -> Pair:
    return (value, value) if not isinstance(value, Sequence) else (value[0], value[1])


def _fill(target: AffineMap, weight: Tensor, bias: Tensor | None) -> AffineMap:
    """`target` with copies of the weights; the bias is zero where there is none."""
    zeros = weight.new_zeros(target.get_parameter("bias").shape)
    target.register_parameter("weight", nn.Parameter(weight.detach().clone()))
    target.register_parameter(
        "bias", nn.Parameter((zeros if bias is None else bias).detach().clone())
    )
    return target
