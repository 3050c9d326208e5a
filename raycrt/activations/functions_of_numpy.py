"""Functions of numpy arrays that numpy lacks, right to 4 units in the last place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def erf(z: Any) -> np.ndarray:
    """The error function of z (...), as the C library computes it."""
    z = np.asarray(z, np.float64)
    return np.fromiter(map(math.erf, z.ravel().tolist()), np.float64, z.size).reshape(z.shape)


def sigmoid(z: Any) -> np.ndarray:
    """1 / (1 + exp(-z)) of z (...), without overflow."""
    z = np.asarray(z)
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1 + small)
