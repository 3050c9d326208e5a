"""Muon (Jordan et al. 2024) for processors that have no products in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Float32Muon(torch.optim.Muon):
    """torch's Muon with its products in float32 in place of bfloat16.

    On processors without bfloat16 torch computes such products in software, some sixty times slower
    than in float32. Options and state are those of `torch.optim.Muon`, and a run may be resumed
    with either; a closure is not taken.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None, "step takes no closure"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        share, state = group["momentum"], self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - share)
        ahead = gradient.lerp(momentum, share) if group["nesterov"] else momentum
        moved = _orthogonal(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(moved, alpha=-rate)


def _orthogonal(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """`matrix` with singular values near 1: by `steps` of `s <- a s + b s^3 + c s^5`, each taken
    with the smaller Gram matrix."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    moved = matrix.T if tall else matrix
    moved = moved / moved.norm().clamp(min=eps)
    for _ in range(steps):
        gram = moved @ moved.T
        moved = a * moved + (b * gram + c * gram @ gram) @ moved
    return moved.T if tall else moved
