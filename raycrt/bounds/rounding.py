"""A-priori bounds of the rounding errors of a computed margin and of its gradient.

A priori bounds by norms (Higham, Accuracy and Stability, ch. 3): a product with n terms, summed in
any order with or without fused multiply-add, has an error of at most `gamma(n)` times the product
of absolute values. Errors that enter a layer grow by its spectral norm; errors made in it by the
norm of its absolute values. All bounds are Euclidean, a number for each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.activations import ULPS
from raycrt.bounds.norms import norms
from raycrt.bounds.spectral import SLACK, gram_iteration_upper
from raycrt.networks.network import TORCH, Network


@dataclass(frozen=True, kw_only=True)
class FirstLayerError:
    """The errors of a first layer W = A B + R evaluated by products with A and B.

    `|A(Bx) - Wx| <= image |x| + lost`, and `|Aw - W B^T w| <= image |w| + lost`. Rounding apart,
    `|B^T(A^T v) - W^T v| <= pull |v| + lost`; sums of A^T v have `rows` terms, and `spread` bounds
    the spectral norm of A's absolute values. `share` bounds the errors of the products g.g, g.u and
    u.u, taken of A^T v and w, relative to the products of norms. The offset takes part in a sum of
    `terms` products.
    """

    share: float
    image: float = 0.0
    pull: float = 0.0
    spread: float | None = None
    rows: int = 0
    lost: float = 0.0
    terms: int = 0

    @staticmethod
    def plain(features: int) -> FirstLayerError:
        """Where the layer's own products are taken."""
        return FirstLayerError(share=(features + 8) * torch.finfo(torch.float64).eps)


@dataclass(frozen=True, kw_only=True)
class RoundingErrors:
    """What the error bounds need of a network, for each layer and of the activation.

    The last layer's offset is no part of `bias`. It is counted for each class, `offset` (classes,)
    and `raised` where that is not below 0: a huge one rounds in the logit of its class alone.
    """

    spectral: tuple[float, ...]
    magnitude: tuple[float, ...]
    bias: tuple[float, ...]
    offset: Tensor
    raised: Tensor
    terms: tuple[int, ...]
    backward_terms: tuple[int, ...]
    gains: tuple[float, ...]
    longest: int
    widths: tuple[int, ...]
    readout: float
    peak: float
    slope_bound: float
    curvature_bound: float
    at_zero: float

    @staticmethod
    def of(network: Network) -> RoundingErrors:
        network = network.in_float64()
        layers, last = network.layers, network.layers[-1]
        offset = norms(last).offset_magnitude_upper().cpu()
        zero = torch.zeros((), dtype=torch.float64)
        return RoundingErrors(
            # Errors need no tight norm: a few products do.
            spectral=tuple(
                float(gram_iteration_upper(layer.matrix())) + norms(layer).matrix_error_upper()
                if layer.dense
                else norms(layer).norm_upper()
                for layer in layers
            ),
            magnitude=tuple(norms(layer).magnitude_upper() for layer in layers),
            bias=(*(norms(layer).offset_norm_upper() for layer in layers[:-1]), 0.0),
            offset=offset,
            raised=offset.masked_fill(last.offset().cpu() < 0, 0.0),
            # A margin is also a product with a difference of rows of the last matrix.
            terms=(
                *(layer.terms for layer in layers[:-1]),
                max(last.terms, last.in_features) + 4,
            ),
            backward_terms=tuple(layer.transpose_terms for layer in layers),
            gains=tuple(norms(layer).gain_upper() for layer in layers),
            longest=max(network.features, *(layer.out_features for layer in layers)),
            widths=tuple(layer.out_features for layer in layers),
            readout=norms(last).matrix_error_upper(),
            # No entry of a difference of two rows is larger.
            peak=2 * (float(last.matrix().abs().max()) + norms(last).matrix_error_upper()),
            slope_bound=network.activation.slope_bound,
            curvature_bound=network.activation.curvature_bound,
            at_zero=abs(float(network.activation.value(zero, TORCH))),
        )

    def margin(
        self, input_norm: Tensor, dtype: torch.dtype, slack: FirstLayerError | None = None
    ) -> Tensor:
        """Bound of |computed margin - exact margin| for inputs of norm `input_norm` (n,), to which
        `offsets` adds."""
        return self.layers(input_norm, dtype, slack)[-1][0] * (math.sqrt(2) * SLACK)

    def offsets(self, dtype: torch.dtype) -> Tensor:
        """What the last layer's offset adds to `margin`, of each class against each (classes,
        classes); infinite where a sum may overflow.

        A target's logit that overflows downwards raises its margin, and is no error.
        """
        number = torch.finfo(dtype)
        error = _gamma(self.terms[-1] + 2, number.eps) * (self.offset[:, None] + self.offset)
        largest = torch.maximum(self.offset[:, None], self.raised)
        return torch.where(largest < number.max / 16, error * SLACK, torch.inf)

    def gradient(
        self, input_norm: Tensor, dtype: torch.dtype, slack: FirstLayerError | None = None
    ) -> Tensor:
        """Bound of |computed gradient of a margin - exact|_2 for inputs of norm `input_norm` (n,).

        `dtype` is the precision of both passes, `slack` how the first layer was evaluated. Rounding
        the weights and slopes to `dtype` is counted, and so is underflow.
        """
        depth = len(self.spectral)
        layers = self.layers(input_norm, dtype, slack)
        # In the last hidden layer the cotangent is a difference of two rows of the last matrix.
        error = torch.full_like(input_norm, self.readout_error(dtype))
        size = torch.full_like(input_norm, math.sqrt(2) * self.spectral[-1])
        for k in range(depth - 1, 0, -1):
            if k < depth - 1:
                error = self.through_layer(k, error, size, dtype)
                size = self.spectral[k] * size
            peak = self.peak if k == depth - 1 else size
            error = self.through_slopes(layers[k - 1][0], error, size, peak, dtype)
            size = self.slope_bound * size
        return self.at_input(error, size, dtype, slack)

    def hidden(
        self, input_norm: Tensor, dtype: torch.dtype, slack: FirstLayerError | None
    ) -> list[Tensor]:
        """Bounds of |computed z_k - exact z_k|_2 for hidden layers computed in float64 and then
        rounded to `dtype`; infinite where that may overflow."""
        number = torch.finfo(dtype)
        lost = number.smallest_normal * math.sqrt(self.longest)
        found = []
        for error, size in self.layers(input_norm, torch.float64, slack)[:-1]:
            reach = size + error
            rounded = error + number.eps * reach + lost
            found.append(torch.where(reach < number.max / 8, rounded, torch.inf))
        return found

    def pulled_back(
        self, sizes: Sequence[Tensor], hidden: Sequence[Tensor], dtype: torch.dtype
    ) -> Tensor:
        """Bounds (n, k) of the errors of k margins' gradients in z_1, pulled back in `dtype`.

        `sizes` bound the norms (n, k) of the cotangents on the way as they were computed: in the
        last hidden layer, and then before and after each matrix. The slopes were computed in
        `dtype`, from z_k with errors of at most `hidden[k]` (n, 1) as they were given.
        """
        # The weights were rounded to `dtype`, and so was the difference of two rows.
        error = torch.full_like(sizes[0], self.readout_error(dtype))
        left = iter(sizes)
        for k in range(len(self.spectral) - 2, -1, -1):
            size = next(left)
            peak = self.peak if k == len(self.spectral) - 2 else size
            error = self.through_slopes(hidden[k], error, size, peak, dtype)
            if k > 0:
                error = self.through_layer(k, error, next(left), dtype)
        return error * SLACK

    def at_input(
        self, error: Tensor, size: Tensor, dtype: torch.dtype, slack: FirstLayerError | None
    ) -> Tensor:
        """Bounds (n,) of the errors of gradients in the input, computed in `dtype` from gradients
        in z_1 whose errors are at most `error`; the norms of the exact ones, or of those computed,
        are at most `size`."""
        if slack is None or slack.spread is None:
            return self.through_layer(0, error, size, dtype) * SLACK
        number = torch.finfo(dtype)
        lost = number.smallest_normal * (slack.rows + 2) * math.sqrt(self.longest)
        local = _gamma(slack.rows + 2, number.eps) * slack.spread + slack.pull
        through = self.spectral[0] * error + local * (size + error)
        return (through + lost * (1 + size + error) + slack.lost) * SLACK

    def readout_error(self, dtype: torch.dtype) -> float:
        """Bound of the error of a margin's cotangent in the last hidden layer."""
        number = torch.finfo(dtype)
        lost = number.smallest_normal * math.sqrt(self.longest)
        return 2 * self.readout + 4 * number.eps * self.magnitude[-1] + 4 * lost

    def through_layer(self, k: int, error: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
        """Bound of the error of W_k^T c, computed in `dtype`, if the error of c is at most `error`
        and the norm of the exact or of the computed c at most `size`."""
        eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
        terms = self.backward_terms[k]
        lost = tiny * self.gains[k] * (terms + 2) * math.sqrt(self.longest)
        local = _gamma(terms + 2, eps) * self.magnitude[k]
        return self.spectral[k] * error + local * (size + error) + lost * (1 + size + error)

    def through_slopes(
        self,
        hidden: Tensor,
        error: Tensor,
        size: Tensor,
        peak: Tensor | float,
        dtype: torch.dtype,
    ) -> Tensor:
        """The same of s'(z) * c for a z in `dtype` whose error has at most the norm `hidden`.

        No entry of the exact c, or none of the computed one, is larger than `peak`.
        """
        number = torch.finfo(dtype)
        own = 16 * ULPS * number.eps * max(1.0, self.slope_bound)
        relative = own + 2 * number.eps * self.slope_bound + number.smallest_normal
        lost = number.smallest_normal * math.sqrt(self.longest)
        through = self.slope_bound * error + self.curvature_bound * hidden * (peak + error)
        return through + relative * (size + error) + lost

    def layers(
        self, input_norm: Tensor, dtype: torch.dtype, slack: FirstLayerError | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """For every layer bounds of |computed z_k - exact z_k|_2, infinite where z_k may overflow,
        and of |z_k|_2; of the last one without its offset.

        With `slack`, z_1 is computed by way of A and B, and may be the sum of what comes of two
        parts of the input whose norms add up to no more than `input_norm`. Each sum loses at most a
        smallest normal number a term to underflow, flushed to zero or not.
        """
        number = torch.finfo(dtype)
        eps, tiny, most = number.eps, number.smallest_normal, number.max / 8
        found = []
        size, error = input_norm, torch.zeros_like(input_norm)
        for k in range(len(self.spectral)):
            # Twice: an input may come in two parts.
            lost = 2 * tiny * self.gains[k] * (self.terms[k] + 2) * math.sqrt(self.longest)
            reach = self.magnitude[k] * (size + error) + self.bias[k]
            on_the_way = self.gains[k] * (1 + size + error)
            read = self.readout * (size + error) if k == len(self.spectral) - 1 else 0.0
            error = self.spectral[k] * error + _gamma(self.terms[k] + 2, eps) * reach
            # Rounding an entry of the weights down to nothing loses its product with the input.
            error = error + lost * (1 + size)
            error = error + read
            if k == 0 and slack is not None:
                moved = slack.image * input_norm + 2 * slack.lost
                # z_1 at an image takes part in the sums of a step from it.
                error = error + moved + 2 * _gamma(slack.terms + 4, eps) * (reach + moved)
                error = error + _gamma(slack.terms, eps) * self.bias[0]
            size = self.spectral[k] * size + self.bias[k]
            # A sharp softplus multiplies its argument by 4 sup s'' before anything else.
            largest = torch.maximum(torch.maximum(reach, size + error), on_the_way)
            # Weights that float32 does not hold make infinities of the smallest inputs.
            largest = largest.clamp(min=self.magnitude[k])
            within = largest * max(1.0, 4 * self.curvature_bound) < most
            error = torch.where(within, error, torch.inf)
            found.append((error, size))
            if k < len(self.spectral) - 1:
                width = math.sqrt(self.widths[k])
                value = self.slope_bound * (size + error) + self.at_zero * width
                error = self.slope_bound * error + ULPS * eps * (value + size) + 8 * tiny * width
                size = self.slope_bound * size + self.at_zero * width
        return found


def squares(v: Tensor) -> Tensor:
    """The sums (n,) of the squares of rows, as they come out in the type of `v`."""
    return torch.linalg.vecdot(v, v)


def root_upper(square: Tensor, terms: int) -> Tensor:
    """Bounds (n,), float64, of the norms of rows of `terms` numbers as they stand, from their
    `squares`, whatever rounds or underflows."""
    number = torch.finfo(square.dtype)
    above = square.double() * (1 + 2 * (terms + 4) * number.eps)
    return (above + terms * number.smallest_normal).sqrt() * (1 + 1e-12)


def _gamma(n: int, eps: float) -> float:
    return n * eps / (1 - n * eps) if n * eps < 0.5 else math.inf
