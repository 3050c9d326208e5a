"""Random orders of rows that are the same wherever they are drawn."""

from __future__ import annotations

import numpy as np


class Permutations:
    """Orders drawn one after the other from a `seed`, those of `torch.randperm` on the CPU.

    The algorithm is written out here, so that no other version of a library divides a data set in
    another way.
    """

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)

    def draw(self, rows: int) -> np.ndarray:
        """The numbers 0 .. rows - 1 in the next random order, int64 (rows,)."""
        drawn = self._twister.randint(0, 2**32, max(rows - 1, 0), dtype=np.uint32)
        order = list(range(rows))
        for place, number in enumerate(drawn.tolist()):
            other = place + number % (rows - place)
            order[place], order[other] = order[other], order[place]
        return np.array(order, np.int64)
