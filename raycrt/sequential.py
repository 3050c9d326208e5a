"""A plain `torch.nn.Sequential` as a network.

The theorem then speaks of the function that the layers state in evaluation mode, in exact
arithmetic with the stored weights. `torch.nn.Softplus` becomes linear above its threshold; the
theorem is about the exact softplus, which differs from it by less than `exp(-threshold) / beta`
(2.1e-9 / beta at the default of 20).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from raycrt.activations import ACTIVATIONS, Activation, softplus
from raycrt.affine import AffineMap, Chain, Dense
from raycrt.convolution import AveragePool, Convolution
from raycrt.diagonal import Normalization
from raycrt.elementwise import Elementwise
from raycrt.errors import InvalidInput, require
from raycrt.network import Network
from raycrt.torus import Pair

# Shape of one input, without the batch; none as long as it is not known.
Shape = tuple[int, ...] | None


def as_network(model: nn.Module, input_shape: Sequence[int] | None = None) -> Network:
    """A `Network` that computes what `model` does in evaluation mode; the weights are copied.

    `model` is a `torch.nn.Sequential`, nested or not, of the layers in `supported()`, with one
    activation throughout. `input_shape` is the shape of one input; it may be left out where a
    linear layer comes first. Raises `InvalidInput` naming the first layer that does not fit.
    """
    if isinstance(model, Network):
        return model
    require(isinstance(model, nn.Module), "model is a torch.nn.Module", model=type(model).__name__)
    shape: Shape = None if input_shape is None else tuple(input_shape)
    stages: list[list[AffineMap]] = [[]]
    chosen: Activation | None = None
    for path, layer in _leaves(model, ""):
        found = _activation(path, layer)
        if found is None:
            added, shape = _affine(path, layer, shape)
            stages[-1] += added
            continue
        if not stages[-1]:
            raise InvalidInput(f"an affine layer must stand before {_name(path, layer)}")
        if chosen is not None and not _same(chosen, found):
            raise InvalidInput(
                f"one activation must be used throughout, but {_name(path, layer)} "
                f"is not the {chosen.name} before it"
            )
        chosen = found
        stages.append([])
    if chosen is None or not stages[-1]:
        raise InvalidInput(
            "a model must have affine layers with an activation between them and end in an affine "
            f"layer, but got {[type(layer).__name__ for _, layer in _leaves(model, '')]}"
        )
    maps = [stage[0] if len(stage) == 1 else Chain(stage) for stage in stages]
    require(maps[-1].out_features >= 2, "classes >= 2", classes=maps[-1].out_features)
    network = Network(maps, chosen)
    # Of one type that holds all weights as they are: pools bring their own, and biases may.
    types = {parameter.dtype for parameter in network.parameters()}
    return network.to(reduce(torch.promote_types, types)).eval()


def supported() -> list[str]:
    """Names of the layers that `as_network` takes."""
    affine = [kind.__name__ for kind in _AFFINE]
    return [*affine, *(kind.__name__ for kind in _ACTIVATIONS), "Sequential", "Elementwise"]


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested Sequentials in order, each with its path."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise InvalidInput(f"hooks must be removed, but {_name(path, module)} has some")
    if type(module).forward is not nn.Sequential.forward:
        yield path, module
        return
    # Not `named_children`, which leaves out a module that stands in two places.
    for name, child in module._modules.items():
        assert child is not None
        yield from _leaves(child, f"{path}.{name}" if path else name)


def _name(path: str, layer: nn.Module) -> str:
    return f"layer {path or '(whole model)'} ({type(layer).__name__})"


def _activation(path: str, layer: nn.Module) -> Activation | None:
    if isinstance(layer, Elementwise):
        return layer.activation
    make = _ACTIVATIONS.get(type(layer))
    return None if make is None else make(path, layer)


def _same(first: Activation, second: Activation) -> bool:
    """Softplus of different sharpness has different curvature; names tell the others apart."""
    return first.name == second.name and first.curvature_range == second.curvature_range


def _softplus(path: str, layer: nn.Softplus) -> Activation:
    if layer.threshold < 20:
        raise InvalidInput(
            f"threshold >= 20 must hold for the theorem to speak of softplus, but "
            f"{_name(path, layer)} has threshold={layer.threshold}"
        )
    return softplus(layer.beta)


def _gelu(path: str, layer: nn.GELU) -> Activation:
    if layer.approximate != "none":
        raise InvalidInput(
            f"approximate must be 'none', but {_name(path, layer)} has {layer.approximate!r}"
        )
    return ACTIVATIONS["gelu"]


_ACTIVATIONS: dict[type[nn.Module], Callable[..., Activation]] = {
    nn.Softplus: _softplus,
    nn.Sigmoid: lambda path, layer: ACTIVATIONS["sigmoid"],
    nn.Tanh: lambda path, layer: ACTIVATIONS["tanh"],
    nn.GELU: _gelu,
    nn.SiLU: lambda path, layer: ACTIVATIONS["silu"],
}


def _affine(path: str, layer: nn.Module, shape: Shape) -> tuple[list[AffineMap], Shape]:
    """The map of a layer on inputs of `shape`, none for a change of shape; and the new shape."""
    if isinstance(layer, AffineMap):
        return [layer], (layer.out_features,)
    convert = _AFFINE.get(type(layer))
    if convert is None:
        raise InvalidInput(
            f"{_name(path, layer)} is not supported; supported are {', '.join(supported())}"
        )
    try:
        return convert(layer, shape)
    except InvalidInput as error:
        raise InvalidInput(f"{_name(path, layer)}: {error}") from None


def _linear(layer: nn.Linear, shape: Shape) -> tuple[list[AffineMap], Shape]:
    shape = shape or (layer.in_features,)
    require(shape == (layer.in_features,), "input is flat with in_features", input=shape)
    with torch.device("meta"):
        dense = Dense(layer.in_features, layer.out_features)
    return [_fill(dense, layer.weight, layer.bias)], (layer.out_features,)


def _conv(layer: nn.Conv2d, shape: Shape) -> tuple[list[AffineMap], Shape]:
    image = _image(shape)
    require(layer.padding_mode == "zeros", "padding_mode == 'zeros'", got=layer.padding_mode)
    require(image[0] == layer.in_channels, "channels == in_channels", channels=image[0])
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
    require(shape[0] == layer.num_features, "channels == num_features", channels=shape[0])
    result = Normalization(layer.num_features, math.prod(shape[1:]), layer.eps)
    result.mean, result.variance = mean.detach().clone(), variance.detach().clone()
    weight = torch.ones_like(mean) if layer.weight is None else layer.weight
    return [_fill(result, weight, layer.bias)], shape


def _flatten(layer: nn.Flatten, shape: Shape) -> tuple[list[AffineMap], Shape]:
    require(
        layer.start_dim == 1 and layer.end_dim == -1,
        "start_dim == 1 and end_dim == -1",
        start_dim=layer.start_dim,
        end_dim=layer.end_dim,
    )
    return [], None if shape is None else (math.prod(shape),)


def _unflatten(layer: nn.Unflatten, shape: Shape) -> tuple[list[AffineMap], Shape]:
    sizes = tuple(layer.unflattened_size)
    require(layer.dim == 1 and min(sizes) > 0, "dim == 1 and sizes > 0", dim=layer.dim, got=sizes)
    require(shape is None or shape == (math.prod(sizes),), "sizes fit", input=shape, sizes=sizes)
    return [], sizes


def _nothing(layer: nn.Module, shape: Shape) -> tuple[list[AffineMap], Shape]:
    return [], shape


_AFFINE: dict[type[nn.Module], Callable[..., tuple[list[AffineMap], Shape]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.AvgPool2d: _average,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.BatchNorm1d: _normalization,
    nn.BatchNorm2d: _normalization,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.Dropout2d: _nothing,
}


def _image(shape: Shape) -> tuple[int, int, int]:
    if shape is None:
        raise InvalidInput("input_shape must be given, as (channels, height, width)")
    require(len(shape) == 3, "input is (channels, height, width)", input=shape)
    return shape[0], shape[1], shape[2]


def _pair(value: Any) -> Pair:
    return (value, value) if not isinstance(value, Sequence) else (value[0], value[1])


def _fill(target: AffineMap, weight: Tensor, bias: Tensor | None) -> AffineMap:
    """`target` with copies of the weights; no bias is a bias of zeros."""
    zeros = weight.new_zeros(target.get_parameter("bias").shape)
    target.register_parameter("weight", nn.Parameter(weight.detach().clone()))
    target.register_parameter(
        "bias", nn.Parameter((zeros if bias is None else bias).detach().clone())
    )
    return target
