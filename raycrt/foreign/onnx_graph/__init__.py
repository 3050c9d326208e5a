"""ONNX files as networks. Needs the `onnx` package.

A graph is followed from its input to its logits, for a batch of one input. All shapes are then
known, and results computed from shapes and constants alone are constants, evaluated by the
reference evaluator of the onnx package in the types that the graph states. Every other node must
compute an affine map or, alone or together with others, the one activation.
"""

from raycrt.foreign.onnx_graph.reader import read

__all__ = ["read"]
