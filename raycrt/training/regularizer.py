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
    """Estimates of |W_I| or of the curvature m[y, t] for all pairs of classes, with gradients.

    `norms()` are estimates of the spectral norms, `bound(y, t)` is the closed form of the paper's
    Theorem 4. With `pairwise` there are vectors for all pairs of classes and for products of
    layers instead: `margins()` is the (classes, classes) matrix of the bound used by `crt-all`.
    """

    def __init__(self, network: Network, *, pairwise: bool) -> None:
        super().__init__()
        self.pairwise = pairwise
        generator = torch.Generator().manual_seed(0)
        like = next(network.parameters())
        count = network.classes**2 + 1 if pairwise else 1
        for k in range(network.depth - 1):
            for j in self._starts(k):
                size = network.layers[j].in_features
                start = torch.randn(count, size, generator=generator).to(like)
                self.register_buffer(f"vectors_{k}_{j}", nn.functional.normalize(start, dim=1))
        for _ in range(_START_STEPS):
            self.update(network)

    def _starts(self, k: int) -> range:
        """The layers j for which products W_k ... W_j are estimated."""
        return range(k + 1) if self.pairwise else range(k, k + 1)

    def _vectors(self, k: int, j: int) -> Tensor:
        return self.get_buffer(f"vectors_{k}_{j}")

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """One power step per vector towards the first eigenvector of its weighted Gram matrix."""
        weights = self._acting_weights(network) if self.pairwise else None
        for k in range(network.depth - 1):
            for j in self._starts(k):
                vectors = self._vectors(k, j)
                image = _image(network, vectors, k, j, masked=self.pairwise)
                if weights is not None:
                    image *= weights[k]
                moved = _pulled_back(network, image, k, j, masked=self.pairwise)
                length = moved.norm(dim=1, keepdim=True)
                vectors.copy_(torch.where(length > 0, moved / length.clamp(min=1e-30), vectors))

    def norms(self, network: Network) -> list[Tensor]:
        """Estimates of |W_I| for the hidden layers, differentiable in the weights."""
        assert not self.pairwise, "curvature.bound needs pairwise = False"
        return [
            layer.linear(self._vectors(k, k)[-1]).norm()
            for k, layer in enumerate(network.layers[:-1])
        ]

    def margins(self, network: Network) -> Tensor:
        """m (classes, classes): estimates of what the certifier proves by averaged operators
        (`raycrt.bounds.global_curvature`), the sum over layers of `|diag(p_k)^(1/2) J_k|^2` with
        `|A J_k| <= |A C_k0| + sum_j dev |A C_k,j+1| Lip(z_j)`."""
        assert self.pairwise, "curvature.margins needs pairwise = True"
        lipschitz: list[Tensor] = []
        total = torch.zeros(network.classes**2).to(self._vectors(0, 0))
        for k, weights in enumerate(self._acting_weights(network)):
            through = self._squared(network, weights, k, 0)
            if k > 0:
                root = _root(through)
                for j, before in enumerate(lipschitz):
                    low, high = network.nonlinearities[j].activation.slope_range
                    after = _root(self._squared(network, weights, k, j + 1))
                    root = root + (high - low) / 2 * after * before
                through = root.square()
            total = total + through[:-1]
            lipschitz.append(_root(through[-1]))
        return total.view(network.classes, network.classes)

    def _squared(self, network: Network, weights: Tensor, k: int, j: int) -> Tensor:
        """Estimates (pairs + 1,) of `|diag(weights)^(1/2) C_kj|^2`."""
        image = _image(network, self._vectors(k, j), k, j, masked=True)
        return (weights * image.square()).sum(1)

    def _acting_weights(self, network: Network) -> list[Tensor]:
        """For each hidden layer the weights p_k (pairs, width) and, in a last row, 1 for the
        features that its activation acts on."""
        return [
            torch.cat([each.flatten(0, 1), nonlinearity.acts(each)[None]])
            for each, nonlinearity in zip(
                self._weights(network), network.nonlinearities, strict=True
            )
        ]

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


def _middle(network: Network, k: int, like: Tensor) -> Tensor:
    """The midpoints (width,) of the slopes between layers k and k + 1."""
    low, high = network.nonlinearities[k].slope_ends(like)
    return (low + high) / 2


def _image(network: Network, vectors: Tensor, k: int, j: int, *, masked: bool) -> Tensor:
    """`C_kj v`, `C_kj = W_k mid W_{k-1} ... mid W_j`, of vectors (n, in_features of layer j); if
    `masked`, of their entries alone that the activation before layer j acts on."""
    if masked and j > 0:
        vectors = vectors * network.nonlinearities[j - 1].acts(vectors)
    image = network.layers[j].linear(vectors)
    for between in range(j, k):
        image = network.layers[between + 1].linear(image * _middle(network, between, image))
    return image


def _pulled_back(network: Network, image: Tensor, k: int, j: int, *, masked: bool) -> Tensor:
    """The transpose of `_image`, of vectors (n, out_features of layer k)."""
    for between in range(k - 1, j - 1, -1):
        image = network.layers[between + 1].transpose(image)
        image = image * _middle(network, between, image)
    vectors = network.layers[j].transpose(image)
    return vectors * network.nonlinearities[j - 1].acts(vectors) if masked and j > 0 else vectors


def _root(squared: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    return squared.clamp(min=1e-24).sqrt()
