"""Models whose weights are stored without them, and what they are compared by."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from raycrt.specs import ModelSpec

SPEC = ModelSpec(depth=3, width=8, activation="tanh")
State = dict[str, Tensor]


def dense(*widths: int, bias: bool = True) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def named(model: nn.Sequential, *names: str) -> State:
    """The state of the `Linear` layers of `model` under other names."""
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    return {
        f"{name}.{role}": tensor.detach()
        for name, layer in zip(names, linear, strict=True)
        for role, tensor in layer.named_parameters()
    }


def normed(*layers: nn.Module) -> nn.Sequential:
    """A Sequential whose batch normalisations have seen something."""
    for layer in layers:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean, layer.running_var = (
                torch.randn(layer.num_features),
                torch.rand(layer.num_features) + 0.2,
            )
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return nn.Sequential(*layers)
