"""A radius from a curvature matrix of a margin, for networks with one hidden layer.

Let f be a margin with `Hess f >= -P` everywhere, `P = W_0^T diag(p) W_0` (see `neuron_curvature`),
and m >= lambda_max(P). Let v and g be its computed value and gradient at x0 + u, with errors of at
most e and h. By Taylor's theorem and `h |s| <= h^2 / (2 b) + b/2 |s|^2`, for every b > 0,

    f(x0 + d) >= q(d) = v - e - h^2 / (2 b) + g.s - s^T (P + b I) s / 2,   s = d - u.

So f > 0 where |d| < R if, for some number c > 0, the function `q(d) + c/2 (|d|^2 - R^2)`, which is
below q there, is nowhere negative. For c > m + b it is strongly convex with modulus `c - b - m`,
so its minimum is below its value at any d by at most `|r|^2 / (2 (c - b - m))`, with its gradient

    r = g - (P + b I) s + c d

at d. It is nowhere negative if

    R^2 <= |d|^2 + (2 q(d) - |r|^2 / (c - b - m)) / c.

This proves R for any b, c and s: they need no proof, and `Decomposition` proposes them. The best
choice has r = 0 and the c that maximises the right-hand side; no bound from q alone is better.
With P = m I this is the `Floor` of `raycrt.verify.radius`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raycrt.verify.curvature import neuron_curvature
from raycrt.verify.decomposition import Decomposition
from raycrt.verify.model import Model
from raycrt.verify.norms import UNIT, gamma
from raycrt.verify.radius import ROOM, SHORT, SMALLEST, Errors, norm

# The decompositions kept hold at most this many numbers in total: 1 GB.
_KEPT = 2**27


class Matrices:
    """The proofs for all margins of a joined `model` with one hidden layer and a proved
    `curvature`; `errors` are those of the values and gradients given.

    With `deployed`, the unit roundoff of a coarser arithmetic, margins are those computed in it.
    """

    def __init__(
        self, model: Model, errors: Errors, curvature: np.ndarray, deployed: float | None = None
    ) -> None:
        self.model, self.errors, self.curvature, self.deployed = model, errors, curvature, deployed
        self._kept: dict[tuple[int, int], tuple[Quadratic, Decomposition]] = {}

    def radius(
        self,
        label: int,
        target: int,
        *,
        length: np.ndarray,
        value: np.ndarray,
        gradient: np.ndarray,
        u: np.ndarray,
        claim: np.ndarray,
    ) -> np.ndarray:
        """Radii (k,) such that the margin is > 0 where |d| is below both the radius and `claim`.

        The margin is that of `label` against `target`; `value` (k,) and `gradient` (k, features)
        are as computed at x0 + `u` (k, features), `length` (k,) is |x0|. A radius is 0, which
        proves nothing, where anything is not finite.
        """
        m = float(self.curvature[label, target])
        if not (math.isfinite(m) and m >= 0):
            return np.zeros_like(value)
        with np.errstate(all="ignore"):
            quadratic, decomposition = self._of(label, target, m)
            reach = (length + norm(u)) * ROOM
            lowered = self.errors.margin(reach)
            if self.deployed is not None:
                lowered = lowered + self.errors.margin((length + claim) * ROOM, self.deployed)
            near = {"value": value - lowered * ROOM, "gradient_error": self.errors.gradient(reach)}
            near |= {"gradient": gradient, "u": u}
            inflation, pull, step = decomposition.propose(m=m, claim=claim, **near)
            moved = np.where((u != 0).any(1), UNIT * reach, 0.0)
            return quadratic.radius(moved=moved, inflation=inflation, pull=pull, step=step, **near)

    def _of(self, label: int, target: int, m: float) -> tuple[Quadratic, Decomposition]:
        if (label, target) not in self._kept:
            weight, p = self.model.weights[0], neuron_curvature(self.model, label, target)
            made = Quadratic.of(weight, p, m, self.model.loose(0)), Decomposition.of(weight, p)
            while self._kept and sum(d.size for _, d in self._kept.values()) + made[1].size > _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[label, target] = made
        return self._kept[label, target]


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """P = `weight`^T diag(`p`) `weight` with m >= lambda_max(P).

    P is within `spread` I of the P of the theorem, whose W_0 may be known up to an error only.
    `root_trace` >= sqrt(trace(P)); `short` bounds the error of sqrt(s^T P s) due to underflow.
    """

    weight: np.ndarray
    p: np.ndarray
    m: float
    spread: float
    root_trace: float
    short: float

    @staticmethod
    def of(weight: np.ndarray, p: np.ndarray, m: float, loose: float = 0.0) -> Quadratic:
        """For an m >= lambda_max of the P of the theorem, whose W_0 is within `loose` of
        `weight` in the 2-norm."""
        short = SHORT * math.sqrt(float(p.sum()) + len(p))
        trace = float(p @ np.einsum("ij,ij->i", weight, weight))
        # |sqrt(p) W| and |sqrt(p) (W + E)| differ by this amount at most.
        apart = math.sqrt(float(p.max(initial=0.0))) * loose
        spread = apart * (2 * (math.sqrt(m) + apart) + apart) * ROOM
        return Quadratic(
            weight=weight,
            p=p,
            m=m + spread,
            spread=spread,
            root_trace=(math.sqrt(trace) + short) * ROOM,
            short=short,
        )

    def radius(
        self,
        *,
        value: np.ndarray,
        gradient_error: np.ndarray,
        gradient: np.ndarray,
        u: np.ndarray,
        moved: np.ndarray,
        inflation: np.ndarray,
        pull: np.ndarray,
        step: np.ndarray,
    ) -> np.ndarray:
        """R (k,) of the theorem, with all rounding subtracted; 0 where nothing is proved.

        `value` is v - e, `gradient_error` h, `inflation` b, `pull` c, all (k,), and `step` s
        (k, features). v and g are those at a point within `moved` (k,) of x0 + u.
        """
        share, inflation = inflation, inflation + self.spread
        width, features = self.weight.shape
        terms = gamma(features + width + 16)
        point, hidden = u + step, step @ self.weight.T
        product = (hidden * self.p) @ self.weight
        far, steepness = norm(point) + SHORT, norm(gradient) + SHORT
        long = norm(step) * (1 + terms) + SHORT
        # An entry of `hidden` has an error of at most `terms` |w_i| |s|, so the root has this one.
        root_error = terms * self.root_trace * long + self.short
        root = np.sqrt((hidden * hidden * self.p).sum(1)) * (1 + terms) + root_error
        # In the product P s it grows by sqrt(m) at most; the sum rounds terms of sqrt(p_i) |w_i|
        # times sqrt(p_i) |t_i|, t = `hidden`.
        error = math.sqrt(self.m) * root_error + terms * self.root_trace * root + SHORT
        rest = gradient + pull[:, None] * point - (inflation[:, None] * step + product)
        size = steepness + pull * far + inflation * long + norm(product)
        error = error + 8 * UNIT * size + pull * moved + SHORT
        left = norm(rest) * (1 + terms) + error * ROOM
        spare = pull - inflation - self.m - 4 * UNIT * (pull + inflation + self.m)
        lowered = gradient_error * (gradient_error / share) / 2 + left * (left / spare) / 2
        quadratic = (root * root + inflation * long * long) / 2
        rounding = terms * (np.abs(value) + steepness * long + quadratic + lowered)
        low = value + (gradient * step).sum(1) - quadratic - lowered
        low = low - (rounding + 16 * features * SMALLEST[UNIT]) * ROOM
        near = np.maximum(far * (1 - terms) - (moved + 2 * SHORT) * ROOM, 0.0)
        gained = 2 * low / pull
        squared = near * near + gained - 8 * UNIT * (near * near + np.abs(gained))
        proved = (share > 0) & (spare > 0) & (squared > SHORT) & np.isfinite(squared)
        return np.where(proved, np.sqrt(np.where(proved, squared, 0.0)) * (1 - 4 * UNIT), 0.0)
