"""A dense layer of given weights."""

from __future__ import annotations

import torch
from torch import Tensor

from raycrt.networks.layers.affine import Dense


@torch.no_grad()
def dense(weight: Tensor, bias: Tensor, like: Tensor) -> Dense:
    """The layer `weight x + bias`, in the type and on the device of `like`."""
    layer = Dense(weight.shape[1], weight.shape[0]).to(like)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
