"""An activation as a torch module, for models written as `torch.nn.Sequential`."""

from __future__ import annotations

from torch import Tensor, nn

from raycrt.activations import Activation, activation, check
from raycrt.networks.nonlinearity import TORCH


class Elementwise(nn.Module):
    """Applies one of `raycrt.activations`, by name or as a record, to every entry.

    It makes modules of arctan, of erf, and of softplus without torch's threshold.
    """

    def __init__(self, kind: str | Activation) -> None:
        super().__init__()
        if isinstance(kind, Activation):
            check(kind)
        self.activation = kind if isinstance(kind, Activation) else activation(kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation.value(x, TORCH)
