"""A step in low precision: products in bfloat16 or TF32, weights and sums in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from raycrt.networks.network import Network

# The dtype of the weights for each precision of the products.
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "tf32": torch.float32,
    "bfloat16": torch.float32,
}


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Within the block, and only there, "tf32" lets devices that have TF32 round the factors of
    float32 products to 10 bits; certificates refuse such products. With any other precision factors
    are not rounded, those of convolutions, which cuDNN would round, included."""
    backends: Any = torch.backends
    # What torch is told of one library takes precedence over what it is told of all.
    places = (backends, backends.cudnn.conv, backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for place, setting in zip(places, before, strict=True):
            place.fp32_precision = setting


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` has products in bfloat16; those that torch computes in software on other
    processors take some sixty times as long as in float32."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


class View:
    """`network` as a training step evaluates it, in the dtype of the products.

    With "bfloat16" it is bfloat16 on devices that have such products, else float32.

    `plain` has no gradients and is up to date after `refresh`; calling the view is differentiable
    in the network's own weights.
    """

    def __init__(self, network: Network, precision: str) -> None:
        self.network = network
        self.low = precision == "bfloat16" and has_bfloat16(network.device)
        self.plain = network.copied(torch.bfloat16) if self.low else network

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the current weights of the network."""
        if self.low:
            for kept, new in zip(self.plain.parameters(), self.network.parameters(), strict=True):
                kept.copy_(new)

    def cast(self, x: Tensor) -> Tensor:
        """`x` in the dtype of the products."""
        return x.bfloat16() if self.low else x

    def __call__(self, x: Tensor) -> Tensor:
        """Logits at x (n, features), in the dtype of the weights."""
        if not self.low:
            return self.network(x)
        every = (*self.network.named_parameters(), *self.network.named_buffers())
        weights = {name: part.bfloat16() for name, part in every if part.is_floating_point()}
        return functional_call(self.network, weights, (x.bfloat16(),)).float()
