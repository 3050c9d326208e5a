"""Findings about rows, as sentences, and what is told of a file of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

# Findings of a file that are told one by one.
_TOLD = 1000
# The first and the last of consecutive indices.
Span = tuple[int, int]


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


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The result for one `file`: the number of its `rows`, their indices as `spans`, the first
    findings about them, and the number of `further` rows that failed."""

    file: str
    rows: int
    spans: tuple[Span, ...]
    findings: tuple[Finding, ...]
    further: int = 0

    def write(self, directory: Path) -> None:
        """Write this into `directory`, as JSON under the name of the file."""
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=2) + "\n"
        (directory / f"{Path(self.file).stem}.json").write_text(text)

    @staticmethod
    def of(file: str, rows: int, spans: Iterable[Span], findings: Sequence[Finding]) -> Checked:
        told = findings[:_TOLD]
        failed, named = ({f.index for f in some if f.index >= 0} for some in (findings, told))
        return Checked(
            file=file,
            rows=rows,
            spans=tuple(joined(spans)),
            findings=tuple(told),
            further=len(failed - named),
        )


def spans_of(index: np.ndarray) -> list[Span]:
    """`index` (n,) as spans, in their order."""
    parts = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
    return [(int(part[0]), int(part[-1])) for part in parts if len(part)]


def joined(spans: Iterable[Span]) -> list[Span]:
    """The spans in their order, one that continues the one before being part of it."""
    found: list[Span] = []
    for first, last in spans:
        if found and found[-1][1] + 1 == first:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


def not_once(spans: Iterable[Span], rows: int) -> tuple[list[Finding], int]:
    """Findings about each of the indices 0 .. rows - 1 that is in none of the spans or in several,
    the first of them one by one, and the number of further ones."""
    edges: dict[int, int] = {0: 0, rows: 0}
    for first, last in spans:
        low, high = max(first, 0), min(last, rows - 1)
        if low <= high:
            edges[low] = edges.get(low, 0) + 1
            edges[high + 1] = edges.get(high + 1, 0) - 1
    found: list[Finding] = []
    times = further = 0
    places = sorted(edges)
    for low, high in pairwise(places):
        times += edges[low]
        if times == 1:
            continue
        said = "the row is missing." if times == 0 else f"the row occurs {times} times."
        told = range(low, min(high, low + max(0, _TOLD - len(found))))
        found += [Finding(index=index, sentence=said) for index in told]
        further += high - low - len(told)
    return found, further
