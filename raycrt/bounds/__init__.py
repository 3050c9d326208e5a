"""Bounds that are proved of a network once."""

from raycrt.bounds import layers

# Importing it registers the bounds of all layers.
__all__ = ["layers"]
