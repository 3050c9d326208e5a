"""Checks of a whole run: manifest, weights, curvature, and each row, present exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from raycrt import data
from raycrt.errors import InvalidInput, require
from raycrt.specs import Spec, provenance, validate
from raycrt.specs.provenance import Provenance, Training
from raycrt.verify.checker import (
    DEPLOYMENTS,
    REGIONS,
    Checked,
    Checker,
    Finding,
    check_files,
)
from raycrt.verify.curvature import TOLERANCE, Watch, curvature_upper
from raycrt.verify.model import Model
from raycrt.verify.table import (
    VERSIONS,
    Malformed,
    count_rows,
    read_manifest,
    row_files,
    unexpected_entries,
)
from raycrt.verify.untrusted_spec import SPEC, read_spec

CheckFiles = Callable[[Checker, list[Path]], Iterable[Checked]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Numbers of rows that were `checked` and that `failed`, and all `findings`."""

    data: str
    images: int
    checked: int
    failed: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether every image has exactly one row and each is proved."""
        return not self.findings


def verify_run(
    run: Path,
    *,
    data_directory: Path | None = None,
    trusted: bool = False,
    check: CheckFiles = check_files,
    watch: Watch = lambda name, items: items,
) -> Report:
    """Re-prove the certificates in `run / "certificates"` of the model in `run / "train"`.

    `data_directory` replaces the one named in the manifest, or the path of a source; a source that
    is a function is run only if the run is `trusted`. `check` checks the files, here or on other
    machines; `watch` iterates over the proofs about the model and may show progress. Raises
    `InvalidInput` where a part of the run is missing; a part that is present but wrong is reported.
    """
    directory, trained = run / "certificates", run / "train"
    manifest = read_manifest(directory)
    spec = _spec(manifest, data_directory, trusted)
    described = read_spec(trained)
    model = Model.load(trained / "model.safetensors", described.model, data.shape(spec.data))
    test = data.load(spec.data).test
    images = test.images.numpy().reshape(len(test), -1)
    labels = test.labels.numpy()
    require(
        images.shape[1] == model.features,
        "features of an image == features of the network",
        image=images.shape[1],
        network=model.features,
    )
    findings = _check_manifest(manifest, described, model, len(labels))
    findings += _check_spec(manifest, directory)
    findings += _check_provenance(manifest, provenance.read(trained / "model.safetensors"))
    stated = _stated_curvature(manifest, model.classes)
    curvature = curvature_upper(model, stated, watch)
    findings += _check_curvature(stated, curvature)
    checker = Checker(
        model,
        curvature=np.fmax(curvature, stated),
        stated=stated,
        images=images,
        labels=labels,
        deployment=_deployment(manifest),
        region=str(manifest.get("region")),
    )
    files = row_files(directory)
    surplus = _check_number(files, len(labels))
    findings += surplus + _check_unexpected(directory)
    # More rows than images are refused unread: a small file may unpack to any number of them.
    results = [] if surplus else list(check(checker, files))
    indices = np.concatenate([np.empty(0, np.int64), *(r.indices for r in results)])
    findings += [finding for result in results for finding in result.findings]
    findings += [] if surplus else _check_indices(indices, len(labels))
    return Report(
        data=spec.data.title,
        images=len(labels),
        checked=len(indices),
        failed=len({finding.index for finding in findings if finding.index >= 0}),
        findings=tuple(sorted(findings)),
    )


def _spec(manifest: dict[str, Any], data_directory: Path | None, trusted: bool) -> Spec:
    stored = manifest.get("spec")
    if isinstance(stored, dict) and "model" in stored and stored["model"] is None:
        raise InvalidInput(
            "only models that a spec can describe are checked (the layers that docs/networks.md "
            "lists), but spec.model is null in the manifest"
        )
    # A checker downloads nothing, whatever the manifest says.
    spec = _known(stored).override({"data.download": False})
    if data.runs_code(spec.data) and not trusted:
        raise InvalidInput(
            f"the data is read by running {spec.data.source} in {spec.data.path}, which is allowed "
            "only with --run-code, but this was not given"
        )
    if data_directory is None:
        return spec
    place = next((key for key in ("path", "directory") if key in data.uses(spec.data)), None)
    if place is None:
        raise InvalidInput(f"--data-dir is for data in files, but the data is {spec.data.title}")
    return spec.override({f"data.{place}": str(data_directory)})


def _known(stored: Any) -> Spec:
    """The spec of a manifest, which has null for `train` where the training is unknown."""
    if isinstance(stored, dict) and stored.get("train", ...) is None:
        stored = {key: section for key, section in stored.items() if key != "train"}
    try:
        return validate(stored)
    except InvalidInput as error:
        # The error quotes input that may be of any length.
        raise InvalidInput(f"{str(error)[:300]}, in the manifest") from None
    except (RecursionError, ValueError):
        raise InvalidInput("spec must be a mapping of sections in the manifest") from None


def _check_provenance(manifest: dict[str, Any], said: Provenance | None) -> list[Finding]:
    """Check what the manifest states about the weights against their own header."""
    if said is None:
        return []
    spec, own, stated = _known(manifest["spec"]), said.training, manifest.get("training")
    wrong = {"spec.model": spec.model != said.model}
    try:
        wrong["training"] = own != (stated and Training.model_validate(stated))
    except ValidationError:
        wrong["training"] = True
    if own is not None:
        wrong["spec.train"] = spec.train != own.train
        wrong["spec.run.seed"] = spec.run.seed != own.run.seed
    return [
        Finding(sentence=f"{key} in the manifest must agree with the header of the weights.")
        for key, bad in wrong.items()
        if bad
    ]


def _check_spec(manifest: dict[str, Any], directory: Path) -> list[Finding]:
    """Check that a spec beside the manifest agrees with it in all that the rows depend on."""
    if not (directory / SPEC).is_file():
        return []
    beside, stated = read_spec(directory), _known(manifest["spec"])
    return [
        Finding(sentence=f"{part} must be that of the manifest in certificates/{SPEC}.")
        for part in ("model", "data", "certify")
        if getattr(beside, part) != getattr(stated, part)
    ]


def _check_manifest(
    manifest: dict[str, Any], trained: Spec, model: Model, images: int
) -> list[Finding]:
    found = _known(manifest["spec"])
    wrong = {
        f"schema_version must be {' or '.join(map(str, VERSIONS))}": not any(
            _same(manifest.get("schema_version"), version) for version in VERSIONS
        ),
        "complete must be true": manifest.get("complete") is not True,
        f"rows must be {images}, the images of the test set": not _same(
            manifest.get("rows"), images
        ),
        f"region must be one of {REGIONS}": manifest.get("region") not in REGIONS,
        "weights_sha256 must be that of the model": manifest.get("weights_sha256") != model.sha256,
        "spec.model must be that of the model": found.model != trained.model,
        "region must be that of spec.certify": manifest.get("region") != found.certify.region,
        "deployment must be that of spec.certify": _deployment(manifest)
        != found.certify.deployment,
        # Float32 libraries may compute convolutions by transforms, for which no bound is stated.
        "deployment must be exact for a model with convolutions": trained.model.convolves
        and _deployment(manifest) != "exact",
    }
    return [Finding(sentence=f"{text} in the manifest.") for text, bad in wrong.items() if bad]


def _same(stated: object, number: int) -> bool:
    """Whether `stated` is the integer `number`; true is not 1, and 3.0 is not 3."""
    return type(stated) is int and stated == number


def _deployment(manifest: dict[str, Any]) -> str:
    named = manifest.get("deployment", "exact")
    if not isinstance(named, str) or named not in DEPLOYMENTS:
        raise InvalidInput(f"deployment must be one of {sorted(DEPLOYMENTS)}, but got {named!r}")
    return str(named)


def _stated_curvature(manifest: dict[str, Any], classes: int) -> np.ndarray:
    stored: Any = manifest.get("margin_curvature")
    try:
        stated = np.array(stored, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        stated = np.empty(0)
    if stated.ndim != 2 or {type(m) for row in stored for m in row} - {int, float}:
        raise InvalidInput("margin_curvature must be a matrix of numbers in the manifest")
    require(
        stated.shape == (classes, classes),
        "margin_curvature has a number for each pair of classes",
        shape=stated.shape,
        classes=classes,
    )
    return stated


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


def _check_number(files: list[Path], images: int) -> list[Finding]:
    """Check that rows are no more than images. The checker reports files without a footer."""
    rows = 0
    for file in files:
        with suppress(Malformed):
            rows += count_rows(file)
    if rows <= images:
        return []
    return [Finding(sentence=f"there are {rows} rows, but {images} images; none was checked.")]


def _check_unexpected(directory: Path) -> list[Finding]:
    return [
        Finding(
            sentence=f"{str(entry.relative_to(directory))!r} was not checked: it is not a file "
            "of rows, but another reader may take it for one."
        )
        for entry in unexpected_entries(directory)
    ]


def _check_indices(indices: np.ndarray, images: int) -> list[Finding]:
    inside = indices[(indices >= 0) & (indices < images)]
    counts = np.bincount(inside, minlength=images)
    return [
        Finding(
            index=int(index),
            sentence="the row is missing."
            if counts[index] == 0
            else f"the row occurs {counts[index]} times.",
        )
        for index in np.nonzero(counts != 1)[0]
    ]
