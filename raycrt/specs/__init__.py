"""Specs of runs: their sections, their strict YAML, and the comparison of two specs."""

from raycrt.specs.data import DataSpec
from raycrt.specs.record import Record
from raycrt.specs.search import Domain, SearchSpec
from raycrt.specs.sections import (
    AugmentationSpec,
    CertifySpec,
    ModelSpec,
    RunSpec,
    TrainSpec,
    WorkerRange,
)
from raycrt.specs.spec import Spec, parse_override, paths, validate
from raycrt.system.places.storage import Place, given

__all__ = [
    "AugmentationSpec",
    "CertifySpec",
    "DataSpec",
    "Domain",
    "ModelSpec",
    "Place",
    "Record",
    "RunSpec",
    "SearchSpec",
    "Spec",
    "TrainSpec",
    "WorkerRange",
    "given",
    "parse_override",
    "paths",
    "validate",
]
