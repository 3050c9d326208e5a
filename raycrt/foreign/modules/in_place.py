"""Operations that change tensors in place, and those of which nothing is used."""

from __future__ import annotations

from torch import fx, nn


def dead(graph: fx.Graph, root: nn.Module) -> set[fx.Node]:
    """Nodes whose result is not used, except those that may change their input in place."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        used = node.op in ("output", "placeholder") or in_place(node, root)
        if not used and set(node.users) <= found:
            found.add(node)
    return found


def in_place(node: fx.Node, root: nn.Module) -> bool:
    """Whether `node` may change its input."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    # Those of torch.ops have the overload in their names: add_.Tensor.
    name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    named = name.endswith("_") and not name.endswith("__")
    return named or bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None
