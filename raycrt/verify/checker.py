"""Rows of certificates against the weights: what is wrong with each, in a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raycrt.verify.local import local_curvature_upper
from raycrt.verify.model import Model
from raycrt.verify.radius import FLOAT32_UNIT, Errors, floor, witness_radius
from raycrt.verify.table import STATUSES, Malformed, Rows, read_rows

# Rows taken at a time: n * classes * width float64 numbers have to fit into memory.
_AT_ONCE = 128
DEPLOYMENTS = {"exact": None, "float32": FLOAT32_UNIT}
REGIONS = ("global", "local")
# A curvature may lie below ours by this, relatively: two proofs of one number round differently.
TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    """Something that cannot be proved; about the whole table where `index` is -1."""

    index: int = -1
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What came of one file: the indices of its rows, and what is wrong with them."""

    indices: np.ndarray
    findings: tuple[Finding, ...]


class Checker:
    """Re-proves rows of one model with a proved `curvature` (classes, classes).

    `images` (n, features) and `labels` (n,) are those the rows' indices speak of; `stated` is the
    curvature that the rows were made with.
    """

    def __init__(
        self,
        model: Model,
        *,
        curvature: np.ndarray,
        stated: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        deployment: str = "exact",
        region: str = "global",
    ) -> None:
        self.model, self.curvature, self.stated = model, curvature, stated
        self.images, self.labels = images, labels
        self.unit = DEPLOYMENTS[deployment]
        self.region = region
        self.errors = Errors.of(model) if model.finite else None

    def check_file(self, file: Path) -> Checked:
        """Check all rows of a Parquet file; a file that breaks the format is one finding."""
        indices: list[np.ndarray] = []
        findings: list[Finding] = []
        try:
            for rows in read_rows(file, self.model.features, _AT_ONCE):
                findings += self.check(rows)
                indices.append(rows.index)
        except Malformed as broken:
            findings.append(Finding(sentence=f"{file.name}: {broken}."))
        return Checked(
            indices=np.concatenate(indices) if indices else np.empty(0, np.int64),
            findings=tuple(findings),
        )

    def check(self, rows: Rows) -> list[Finding]:
        """Everything that is wrong with `rows`."""
        notes = _Notes(rows.index)
        known = (rows.index >= 0) & (rows.index < len(self.labels))
        notes.must(known, "the data has no image of this number.")
        at = np.where(known, rows.index, 0)
        labels = np.where(known, self.labels[at], rows.label)
        notes.must(rows.label == labels, "the label is {} in the data, not {}.", labels, rows.label)
        certified = self._check_form(rows, notes) & known
        if self.errors is None:
            notes.must(
                rows.status == "non_finite_network",
                "the weights are not finite, but the status is {!r}.",
                rows.status,
            )
        else:
            with np.errstate(all="ignore"):
                self._check_proof(rows, self.images[at].astype(np.float64), certified, notes)
        return notes.findings

    def _check_form(self, rows: Rows, notes: _Notes) -> np.ndarray:
        """Check what needs no network; the rows whose radius is left to be proved."""
        certified = rows.status == "certified"
        notes.must(np.isin(rows.status, STATUSES), "{!r} is no known status.", rows.status)
        for name in ("radius", "radius_runner_up"):
            radius = getattr(rows, name)
            good = np.where(certified, (radius > 0) & np.isfinite(radius), radius == 0)
            notes.must(good, name + " is {} with the status {!r}.", radius, rows.status)
        inside = np.ones(len(rows), bool)
        for name in ("prediction", "binding", "runner_up"):
            number = getattr(rows, name)
            good = (number >= 0) & (number < self.model.classes)
            notes.must(good, name + " is {}, which is no class.", number)
            inside &= good
            if name != "prediction":
                other = ~certified | (number != rows.prediction)
                notes.must(other, name + " is the predicted class itself.")
        return certified & inside

    def _check_proof(self, rows: Rows, x: np.ndarray, certified: np.ndarray, notes: _Notes) -> None:
        """Check what the network says: ranks of the logits, radii, curvature."""
        assert self.errors is not None
        each, last = np.arange(len(rows)), self.model.classes - 1
        prediction = np.clip(rows.prediction, 0, last)
        runner_up = np.clip(rows.runner_up, 0, last)
        binding = np.clip(rows.binding, 0, last)
        logits, slopes = self.model.forward(x)
        length = np.sqrt((x * x).sum(1))
        finite_input = np.isfinite(x).all(1)
        finite = finite_input & np.isfinite(logits).all(1)
        notes.must(
            (rows.status != "non_finite_input") | ~finite_input,
            "the status is 'non_finite_input', but the image is finite.",
        )
        notes.must(
            (rows.status != "non_finite_network")
            | ~(finite & np.isfinite(self.stated[prediction]).all(1)),
            "the status is 'non_finite_network', but weights, logits and curvature are finite.",
        )
        ranked = np.sort(logits, axis=1) - 2 * self.errors.margin(length)[:, None]
        notes.must(
            ~finite | (logits[each, prediction] >= ranked[:, -1]),
            "the predicted class is {}, not {}.",
            logits.argmax(1),
            rows.prediction,
        )
        notes.must(
            ~finite | (logits[each, runner_up] >= ranked[:, -2]),
            "the runner-up {} does not have the second-largest logit.",
            rows.runner_up,
        )
        local = np.isfinite(rows.region_radius)
        notes.must(
            (rows.region_radius > 0) & ((self.region == "local") | ~local),
            "region_radius is {}, which does not fit the manifest.",
            rows.region_radius,
        )
        proved = self._proved(rows, x, length, logits, slopes, prediction, certified, notes)
        proved[each, prediction] = np.inf
        weakest = proved.argmin(1)
        if self.unit is not None:
            farthest = length + np.maximum(rows.radius, rows.radius_runner_up)
            notes.must(
                ~certified | self.errors.fits_float32(farthest),
                "float32 may overflow in a ball of radius {}.",
                np.maximum(rows.radius, rows.radius_runner_up),
            )
        for name, target in (("radius", weakest), ("radius_runner_up", runner_up)):
            notes.must(
                ~certified | (getattr(rows, name) <= proved[each, target]),
                name + " is {}, but against class {} no more than {} can be proved.",
                getattr(rows, name),
                target,
                proved[each, target],
            )
        stated = self.stated[prediction, binding]
        notes.must(
            ~certified | (rows.curvature == stated),
            "the curvature is {}, but {} in the manifest.",
            rows.curvature,
            stated,
        )

    def _proved(
        self,
        rows: Rows,
        x: np.ndarray,
        length: np.ndarray,
        logits: np.ndarray,
        slopes: list[np.ndarray],
        prediction: np.ndarray,
        certified: np.ndarray,
        notes: _Notes,
    ) -> np.ndarray:
        """The radius that the image itself or a witness proves, (n, classes)."""
        assert self.errors is not None
        n, classes = logits.shape
        every = np.repeat(np.arange(n), classes)
        target = np.tile(np.arange(classes), n)
        proved = floor(
            self.errors,
            length=length[every],
            value=logits[every, prediction[every]] - logits[every, target],
            gradient=self.model.margin_gradient(
                [slope[every] for slope in slopes], prediction[every], target
            ),
            m=self.curvature[prediction[every], target],
            deployed=self.unit,
        ).radius()
        proved = proved.reshape(n, classes)
        target = rows.witness_class
        known = (target >= 0) & (target < classes)
        row, target = rows.witness_row[known], target[known]
        if len(row):
            label = prediction[row]
            u = rows.witness_point[known].astype(np.float64)
            z, bent = self.model.forward(x[row] + u)
            each = np.arange(len(row))
            claim = rows.witness_curvature[known]
            m, reach = self._witness_curvature(rows, x, row, label, target, claim, certified, notes)
            found = witness_radius(
                self.errors,
                length=length[row],
                value=z[each, label] - z[each, target],
                gradient=self.model.margin_gradient(bent, label, target),
                m=m,
                u=u,
                deployed=self.unit,
            )
            inside = np.sqrt((u * u).sum(1)) * (1 + TOLERANCE) <= reach
            np.maximum.at(proved, (row, target), np.where(inside, np.minimum(found, reach), 0.0))
        return proved

    def _witness_curvature(
        self,
        rows: Rows,
        x: np.ndarray,
        row: np.ndarray,
        label: np.ndarray,
        target: np.ndarray,
        claim: np.ndarray,
        certified: np.ndarray,
        notes: _Notes,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Proved curvatures (k,) of witnesses, and the radii of the balls on which they hold."""
        assert self.errors is not None
        m, reach = self.curvature[label, target], np.full(len(row), np.inf)
        ours = _Notes(rows.index[row])
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
                self.model,
                self.errors,
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


class _Notes:
    """Collects what is wrong with rows of the given indices."""

    def __init__(self, index: np.ndarray) -> None:
        self.index = index
        self.findings: list[Finding] = []

    def must(self, good: np.ndarray, text: str, *values: np.ndarray) -> None:
        """Note `text`, filled in with the row's `values`, for each row that is not `good`."""
        for i in np.nonzero(~good)[0]:
            sentence = text.format(*(value[i].item() for value in values))
            self.findings.append(Finding(index=int(self.index[i]), sentence=sentence))


def check_files(checker: Checker, files: Iterable[Path]) -> list[Checked]:
    """Check one file after the other in this process."""
    return [checker.check_file(file) for file in files]
