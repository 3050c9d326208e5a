"""Findings about rows, as sentences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    """A claim that cannot be proved; it concerns the whole table where `index` is -1."""

    index: int = -1
    sentence: str


class Notes:
    """Collects findings about rows with the given indices."""

    def __init__(self, index: np.ndarray) -> None:
        self.index = index
        self.findings: list[Finding] = []

    def must(self, good: np.ndarray, text: str, *values: np.ndarray) -> None:
        """Note `text`, filled in with the row's `values`, for each row that is not `good`."""
        for i in np.nonzero(~good)[0]:
            sentence = text.format(*(value[i : i + 1].tolist()[0] for value in values))
            self.findings.append(Finding(index=int(self.index[i]), sentence=sentence))
