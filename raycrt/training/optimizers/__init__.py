"""Optimizers: torch's, stepped together under one schedule of rates."""

from __future__ import annotations

from raycrt.training.optimizers.optimizer import OPTIMIZERS, Optimizer, build

__all__ = ["OPTIMIZERS", "Optimizer", "build"]
