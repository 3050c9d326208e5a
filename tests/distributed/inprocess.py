"""Certification in this process, by the code that an actor runs."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from torch import Tensor

from raycrt.data import Split
from raycrt.distributed import certification
from raycrt.networks.network import Network
from raycrt.specs import Spec


def work_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have `certification.certify` do its work without Ray; the starts of the batches it makes."""
    made: list[int] = []

    def run(
        network: Network, curvature: Tensor, spec: Spec, split: Split, pending: list[int]
    ) -> Iterator[pa.Table]:
        images = split.images.numpy(), split.labels.numpy()
        actor = certification._Certify(network, images, curvature.numpy(), spec)
        for start in pending:
            made.append(start)
            yield actor({"start": [start]})

    monkeypatch.setattr(certification.ray, "get", lambda given: given)
    monkeypatch.setattr(certification, "_run", run)
    return made
