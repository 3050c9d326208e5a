"""ONNX files as networks. Needs the `onnx` package.

A graph is followed from its input to its logits, as what it computes of one input: a batch of one.
Shapes are numbers then, and what the graph computes from shapes and constants alone is a constant,
evaluated by the reference evaluator of the onnx package in the types that the graph states. Every
other node must have an affine map or, several together, the one activation as its meaning.
"""

from raycrt.foreign.onnx_graph.reader import read

__all__ = ["read"]
