"""Radii raised by enclosures of the layers on a ball around the image.

An enclosure proves that all margins of an image are positive on a ball, or nothing. The largest
such ball is searched, or the stated one is decided. Curvature multiplies the norms of all layers,
so from a few layers on an enclosure proves much more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.enclosure import NetworkEnclosure, leading_directions
from raycrt.margins.images import Margins
from raycrt.margins.proofs.proof import ROUND_DOWN, RadiusProof
from raycrt.margins.tolerances import Tolerances

# The first ball that is tried, as a share of the distance at which a linear margin would vanish.
_FIRST = 0.1
# The power of the radius with which what an enclosure loses is expected to grow at first; powers
# that are seen count within the limits.
_POWER, _POWERS = 3.0, (1.0, 30.0)
# On balls that are far too large everything is saturated, and less is seen than this power.
_LEAST_POWER = 2.5
# The next ball is to use this share of the margin, and is at most this factor from the last. Where
# it is not between a ball that holds and one that does not, the middle of these is tried.
_AIM, _FACTOR = 0.99, 8.0
# Smaller shares may be rounding alone, which is not to choose the balls.
_LEAST_USED = 1e-6
# Balls that use more than this share are far too large, not just saturated.
_FAR = 1e3
_MOST_BALLS = 16


@dataclass(frozen=True, kw_only=True)
class Enclosures:
    """Enclosures of one network; `proof` states the errors of a deployment's arithmetic."""

    enclosure: NetworkEnclosure
    proof: RadiusProof
    tolerances: Tolerances

    def raise_radii(self, margins: Margins, rows: Tensor, stated: Tensor) -> Tensor:
        """Raise `margins.radius` of the `rows` (n,), and return the radii (n,) of the balls whose
        enclosures prove that, 0 where none does.

        `stated` (k, n) are the radii to be decided, the largest first and infinite where there is
        none; its first row replaces the others where it is finite.
        """
        found = torch.zeros_like(margins.image_norm)
        for i in rows.nonzero()[:, 0].tolist():
            ball = _Image(self, margins, i).largest(stated[:, i].tolist())
            raised = margins.radius[i] < ball * ROUND_DOWN
            if bool(raised.any()):
                margins.radius[i, raised] = ball * ROUND_DOWN
                found[i] = ball
        return found


class _Image:
    """The search for the largest ball of image `i` of a batch."""

    def __init__(self, enclosures: Enclosures, margins: Margins, i: int) -> None:
        self.enclosures, self.margins, self.i = enclosures, margins, i
        self.x, self.label = margins.x[i], int(margins.label[i])
        self.start = float(margins.radius[i].min())
        *hidden, self.logits = enclosures.enclosure.jacobians(self.x)
        self.directions = leading_directions(torch.cat(hidden))
        self.tolerances = enclosures.tolerances

    def largest(self, stated: list[float]) -> float:
        """The radius of a ball that raises the radius of the image, or 0."""
        at, *others = stated
        if math.isfinite(at):
            return self._decided(at)
        low, high = self._searched()
        near = [radius for radius in others if low <= radius < high < math.inf]
        return max([low, *map(self._decided, near)])

    def _searched(self) -> tuple[float, float]:
        """A ball that raises the radius, 0 if none is found, and a larger one that does not."""
        least = self.start * (1 + self.tolerances.ball_gain)
        ball, power = self._first(least), _POWER
        low, high, seen = 0.0, math.inf, (0.0, 0.0)
        for _ in range(_MOST_BALLS):
            if not 0 < ball < math.inf:
                break
            used = max(self._used(ball), _LEAST_USED)
            low, high = (ball, high) if used < 1 else (low, ball)
            if _AIM <= used < 1:
                break
            if 0 < seen[1] != used < math.inf and seen[1] < math.inf:
                power = math.log(used / seen[1]) / math.log(ball / seen[0])
                power = min(max(power, _POWERS[0]), _POWERS[1])
            if low == 0:
                power = max(power, _LEAST_POWER)
            factor = (_AIM / used) ** (1 / power)
            following = ball * min(max(factor, 1 / _FACTOR), _FACTOR)
            if low == 0 < least and used > _FAR:
                # Halve the distance to the least in powers.
                following = min(following, math.sqrt(ball) * math.sqrt(least))
            if low > 0 and high < math.inf:
                edge = (high - low) / (32 if low < following < high else 2)
                following = min(max(following, low + edge), high - edge)
            if low > 0 and min(following, high) < low * (1 + self.tolerances.best_ball):
                break
            if ball == least and used >= 1:
                break
            seen, ball = (ball, used), max(following, least)
        return low, high

    def _decided(self, radius: float) -> float:
        """A ball just beyond `radius` if it raises the radius of the image above it, else 0."""
        ball = radius * (1 + self.tolerances.ball_beyond)
        return ball if self.start <= radius and self._used(ball) < 1 else 0.0

    def _first(self, least: float) -> float:
        """The first ball to try. Where all margins are flat to the last bit, no distance is near,
        and the search starts from the `least` that counts."""
        distance = self._linear_distance()
        return max(least, distance * _FIRST) if distance < math.inf else least

    def _linear_distance(self) -> float:
        """The distance at which the nearest margin would vanish if all were linear."""
        others = self.margins.radius[self.i].isfinite()
        slopes = torch.linalg.vector_norm(self.logits[self.label] - self.logits, dim=1)
        distances = self.margins.value[self.i] / slopes
        return float(distances[others].min()) if bool(others.any()) else math.inf

    def _used(self, radius: float) -> float:
        """The largest share of a margin that its enclosure on the ball, and the errors of the
        deployment's arithmetic there, use up: below 1 where all margins are proved positive.
        Margins that are known to be positive on a larger ball are left out."""
        proof, norm = self.enclosures.proof, self.margins.image_norm[self.i]
        targets = (self.margins.radius[self.i] <= radius).nonzero()[:, 0]
        floors = self.enclosures.enclosure.floors(
            self.x, radius, self.label, targets, self.directions
        )
        if proof.deployed is not None:
            label = self.margins.label[self.i : self.i + 1]
            reach = (norm + radius * (1 + self.tolerances.ball_beyond))[None, None]
            floors = floors - proof.deployment_error(label, reach)[0, targets]
        used = (1 - floors / self.margins.value[self.i, targets]).nan_to_num(nan=math.inf)
        # Rounding of the shares may not decide what the floors do.
        proved = bool((floors > 0).all())
        return min(float(used.max()), 1 - 1e-15) if proved else max(1.0, float(used.max()))
