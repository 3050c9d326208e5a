"""Margins that no input changes, told from which weights are zero and which are equal.

Neuron i of layer k varies with the input only if it reads, with a weight that is not zero, a neuron
of layer k - 1 that does, or a pixel. `z_y - z_t` is `sum_i (w_yi - w_ti) h_i + b_y - b_t` over the
last hidden layer: it is one number where w_y and w_t agree on all neurons that vary.
"""

from __future__ import annotations

import numpy as np

from raycrt.verify.model import Model


def constant_margins(model: Model) -> np.ndarray:
    """Which margins (classes, classes) are the same number, infinity included, at every input."""
    varies = np.ones(model.features, bool)
    for weight in model.weights[:-1]:
        varies = (weight[:, varies] != 0).any(axis=1)
    rows = model.weights[-1][:, varies]
    equal = np.array([(rows == row).all(axis=1) for row in rows])
    return equal | model.masked
