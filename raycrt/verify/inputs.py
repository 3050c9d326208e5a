"""The test rows that certificates are about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raycrt import data
from raycrt.errors import InvalidInput
from raycrt.specs import Spec


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """`rows` inputs of `shape` from the data set `title`.

    `images` (rows, features) float32 and `labels` (rows,); None where they are not there, and
    `unchecked` says in sentences what cannot be checked without them.
    """

    title: str
    shape: tuple[int, ...]
    rows: int
    images: np.ndarray | None
    labels: np.ndarray | None
    unchecked: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.rows

    @staticmethod
    def of(title: str, images: np.ndarray, labels: np.ndarray | None) -> Inputs:
        """Those of `images` (rows, *shape)."""
        return Inputs(
            title=title,
            shape=images.shape[1:],
            rows=len(images),
            images=images.reshape(len(images), -1),
            labels=labels,
        )


def of_run(spec: Spec, directory: Path | None, trusted: bool) -> Inputs:
    """The test rows of the data that `spec` names, as they are on this machine.

    `directory` replaces the one in `spec`, or the path of a source; a source that is a function is
    run only if the run is `trusted`. Nothing is downloaded, whatever `spec` says.
    """
    if data.runs_code(spec.data) and not trusted:
        raise InvalidInput(
            f"the data is read by running {spec.data.source} in {spec.data.path}, which is allowed "
            "only with --run-code, but this was not given"
        )
    test = data.read(data.placed(spec, directory).data).test
    return Inputs.of(spec.data.title, test.images, test.labels)
