"""Certification on a pool of Ray Data actors, with the same rows as in one process.

The unit of work is a batch of consecutive images. Batches are the same for any number of actors, so
that every row is computed by the same products as in `raycrt.Certifier`. A finished batch is a
Parquet file, written by the driver: a worker that dies neither loses nor duplicates a row, and a
run that is resumed certifies only the missing batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy
from torch import Tensor

from raycrt.certification import manifest, storage
from raycrt.certification.certifier import Certifier
from raycrt.certification.options import Options
from raycrt.data import Split
from raycrt.errors import require
from raycrt.networks.network import Network
from raycrt.specs import Spec, identity, validate
from raycrt.specs.provenance import Training
from raycrt.system.storage import Place


def certify(
    network: Network,
    spec: Spec,
    split: Split,
    out: Place,
    *,
    digest: str,
    curvature: Tensor,
    spec_describes_model: bool = True,
    training: Training | None = None,
    watch: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Certify every image of `split` with `spec.run.workers` actors; return the manifest of `out`.

    `digest` is the hash of the network's weights, `curvature` (classes, classes) its proved margin
    curvature. The manifest's model is null unless `spec_describes_model`, and its training is
    null if `training`, that of the weights, is unknown. As each batch finishes, `watch` is called
    with the number of rows certified so far.

    Batches that an earlier run left in `out` are kept without being read if its manifest has this
    format and the same curvature; otherwise they are certified again. `InvalidInput` if they
    belong to another run.
    """
    before = stored(out, digest, spec, spec_describes_model=spec_describes_model)
    rows = out / storage.ROWS
    rows.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    shared = {"schema_version": storage.SCHEMA_VERSION, "margin_curvature": curvature.tolist()}
    kept = all(before.get(key) == value for key, value in shared.items())
    size = spec.certify.batch_size
    pending = missing(out, spec, len(split)) if kept else list(range(0, len(split), size))
    done = before_this = len(split) - sum(min(size, len(split) - start) for start in pending)
    watch(done)
    if spec_describes_model:
        spec.save(out)
    facts = manifest.facts(
        spec,
        rows=len(split),
        shape=tuple(split.images.shape[1:]),
        digest=digest,
        curvature=curvature,
        training=training,
        spec_describes_model=spec_describes_model,
    )
    storage.write_manifest(out, {"complete": False, **facts})
    if pending:
        for table in _run(network, curvature, spec, split, pending):
            storage.write_rows(_file(rows, table["index"][0].as_py()), table)
            done += len(table)
            watch(done)
    storage.check_complete(storage.read_rows(out, ("index",)), len(split))
    # The time taken by the rows of an earlier command is unknown.
    facts["seconds"] = time.monotonic() - began if before_this == 0 else None
    storage.write_manifest(out, {"complete": True, **facts})
    return facts


def check(network: Network, spec: Spec) -> None:
    """Raise `InvalidInput` if `network` cannot be certified as `spec.certify` states."""
    Options.of(spec.certify).check(network)


def _run(
    network: Network, curvature: Tensor, spec: Spec, split: Split, pending: list[int]
) -> Iterator[pa.Table]:
    """The certificates of each pending batch, in the order in which they finish."""
    arguments = {
        "network": ray.put(network.cpu()),
        "images": ray.put((split.images.numpy(), split.labels.numpy())),
        "curvature": ray.put(curvature.numpy()),
        "spec": spec,
    }
    batches = ray.data.from_items([{"start": s} for s in pending], override_num_blocks=len(pending))
    certified = batches.map_batches(
        _Certify,
        fn_constructor_kwargs=arguments,
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=min(spec.run.workers, len(pending))),
        num_cpus=_cpus(spec),
        num_gpus=spec.run.gpus_per_worker or None,
    )
    for block in certified.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield pa.table(block).cast(storage.SCHEMA)


def _cpus(spec: Spec) -> float:
    """CPUs for each actor: as many as requested, minus a share for Ray Data's own tasks."""
    available = float(ray.cluster_resources().get("CPU", 1))
    return min(spec.run.cpus_per_worker, max(0.25, (available - 0.5) / spec.run.workers))


class _Certify:
    """An actor: loads the model and its curvature once, then certifies batches."""

    def __init__(self, network: Any, images: Any, curvature: Any, spec: Spec) -> None:
        torch.set_num_threads(max(1, int(spec.run.cpus_per_worker)))
        self.images, self.labels = ray.get(images)
        self.size = spec.certify.batch_size
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.certifier = Certifier.of(
            ray.get(network).to(self.device),
            spec.certify,
            curvature=torch.from_numpy(ray.get(curvature).copy()),
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        start = int(batch["start"][0])
        chosen = slice(start, start + self.size)
        found = self.certifier(torch.tensor(self.images[chosen], device=self.device))
        return storage.to_table(found, start, self.labels[chosen], self.images[chosen])


def _file(rows: Place, start: int) -> Place:
    return rows / f"{start:09d}.parquet"


def missing(out: Place, spec: Spec, images: int) -> list[int]:
    """The index of the first image of each batch that has no rows in `out` yet."""
    starts = range(0, images, spec.certify.batch_size)
    return [start for start in starts if not _file(out / storage.ROWS, start).is_file()]


def stored(
    out: Place, digest: str, spec: Spec, *, spec_describes_model: bool = True
) -> dict[str, Any]:
    """The manifest of the certificates in `out`, complete or not; empty if there are none yet.

    All rows of a table belong to one run: `InvalidInput` unless those in `out` are of the weights
    with the hash `digest`, and of the images, the certification and, if `spec_describes_model`, the
    model of `spec`.
    """
    if not (out / storage.MANIFEST).is_file():
        rows = sorted((out / storage.ROWS).glob("*"))
        require(not rows, "rows have a manifest that names their run", directory=str(out))
        return {}
    before = storage.read_manifest(out)
    require(
        before["weights_sha256"] == digest,
        "all certificates in a directory are of the same weights",
        directory=str(out),
        held=before["weights_sha256"],
        asked=digest,
    )
    sections = before["spec"]
    require(
        (sections["model"] is not None) == spec_describes_model,
        "all certificates in a directory are of one model, which a spec describes or does not",
        directory=str(out),
    )
    held = validate({key: section for key, section in sections.items() if section is not None})
    keys = identity.CERTIFICATES if spec_describes_model else identity.CERTIFICATES[1:]
    identity.refuse_another(out, "certificates", held, spec, keys)
    return before
