"""The enclosure of a network on a ball, layer by layer, and lower bounds on its margins there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.enclosure.forms import Forms
from raycrt.bounds.enclosure.quadratics import Quadratics, fit
from raycrt.bounds.layers.norms import formed, norms
from raycrt.bounds.spectral import EPS, SLACK, gamma
from raycrt.networks.network import Network

# An error of this multiple of |J| R counts as large: (t + e)^2 >= 0 then bounds its square.
_LARGE = 0.5
# What one number may lose to underflow: the root of the smallest normal number, and room for the
# sums that it is part of.
_UNDERFLOW = 1e-140
# More than a length loses to underflow of its squares.
_NOTHING = 1e-140


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A hidden layer on the ball: `z = centre + jacobian u + e` with `|e| <= error`, and the
    `quadratics` of its activation. `spread` >= |z - centre|, `size` bounds the features' values,
    `rounding` the part of e that arises in this layer, and `left` what the quadratics add to
    `slope jacobian u`; all (width,)."""

    centre: Tensor
    jacobian: Tensor
    lengths: Tensor
    error: Tensor
    spread: Tensor
    quadratics: Quadratics
    size: Tensor
    rounding: Tensor
    left: Tensor


@dataclass(frozen=True, kw_only=True)
class NetworkEnclosure:
    """Enclosures of one network on balls, in float64; rounding is part of every error."""

    network: Network
    matrices: list[Tensor]
    offsets: list[Tensor]
    matrix_errors: list[float]
    offset_errors: list[Tensor]
    gain: float

    @staticmethod
    def of(network: Network) -> NetworkEnclosure:
        """Raises `InvalidInput` if the matrix of a layer is too large to be formed."""
        network = network.in_float64()
        matrices, matrix_errors = formed(network.layers)
        return NetworkEnclosure(
            network=network,
            matrices=matrices,
            offsets=[layer.offset() for layer in network.layers],
            matrix_errors=matrix_errors,
            offset_errors=[
                norms(layer).offset_magnitude_upper().to(network.device) * gamma(layer.terms + 4)
                for layer in network.layers
            ],
            gain=_gain(network),
        )

    def jacobians(self, x: Tensor) -> list[Tensor]:
        """The Jacobians (width, features) of every layer at x (features,), computed."""
        z, found = self.network.layers[0](x), [self.matrices[0]]
        for layer, matrix, nonlinearity in zip(
            self.network.layers[1:], self.matrices[1:], self.network.nonlinearities, strict=True
        ):
            found.append((matrix * nonlinearity.slope(z)) @ found[-1])
            z = layer(nonlinearity.value(z))
        return found

    def floors(
        self, x: Tensor, radius: float, label: int, targets: Tensor, directions: Tensor
    ) -> Tensor:
        """Lower bounds (k,) on the margins of `label` against `targets` (k,) at every input within
        `radius` of x (features,), in exact arithmetic; minus infinity where nothing is proved.

        `directions` (features, p) are orthonormal up to rounding. Any are sound; the bounds are
        tight for those in which the `jacobians` at x are long (`forms.leading_directions`).
        """
        layers, forms = self.layers(x, radius, directions)
        row = self.matrices[-1][label] - self.matrices[-1][targets]
        offset = self.offsets[-1][label] - self.offsets[-1][targets]
        errors = self.offset_errors[-1]
        offset_error = errors[label] + errors[targets] + 2 * EPS * offset.abs()
        known = self._above(layers, row, offset, offset_error, 2 * self.matrix_errors[-1])
        ball = _Ball(layers, forms, known.chain, radius)
        error = ball.squares() + ball.products()[1] + known.noise
        found = known.centre - (radius * known.lengths + error) * SLACK
        found = found - 4 * EPS * known.centre.abs() - self._lost(x, radius)
        return found.nan_to_num(nan=-torch.inf, posinf=-torch.inf)

    def _lost(self, x: Tensor, radius: float) -> float:
        """What underflow may take from any number: no number here exceeds the square of the gain
        from an input of the ball to the logits, nor is any multiplied by more afterwards."""
        reach = float(torch.linalg.vector_norm(x)) + radius
        first = float(torch.linalg.vector_norm(self.matrices[0])) * reach
        largest = self.gain * (1 + first)
        return _UNDERFLOW * largest * largest * largest * largest

    def layers(self, x: Tensor, radius: float, directions: Tensor) -> tuple[list[Layer], Forms]:
        """The enclosures of all hidden layers on the ball, and the forms of all their rows."""
        lost = self._lost(x, radius)
        layers: list[Layer] = []
        forms = Forms.along(directions)
        for k, matrix in enumerate(self.matrices[:-1]):
            if k == 0:
                known = self._first(x, radius)
                error = known.noise
            else:
                known = self._above(
                    layers, matrix, self.offsets[k], self.offset_errors[k], self.matrix_errors[k]
                )
                ball = _Ball(layers, forms, known.chain, radius)
                products = torch.maximum(*ball.products())
                error = (ball.squares() + products + known.noise) * SLACK
            error = error + lost
            spread = (known.lengths * radius + error) * SLACK
            edge = spread + 4 * EPS * known.centre.abs()
            quadratics = fit(
                self.network.nonlinearities[k],
                known.centre,
                known.centre - edge,
                known.centre + edge,
            )
            bent = quadratics.bend.abs() * spread.square() + quadratics.rest
            steep = quadratics.slope.abs()
            layers.append(
                Layer(
                    centre=known.centre,
                    jacobian=known.jacobian,
                    lengths=known.lengths,
                    error=error,
                    spread=spread,
                    quadratics=quadratics,
                    size=(quadratics.value.abs() + steep * spread + bent) * SLACK,
                    rounding=known.rounding + lost,
                    left=(steep * error + bent) * SLACK,
                )
            )
            forms = forms.joined_by(known.jacobian, known.lengths)
        return layers, forms

    def _first(self, x: Tensor, radius: float) -> _Known:
        """The first layer, which is affine in u."""
        matrix, offset = self.matrices[0], self.offsets[0]
        lengths = _lengths(matrix)
        terms = matrix.abs() @ x.abs() + offset.abs()
        reach = float(torch.linalg.vector_norm(x)) * SLACK + radius
        rounding = gamma(len(x) + 8) * terms + self.offset_errors[0] + self.matrix_errors[0] * reach
        rounding = rounding * SLACK
        return _Known(
            centre=matrix @ x + offset,
            jacobian=matrix,
            lengths=lengths,
            chain=[],
            rounding=rounding,
            noise=rounding,
        )

    def _above(
        self,
        layers: list[Layer],
        matrix: Tensor,
        offset: Tensor,
        offset_error: Tensor,
        matrix_error: float,
    ) -> _Known:
        """What an affine map of the features of the last of `layers` is known to be."""
        last = layers[-1]
        centre = matrix @ last.quadratics.value + offset
        jacobian = (matrix * last.quadratics.slope) @ last.jacobian
        length = float(torch.linalg.vector_norm(last.size)) * SLACK
        rounding = 2 * gamma(matrix.shape[1] + 8) * (matrix.abs() @ last.size + offset.abs())
        rounding = (rounding + offset_error + matrix_error * length) * SLACK
        chain, noise = [matrix], rounding + matrix.abs() @ last.quadratics.rest
        noise = noise + (matrix * last.quadratics.slope).abs() @ last.rounding
        for k in range(len(layers) - 2, -1, -1):
            layer, weight = layers[k], self.matrices[k + 1]
            above = chain[0] * layers[k + 1].quadratics.slope
            chain.insert(0, above @ weight)
            # The rounding of this product meets all that the layer's features add to its Jacobian.
            lost = above.abs() @ (weight.abs() @ layer.left)
            noise = noise + 2 * gamma(len(weight) + 4) * lost
            size = chain[0].abs()
            noise = noise + size @ layer.quadratics.rest
            noise = noise + size @ (layer.quadratics.slope.abs() * layer.rounding)
        return _Known(
            centre=centre,
            jacobian=jacobian,
            lengths=_lengths(jacobian),
            chain=chain,
            rounding=rounding,
            noise=noise * SLACK,
        )


def _gain(network: Network) -> float:
    """A number >= 1 and >= the amplification of anything by some of the layers in a row but the
    first, offsets included."""
    sizes = [float(torch.linalg.vector_norm(layer.matrix())) for layer in network.layers[1:]]
    sizes += [float(torch.linalg.vector_norm(layer.offset())) for layer in network.layers]
    for each in network.nonlinearities:
        sizes.append(each.slope_bound + each.curvature_bound + each.at_zero)
    return math.prod(1 + size for size in sizes)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """An affine map of features: its `centre`, its `jacobian` with the `lengths` of its rows, the
    `chain` of products down to each layer, the `rounding` of its own, and the `noise`, all terms
    of its error but the quadratic ones."""

    centre: Tensor
    jacobian: Tensor
    lengths: Tensor
    chain: list[Tensor]
    rounding: Tensor
    noise: Tensor


class _Ball:
    """Bounds on the quadratic terms `sum_l w_l (t_l + e_l)^2` of errors, with t = J u."""

    def __init__(
        self, layers: list[Layer], forms: Forms, chain: list[Tensor], radius: float
    ) -> None:
        bends = torch.cat([layer.quadratics.bend for layer in layers])
        self.radius, self.layers, self.forms = radius, layers, forms
        self.weights = torch.cat(chain, 1) * bends

    def squares(self) -> Tensor:
        """Numbers (k,) >= |sum_l w_l t_l^2|."""
        return self.forms.norms(self.weights) * self.radius * self.radius * SLACK

    def products(self) -> tuple[Tensor, Tensor]:
        """Numbers (k,) >= sum_l w_l (2 t_l e_l + e_l^2), and such numbers for -w.

        With w >= 0 a term is at most `w (2 |t| |e| + e^2)`, and at least `-2 w |t| |e|` and
        `-w t^2`, as its sum with w t^2 is a square: what is less where e is large.
        """
        above = below = torch.zeros_like(self.weights[:, 0])
        start = 0
        for k, layer in enumerate(self.layers):
            weights = self.weights[:, start : start + len(layer.centre)]
            start += len(layer.centre)
            up, down = weights.clamp(min=0), (-weights).clamp(min=0)
            large = layer.error > _LARGE * self.radius * layer.lengths
            if bool(large.any()):
                above = above + self._mixed(k, up + down * ~large) + self._whole(k, down * large)
                below = below + self._mixed(k, down + up * ~large) + self._whole(k, up * large)
            else:
                mixed = self._mixed(k, up + down)
                above, below = above + mixed, below + mixed
            square = layer.error.square()
            above, below = above + up @ square, below + down @ square
        room = SLACK * (1 + 2 * gamma(4))
        return above * room, below * room

    def _mixed(self, k: int, weights: Tensor) -> Tensor:
        """Numbers (k,) >= sum_l 2 w_l |t_l| |e_l| over the neurons of layer k, for `weights` >= 0.

        Cauchy and Schwarz: sum b |t| <= (sum b |J| * sum b / |J| t^2)^(1/2).
        """
        layer = self.layers[k]
        linear = 2 * layer.error * weights
        form = self.forms.norms_of_positive(linear / layer.lengths, k)
        return (linear @ layer.lengths * form).sqrt() * self.radius

    def _whole(self, k: int, weights: Tensor) -> Tensor:
        """Numbers (k,) >= sum_l w_l t_l^2 over the neurons of layer k, for `weights` >= 0."""
        return self.forms.norms_of_positive(weights, k) * self.radius * self.radius


def _lengths(rows: Tensor) -> Tensor:
    """Numbers > 0, at least the norms of `rows` (m, features)."""
    return torch.linalg.vector_norm(rows, dim=1) * SLACK + _NOTHING
