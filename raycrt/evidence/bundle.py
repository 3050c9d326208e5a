"""A finished run as a bundle: files, hashes and a card, packed if the checker proves every row."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load

from raycrt import data
from raycrt.certification.table import storage
from raycrt.errors import InvalidInput, require
from raycrt.evaluation.tally import summarise
from raycrt.evidence import archive, card, onnx_model, origin
from raycrt.networks import checkpoint
from raycrt.specs import Spec, validate
from raycrt.system.places import outputs
from raycrt.system.places.storage import Place
from raycrt.verify.bundle import names
from raycrt.verify.report import Report

_ONNX_IMAGES = 64


def pack(
    run: Place,
    out: Place,
    *,
    verify: Callable[[Place], Report],
    data_directory: Place | None = None,
    with_data: bool = False,
    license: str | None = None,
) -> Report:
    """Write the bundle of `run` to the file `out`; what `verify` says of the run.

    `data_directory` is where the run's data is, if it has moved; `with_data` packs the certified
    inputs and labels. `InvalidInput`, and nothing is written, where a row does not hold, where rows
    have no hashes of their inputs, and where the ONNX model would compute another function.
    """
    if out.suffix != ".zip" or out.is_dir():
        raise InvalidInput(f"--out must be a .zip file, but got {out}")
    outputs.made(out.parent)
    manifest = storage.read_manifest(run / "certificates")
    if manifest.get("schema_version") != storage.SCHEMA_VERSION:
        raise InvalidInput(
            f"a bundle holds certificates of version {storage.SCHEMA_VERSION}, with the hashes of "
            f"their inputs, but {run} has version {manifest.get('schema_version')}; certify into "
            "another directory"
        )
    files = _files_of(run)
    report = verify(run)
    if not report.sound:
        raise InvalidInput(
            f"a bundle holds only what is proved, but `raycrt verify {run}` finds: "
            f"{report.findings[0].sentence}"
        )
    spec = validate({key: part for key, part in manifest["spec"].items() if part is not None})
    table, _ = storage.read(run / "certificates")
    test = data.load(data.placed(spec, data_directory).data).test
    _add_onnx(files, run, spec, test.images[:_ONNX_IMAGES])
    if with_data:
        files[names.INPUTS] = _array(test.images.numpy().astype("<f4"))
        files[names.LABELS] = _array(test.labels.numpy().astype("<i8"))
    made_by = origin.stated()
    files[names.CARD] = card.written(
        spec,
        summarise(table, spec.certify.at),
        card.statuses_of(table.column("status").to_pylist()),
        shape=data.shape(spec.data),
        names=sorted(files),
        origin=made_by,
        license=license,
        included=with_data,
    ).encode()
    index = {
        "format": "raycrt bundle",
        "version": names.VERSION,
        "files": {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)},
        "data": {
            "name": spec.data.title,
            "rows": len(table),
            "included": with_data,
            "sha256": _data_hash(table),
        },
        "code": made_by,
        "verdict": {
            "checked": report.checked,
            "failed": report.failed,
            "images": report.images,
            "proved": report.proved,
        },
    }
    files[names.INDEX] = (json.dumps(index, indent=2) + "\n").encode()
    outputs.write_atomically(out, archive.packed(files))
    return report


def _files_of(run: Place) -> dict[str, bytes]:
    """The files of the run that belong into a bundle, by their names there."""
    rows = (
        f"certificates/{storage.ROWS}/{file.name}"
        for file in storage.row_files(run / "certificates")
    )
    found = {}
    for name in (*sorted(names.REQUIRED | names.OPTIONAL), *rows):
        file = run / name
        # A card, an index or data that lie in the run are not its own.
        own = name.startswith(("train/", "certificates/", "report/"))
        if not own or (name in names.OPTIONAL and not file.is_file()):
            continue
        require(names.belongs(name), "a bundle holds files of this name", name=name)
        if not file.is_file():
            raise InvalidInput(f"a run must hold {name}, but {run} does not")
        found[name] = file.read_bytes()
    return found


def _add_onnx(files: dict[str, bytes], run: Place, spec: Spec, images: torch.Tensor) -> None:
    """Add the ONNX model, checked against the network, if one can be written."""
    shape, tensors = data.shape(spec.data), load(files[names.MODEL])
    model = onnx_model.written(tensors, spec.model, shape)
    if model is not None:
        onnx_model.check(model, checkpoint.load_model(run / "train")[0], shape, images)
        files[names.ONNX] = model.SerializeToString(deterministic=True)


def _array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _data_hash(table: Any) -> str:
    """SHA-256 over the hash of the input and the label (int64, little-endian) of each row."""
    digest = hashlib.sha256()
    for row in table.select(["input_sha256", "label"]).to_pylist():
        digest.update(row["input_sha256"] + row["label"].to_bytes(8, "little", signed=True))
    return digest.hexdigest()
