"""A-priori bounds on the rounding errors of a computed margin and its gradient.

The bounds are normwise (Higham, Accuracy and Stability, ch. 3): a product with n terms, summed in
any order with or without fused multiply-add, has an error of at most `gamma(n)` times the product
of absolute values. Incoming errors of a layer are amplified by its spectral norm; errors made in it
scale with the norm of its absolute values. All bounds are in the 2-norm, one number per row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.activations import slope_error, value_error
from raycrt.bounds.layers.norms import norms
from raycrt.bounds.spectral import SLACK, gram_iteration_upper
from raycrt.networks.network import Network


@dataclass(frozen=True, kw_only=True)
class FirstLayerError:
    """Errors of a first layer W = A B + R that is evaluated by products with A and B.

    `|A(Bx) - Wx| <= image |x| + lost`, and `|Aw - W B^T w| <= image |w| + lost`. Without rounding,
    `|B^T(A^T v) - W^T v| <= pull |v| + lost`; sums of A^T v have `rows` terms, and `spread` bounds
    the spectral norm of A's absolute values. `share` bounds the errors of g.g, g.u and u.u,
    computed from A^T v and w, relative to the products of norms. The offset is part of a sum of
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
        """The errors where products are computed with W itself."""
        return FirstLayerError(share=(features + 8) * torch.finfo(torch.float64).eps)


@dataclass(frozen=True, kw_only=True)
class RoundingErrors:
    """A-priori error bounds of a network, from constants of its layers and its activation.

    The last layer's offset is not part of `bias`. It is counted per class, in `offset` (classes,)
    and, where it is not below 0, in `raised`: a huge offset only rounds the logit of its class.
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
    slope_bound: tuple[float, ...]
    curvature_bound: tuple[float, ...]
    at_zero: tuple[float, ...]

    @staticmethod
    def of(network: Network) -> RoundingErrors:
        network = network.in_float64()
        layers, last = network.layers, network.layers[-1]
        offset = norms(last).offset_magnitude_upper().cpu()
        return RoundingErrors(
            # Error bounds need no tight norms, so a few products suffice.
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
            # A margin may also be a product with a difference of two rows of the last matrix.
            terms=(
                *(layer.terms for layer in layers[:-1]),
                max(last.terms, last.in_features) + 4,
            ),
            backward_terms=tuple(layer.transpose_terms for layer in layers),
            gains=tuple(norms(layer).gain_upper() for layer in layers),
            longest=max(network.features, *(layer.out_features for layer in layers)),
            widths=tuple(layer.out_features for layer in layers),
            readout=norms(last).matrix_error_upper(),
            # Upper bound on the entries of a difference of two rows.
            peak=2 * (float(last.matrix().abs().max()) + norms(last).matrix_error_upper()),
            slope_bound=tuple(each.slope_bound for each in network.nonlinearities),
            curvature_bound=tuple(each.curvature_bound for each in network.nonlinearities),
            at_zero=tuple(each.at_zero for each in network.nonlinearities),
        )

    def margin(
        self, input_norm: Tensor, dtype: torch.dtype, slack: FirstLayerError | None = None
    ) -> Tensor:
        """Upper bounds (n,) on |computed margin - exact margin| for inputs of norm `input_norm`
        (n,), without the `offsets`, which are to be added."""
        return self.layers(input_norm, dtype, slack)[-1][0] * (math.sqrt(2) * SLACK)

    def offsets(self, dtype: torch.dtype) -> Tensor:
        """What the last layer's offsets add to `margin`, for each pair of classes (classes,
        classes); infinite where a sum may overflow.

        Downward overflow of a target's logit only raises its margin and is not an error.
        """
        number = torch.finfo(dtype)
        error = _gamma(self.terms[-1] + 2, number.eps) * (self.offset[:, None] + self.offset)
        largest = torch.maximum(self.offset[:, None], self.raised)
        return torch.where(largest < number.max / 16, error * SLACK, torch.inf)

    def gradient(
        self, input_norm: Tensor, dtype: torch.dtype, slack: FirstLayerError | None = None
    ) -> Tensor:
        """Upper bounds (n,) on |computed gradient of a margin - exact|_2 for inputs of norm
        `input_norm` (n,).

        `dtype` is the precision of both passes, `slack` states how the first layer was evaluated.
        Rounding of weights and slopes to `dtype` and underflow are included.
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
            error = self.through_slopes(k - 1, layers[k - 1][0], error, size, peak, dtype)
            size = self.slope_bound[k - 1] * size
        return self.at_input(error, size, dtype, slack)

    def hidden(
        self, input_norm: Tensor, dtype: torch.dtype, slack: FirstLayerError | None
    ) -> list[Tensor]:
        """Upper bounds on |computed z_k - exact z_k|_2 for hidden layers computed in float64 and
        then rounded to `dtype`; infinite where that may overflow."""
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
        """Upper bounds (n, k) on the errors of k margins' gradients in z_1, pulled back in `dtype`.

        `sizes` bound the norms (n, k) of the computed cotangents: in the last hidden layer, then
        before and after each matrix. The slopes were computed in `dtype`, from given z_k whose
        errors are at most `hidden[k]` (n, 1).
        """
        # Both the weights and the difference of two rows were rounded to `dtype`.
        error = torch.full_like(sizes[0], self.readout_error(dtype))
        left = iter(sizes)
        for k in range(len(self.spectral) - 2, -1, -1):
            size = next(left)
            peak = self.peak if k == len(self.spectral) - 2 else size
            error = self.through_slopes(k, hidden[k], error, size, peak, dtype)
            if k > 0:
                error = self.through_layer(k, error, next(left), dtype)
        return error * SLACK

    def at_input(
        self, error: Tensor, size: Tensor, dtype: torch.dtype, slack: FirstLayerError | None
    ) -> Tensor:
        """Upper bounds (n,) on the errors of gradients in the input, computed in `dtype` from
        gradients in z_1 whose errors are at most `error` and whose exact or computed norms are at
        most `size`."""
        if slack is None or slack.spread is None:
            return self.through_layer(0, error, size, dtype) * SLACK
        number = torch.finfo(dtype)
        lost = number.smallest_normal * (slack.rows + 2) * math.sqrt(self.longest)
        local = _gamma(slack.rows + 2, number.eps) * slack.spread + slack.pull
        through = self.spectral[0] * error + local * (size + error)
        return (through + lost * (1 + size + error) + slack.lost) * SLACK

    def readout_error(self, dtype: torch.dtype) -> float:
        """Upper bound on the error of a margin's cotangent in the last hidden layer."""
        number = torch.finfo(dtype)
        lost = number.smallest_normal * math.sqrt(self.longest)
        return 2 * self.readout + 4 * number.eps * self.magnitude[-1] + 4 * lost

    def through_layer(self, k: int, error: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
        """Upper bound on the error of W_k^T c, computed in `dtype`, if the error of c is at most
        `error` and the norm of the exact or the computed c is at most `size`."""
        eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
        terms = self.backward_terms[k]
        lost = tiny * self.gains[k] * (terms + 2) * math.sqrt(self.longest)
        local = _gamma(terms + 2, eps) * self.magnitude[k]
        return self.spectral[k] * error + local * (size + error) + lost * (1 + size + error)

    def through_slopes(
        self,
        k: int,
        hidden: Tensor,
        error: Tensor,
        size: Tensor,
        peak: Tensor | float,
        dtype: torch.dtype,
    ) -> Tensor:
        """The bound of `through_layer` for s'(z_k) * c, where the error of z_k, in `dtype`, has a
        norm of at most `hidden`.

        Either no entry of the exact c or no entry of the computed c exceeds `peak`.
        """
        number = torch.finfo(dtype)
        slope, curvature = self.slope_bound[k], self.curvature_bound[k]
        relative = slope_error(slope, number.eps) + 2 * number.eps * slope + number.smallest_normal
        lost = number.smallest_normal * math.sqrt(self.longest)
        through = slope * error + curvature * hidden * (peak + error)
        return through + relative * (size + error) + lost

    def layers(
        self, input_norm: Tensor, dtype: torch.dtype, slack: FirstLayerError | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """For every layer, upper bounds on |computed z_k - exact z_k|_2, infinite where z_k may
        overflow, and on |z_k|_2; for the last layer without its offset.

        With `slack`, z_1 is computed through A and B, and may be the sum of the images of two
        parts of the input whose norms add up to at most `input_norm`. Each sum loses at most one
        smallest normal number per term to underflow, flushed to zero or not.
        """
        number = torch.finfo(dtype)
        eps, tiny, most = number.eps, number.smallest_normal, number.max / 8
        found = []
        size, error = input_norm, torch.zeros_like(input_norm)
        for k in range(len(self.spectral)):
            # Counted twice, as an input may come in two parts.
            lost = 2 * tiny * self.gains[k] * (self.terms[k] + 2) * math.sqrt(self.longest)
            reach = self.magnitude[k] * (size + error) + self.bias[k]
            on_the_way = self.gains[k] * (1 + size + error)
            read = self.readout * (size + error) if k == len(self.spectral) - 1 else 0.0
            error = self.spectral[k] * error + _gamma(self.terms[k] + 2, eps) * reach
            # A weight that underflows to zero when rounded loses its product with the input.
            error = error + lost * (1 + size)
            error = error + read
            if k == 0 and slack is not None:
                moved = slack.image * input_norm + 2 * slack.lost
                # z_1 at an image is a term in the sums for a step from it.
                error = error + moved + 2 * _gamma(slack.terms + 4, eps) * (reach + moved)
                error = error + _gamma(slack.terms, eps) * self.bias[0]
            size = self.spectral[k] * size + self.bias[k]
            # A sharp softplus multiplies its argument by 4 sup s'' before anything else.
            largest = torch.maximum(torch.maximum(reach, size + error), on_the_way)
            # Weights outside the float32 range turn even the smallest inputs into infinities.
            largest = largest.clamp(min=self.magnitude[k])
            within = largest * max(1.0, 4 * max(self.curvature_bound)) < most
            error = torch.where(within, error, torch.inf)
            found.append((error, size))
            if k < len(self.spectral) - 1:
                slope, at_zero = self.slope_bound[k], self.at_zero[k]
                value = slope * (size + error) + at_zero
                lost = 8 * tiny * math.sqrt(self.widths[k])
                error = slope * error + value_error(value, size, eps) + lost
                size = slope * size + at_zero
        return found


def squares(v: Tensor) -> Tensor:
    """The sums of squares (n,) of the rows of `v`, computed in its type."""
    return torch.linalg.vecdot(v, v)


def root_upper(square: Tensor, terms: int) -> Tensor:
    """Upper bounds (n,), in float64, on the norms of rows of `terms` numbers, from their computed
    `squares`, including all rounding and underflow."""
    number = torch.finfo(square.dtype)
    above = square.double() * (1 + 2 * (terms + 4) * number.eps)
    return (above + terms * number.smallest_normal).sqrt() * (1 + 1e-12)


def _gamma(n: int, eps: float) -> float:
    return n * eps / (1 - n * eps) if n * eps < 0.5 else math.inf
