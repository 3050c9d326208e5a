"""The layers of a torch module in the order in which its call applies them.

The module is called once with a placeholder for its input (`torch.fx`), so that its code alone
counts: overridden methods and instances, hooks and wrappers are followed like everything else.
Each layer must take one result, and results may be added.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from raycrt.errors import InvalidInput
from raycrt.foreign.modules.exported import stated_batch
from raycrt.foreign.modules.in_place import dead, in_place
from raycrt.foreign.modules.layers import Step, is_layer
from raycrt.foreign.modules.operations import (
    Batch,
    layers_of,
    name_of,
    normalization_layers,
    reversed_layers_of,
)
from raycrt.foreign.modules.rescaling import Rescaling
from raycrt.foreign.modules.wrappers import unwrapped
from raycrt.networks.hooks import has_hooks
from raycrt.networks.layers.affine import AffineMap


@torch.no_grad()
def steps_of(model: nn.Module) -> tuple[list[Step], bool]:
    """The layers of `model` in evaluation mode, and whether any weights are computed by each call.

    Weights that are computed, not stored, are those of one call, in the type in which it computes
    them. Raises `InvalidInput` naming the operation that is neither a layer nor a sum.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor) or tensor.device.type == "meta":
            raise InvalidInput(f"weights must have values, but {name} is not filled in")
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise InvalidInput(
                f"layers of torch.jit can't be read, but {_place(name, part)} is one: give the "
                "module that it was made from"
            )
    tracer = _Tracer((*model.parameters(), *model.buffers()))
    try:
        graph = tracer.trace(_Caller(model))
    except InvalidInput:
        raise
    except Exception as error:
        first = " ".join(str(error).split())[:160]
        place = _location(traceback.walk_tb(error.__traceback__))
        raise InvalidInput(
            "the model's forward must apply layers that are the same for every input, but "
            f"called with a placeholder for the input it raised {type(error).__name__}{place}: "
            f"{first}"
        ) from None
    return _Steps(tracer, one=stated_batch(model) == 1).of(graph), tracer.computed


class _Caller(nn.Module):
    """Calls a model as its users do; of the root of a graph, torch.fx calls only `forward`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Tracer(fx.Tracer):
    """A tracer in which weights are tensors: operations on weights alone are evaluated at once."""

    def __init__(self, stored: Sequence[Tensor]) -> None:
        super().__init__()
        self.stored = stored
        self.constants: dict[str, Tensor] = {}
        self.computed = False
        self.locations: dict[fx.Node, str] = {}
        # With the weights at the time of the call, which functional calls replace.
        self.layers: dict[fx.Node, nn.Module] = {}

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if node.op == "call_module":
            self.layers[node] = self._as_it_is(self.root.get_submodule(str(node.target)))
        self.locations[node] = _location(reversed([*traceback.walk_stack(None)]))
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val

    def create_arg(self, a: Any) -> Any:
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        name = f"constant_{len(self.constants)}"
        self.constants[name] = a
        self.computed |= not self._is_stored(a)
        return self.create_node("get_attr", name, (), {})

    def _as_it_is(self, layer: nn.Module) -> nn.Module:
        """A copy with the layer's present weights, unless they are computed by parametrisations."""
        if nn.utils.parametrize.is_parametrized(layer):
            return layer
        made = copy(layer)
        made._parameters, made._buffers = dict(layer._parameters), dict(layer._buffers)
        held = (*made._parameters.values(), *made._buffers.values())
        self.computed |= any(t is not None and not self._is_stored(t) for t in held)
        return made

    def _is_stored(self, tensor: Tensor) -> bool:
        return any(tensor is other for other in self.stored)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if has_hooks(m) or "forward" in vars(m):
            return False
        if isinstance(m, AffineMap) or is_layer(m) or normalization_layers(m):
            self.computed = self.computed or nn.utils.parametrize.is_parametrized(m)
            return type(m)._call_impl is nn.Module._call_impl
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        inner = unwrapped(m)
        if inner is not m:
            return inner(*args, **kwargs)
        if m._compiled_call_impl is not None:
            forward = m._call_impl
        return super().call_module(m, forward, args, kwargs)


class _Steps:
    """Follows a graph from node to node. `results` numbers the nodes as `Step` does; with `one` the
    graph is that of a batch of one."""

    def __init__(self, tracer: _Tracer, *, one: bool) -> None:
        self.tracer, self.one = tracer, one
        self.sizes: dict[fx.Node, Any] = {}
        self.results: dict[fx.Node, int] = {}
        self.found: list[Step] = []

    def of(self, graph: fx.Graph) -> list[Step]:
        unused = dead(graph, self.tracer.root)
        for node in graph.nodes:
            if node in unused or node.op == "get_attr" or self._is_size(node):
                continue
            if node.op == "placeholder":
                self.results[node] = 0
            elif node.op == "output":
                self._check_output(node.args[0])
            else:
                self._take(node)
        return self.found

    def _check_output(self, returned: Any) -> None:
        if not isinstance(returned, fx.Node) or self.results.get(returned) != len(self.found):
            raise InvalidInput(
                f"a model must return the tensor that its last layer gives, but returns {returned}"
            )

    def _take(self, node: fx.Node) -> None:
        place = _operation(node, self.tracer)
        given = [n for n in node.all_input_nodes if n.op != "get_attr" and n not in self.sizes]
        if in_place(node, self.tracer.root):
            if any(len(n.users) > 1 for n in given):
                raise InvalidInput(
                    f"{place} must not change in place a tensor that is used elsewhere too"
                )
            if not node.users:
                raise InvalidInput(f"{place} changes a tensor in place, and its result is not used")
        if len(given) == 1 and node.args.count(given[0]) < 2:
            layers = self._layers(node, given[0], place)
            numbers: tuple[int, ...] = (self.results[given[0]],)
        else:
            layers, numbers = self._sum(node, place)
        for layer in layers:
            self.found.append(Step(place=place, layer=layer, given=numbers))
            numbers = (len(self.found),)
        (self.results[node],) = numbers

    def _sum(self, node: fx.Node, place: str) -> tuple[list[nn.Module], tuple[int, ...]]:
        """The steps that add two results, or subtract one from another."""
        name = name_of(node.target) if node.op != "call_module" else None
        terms = [n for n in node.args if isinstance(n, fx.Node) and n in self.results]
        plain = not node.kwargs and len(terms) == len(node.args) == 2
        if name not in ("add", "sub", "subtract") or not plain:
            raise InvalidInput(
                f"{place} takes several results of layers, which may only be added or subtracted"
            )
        first, second = (self.results[term] for term in terms)
        if name != "add":
            self.found.append(Step(place=place, layer=Rescaling(factor=-1.0), given=(second,)))
            second = len(self.found)
        return [nn.Identity()], (first, second)

    def _layers(self, node: fx.Node, given: fx.Node, place: str) -> list[nn.Module]:
        """The layers that a node applies to the result of `given`."""
        if node.op == "call_module":
            layer = self.tracer.layers[node]
            if node.args != (given,) or node.kwargs:
                raise InvalidInput(f"{place} must take one input and nothing else")
            return normalization_layers(layer) or [layer]
        name = name_of(node.target)
        kwargs = {key: self._value(value) for key, value in node.kwargs.items()}
        args = [self._value(value) for value in node.args]
        positions = [i for i, value in enumerate(node.args) if value is given]
        if node.kwargs.get("input") is given:
            del kwargs["input"]
            args, positions = [None, *args], [0]
        if self.one and name in ("reshape", "view"):
            args[1:] = [[Batch(), *sizes[1:]] if sizes[0] == 1 else sizes for sizes in args[1:]]
        if name is None or len(positions) != 1 or positions[0] > 1:
            raise InvalidInput(f"{place} is not supported")
        try:
            if positions == [0]:
                return layers_of(name, *args[1:], **kwargs)
            return reversed_layers_of(name, args[0])
        except InvalidInput as error:
            raise InvalidInput(f"{place}: {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(f"{place} is not supported with these arguments: {error}") from None

    def _value(self, argument: Any) -> Any:
        """`argument` with constants and sizes in place of their nodes."""
        return fx.node.map_arg(argument, self._constant)

    def _constant(self, node: fx.Node) -> Any:
        return self.tracer.constants.get(str(node.target), self.sizes.get(node))

    def _is_size(self, node: fx.Node) -> bool:
        """Whether `node` is a shape or the size of a batch; if so, its value is stored."""
        if node.op == "call_method" and node.target == "size":
            index = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            self.sizes[node] = _Shape() if index is None else _Shape()[index]
        elif node.target is torch.ops.aten.sym_size.int:
            self.sizes[node] = _Shape()[node.args[1]]
        elif node.target is getattr and node.args[1] == "shape":
            self.sizes[node] = _Shape()
        elif node.args and isinstance(node.args[0], fx.Node) and node.args[0] in self.sizes:
            shape = self.sizes[node.args[0]]
            if not isinstance(shape, _Shape) or name_of(node.target) != "getitem":
                return False
            self.sizes[node] = shape[node.args[1]]
        return node in self.sizes


class _Shape:
    """Placeholder for the shape of a tensor, of which only the batch size is described."""

    def __getitem__(self, index: Any) -> Any:
        return Batch() if index == 0 else None

    def __repr__(self) -> str:
        return "shape"


def _operation(node: fx.Node, tracer: _Tracer) -> str:
    if node.op == "call_module":
        path = str(node.target).removeprefix("model").removeprefix(".")
        return _place(path, tracer.root.get_submodule(str(node.target)))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return f"operation {name}{tracer.locations[node]}"


def _place(path: str, module: nn.Module) -> str:
    return f"layer {path or '(whole model)'} ({type(module).__name__})"


def _location(frames: Iterable[tuple[FrameType, int]]) -> str:
    """The innermost line of the model's own code in a stack, given from the outermost frame."""
    lines = [(frame.f_code.co_filename, line) for frame, line in frames]
    files = [file for file, _ in lines]
    inside = lines[files.index(__file__) :] if __file__ in files else []
    libraries = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    own = [place for place in inside if not place[0].startswith(libraries)]
    return f" at {own[-1][0]}:{own[-1][1]}" if own else ""
