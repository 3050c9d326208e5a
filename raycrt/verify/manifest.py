"""Checks of the manifest of certificates: its spec, and what it states about model and rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import ValidationError

from raycrt.errors import InvalidInput, require
from raycrt.specs import Place, Spec, validate
from raycrt.specs.data import Statistics
from raycrt.specs.provenance import Provenance, Training
from raycrt.verify.checker import DEPLOYMENTS, REGIONS
from raycrt.verify.findings import Finding
from raycrt.verify.inputs import Inputs
from raycrt.verify.model import Model
from raycrt.verify.table import VERSIONS, WITHOUT_HASHES
from raycrt.verify.untrusted_spec import SPEC, read_spec


def described_spec(manifest: dict[str, Any]) -> Spec:
    """The spec of a manifest; `InvalidInput` unless it describes the model."""
    stored = manifest.get("spec")
    if isinstance(stored, dict) and "model" in stored and stored["model"] is None:
        raise InvalidInput(
            "only models that a spec can describe are checked (the layers that docs/networks.md "
            "lists, as many classes as the data), but spec.model is null in the manifest"
        )
    return known(stored)


def known(stored: Any) -> Spec:
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


def version(manifest: dict[str, Any]) -> int:
    """The version of the format; the last one where the manifest states none that is read."""
    stated = manifest.get("schema_version")
    return next((known for known in VERSIONS if _same(stated, known)), VERSIONS[-1])


def hashed(manifest: dict[str, Any]) -> bool:
    """Whether the rows have hashes of their inputs, as those of all but old versions do."""
    return version(manifest) not in WITHOUT_HASHES


def check_manifest(
    manifest: dict[str, Any], trained: Spec, model: Model, inputs: Inputs
) -> list[Finding]:
    """Check what the manifest states about the model, the data and its own spec."""
    found = known(manifest["spec"])
    wrong = {
        f"schema_version must be {' or '.join(map(str, VERSIONS))}": not any(
            _same(manifest.get("schema_version"), version) for version in VERSIONS
        ),
        "complete must be true": manifest.get("complete") is not True,
        f"rows must be {len(inputs)}, the images of the test set": not _same(
            manifest.get("rows"), len(inputs)
        ),
        f"input_shape must be {list(inputs.shape)}, the shape of an input": hashed(manifest)
        and manifest.get("input_shape") != list(inputs.shape),
        f"region must be one of {REGIONS}": manifest.get("region") not in REGIONS,
        "weights_sha256 must be that of the model": manifest.get("weights_sha256") != model.sha256,
        "spec.model must be that of the model": found.model != trained.model,
        "region must be that of spec.certify": manifest.get("region") != found.certify.region,
        "deployment must be that of spec.certify": deployment(manifest) != found.certify.deployment,
        "spec.data.normalize must be the mean and std in the weights": _normalized_otherwise(
            found, model
        ),
        # Float32 libraries may compute convolutions by transforms, for which no bound is stated.
        "deployment must be exact for a model with convolutions": trained.model.convolves
        and deployment(manifest) != "exact",
    }
    return [Finding(sentence=f"{text} in the manifest.") for text, bad in wrong.items() if bad]


def _normalized_otherwise(spec: Spec, model: Model) -> bool:
    """Whether `data.normalize` states other numbers than the first layer of the model has."""
    stated = spec.data.normalize
    if not isinstance(stated, Statistics):
        return stated is not None  # Numbers must be in place of `auto`.
    if not spec.model.normalize:
        return True
    # The first that are stored, rounded to the type of the weights.
    return not any(
        all(
            np.array_equal(np.array(numbers).astype(kind).astype(np.float64), own)
            for numbers, own in zip((stated.mean, stated.std), model.stored, strict=False)
        )
        for kind in (np.float64, np.float32, np.float16)
    )


def check_provenance(manifest: dict[str, Any], said: Provenance | None) -> list[Finding]:
    """Check what the manifest states about the weights against their own header."""
    if said is None:
        return []
    spec, own, stated = known(manifest["spec"]), said.training, manifest.get("training")
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


def check_spec(manifest: dict[str, Any], directory: Place) -> list[Finding]:
    """Check that a spec beside the manifest agrees with it in all that the rows depend on."""
    if not (directory / SPEC).is_file():
        return []
    beside, stated = read_spec(directory), known(manifest["spec"])
    return [
        Finding(sentence=f"{part} must be that of the manifest in certificates/{SPEC}.")
        for part in ("model", "data", "certify")
        if getattr(beside, part) != getattr(stated, part)
    ]


def deployment(manifest: dict[str, Any]) -> str:
    """The arithmetic for which radii are stated."""
    named = manifest.get("deployment", "exact")
    if not isinstance(named, str) or named not in DEPLOYMENTS:
        raise InvalidInput(f"deployment must be one of {sorted(DEPLOYMENTS)}, but got {named!r}")
    return str(named)


def stated_curvature(manifest: dict[str, Any], classes: int) -> np.ndarray:
    """The curvature of all margins, as a matrix (classes, classes)."""
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


def _same(stated: object, number: int) -> bool:
    """Whether `stated` is the integer `number`; true is not 1, and 3.0 is not 3."""
    return type(stated) is int and stated == number
