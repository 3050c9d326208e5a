"""Certification in this process, by the code that an actor runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from raycrt.certification.table.shards import Shard, Written
from raycrt.data import Arrays, Reader, Split
from raycrt.distributed import actors
from raycrt.networks.network import Network
from raycrt.specs import Spec


class OfArrays(Reader):
    """Reads rows that a test has made."""

    def __init__(self, rows: Split) -> None:
        self.rows = Arrays(images=rows.images.numpy(), labels=rows.labels.numpy())

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.images.shape[1:]

    def __len__(self) -> int:
        return len(self.rows)

    def between(self, first: int, last: int, step: int) -> Iterator[Arrays]:
        for start in range(first, last, step):
            yield self.rows.take(slice(start, min(start + step, last)))


def work_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have `certification.certify` do its work without Ray; the first rows of the shards made."""
    made: list[int] = []

    def run(
        network: Network,
        curvature: Tensor,
        spec: Spec,
        reader: Reader,
        out: Path,
        pending: list[Shard],
    ) -> Iterator[Written | actors.Refusal]:
        actor = actors.Certify(network, curvature.numpy(), spec, reader, out)
        for shard in pending:
            made.append(shard.first)
            told = actor({"first": [shard.first], "last": [shard.last]})
            yield from actors.told(told)

    monkeypatch.setattr(actors.ray, "get", lambda given: given)
    monkeypatch.setattr(actors, "run", run)
    return made
