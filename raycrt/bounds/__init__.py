"""Bounds that are proved of a network once."""

from raycrt.bounds import diagonal_norms, residual_norms

# Importing them registers the bounds of their layers.
__all__ = ["diagonal_norms", "residual_norms"]
