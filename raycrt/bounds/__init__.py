"""Bounds that are proved of a network once."""

from raycrt.bounds import residual_norms

# Importing it registers the bounds of its layers.
__all__ = ["residual_norms"]
