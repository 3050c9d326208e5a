"""Bounds on single layers, a class for each kind."""

from raycrt.bounds.layers import diagonal, residual

# Importing them registers the bounds of their layers.
__all__ = ["diagonal", "residual"]
