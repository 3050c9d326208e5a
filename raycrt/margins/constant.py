"""Margins that take the same value at every input, whatever that value is.

A margin depends on the input only through the neurons of the last hidden layer that the input
reaches via nonzero weights, and only through those where the rows of its two classes differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raycrt.bounds.layers.norms import norms
from raycrt.networks.layers.affine import AffineMap, links_of
from raycrt.networks.network import Network


def constant_margins(network: Network) -> Tensor:
    """Mask (classes, classes) of margins proved independent of the input; False where unknown.

    Nothing is known about a map whose matrix is not formed, or is rounded.
    """
    *below, last = links_of(network.in_float64().layers)
    reached = torch.ones(network.features, dtype=torch.bool, device=last.offset().device)
    for link in below:
        if _known(link):
            reached = (link.matrix()[:, reached] != 0).any(1)
        else:
            reached = reached.any().expand(link.out_features)
    if not reached.any():
        return torch.ones(network.classes, network.classes, dtype=torch.bool, device=reached.device)
    if not _known(last):
        return torch.eye(network.classes, dtype=torch.bool, device=reached.device)
    # Adding 0.0 makes zeros of either sign equal.
    _, kind = (last.matrix()[:, reached] + 0.0).unique(dim=0, return_inverse=True)
    return kind[:, None] == kind


def _known(link: AffineMap) -> bool:
    return link.dense and norms(link).matrix_error_upper() == 0
