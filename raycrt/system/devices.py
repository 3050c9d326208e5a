"""The device on which a process computes: a GPU where one was asked for, and nowhere else."""

from __future__ import annotations

import torch

from raycrt.errors import require


def of(gpus: float) -> torch.device:
    """The first GPU that this process sees if it has `gpus` > 0 of them, a share or more, else the
    CPU: Ray does not hide GPUs from a process that asked for none.

    `InvalidInput` where torch finds no GPU though there should be one.
    """
    return checked("cuda" if gpus > 0 else "cpu")


def checked(device: torch.device | str) -> torch.device:
    """`device`; `InvalidInput` where it is a GPU that torch does not find."""
    device = torch.device(device)
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        require(
            (device.index or 0) < found,
            "torch finds the GPU that is asked for",
            device=str(device),
            found=found,
        )
    return device
