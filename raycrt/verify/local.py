"""Curvature of margins on a ball, proved a second time: `Hess f >= -m I` where |x - x0| <= R.

Notation as in `raycrt.verify.curvature`. On the ball the slopes of neuron i lie in `middle_i +-
deviation_i`. A walk down the layers starts from a matrix B to the left of `D_{k-1} J_{k-1}` and
replaces all slopes by their midpoints. B D J is the walk's last matrix plus a rest of norm at most

    sum_j |B_j deviation_j| |J_j|,   B_{j-1} = (B_j middle_j) W_j.

With B = W_k this bounds |J_k| and the rows of J_k, hence the intervals of z_k, which are
intersected with those of the layer's enclosure (`raycrt.verify.enclosure`). With B = sqrt(p_k)
W_k, Q_k the walk's last matrix and e_k the bound on its rest, `|sqrt(p_k) J_k v|^2 <= |Q_k v|^2 + 2
|Q_k| e_k + e_k^2` for |v| = 1. Layer 0 needs no walk, so its weights p_0 keep their signs:

    m = lambda_max(W_0^T diag(p_0) W_0 + sum_{k>0} Q_k^T Q_k) + sum_{k>0} (2 |Q_k| e_k + e_k^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raycrt.verify.enclosure import Enclosure
from raycrt.verify.model import Model
from raycrt.verify.norms import SLACK, UNIT, eigenvalue_upper, frobenius, gamma, norm_upper
from raycrt.verify.radius import Errors


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A hidden layer on the ball: `slope` and `curvature` are (low, high), `lipschitz` >= |J_k|.

    The exact matrix is within `error` of `weight`, entry by entry, and `loose` in the 2-norm.
    """

    weight: np.ndarray
    error: np.ndarray | float
    loose: float
    slope: tuple[np.ndarray, np.ndarray]
    curvature: tuple[np.ndarray, np.ndarray]
    lipschitz: float

    @property
    def middle(self) -> np.ndarray:
        return (self.slope[0] + self.slope[1]) / 2

    @property
    def deviation(self) -> np.ndarray:
        low, high = self.slope
        return np.maximum(high - self.middle, self.middle - low) * SLACK

    @property
    def steepest(self) -> np.ndarray:
        return np.maximum(np.abs(self.slope[0]), np.abs(self.slope[1]))


def local_curvature_upper(
    model: Model,
    errors: Errors,
    *,
    x: np.ndarray,
    radius: float,
    label: int,
    targets: np.ndarray,
    claims: np.ndarray,
) -> np.ndarray:
    """m (k,) of the margins of `label` against `targets` (k,) on the ball around x (features,).

    Each is its claim in `claims` (k,) where that can be proved, and possibly larger elsewhere.
    `model` is joined, `errors` are its own.
    """
    if not model.finite:
        return np.full(len(targets), math.inf)
    layers = _layers(model, errors, x, radius)
    pairs = zip(targets, claims, strict=True)
    return np.array([_margin_upper(model, layers, label, int(t), float(m)) for t, m in pairs])


def _layers(model: Model, errors: Errors, x: np.ndarray, radius: float) -> list[_Layer]:
    length = np.array(math.sqrt(float(x @ x)) * (1 + gamma(len(x) + 4)))
    layers: list[_Layer] = []
    z = model.weights[0] @ x + model.biases[0]
    enclosed = Enclosure(model, x, radius).layers if model.depth > 2 else []
    for k, (error, _) in enumerate(errors.layers(length, UNIT)[:-1]):
        weight, loose = model.weights[k], model.loose(k)
        matrix, rest, row_rest = _walk(weight, loose, layers)
        rows = _row_lengths(matrix) + row_rest
        if layers:
            z = weight @ model.hidden[k - 1].value(z) + model.biases[k]
            steep = _row_lengths(model.largest(k) * layers[-1].steepest)
            rows = np.minimum(rows, steep * layers[-1].lipschitz * SLACK)
        half = (radius * rows + float(error)) * SLACK + 4 * UNIT * np.abs(z)
        least, most = z - half, z + half
        if k > 0:
            centre = enclosed[k].centre
            edge = enclosed[k].spread * SLACK + 4 * UNIT * np.abs(centre)
            # Where an enclosure overflowed, the other interval counts.
            least, most = np.fmax(least, centre - edge), np.fmin(most, centre + edge)
        layers.append(
            _Layer(
                weight=weight,
                error=model.weight_error(k),
                loose=loose,
                slope=model.hidden[k].slopes.on(least, most),
                curvature=model.hidden[k].curvatures.on(least, most),
                lipschitz=(norm_upper(matrix) + rest) * SLACK,
            )
        )
    return layers


def _walk(
    matrix: np.ndarray, error: float, below: list[_Layer]
) -> tuple[np.ndarray, float, np.ndarray]:
    """The last matrix of a walk down from `matrix`, and upper bounds on the rest and on each of its
    rows. `error` bounds the error of `matrix`."""
    rest, row_rest = 0.0, np.zeros(len(matrix))
    for layer in reversed(below):
        moved = matrix * layer.deviation
        spill = (error + 2 * UNIT * frobenius(moved)) * float(np.max(layer.deviation, initial=1.0))
        rest += (norm_upper(moved) + spill) * layer.lipschitz
        row_rest += (_row_lengths(moved) + spill) * layer.lipschitz
        matrix = matrix * layer.middle
        rounding = gamma(len(layer.weight) + 4) * frobenius(matrix)
        size = frobenius(layer.weight) + layer.loose
        error = (error * float(layer.steepest.max()) + rounding) * size * SLACK
        error = (error + frobenius(matrix) * layer.loose) * SLACK
        matrix = matrix @ layer.weight
    return matrix, (rest + error) * SLACK, (row_rest + error) * SLACK


def _margin_upper(model: Model, layers: list[_Layer], label: int, target: int, m: float) -> float:
    gradient = model.weights[-1][label] - model.weights[-1][target]
    last = model.weight_error(model.depth - 1)
    error = last[label] + last[target] if isinstance(last, np.ndarray) else last
    error = 2 * UNIT * np.abs(gradient) + error * SLACK
    low, high = gradient - error, gradient + error
    length = _length(low, high)
    gram, rounding, extra = 0.0, 0.0, 0.0
    for k in range(len(layers) - 1, -1, -1):
        layer = layers[k]
        p = _range(-high, -low, *layer.curvature)[1]
        p = p + 2 * UNIT * np.abs(p)
        if k > 0:
            root = np.sqrt(np.maximum(p, 0.0))[:, None] * layer.weight
            most = math.sqrt(float(np.max(p, initial=0.0)))
            error = (4 * UNIT * frobenius(root) + most * layer.loose) * SLACK
            matrix, rest, _ = _walk(root, error, layers[:k])
            gram = gram + matrix.T @ matrix
            size = frobenius(matrix)
            mass = size * size
            extra += rest * (2 * norm_upper(matrix) + rest) * SLACK
            low, high, length = _gradient_below(layer, low, high, length)
        else:
            gram = gram + layer.weight.T @ (p[:, None] * layer.weight)
            mass = float(np.abs(p) @ (layer.weight**2).sum(1)) * (1 + gamma(layer.weight.size))
            apart = layer.loose * (2 * frobenius(layer.weight) + layer.loose)
            rounding += float(np.abs(p).max()) * apart * SLACK
        rounding += gamma(len(layer.weight) + len(layers) + 6) * mass * SLACK
    claim = (m - extra) / SLACK**2
    proved = eigenvalue_upper(np.asarray(gram), rounding, claim if claim > 0 else None)
    return m if proved <= claim else (proved + extra) * SLACK


def _gradient_below(
    layer: _Layer, low: np.ndarray, high: np.ndarray, length: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Bounds on `W_k^T (s'(z_k) * F_k)`, elementwise and in the 2-norm."""
    low, high = _range(low, high, *layer.slope)
    absolute = np.abs(layer.weight)
    spread = ((high - low) / 2) @ absolute
    size = np.maximum(np.abs(low), np.abs(high))
    spread = spread + 2 * gamma(len(layer.weight) + 6) * (size @ absolute)
    if isinstance(layer.error, np.ndarray):
        spread = spread + (size @ layer.error) * (1 + gamma(len(size) + 4))
    middle = ((low + high) / 2) @ layer.weight
    scaled = layer.steepest[:, None] * layer.weight
    most = layer.steepest[:, None] * (absolute + layer.error)
    cauchy = np.sqrt((most * most).sum(0)) * (1 + gamma(len(scaled) + 6)) * length
    low, high = np.maximum(middle - spread, -cauchy), np.minimum(middle + spread, cauchy)
    bound = norm_upper(scaled) + 2 * UNIT * frobenius(scaled)
    bound = (bound + float(layer.steepest.max()) * layer.loose) * length * SLACK
    return low, high, min(bound, _length(low, high))


def _range(
    low: np.ndarray, high: np.ndarray, other_low: np.ndarray, other_high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Elementwise range of the product of two numbers in the given intervals."""
    corners = [a * b for a in (low, high) for b in (other_low, other_high)]
    return np.min(corners, axis=0), np.max(corners, axis=0)


def _row_lengths(matrix: np.ndarray) -> np.ndarray:
    return np.sqrt((matrix * matrix).sum(1)) * (1 + gamma(matrix.shape[1] + 4))


def _length(low: np.ndarray, high: np.ndarray) -> float:
    return frobenius(np.maximum(np.abs(low), np.abs(high)))
