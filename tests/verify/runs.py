"""Writes small runs of random networks on digits, certified in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch

from raycrt import Certifier, data
from raycrt.certification.table import storage
from raycrt.networks import checkpoint, network
from raycrt.networks.network import Network
from raycrt.specs import Spec, validate
from raycrt.specs.provenance import Training
from raycrt.verify import verify_run
from tests.models import drawn

ROWS_IN_A_FILE = 16


def spec_of(
    depth: int = 2,
    name: str = "softplus",
    rows: int = 40,
    width: int = 24,
    model: dict | None = None,
    **certify: object,
) -> Spec:
    return validate(
        {
            "model": {"depth": depth, "width": width, "activation": name, **(model or {})},
            "data": {"name": "digits", "limit": rows},
            "certify": {"steps": 20, "batch_size": ROWS_IN_A_FILE, **certify},
        }
    )


def write_run(
    run: Path,
    spec: Spec,
    *,
    gain: float = 1.5,
    seed: int = 0,
    change: Callable[[Network], None] = lambda model: None,
    training: Training | None = None,
    device: str = "cpu",
) -> Path:
    """A model with random weights, after a `change`, in `run / "train"` and its certificates, which
    `device` computes, beside it; `training` is what it says of itself."""
    torch.manual_seed(seed)
    model = network.build(spec.model, data.shape(spec.data), len(data.class_names(spec.data)))
    drawn(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= gain
        change(model)
    checkpoint.save_model(run / "train", model, spec, training)
    test = data.read(spec.data).test
    certifier = Certifier.of(model.to(device), spec.certify)
    directory = run / "certificates"
    (directory / "rows").mkdir(parents=True)
    for number, found in enumerate(certifier.batches(torch.from_numpy(test.images).to(device))):
        first = number * ROWS_IN_A_FILE
        rows = test.take(slice(first, first + ROWS_IN_A_FILE))
        table = storage.to_table(found, first, rows.labels, rows.images, rows.keys)
        storage.write_rows(directory / "rows" / f"{first:09d}.parquet", table)
    manifest = {
        "complete": True,
        "rows": len(test),
        "weights_sha256": checkpoint.weights_hash(model),
        "input_shape": list(test.images.shape[1:]),
        "seconds": 1.0,
        "spec": spec.model_dump(mode="json") | ({} if training else {"train": None}),
        "training": training.model_dump(mode="json") if training else None,
        "region": spec.certify.region,
        "deployment": spec.certify.deployment,
        "margin_curvature": certifier.curvature.tolist(),
    }
    storage.write_manifest(directory, manifest)
    return run


def rows_of(run: Path) -> pa.Table:
    return storage.read_rows(run / "certificates")


def rewrite_rows(run: Path, rows: list[dict], in_a_file: int = 1000) -> None:
    """Put `rows` (as of `Table.to_pylist`) in place of all that are stored, in the version that the
    manifest states."""
    schema = storage.SCHEMA
    version = manifest_of(run).get("schema_version")
    for name, since in (("input_sha256", 6), ("key", 7), ("enclosure_radius", 8)):
        if version in range(3, since):
            schema = schema.remove(schema.get_field_index(name))
    directory = run / "certificates" / "rows"
    for file in directory.glob("*.parquet"):
        file.unlink()
    for first in range(0, len(rows), in_a_file):
        part = rows[first : first + in_a_file]
        table = pa.Table.from_pylist(part, schema=schema)
        storage.write_rows(directory / f"{first:09d}.parquet", table)


def assert_rows_hold_and_raised_ones_do_not(run: Path) -> None:
    """The checker proves all rows of `run`, some of them certified, and refuses a raised one."""
    rows = rows_of(run).to_pylist()
    assert sum(row["status"] == "certified" for row in rows) >= 6
    report = verify_run(run)
    assert report.sound, report.findings[:3]
    raised = next(row for row in rows if row["status"] == "certified")
    raised["radius"] *= 1.01
    raised["radius_runner_up"] = max(raised["radius"], raised["radius_runner_up"])
    rewrite_rows(run, rows)
    assert verify_run(run).failed == 1


def edit_manifest(run: Path, **values) -> None:
    file = run / "certificates" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def manifest_of(run: Path) -> dict:
    return json.loads((run / "certificates" / "manifest.json").read_text())
