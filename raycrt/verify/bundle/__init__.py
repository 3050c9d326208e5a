"""Checks of a bundle, one zip file with a run's model and certificates (docs/bundle.md).

Nothing in it is trusted: the files are compared with their hashes, the ONNX model with the weights,
and every row is proved again as that of a run. The writer is `raycrt.evidence`, which shares the
names of the files alone.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from safetensors.numpy import load_file

from raycrt import data
from raycrt.specs import Place
from raycrt.verify import manifest as manifests
from raycrt.verify.bundle import archive, index, inputs, onnx_model
from raycrt.verify.bundle.names import CARD, INDEX, MODEL, ONNX, REPORT
from raycrt.verify.checker import check_files
from raycrt.verify.curvature import Watch
from raycrt.verify.findings import Finding
from raycrt.verify.model import Model
from raycrt.verify.report import CheckFiles, Report, verify_with
from raycrt.verify.table import read_manifest
from raycrt.verify.untrusted_spec import read_spec

__all__ = ["verify_bundle"]


def verify_bundle(
    file: Place,
    *,
    arrays: Path | None = None,
    data_directory: Place | None = None,
    trusted: bool = False,
    check: CheckFiles = check_files,
    watch: Watch = lambda name, items: items,
    records: Path | None = None,
) -> Report:
    """Re-prove the certificates in a bundle, as `verify_run` does those of a run.

    The test rows are those of `arrays`, an .npz or .npy file, or of the data set in
    `data_directory`, or those in the bundle, or those of the data set where this machine has it.
    Without any, nothing is proved and the report says so. Raises `InvalidInput` where a file was
    changed, added or left out.
    """
    with tempfile.TemporaryDirectory(prefix="raycrt-bundle-") as directory:
        place = Path(directory)
        digests = archive.unpack(file, place)
        index.check(place, digests)
        manifest = read_manifest(place / "certificates")
        rows = partial(
            inputs.of_bundle,
            place=place,
            rows=manifest.get("rows"),
            file=arrays,
            directory=data_directory,
            trusted=trusted,
        )
        report = verify_with(place, rows, check=check, watch=watch, records=records)
        told = [name for name in (CARD, *REPORT) if name in digests]
        return replace(
            report,
            findings=tuple(sorted([*_of_onnx(place), *_of_version(place), *report.findings])),
            unchecked=(
                *report.unchecked,
                f"the content of {', '.join(told)}; data, code and verdict in {INDEX}",
            ),
        )


def _of_onnx(place: Path) -> list[Finding]:
    """Findings about the ONNX model, if there is one."""
    if not (place / ONNX).is_file():
        return []
    spec = manifests.described_spec(read_manifest(place / "certificates"))
    shape = data.shape(spec.data)
    described = read_spec(place / "train").model
    model = Model.load(place / MODEL, described, shape)
    return onnx_model.check(place / ONNX, load_file(place / MODEL), described, model, shape)


def _of_version(place: Path) -> list[Finding]:
    """A finding if the rows have no hashes, which every bundle has."""
    if manifests.hashed(read_manifest(place / "certificates")):
        return []
    return [Finding(sentence="the rows of a bundle have the hashes of their inputs.")]
