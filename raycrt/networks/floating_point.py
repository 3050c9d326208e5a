"""Torch's arithmetic in this process: plain float32 products, and softplus at full speed."""

from __future__ import annotations

from typing import Any

import torch


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
