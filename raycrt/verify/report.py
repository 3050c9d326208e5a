"""Checks of a whole run: manifest, weights, curvature, and each row, present exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from raycrt import data
from raycrt.errors import require
from raycrt.specs import Place, Spec, provenance
from raycrt.verify import manifest as manifests
from raycrt.verify.checker import Checker, check_files
from raycrt.verify.curvature import TOLERANCE, Watch, curvature_upper
from raycrt.verify.findings import Checked, Finding, Span, joined, not_once
from raycrt.verify.inputs import Inputs, of_run
from raycrt.verify.model import Model
from raycrt.verify.table import (
    Malformed,
    count_rows,
    read_manifest,
    row_files,
    unexpected_entries,
)
from raycrt.verify.untrusted_spec import read_spec

CheckFiles = Callable[[Checker, list[Place]], Iterable[Checked]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Numbers of rows that were `checked` and that `failed`, and all `findings`.

    `unchecked` says in sentences what was not checked for want of it; without inputs no row is
    `proved`.
    """

    data: str
    images: int
    checked: int
    failed: int
    proved: bool
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether every image has exactly one row and nothing that was checked is wrong."""
        return not self.findings


def verify_run(
    run: Place,
    *,
    data_directory: Place | None = None,
    trusted: bool = False,
    check: CheckFiles = check_files,
    watch: Watch = lambda name, items: items,
    records: Path | None = None,
) -> Report:
    """Re-prove the certificates in `run / "certificates"` of the model in `run / "train"`.

    `data_directory` replaces the one named in the manifest, or the path of a source; a source that
    is a function is run only if the run is `trusted`. `check` checks the files, here or on other
    machines; `watch` iterates over the proofs about the model, then over the files, and may show
    progress. What is found in each file is written into the directory `records`, if given. Raises
    `InvalidInput` where a part of the run is missing; a part that is present but wrong is reported.
    """
    inputs = partial(of_run, directory=data_directory, trusted=trusted)
    return verify_with(run, inputs, check=check, watch=watch, records=records)


def verify_with(
    run: Place,
    inputs: Callable[[Spec], Inputs],
    *,
    check: CheckFiles = check_files,
    watch: Watch = lambda name, items: items,
    records: Path | None = None,
) -> Report:
    """As `verify_run`, with the test rows that `inputs` returns for the spec of the manifest."""
    directory, trained = run / "certificates", run / "train"
    manifest = read_manifest(directory)
    spec = manifests.described_spec(manifest)
    described = read_spec(trained)
    model = Model.load(trained / "model.safetensors", described.model, data.shape(spec.data))
    rows = inputs(spec)
    require(
        int(np.prod(rows.shape)) == model.features,
        "features of an image == features of the network",
        image=int(np.prod(rows.shape)),
        network=model.features,
    )
    findings = manifests.check_manifest(manifest, described, model, rows)
    findings += manifests.check_spec(manifest, directory)
    said = provenance.read(trained / "model.safetensors")
    findings += manifests.check_provenance(manifest, said)
    stated = manifests.stated_curvature(manifest, model.classes)
    curvature = curvature_upper(model, stated, watch)
    findings += _check_curvature(stated, curvature)
    checker = Checker(
        model,
        curvature=np.fmax(curvature, stated),
        stated=stated,
        inputs=rows,
        deployment=manifests.deployment(manifest),
        region=str(manifest.get("region")),
        version=manifests.version(manifest),
        records=records,
    )
    files = row_files(directory)
    surplus = _check_number(files, len(rows))
    findings += surplus + _check_unexpected(directory)
    # More rows than images are refused unread: a small file may unpack to any number of them.
    checked = further = 0
    spans: list[Span] = []
    if not surplus:
        results = iter(check(checker, files))
        for _ in watch("files of rows", files):
            result = next(results)
            checked, further = checked + result.rows, further + result.further
            spans = joined(sorted([*spans, *result.spans]))
            findings += result.findings
        others, more = not_once(spans, len(rows))
        findings, further = findings + others, further + more
    return Report(
        data=rows.title,
        images=len(rows),
        checked=checked,
        failed=len({finding.index for finding in findings if finding.index >= 0}) + further,
        proved=rows.given,
        findings=tuple(sorted(findings)),
        unchecked=rows.unchecked,
    )


def _check_curvature(stated: np.ndarray, proved: np.ndarray) -> list[Finding]:
    """The proved one may be larger by rounding, or infinite where the stated is not finite."""
    good = (stated * (1 + TOLERANCE) >= proved) | (np.isinf(proved) & ~np.isfinite(stated))
    good &= (stated == 0) | ~np.eye(len(stated), dtype=bool)
    return [
        Finding(
            sentence=f"margin_curvature[{y}][{t}] is {stated[y, t].item()!r}, "
            f"but {proved[y, t].item()!r} is the least that can be proved."
        )
        for y, t in zip(*np.nonzero(~good), strict=True)
    ]


def _check_number(files: list[Place], images: int) -> list[Finding]:
    """Check that rows are no more than images. The checker reports files without a footer."""
    rows = 0
    for file in files:
        with suppress(Malformed):
            rows += count_rows(file)
    if rows <= images:
        return []
    return [Finding(sentence=f"there are {rows} rows, but {images} images; none was checked.")]


def _check_unexpected(directory: Place) -> list[Finding]:
    names = [str(entry).removeprefix(f"{directory}/") for entry in unexpected_entries(directory)]
    return [
        Finding(
            sentence=f"{name!r} was not checked: it is not a file of rows, but another reader may "
            "take it for one."
        )
        for name in names
    ]
