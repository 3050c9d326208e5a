"""The radius proved against every class: from a curvature m, or else from a curvature matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raycrt.verify.constant import constant_margins
from raycrt.verify.curvature import TOLERANCE
from raycrt.verify.enclosure import Enclosure
from raycrt.verify.findings import Notes
from raycrt.verify.local import local_curvature_upper
from raycrt.verify.matrix import Matrices
from raycrt.verify.model import Model
from raycrt.verify.norms import UNIT
from raycrt.verify.radius import ROOM, Errors, floor, witness_radius
from raycrt.verify.table import Rows

# The logits at some points, and the slopes of all hidden layers there.
Passed = tuple[np.ndarray, list[np.ndarray]]
# Enclosures are proved on balls of this share of what is stated, which rounding cannot break and
# which still hold the radii, rounded down by 5e-10.
_ENCLOSED = 1 - 4e-10


class Prover:
    """Proves margins of a finite `model` with a proved `curvature` (classes, classes).

    `stated` is the curvature from which the rows were computed. With `deployed`, the unit roundoff
    of a coarser arithmetic, margins are those computed in it.
    """

    def __init__(
        self,
        model: Model,
        *,
        curvature: np.ndarray,
        stated: np.ndarray,
        deployed: float | None,
    ) -> None:
        self.model, self.curvature, self.stated = model, curvature, stated
        self.deployed = deployed
        self.errors = Errors.of(model)
        self.matrices = Matrices(model.joined, self.errors, curvature, deployed)
        self.constant = constant_margins(model)
        self.offsets = self.errors.offsets()
        # Rounding in the logits of two classes, in float64 and in the deployed arithmetic.
        self.lost = self.offsets + (0.0 if deployed is None else self.errors.offsets(deployed))

    @cached_property
    def joined_errors(self) -> Errors:
        """The errors of the joined model."""
        joined = self.model.joined
        return self.errors if joined is self.model else Errors.of(joined)

    def radii(
        self,
        rows: Rows,
        x: np.ndarray,
        *,
        passed: Passed,
        prediction: np.ndarray,
        claims: np.ndarray,
        certified: np.ndarray,
        notes: Notes,
    ) -> np.ndarray:
        """Radii (n, classes) proved at `x` (n, features), at witnesses or by enclosures.

        `passed` is the model's forward pass of x. `claims` (n, classes) are the radii that the
        `certified` rows (n,) have to reach; those not proved from a curvature m are tried with the
        curvature matrix, or with the row's enclosure.
        """
        n, classes = claims.shape
        image, target = np.repeat(np.arange(n), classes), np.tile(np.arange(classes), n)
        length = np.sqrt((x * x).sum(1))
        at = self._margins(length[image], passed, image, prediction[image], target)
        proved = floor(
            self.errors,
            length=at.length,
            value=at.value,
            gradient=at.gradient,
            m=self.curvature[at.label, target],
            deployed=self.deployed,
        ).radius()
        constant = self.constant[at.label, target]
        proved[constant] = self._constant(
            at.length[constant], at.value[constant], at.gradient[constant]
        )
        proved = proved.reshape(n, classes)
        known = (rows.witness_class >= 0) & (rows.witness_class < classes)
        row, target = rows.witness_row[known], rows.witness_class[known]
        u = rows.witness_point[known].astype(np.float64)
        if len(row):
            at = self._margins_at(x, row, prediction[row], target, u)
            claim = rows.witness_curvature[known]
            m, reach = self._witness_curvature(
                rows, x, row, at.label, target, claim, certified, notes
            )
            found = witness_radius(
                self.errors,
                length=at.length,
                value=at.value,
                gradient=at.gradient,
                m=m,
                u=u,
                deployed=self.deployed,
            )
            inside = np.sqrt((u * u).sum(1)) * (1 + TOLERANCE) <= reach
            np.maximum.at(proved, (row, target), np.where(inside, np.minimum(found, reach), 0.0))
        left = certified[:, None] & (claims > proved) & np.isfinite(claims)
        left[np.arange(n), prediction] = False
        if self.model.joined.depth == 2:
            image, wanted = np.nonzero(left)
            here = left[row, target]
            row, target = np.concatenate([image, row[here]]), np.concatenate([wanted, target[here]])
            u = np.concatenate([np.zeros((len(image), x.shape[1])), u[here]])
            found = self._by_matrix(x, row, prediction[row], target, u, claims[row, target])
            np.maximum.at(proved, (row, target), found)
        else:
            self._by_enclosures(rows.enclosure_radius, x, prediction, left, proved)
        return proved

    def _by_enclosures(
        self,
        stated: np.ndarray,
        x: np.ndarray,
        prediction: np.ndarray,
        left: np.ndarray,
        proved: np.ndarray,
    ) -> None:
        """Raise `proved` (n, classes) where `left`, by enclosures on balls of the radii `stated`
        (n,), 0 where there is none."""
        for i in np.nonzero((stated > 0) & np.isfinite(stated) & left.any(1))[0]:
            ball, targets = float(stated[i]) * _ENCLOSED, np.nonzero(left[i])[0]
            label = int(prediction[i])
            floors = Enclosure(self.model.joined, x[i], ball).floors(label, targets)
            if self.deployed is not None:
                length = np.array((np.sqrt(x[i] @ x[i]) + ball) * ROOM)
                lost = self.errors.margin(length, self.deployed)
                lost = lost + self.errors.offsets(self.deployed)[label, targets]
                floors = floors - lost * ROOM
            held = np.where(floors > 0, ball, 0.0)
            proved[i, targets] = np.maximum(proved[i, targets], held)

    def _constant(self, length: np.ndarray, value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Radii (k,) of margins that are constant, up to rounding in the deployed arithmetic.

        Overflow at large inputs is not considered here.
        """
        if self.deployed is None:
            sure = value * (1 - 4 * UNIT) > self.errors.margin(length * ROOM)
            return np.where(sure, np.inf, 0.0)
        below = floor(
            self.errors,
            length=length,
            value=value,
            gradient=np.zeros_like(gradient),
            m=np.zeros_like(value),
            deployed=self.deployed,
        )
        return np.where(np.isposinf(value), np.inf, below.radius())

    def _by_matrix(
        self,
        x: np.ndarray,
        row: np.ndarray,
        label: np.ndarray,
        target: np.ndarray,
        u: np.ndarray,
        claim: np.ndarray,
    ) -> np.ndarray:
        """Radii (k,) proved at the points x[row] + u from the curvature matrix of each margin."""
        at = self._margins_at(x, row, label, target, u)
        found = np.zeros(len(row))
        for y, t in sorted(set(zip(label.tolist(), target.tolist(), strict=True))):
            of = (label == y) & (target == t)
            found[of] = self.matrices.radius(
                y,
                t,
                length=at.length[of],
                value=at.value[of],
                gradient=at.gradient[of],
                u=u[of],
                claim=claim[of],
            )
        return found

    def _margins_at(
        self, x: np.ndarray, row: np.ndarray, label: np.ndarray, target: np.ndarray, u: np.ndarray
    ) -> _Margins:
        """The margins (k,) of label against target at x[row] + u."""
        length = np.sqrt((x * x).sum(1))[row]
        passed = self.model.forward(x[row] + u)
        return self._margins(length, passed, np.arange(len(row)), label, target)

    def _margins(
        self,
        length: np.ndarray,
        passed: Passed,
        each: np.ndarray,
        label: np.ndarray,
        target: np.ndarray,
    ) -> _Margins:
        """The margins (k,) of label against target at the points `each` of the pass `passed`."""
        logits, slopes = passed
        return _Margins(
            label=label,
            length=length,
            value=logits[each, label] - logits[each, target] - self.lost[label, target],
            gradient=self.model.margin_gradient([s[each] for s in slopes], label, target),
        )

    def _witness_curvature(
        self,
        rows: Rows,
        x: np.ndarray,
        row: np.ndarray,
        label: np.ndarray,
        target: np.ndarray,
        claim: np.ndarray,
        certified: np.ndarray,
        notes: Notes,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Proved curvatures (k,) of witnesses, and the radii of the balls on which they hold."""
        m, reach = self.curvature[label, target], np.full(len(row), np.inf)
        ours = Notes(rows.index[row])
        everywhere = claim == self.stated[label, target]
        radius = rows.region_radius[row]
        local = ~everywhere & np.isfinite(radius) & (radius > 0) & certified[row]
        ours.must(
            everywhere | local | ~certified[row],
            "the curvature of class {} is {} everywhere, but {} in the manifest.",
            target,
            claim,
            self.stated[label, target],
        )
        for i in np.unique(row[local]):
            at = np.nonzero(local & (row == i))[0]
            m[at] = local_curvature_upper(
                self.model.joined,
                self.joined_errors,
                x=x[i],
                radius=float(rows.region_radius[i]),
                label=int(label[at[0]]),
                targets=target[at],
                claims=claim[at],
            )
            reach[at] = rows.region_radius[i]
        ours.must(
            ~local | (m <= claim * (1 + TOLERANCE)),
            "the curvature of class {} is {} on a ball of radius {}, but only {} can be proved.",
            target,
            claim,
            radius,
            m,
        )
        notes.findings += ours.findings
        return m, reach


@dataclass(frozen=True, kw_only=True)
class _Margins:
    """Computed margins: `value` (k,), less the rounding that the classes' biases add; `gradient`
    (k, features); `length` is |x0|."""

    label: np.ndarray
    length: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
