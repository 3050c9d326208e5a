"""Training objectives: a family of losses over rows, one file for each.

Every file in this folder is imported here, so that adding a file adds an objective.
"""

from __future__ import annotations

import importlib
import pkgutil

from raycrt.networks.network import Network
from raycrt.specs import TrainSpec
from raycrt.training.folding.subspace import Subspace
from raycrt.training.objectives.objective import OBJECTIVES, Losses, Objective

__all__ = ["OBJECTIVES", "Losses", "Objective", "build"]

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")


def build(network: Network, spec: TrainSpec, subspace: Subspace | None = None) -> Objective:
    """The objective that `spec` names, around `network`."""
    return OBJECTIVES[spec.objective](network, spec, subspace)
