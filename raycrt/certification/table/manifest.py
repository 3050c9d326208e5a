"""What all rows of a certificates directory share, as its manifest states it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from raycrt.specs import Spec
from raycrt.specs.provenance import Training


def facts(
    spec: Spec,
    *,
    rows: int,
    rows_of_a_shard: int,
    shape: Sequence[int],
    digest: str,
    curvature: Tensor,
    training: Training | None,
    spec_describes_model: bool = True,
) -> dict[str, Any]:
    """The facts about `rows` certificates of `spec`, `rows_of_a_shard` in each file, of inputs of
    `shape`: `digest` is the hash of the weights, `curvature` (classes, classes) their proved margin
    curvature.

    The model is null unless `spec_describes_model`, the training if that of the weights is unknown.
    """
    sections = spec.model_dump(mode="json") | ({} if spec_describes_model else {"model": None})
    sections |= {} if training else {"train": None}
    return {
        "rows": rows,
        "rows_of_a_shard": rows_of_a_shard,
        "weights_sha256": digest,
        "input_shape": list(shape),
        "region": spec.certify.region,
        "deployment": spec.certify.deployment,
        "margin_curvature": curvature.tolist(),
        "spec": sections,
        "training": training.model_dump(mode="json") if training else None,
    }
