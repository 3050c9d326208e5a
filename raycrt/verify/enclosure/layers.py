"""The enclosures of all layers on one ball, and the lower bounds on margins that follow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raycrt.verify.enclosure.forms import TINY, Forms, leading_directions, row_lengths
from raycrt.verify.enclosure.quadratics import Quadratics
from raycrt.verify.enclosure.squares import Squares
from raycrt.verify.model import Model
from raycrt.verify.norms import SLACK, UNIT, gamma
from raycrt.verify.radius import SMALLEST

# A matrix or a vector, and bounds on the errors of its entries.
Known = tuple[np.ndarray, np.ndarray | float]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A hidden layer on the ball, with the `quadratics` of its features; all (width,).

    `z = centre + jacobian u + e`, |e| <= `error`, |z - centre| <= `spread`; `lengths` >= the norms
    of the rows of `jacobian`, `made` >= r, the part of e that arises in this layer, `size` >= the
    features, and `beyond` >= features less `value + slope jacobian u`.
    """

    centre: np.ndarray
    jacobian: np.ndarray
    lengths: np.ndarray
    error: np.ndarray
    spread: np.ndarray
    made: np.ndarray
    quadratics: Quadratics
    size: np.ndarray
    beyond: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Affine:
    """An affine map of the last layer's features: `centre`, `jacobian`, `lengths` and `made` as of
    a `Layer`; the products G down to each layer, `chain`, the lowest first; and `noise`, bounds on
    all of e but the sums of squares."""

    centre: np.ndarray
    jacobian: np.ndarray
    lengths: np.ndarray
    made: np.ndarray
    chain: list[np.ndarray]
    noise: np.ndarray


class Enclosure:
    """The enclosure of a joined `model` on the ball of `radius` around `x` (features,)."""

    def __init__(self, model: Model, x: np.ndarray, radius: float) -> None:
        self.model, self.x, self.radius = model, x, radius
        # Covers the rounding of a few nested sums of positive terms, each over one layer.
        widest = max(max(weight.shape) for weight in model.weights)
        self.room = 1 + 4 * gamma(widest + 2 * model.depth + 16)
        self.directions = leading_directions(np.concatenate(_jacobians(model, x)))
        self.layers: list[Layer] = []
        for k in range(model.depth - 1):
            self.layers.append(self._next(k))

    def floors(self, label: int, targets: np.ndarray) -> np.ndarray:
        """Lower bounds (k,) on the exact margins of `label` against `targets` (k,) on the ball;
        minus infinity where nothing is proved."""
        last = self.model.depth - 1
        known = self._above(
            _difference(self.model.weights[last], self.model.weight_error(last), label, targets),
            _difference(self.model.biases[last], self.model.bias_error(last), label, targets),
        )
        squares = self._squares(known.chain)
        error = squares.forms_alone() + squares.mixed(-squares.weights) + known.noise
        lost = (self.radius * known.lengths + error) * self.room + TINY
        found = known.centre - lost - 4 * UNIT * (np.abs(known.centre) + lost)
        return np.where(np.isfinite(found), found, -math.inf)

    def _next(self, k: int) -> Layer:
        """Layer k, above those that are known."""
        weight = self.model.weights[k], self.model.weight_error(k)
        bias = self.model.biases[k], self.model.bias_error(k)
        if k == 0:
            known = self._first(weight, bias)
            error = known.noise
        else:
            known = self._above(weight, bias)
            squares = self._squares(known.chain)
            either = squares.mixed(squares.weights), squares.mixed(-squares.weights)
            error = squares.forms_alone() + np.maximum(*either) + known.noise
            error = error * self.room + TINY
        spread = (known.lengths * self.radius + error) * SLACK + TINY
        edge = spread * SLACK + 4 * UNIT * np.abs(known.centre)
        quadratics = Quadratics.fitted(
            self.model.hidden[k], known.centre, known.centre - edge, known.centre + edge
        )
        steep = np.abs(quadratics.slope)
        bent = np.abs(quadratics.bend) * spread**2 + quadratics.rest
        return Layer(
            centre=known.centre,
            jacobian=known.jacobian,
            lengths=known.lengths,
            error=error,
            spread=spread,
            made=known.made,
            quadratics=quadratics,
            size=(np.abs(quadratics.value) + steep * spread + bent) * SLACK + TINY,
            beyond=(steep * error + bent) * SLACK + TINY,
        )

    def _first(self, weight: Known, bias: Known) -> _Affine:
        """The first layer, whose errors are those of its numbers and of its sum at x."""
        (w, w_error), (b, b_error) = weight, bias
        size = np.abs(self.x)
        made = gamma(len(self.x) + 4) * (np.abs(w) @ size + np.abs(b)) + b_error
        if isinstance(w_error, np.ndarray):
            length = row_lengths(self.x[None])[0] + self.radius
            made = made + row_lengths(w_error) * length
        made = made * self.room + TINY * (1 + len(self.x))
        return _Affine(
            centre=w @ self.x + b,
            jacobian=w,
            lengths=row_lengths(w),
            made=made,
            chain=[],
            noise=made,
        )

    def _above(self, weight: Known, bias: Known) -> _Affine:
        """The affine map of the features of the last layer by `weight` and `bias`."""
        (w, w_error), (b, b_error) = weight, bias
        last, n = self.layers[-1], w.shape[1]
        quadratics = last.quadratics
        jacobian = (w * quadratics.slope) @ last.jacobian
        # Its rounding meets u, so |J_l| R <= spread stands for a column.
        made = 2 * gamma(n + 8) * (np.abs(w) @ last.size + np.abs(b))
        made = made + w_error @ last.size if isinstance(w_error, np.ndarray) else made
        lost = 1 + self.radius * len(self.x) + last.spread.sum()
        made = (made + b_error) * self.room + n * SMALLEST[UNIT] * lost + TINY
        chain = [w]
        noise = made + np.abs(w) @ quadratics.rest
        noise = noise + np.abs(w * quadratics.slope) @ last.made
        # Coefficients of squares may underflow.
        noise = noise + SMALLEST[UNIT] * sum((each.spread**2).sum() for each in self.layers)
        for k in range(len(self.layers) - 2, -1, -1):
            layer, between = self.layers[k], self.model.weights[k + 1]
            above = chain[0] * self.layers[k + 1].quadratics.slope
            chain.insert(0, above @ between)
            met = (np.abs(above) + SMALLEST[UNIT]) @ (np.abs(between) @ layer.beyond)
            met = met + len(between) * SMALLEST[UNIT] * layer.beyond.sum()
            noise = noise + 2 * gamma(len(between) + 8) * met
            own = layer.quadratics.rest + np.abs(layer.quadratics.slope) * layer.made
            noise = noise + np.abs(chain[0]) @ own
        return _Affine(
            centre=w @ quadratics.value + b,
            jacobian=jacobian,
            lengths=row_lengths(jacobian),
            made=made,
            chain=chain,
            noise=noise * self.room + TINY,
        )

    def _squares(self, chain: list[np.ndarray]) -> Squares:
        forms = Forms.of([layer.jacobian for layer in self.layers], self.directions)
        bends = np.concatenate([layer.quadratics.bend for layer in self.layers])
        return Squares(
            forms=forms,
            weights=np.concatenate(chain, 1) * bends,
            lengths=[layer.lengths for layer in self.layers],
            errors=[layer.error for layer in self.layers],
            radius=self.radius,
            room=self.room,
        )


def _difference(
    values: np.ndarray, errors: np.ndarray | float, label: int, targets: np.ndarray
) -> Known:
    """Rows or numbers of `label` less those of `targets` (k,)."""
    found = values[label] - values[targets]
    lost = 2 * UNIT * np.abs(found)
    if isinstance(errors, np.ndarray):
        lost = (lost + errors[label] + errors[targets]) * SLACK
    return found, lost


def _jacobians(model: Model, x: np.ndarray) -> list[np.ndarray]:
    """The matrices by which x moves each hidden layer at first order, as computed."""
    z, found = model.weights[0] @ x + model.biases[0], [model.weights[0]]
    for k in range(1, model.depth - 1):
        hidden, weight = model.hidden[k - 1], model.weights[k]
        found.append((weight * hidden.slope(z)) @ found[-1])
        z = weight @ hidden.value(z) + model.biases[k]
    return found
