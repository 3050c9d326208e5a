"""Torch's arithmetic in this process: plain sums of products, and softplus at full speed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from raycrt.errors import require

# By these variables NVIDIA's libraries put sums of short products in place of longer ones.
_SHORTENED = (
    "CUBLAS_EMULATE_DOUBLE_PRECISION",
    "CUBLAS_EMULATE_SINGLE_PRECISION",
    "NVIDIA_TF32_OVERRIDE",
)
# The setting is the process's.
_one_at_a_time = threading.Lock()


def require_plain_products(device: torch.device) -> None:
    """Raise `InvalidInput` where products on `device` are set not to be those of their type."""
    found = {name: os.environ.get(name, "0") for name in _SHORTENED if device.type == "cuda"}
    others = {name: value for name, value in found.items() if value not in ("", "0")}
    require(not others, "products on a GPU are those of their type", **others)


@contextmanager
def plain_sums(like: Tensor) -> Iterator[None]:
    """Within the block convolutions of tensors like `like` are sums of products in float64; cuDNN
    may compute some of them by Fourier transforms."""
    if not (like.is_cuda and like.dtype == torch.float64):
        yield
        return
    with _one_at_a_time:
        before = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            yield
        finally:
            torch.backends.cudnn.enabled = before


def float32_is_plain() -> bool:
    """Whether products of float32 matrices are sums of float32 products, as torch is set now."""
    backends: Any = torch.backends
    settings = (
        backends.fp32_precision,
        backends.mkldnn.matmul.fp32_precision,
        backends.cuda.matmul.fp32_precision,
    )
    return all(setting in ("none", "ieee") for setting in settings)


def quicken_softplus() -> None:
    """Make torch's softplus run at its full speed on this process's CPU threads.

    On some AMD processors torch's log1p, and thus softplus, takes ten times as long, with the same
    result, until another of its vector functions has been called once in the thread.
    """
    torch.tanh(torch.zeros(torch.get_num_threads() << 15, dtype=torch.bfloat16))
