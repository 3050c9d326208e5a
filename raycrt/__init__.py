"""Classifiers with a proved l2 radius for every image.

>>> import raycrt
>>> found = raycrt.certify(model, images)      # proves the curvature of every margin, once
>>> found.radius, found.prediction, found.binding, found.status

A name is imported when it is first used, so that `raycrt.verify` loads neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raycrt.errors import InvalidInput
from raycrt.system import extras

if TYPE_CHECKING:
    from raycrt import verify
    from raycrt.api.certification import attack, certify
    from raycrt.api.evidence import save
    from raycrt.api.training import train
    from raycrt.certification.certificate import Certificates, Status
    from raycrt.certification.certifier import Certifier
    from raycrt.evaluation.attacks import Adversarial
    from raycrt.foreign.files import load
    from raycrt.foreign.modules.elementwise import Elementwise
    from raycrt.foreign.modules.reader import as_network
    from raycrt.networks.network import Network

__version__ = "0.1.0"

__all__ = [
    "Adversarial",
    "Certificates",
    "Certifier",
    "Elementwise",
    "InvalidInput",
    "Network",
    "Status",
    "__version__",
    "as_network",
    "attack",
    "certify",
    "load",
    "save",
    "train",
    "verify",
]

_PLACES = {
    "Adversarial": "evaluation.attacks",
    "Certificates": "certification.certificate",
    "Certifier": "certification.certifier",
    "Elementwise": "foreign.modules.elementwise",
    "Network": "networks.network",
    "Status": "certification.certificate",
    "as_network": "foreign.modules.reader",
    "attack": "api.certification",
    "certify": "api.certification",
    "load": "foreign.files",
    "save": "api.evidence",
    "train": "api.training",
}


def __getattr__(name: str) -> Any:
    if name == "verify":
        return importlib.import_module("raycrt.verify")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    except ModuleNotFoundError as error:
        said = extras.lacking(error)
        if said is None:
            raise
        raise ModuleNotFoundError(f"raycrt.{name}: {said}", name=error.name) from None
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
