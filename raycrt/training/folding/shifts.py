"""The mean of a network over small shifts of the image, as one wider network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from raycrt.networks.network import Network
from raycrt.training.folding.dense import dense

# Up or down, and left or right.
SHIFTS = 4


@torch.no_grad()
def averaged(network: Network, shape: Sequence[int], pixels: int) -> Network:
    """`x -> (g(S_1 x) + ... + g(S_4 x)) / 4` of the `network` g, a chain of dense layers.

    The S_k shift images of `shape` (channels, height, width) by `pixels`, which is less than both
    sides, up or down and left or right, with zeros where nothing comes from. With V the last matrix
    of g, the layers are

        [W_1 S_1; ...; W_1 S_4],    diag(W_i, W_i, W_i, W_i) in the middle,    [V V V V] / 4,

    and as |S_k| <= 1, the curvature of a margin is at most that of g.
    """
    like = next(network.parameters())
    first, *middle, last = network.layers
    rows, bias = first.matrix().view(-1, *shape), first.offset()
    padded, starts = F.pad(rows, (pixels,) * 4), (0, 2 * pixels)
    moved = [
        padded[..., top : top + shape[1], left : left + shape[2]].flatten(1)
        for top in starts
        for left in starts
    ]
    maps = [
        dense(torch.cat(moved), bias.repeat(SHIFTS), like),
        *(
            dense(torch.block_diag(*[each.matrix()] * SHIFTS), each.offset().repeat(SHIFTS), like)
            for each in middle
        ),
        dense(last.matrix().repeat(1, SHIFTS) / SHIFTS, last.offset(), like),
    ]
    wider = [
        replace(each, active=SHIFTS * each.active, width=SHIFTS * each.width)
        for each in network.nonlinearities
    ]
    return Network(maps, wider).requires_grad_(like.requires_grad)
