"""Proposals for the proof in `raycrt.verify.matrix`, whose soundness does not depend on them.

In the eigenbasis of P, the gradient r of the theorem vanishes at `s = -(g + c u) / (c - b - P)`,
entry by entry. The right-hand side is then a concave function of 1 / c with derivative 2 q(d): the
best c has q(d) = 0, or is the smallest admissible one if q(d) > 0 even there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raycrt.verify.radius import norm

# Eigenvalues below this fraction of the largest are treated as zero.
_FLAT = 2.0**-40
# Least c - b - m as a fraction of m + b; its rounding error is of the same order.
_NEAREST = 2.0**-38
# Multiples of h over the longest relevant |s| that are tried as b: a shorter s needs a larger b.
# Steps by a factor of 16 cost at most as much as doubling h would.
_LADDER = 16.0 ** np.arange(6)
_HALVINGS = 50


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """The nonzero eigenvalues `values` (j,) of P and its eigenvectors `vectors` (j, features)."""

    values: np.ndarray
    vectors: np.ndarray

    @staticmethod
    def of(weight: np.ndarray, p: np.ndarray) -> Decomposition:
        """Decompose P = weight^T diag(p) weight through the smaller of its two Gram matrices."""
        active = p > 0
        scaled = np.sqrt(p[active])[:, None] * weight[active]
        wide = scaled.shape[0] < scaled.shape[1]
        gram = scaled @ scaled.T if wide else scaled.T @ scaled
        none = Decomposition(values=np.empty(0), vectors=np.empty((0, weight.shape[1])))
        if not np.isfinite(gram).all():
            return none
        try:
            values, vectors = np.linalg.eigh(gram)
        except np.linalg.LinAlgError:
            return none
        kept = values > _FLAT * np.max(values, initial=0.0)
        values, vectors = values[kept], vectors[:, kept].T
        if wide:
            vectors = (vectors @ scaled) / np.sqrt(values)[:, None]
        return Decomposition(values=values, vectors=vectors)

    @property
    def size(self) -> int:
        """Count of the numbers stored."""
        return self.vectors.size

    def propose(
        self,
        *,
        value: np.ndarray,
        gradient_error: np.ndarray,
        gradient: np.ndarray,
        u: np.ndarray,
        m: float,
        claim: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """b, c (k,) and s (k, features) of the theorem for radii near `claim` (k,)."""
        g, h = self._coordinates(gradient, u)
        values = np.concatenate([np.minimum(self.values, m), [0.0, 0.0]])
        reach = norm(u) / claim
        # Axes: the b tried, the margins, the coordinates.
        inflation = (gradient_error / claim / (1 + reach)) * _LADDER[:, None]
        constant = value - gradient_error * (gradient_error / inflation) / 2
        lowest = np.log((m + inflation) * _NEAREST)
        # At the best c, c R is the norm of q's gradient: this covers every R > claim / 1000.
        highest = np.log(1000 * (norm(gradient) / claim + (m + inflation) * (1 + reach)))

        def at(spare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """s, and q(d), where c = m + b + spare."""
            pull = (m + inflation + spare)[..., None]
            s = -(g + pull * h) / (spare[..., None] + (m - values))
            tilt = g - (values + inflation[..., None]) * s / 2
            return s, constant + (tilt * s).sum(-1)

        low, high = lowest, highest
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = at(np.exp(middle))[1] > 0
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        spare = np.exp(high)
        s, q = at(spare)
        pull = m + inflation + spare
        squared = ((h + s) ** 2).sum(-1) + 2 * q / pull
        best = np.where(np.isfinite(squared), squared, -np.inf).argmax(0), np.arange(len(value))
        inflation, pull, spare = inflation[best], pull[best], spare[best]
        tilt = gradient + pull[:, None] * u
        inside = (g + pull[:, None] * h)[:, :-2] / (spare[:, None] + (m - values[:-2]))
        step = -(tilt + (inside * values[:-2]) @ self.vectors) / (m + spare)[:, None]
        return inflation, pull, step

    def _coordinates(self, *pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two vectors, (k, features) each, in the eigenvectors and two further directions."""
        a, b = pair
        inside = a @ self.vectors.T, b @ self.vectors.T
        a, b = a - inside[0] @ self.vectors, b - inside[1] @ self.vectors
        length = norm(a)
        along = (a * b).sum(1) / np.where(length > 0, length, 1.0)
        across = np.sqrt(np.maximum(norm(b) ** 2 - along**2, 0.0))
        zero = np.zeros_like(length)
        return (
            np.column_stack([inside[0], length, zero]),
            np.column_stack([inside[1], along, across]),
        )
