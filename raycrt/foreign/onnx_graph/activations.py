"""Elementwise nodes that together compute one activation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from raycrt.activations import Activation, activation, softplus
from raycrt.foreign.onnx_graph.graph import Graph
from raycrt.foreign.onnx_graph.nodes import attributes

_FUNCTIONS = {
    "Atan": "arctan",
    "Erf": "erf",
    "Gelu": "gelu",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Tanh": "tanh",
}
# torch's softplus is linear above a threshold; the theorem holds for the exact softplus if the
# threshold is at least this, in units of 1 / beta.
_SOFTPLUS_THRESHOLD = 20.0
# Exporters write GELU with a square root of 2 that is rounded to float32.
_FLOAT32, _FLOAT64 = 2.0**-22, 2.0**-50


@dataclass(frozen=True, kw_only=True)
class Match:
    """An activation, the last of its nodes, and the results `inside` that other nodes give it."""

    activation: Activation
    node: Any
    inside: frozenset[str]

    @property
    def output(self) -> str:
        return str(self.node.output[0])


@dataclass(frozen=True)
class _Term:
    """`coefficient` times the product of `factors` (function, scale): each stands for x itself, or
    for function(scale x)."""

    coefficient: float
    factors: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class _Above:
    """The condition that `scale x` is above `threshold`."""

    scale: float
    threshold: float


_X = (("x", 1.0),)


def matches(graph: Graph, tensor: str, rank: int) -> list[Match]:
    """The activations of `tensor`, of `rank` dimensions, that its consumers compute, each with the
    most nodes of which other nodes use no intermediate result."""
    terms: dict[str, _Term | _Above] = {tensor: _Term(1.0, _X)}
    found: list[Match] = []
    for node in graph.nodes:
        term = _term(graph, node, terms, rank)
        if term is None:
            continue
        terms[node.output[0]] = term
        activation = _recognised(term) if isinstance(term, _Term) else None
        inside = None if activation is None else _closed(graph, tensor, node)
        if activation is not None and inside is not None:
            found.append(Match(activation=activation, node=node, inside=inside))
    hidden = {name for match in found for name in match.inside}
    return [match for match in found if match.output not in hidden]


def _closed(graph: Graph, tensor: str, last: Any) -> frozenset[str] | None:
    """The results between `tensor` and the node `last`; None if other nodes use some of them."""
    inside, wanted, names = [last], set(last.input), set()
    for node in reversed(graph.nodes):
        made = wanted & set(node.output) - {tensor}
        if node is not last and made:
            inside.append(node)
            wanted |= set(node.input)
            names |= made
    alone = all(user in inside for name in names for user in graph.consumers(name))
    return frozenset(names) if alone else None


def _term(
    graph: Graph, node: Any, terms: dict[str, _Term | _Above], rank: int
) -> _Term | _Above | None:
    """The result of `node`, if it has this form and depends on x and constants only."""
    made = [terms[name] for name in node.input if name in terms]
    constants = [graph.constants[name] for name in node.input if name in graph.constants]
    if not made or len(made) + len(constants) != len(node.input):
        return None
    if node.op_type == "Where":
        return _softplus_above(made)
    products = [term for term in made if isinstance(term, _Term)]
    if len(products) != len(made):
        return None
    first = products[0]
    if node.op_type in _FUNCTIONS and first.factors == _X:
        plain = attributes(node).get("approximate", b"none") == b"none"
        return _Term(1.0, ((node.op_type, first.coefficient),)) if plain else None
    if node.op_type == "Mul" and len(products) == 2:
        factors = tuple(sorted(first.factors + products[1].factors))
        return _Term(first.coefficient * products[1].coefficient, factors)
    if not constants or constants[0].size != 1 or constants[0].ndim > rank:
        return None
    return _with_number(node, first, float(constants[0].reshape(())), node.input[0] in terms)


def _with_number(node: Any, term: _Term, number: float, in_front: bool) -> _Term | _Above | None:
    """The result of `node` for `term` and a constant; `in_front`: `term` is the first operand."""
    if node.op_type == "Mul":
        return _Term(term.coefficient * number, term.factors)
    if node.op_type == "Div" and in_front and number != 0:
        return _Term(term.coefficient / number, term.factors)
    if node.op_type == "Greater" and in_front and term.factors == _X:
        return _Above(term.coefficient, number)
    if node.op_type == "Add" and (term.coefficient, number) == (1.0, 1.0):
        ((name, scale), *more) = term.factors
        return None if more else _Term(1.0, ((f"1 + {name}", scale),))
    return None


def _softplus_above(made: list[_Term | _Above]) -> _Term | None:
    """Softplus from its two branches: x above a large threshold, softplus of x below."""
    if len(made) != 3:
        return None
    where, linear, soft = made
    if not isinstance(where, _Above) or linear != _Term(1.0, _X) or not isinstance(soft, _Term):
        return None
    scaled = soft.factors == (("Softplus", where.scale),)
    enough = where.scale > 0 and where.threshold >= _SOFTPLUS_THRESHOLD
    return soft if scaled and enough and _recognised(soft) is not None else None


def _recognised(term: _Term) -> Activation | None:
    coefficient, factors = term.coefficient, term.factors
    names, scale = tuple(name for name, _ in factors), factors[0][1]
    if names == ("Softplus",) and scale > 0 and _near(coefficient * scale, 1, _FLOAT64):
        return softplus(scale)
    if names == ("1 + Erf", "x") and coefficient == 0.5 and _near(scale, math.sqrt(0.5), _FLOAT32):
        return activation("gelu")
    if (coefficient, scale) != (1, 1):
        return None
    if names == ("Sigmoid", "x"):
        return activation("silu")
    return activation(_FUNCTIONS[names[0]]) if len(names) == 1 and names[0] in _FUNCTIONS else None


def _near(value: float, wanted: float, tolerance: float) -> bool:
    return math.isclose(value, wanted, rel_tol=tolerance)
