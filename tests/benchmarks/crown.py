"""Radii by CROWN as auto_LiRPA 0.3 computes it, to compare enclosures with.

That release asks for torch below 1.13 and imports names that have moved since. So it is installed
without what it asks for, `pip install --no-deps auto_LiRPA appdirs`, and the names are put back
before the import. It knows sigmoid, tanh and arctan.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# The radius is bisected until the ends differ by this share.
_CLOSE = 1e-3
_GROWTH, _MOST = 2.0, 64.0


def installed() -> bool:
    return importlib.util.find_spec("auto_LiRPA") is not None


class Arctan(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.arctan(z)


def _auto_lirpa() -> Any:
    """The package, with the names of numpy and torch that it was written for."""
    from torch.onnx._internal.torchscript_exporter._globals import GLOBALS

    moved = types.ModuleType("numpy.lib.arraysetops")
    moved.isin = np.isin  # type: ignore[attr-defined]
    sys.modules.setdefault("numpy.lib.arraysetops", moved)
    helper = importlib.import_module("torch.onnx.symbolic_helper")
    helper._set_opset_version = lambda version: setattr(  # type: ignore[attr-defined]
        GLOBALS, "export_onnx_opset_version", version
    )
    torch._C.Node.__getitem__ = lambda self, key: getattr(self, self.kindOf(key))(key)
    import auto_LiRPA

    return auto_LiRPA


class Crown:
    """CROWN's certificates of a `model` of flat inputs (n, features), one image at a time."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.package, self.model = _auto_lirpa(), model
        self.bounded = self.package.BoundedModule(model, images[:1], verbose=0)

    def radius(self, image: Tensor) -> float:
        """The largest l2 radius (to 0.1 %) on which all margins of `image` (features,) are
        bounded below by a positive number."""
        with torch.no_grad():
            logits = self.model(image[None])[0]
        label, eye = int(logits.argmax()), torch.eye(len(logits))
        margins = (eye[label] - eye)[torch.arange(len(logits)) != label][None]
        low, high = 0.0, 1.0 / _GROWTH
        while high < _MOST and self._proves(image, margins, high):
            low, high = high, high * _GROWTH
        if low == 0.0:
            low = high
            while low > 0 and not self._proves(image, margins, low):
                low, high = (low / _GROWTH, low) if low > 1e-9 else (0.0, low)
        while high > low * (1 + _CLOSE) and low > 0:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self._proves(image, margins, middle) else (low, middle)
        return low

    def _proves(self, image: Tensor, margins: Tensor, radius: float) -> bool:
        around = self.package.PerturbationLpNorm(norm=2, eps=radius)
        x = self.package.BoundedTensor(image[None], around)
        floors, _ = self.bounded.compute_bounds(
            x=(x,), C=margins, method="backward", bound_upper=False
        )
        return bool(floors.min() > 0)
