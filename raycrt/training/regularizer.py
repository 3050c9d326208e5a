"""Differentiable curvature estimates that training penalises; never part of a certificate.

Singular vectors are kept as buffers and updated by one power step per use: weights change little
from step to step, so the vectors stay near their optimum at the cost of one product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raycrt.networks.network import Network

_START_STEPS = 10


class CurvatureEstimate(nn.Module):
    """Estimates of |W_I| and of the curvature m[y, t] for all pairs of classes, with gradients.

    `norms()` are estimates of the spectral norms, `bound(y, t)` is the closed form of the paper's
    Theorem 4, `margins()` the (classes, classes) matrix of the bound used by `crt-all`, which
    needs the vectors of all pairs of classes (`pairwise`).
    """

    def __init__(self, network: Network, *, pairwise: bool) -> None:
        super().__init__()
        self.pairwise = pairwise
        generator = torch.Generator().manual_seed(0)
        like = next(network.parameters())
        pairs = network.classes**2
        for index, layer in enumerate(network.layers[:-1]):
            count = pairs + 1 if pairwise else 1
            start = torch.randn(count, layer.in_features, generator=generator).to(like)
            self.register_buffer(f"vectors_{index}", nn.functional.normalize(start, dim=1))
        for _ in range(_START_STEPS):
            self.update(network)

    def _vectors(self, index: int) -> Tensor:
        return self.get_buffer(f"vectors_{index}")

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """One power step per vector towards the first eigenvector of its weighted Gram matrix."""
        weights = self._weights(network) if self.pairwise else None
        for index, layer in enumerate(network.layers[:-1]):
            vectors = self._vectors(index)
            image = layer.linear(vectors)
            if weights is not None:
                image[:-1] *= weights[index].flatten(0, 1)
            moved = layer.transpose(image)
            length = moved.norm(dim=1, keepdim=True)
            vectors.copy_(torch.where(length > 0, moved / length.clamp(min=1e-30), vectors))

    def norms(self, network: Network) -> list[Tensor]:
        """Estimates of |W_I| for the hidden layers, differentiable in the weights."""
        return [
            layer.linear(self._vectors(index)[-1]).norm()
            for index, layer in enumerate(network.layers[:-1])
        ]

    def margins(self, network: Network) -> Tensor:
        """m (classes, classes): estimates of the sum over layers of
        `lambda_max(W_I^T diag(p_I) W_I) (slope^(I-1) prod_{J<I} |W_J|)^2`."""
        assert self.pairwise, "curvature.margins needs pairwise = True"
        weights = self._weights(network)
        norms = self.norms(network)
        total = torch.zeros_like(weights[0][..., 0])
        lipschitz_before = torch.ones_like(norms[0])
        for index, layer in enumerate(network.layers[:-1]):
            image = layer.linear(self._vectors(index)[:-1])
            rayleigh = (weights[index].flatten(0, 1) * image.square()).sum(1)
            total = total + rayleigh.view_as(total) * lipschitz_before.square()
            slope = network.nonlinearities[index].slope_bound
            lipschitz_before = lipschitz_before * slope * norms[index]
        return total

    def _weights(self, network: Network) -> list[Tensor]:
        """p_I (classes, classes, width) >= -F_I s'', by interval propagation."""
        last = network.layers[-1].matrix()
        f_low = f_high = last[:, None] - last[None]
        weights: list[Tensor] = []
        for index in range(network.depth - 2, -1, -1):
            if weights:
                low_slope, high_slope = network.nonlinearities[index + 1].slope_ends(f_low)
                g_low = torch.minimum(low_slope * f_low, high_slope * f_low)
                g_high = torch.maximum(low_slope * f_high, high_slope * f_high)
                f_low, f_high = network.layers[index + 1].transpose_interval(g_low, g_high)
            low, high = network.nonlinearities[index].curvature_ends(f_low)
            negative = torch.maximum(-high * f_low, -low * f_high).clamp(min=0)
            weights.insert(0, negative)
        return weights

    def bound(self, network: Network, label: Tensor, target: Tensor) -> Tensor:
        """K(y, t) (n,), Theorem 4: `h sum_I r_I^2 max_j S_Ij` with `r_1 = |W_1|`,
        `r_I = g |W_I| r_{I-1}`, `S_{L-1} = |W_L[y] - W_L[t]|`, `S_I = g |W_{I+1}|^T S_{I+1}`, the
        maximum over the features that an activation acts on."""
        hidden = network.nonlinearities
        norms = self.norms(network)
        lipschitz = [norms[0]]
        for norm, before in zip(norms[1:], hidden, strict=False):
            lipschitz.append(before.slope_bound * norm * lipschitz[-1])
        last = network.layers[-1].matrix()
        influence = (last[label] - last[target]).abs()
        total = torch.zeros_like(influence[:, 0])
        for index in range(network.depth - 2, -1, -1):
            if index < network.depth - 2:
                above = network.layers[index + 1]
                influence = hidden[index + 1].slope_bound * above.transpose_absolute(influence)
            largest = influence[:, : hidden[index].active].amax(1)
            total = total + lipschitz[index].square() * largest
        return max(each.curvature_bound for each in hidden) * total
