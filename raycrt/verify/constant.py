"""Margins that do not depend on the input, found from zero weights and equal weights.

Neuron i of layer k varies with the input only if it reads, with a nonzero weight, a pixel or a
neuron of layer k - 1 that varies. `z_y - z_t` is `sum_i (w_yi - w_ti) h_i + b_y - b_t` over the
last hidden layer: it is constant where w_y and w_t agree on all neurons that vary.
"""

from __future__ import annotations

import numpy as np

from raycrt.verify.model import Model


def constant_margins(model: Model) -> np.ndarray:
    """Mask (classes, classes) of margins with the same value, possibly infinite, at every input."""
    varies = np.ones(model.features, bool)
    for k in range(model.depth - 1):
        varies = (model.largest(k)[:, varies] != 0).any(axis=1)
    rows = model.weights[-1][:, varies]
    equal = np.array([(rows == row).all(axis=1) for row in rows])
    # Rows that are known up to an error only may differ.
    last = np.broadcast_to(model.weight_error(model.depth - 1), model.weights[-1].shape)
    exact = (last[:, varies] == 0).all(axis=1)
    return (equal & exact[:, None] & exact) | model.masked | np.eye(model.classes, dtype=bool)
