"""What a run is: its spec, the rules of its YAML, and when two specs state the same run."""

from raycrt.spec.record import Record
from raycrt.spec.search import Domain, SearchSpec
from raycrt.spec.sections import (
    AugmentationSpec,
    CertifySpec,
    DataSpec,
    ModelSpec,
    RunSpec,
    Spec,
    TrainSpec,
    parse_override,
    paths,
    validate,
)

__all__ = [
    "AugmentationSpec",
    "CertifySpec",
    "DataSpec",
    "Domain",
    "ModelSpec",
    "Record",
    "RunSpec",
    "SearchSpec",
    "Spec",
    "TrainSpec",
    "parse_override",
    "paths",
    "validate",
]
