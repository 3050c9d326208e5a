"""Curvature bound of every margin, proved a second time: `Hess (z_y - z_t) >= -m[y, t] I`.

Hidden layers are k = 0 .. L - 2, J_k is the Jacobian of z_k with respect to the input and F_k the
gradient of the margin with respect to s(z_k). Differentiating twice gives

    Hess f = sum_k J_k^T diag(F_k * s''(z_k)) J_k.

So m may be the sum over k of the smaller of two bounds on `lambda_max(-J_k^T diag(..) J_k)`:

* `|sqrt(p) J_k|^2` for any numbers p >= max(0, -F_k * s'') at every input. Here `J_k = W_k
  D_{k-1} J_{k-1}` with slopes D in [lo, hi]: writing D = (lo + hi)/2 + (hi - lo)/2 S, |S| <= 1,

      |A D J_k| <= (lo + hi)/2 |(A W_k) D J_{k-1}| + (hi - lo)/2 |A| |J_k|;

* by Cauchy-Schwarz over the neurons, `sup|s''| |F_k| |diag(|w_i|) W_k| (sup|s'| |J_{k-1}|)^2`.

For k = 0 the first is the largest eigenvalue of `W_0^T diag(p) W_0`, which a claimed m must exceed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycrt.verify.hidden import Hidden
from raycrt.verify.model import Model
from raycrt.verify.norms import SLACK, UNIT, frobenius, gamma, gram_upper, norm_upper

# Relative amount by which a stated curvature may lie below the one proved here: the two proofs
# round differently.
TOLERANCE = 1e-9
# Gradients whose largest entry is smaller prove nothing.
_SMALLEST = 1e-140
# Up to this many classes, every pair is proved separately from the start.
FEW_CLASSES = 20
# Iterates over items and may report progress; takes the name of the task and the items.
Watch = Callable[[str, Sequence[Any]], Iterable[Any]]


def curvature_upper(
    model: Model, claims: np.ndarray, watch: Watch = lambda name, items: items
) -> np.ndarray:
    """Proved m (classes, classes): the claim itself where its Cholesky proof succeeds.

    With more than `FEW_CLASSES` classes a pair is proved separately only where its claim is below
    the sum of the bounds proved for its two classes. Infinite where nothing can be proved (weights
    that are not finite); 0 on the diagonal. `watch` iterates over the proofs and may show progress.
    """
    classes = model.classes
    m = np.full((classes, classes), math.inf)
    np.fill_diagonal(m, 0.0)
    model = model.joined
    if not model.finite:
        return m
    layers = _layers(model)
    if classes > FEW_CLASSES:
        m = _by_classes(model, layers, watch)
    left = np.argwhere(~np.eye(classes, dtype=bool) & ~(claims * (1 + TOLERANCE) >= m))
    for y, t in watch("curvature of pairs of classes", left.tolist()):
        gradient = _last_gradient(model, y, t)
        m[y, t] = min(m[y, t], _readout_upper(model, layers, *gradient, float(claims[y, t])))
    return np.where(np.isnan(m), math.inf, m)


def _by_classes(model: Model, layers: list[_Layer], watch: Watch) -> np.ndarray:
    """Bounds for all pairs from two bounds per class: a margin is the difference of two logits,
    even after the same function is subtracted from both."""
    last = model.weights[-1]
    apart = last - last.mean(0)
    above, below = np.zeros((2, len(last)))
    for k in watch("curvature of classes", range(len(last))):
        low, high = _widen(apart[k], apart[k], np.abs(apart[k]) * 2 * UNIT + _row_error(model, k))
        above[k] = _readout_upper(model, layers, low, high)
        below[k] = _readout_upper(model, layers, -high, -low)
    m = (above[:, None] + below) * SLACK
    np.fill_diagonal(m, 0.0)
    return m


def neuron_curvature(model: Model, y: int, t: int) -> np.ndarray:
    """Weights p (width,) of the last hidden layer of a joined model for the margin of y against t.

    With one hidden layer, `curvature_upper` of that margin is >= lambda_max(W_0^T diag(p) W_0) for
    these p without rounding, and `Hess (z_y - z_t) >= -W_0^T diag(p) W_0` everywhere.
    """
    return _curvature_weights(model.hidden[-1], *_last_gradient(model, y, t))


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A hidden layer: `chain[k - j]` = (C_kj, its error), and proved bounds.

    `lipschitz` >= |J_k| and `acted` >= the norm of those of its rows that an activation acts on,
    `norm` >= |W_k|, `quadratic` >= |diag(|w_i|) W_k| over these rows, `columns` >= the norms of
    W_k's columns.
    """

    chain: list[tuple[np.ndarray, float]]
    lipschitz: float
    acted: float
    norm: float
    quadratic: float
    columns: np.ndarray


def _layers(model: Model) -> list[_Layer]:
    layers: list[_Layer] = []
    for k, weight in enumerate(model.weights[:-1]):
        loose = model.loose(k)
        chain = [(weight, loose)]
        for j in range(k - 1, -1, -1):
            product, error = chain[-1]
            factor, steepest = model.weights[j], model.hidden[j].slopes.bound
            scaled = product * model.hidden[j].middle
            rounding = gamma(len(factor) + 4) * frobenius(scaled) * frobenius(factor)
            rounding = frobenius(scaled) * model.loose(j) + rounding
            error = (error * steepest * layers[j].norm + rounding) * SLACK
            chain.append((scaled @ factor, error))
        hidden = model.hidden[k]
        acted, largest = weight[: hidden.active], model.largest(k)
        lengths = np.sqrt((largest[: hidden.active] ** 2).sum(1))
        quadratic = norm_upper(lengths[:, None] * acted) + lengths.max(initial=0.0) * loose
        layers.append(
            _Layer(
                chain=chain,
                lipschitz=_expand(model, chain, layers),
                acted=_expand(model, [(c[: hidden.active], e) for c, e in chain], layers),
                norm=norm_upper(weight) + loose,
                quadratic=quadratic * (1 + gamma(weight.size + 8)),
                columns=np.sqrt((largest * largest).sum(0)) * (1 + gamma(len(weight) + 4)),
            )
        )
    return layers


def _expand(model: Model, chain: list[tuple[np.ndarray, float]], before: list[_Layer]) -> float:
    """Bound on |A J_k|, given for each j from k down `chain[k - j] = (A C_kj, its error)`, with the
    layers below k."""
    product, error = chain[-1]
    total = norm_upper(product) + error
    for j, layer in enumerate(before):
        hidden = model.hidden[j]
        product, error = chain[len(before) - 1 - j]
        columns = product[:, : hidden.active]
        total += hidden.deviation * (norm_upper(columns) + error) * layer.acted * SLACK
    return total * SLACK


def _readout_upper(
    model: Model,
    layers: list[_Layer],
    low: np.ndarray,
    high: np.ndarray,
    claim: float | None = None,
) -> float:
    """A bound for a function whose gradient in the last hidden layer lies within low .. high."""
    length = _length(low, high)
    total, reached = 0.0, (low != 0) | (high != 0)
    for k in range(len(layers) - 1, -1, -1):
        active = model.hidden[k].active
        acted = np.maximum(np.abs(low), np.abs(high))[:active][reached[:active]]
        # Such numbers may have underflowed.
        if len(acted) > 0 and acted.max() < _SMALLEST:
            return math.inf
        p = _curvature_weights(model.hidden[k], low, high)
        reach = model.hidden[k - 1].slopes.bound * layers[k - 1].lipschitz if k > 0 else 1.0
        curvature = model.hidden[k].curvatures.bound
        by_neurons = curvature * length * layers[k].quadratic * reach * reach
        claimed = claim if len(layers) == 1 else None
        total += min(_weighted_upper(model, layers[: k + 1], p, claimed), by_neurons * SLACK)
        if k > 0:
            reached = (model.largest(k)[reached] != 0).any(axis=0)
            low, high, length = _gradient_below(model, k, layers[k], low, high, length)
    return total * SLACK


def _last_gradient(model: Model, y: int, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Elementwise bounds on the margin's gradient in the last hidden layer."""
    gradient = model.weights[-1][y] - model.weights[-1][t]
    error = _row_error(model, y) + _row_error(model, t)
    return _widen(gradient, gradient, np.abs(gradient) * 2 * UNIT + error * SLACK)


def _row_error(model: Model, k: int) -> np.ndarray | float:
    """Bounds on the errors of row k of the last matrix."""
    error = model.weight_error(model.depth - 1)
    return error[k] if isinstance(error, np.ndarray) else error


def _curvature_weights(hidden: Hidden, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """p >= max(0, -F * s'') for every F in `low` .. `high` and s'' at every z."""
    corners = [
        -f * extreme
        for f in (low, high)
        for extreme in (hidden.curvatures.low, hidden.curvatures.high)
    ]
    return np.maximum(np.max(corners, axis=0), 0.0) * SLACK


def _weighted_upper(
    model: Model, layers: list[_Layer], p: np.ndarray, claim: float | None
) -> float:
    """A number >= |sqrt(p) J_k|^2 at every input, for the last of `layers`."""
    root = np.sqrt(p)[:, None]
    largest = float(root.max())
    if len(layers) == 1:
        scaled = root * layers[0].chain[0][0]
        # Each entry has three roundings, which are added to a given claim.
        size, loose = frobenius(scaled), largest * layers[0].chain[0][1]
        found = gram_upper(scaled, claim) + 8 * UNIT * size * size
        return found + loose * (2 * math.sqrt(found) + loose) * SLACK
    chain = []
    for product, error in layers[-1].chain:
        scaled = root * product
        chain.append((scaled, (4 * UNIT * frobenius(scaled) + largest * error) * SLACK))
    norm = _expand(model, chain, layers[:-1])
    return norm * norm * SLACK


def _gradient_below(
    model: Model, k: int, layer: _Layer, low: np.ndarray, high: np.ndarray, length: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Elementwise bounds on `F_{k-1} = W_k^T (s'(z_k) * F_k)` and a bound on its 2-norm."""
    slopes = model.hidden[k].slopes
    ends = [slope * f for slope in (slopes.low, slopes.high) for f in (low, high)]
    low, high = np.min(ends, axis=0), np.max(ends, axis=0)
    length = min(slopes.bound * length, _length(low, high)) * SLACK
    weight = model.weights[k]
    centre, radius = (low + high) / 2, (high - low) / 2
    reach = np.abs(weight).T @ radius
    most = np.maximum(-low, high)
    rounding = 2 * gamma(len(weight) + 4) * (np.abs(weight).T @ most)
    error = model.weight_error(k)
    if isinstance(error, np.ndarray):
        rounding = rounding + (error.T @ most) * (1 + gamma(len(weight) + 4))
    middle = weight.T @ centre
    low, high = _widen(middle - reach, middle + reach, rounding)
    cauchy = layer.columns * length * SLACK
    low, high = np.maximum(low, -cauchy), np.minimum(high, cauchy)
    return low, high, min(layer.norm * length * SLACK, _length(low, high))


def _widen(low: np.ndarray, high: np.ndarray, by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return low - by, high + by


def _length(low: np.ndarray, high: np.ndarray) -> float:
    """A number >= the 2-norm of every vector between `low` and `high`."""
    return frobenius(np.maximum(np.abs(low), np.abs(high)))
