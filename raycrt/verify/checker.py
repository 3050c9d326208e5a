"""Checker of certificate rows against the weights; each finding is a sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from raycrt.specs import Place
from raycrt.verify.findings import Checked, Finding, Notes, spans_of
from raycrt.verify.inputs import Found, Inputs
from raycrt.verify.model import Model
from raycrt.verify.prover import Prover
from raycrt.verify.radius import FLOAT32_UNIT
from raycrt.verify.table import STATUSES, VERSIONS, Malformed, Rows, read_rows

# Rows processed at a time: n * classes * width float64 numbers must fit into memory.
_AT_ONCE = 128
DEPLOYMENTS = {"exact": None, "float32": FLOAT32_UNIT}
REGIONS = ("global", "local")


class Checker:
    """Re-proves rows of one model with a proved `curvature` (classes, classes).

    The indices of rows are those of `inputs`; what is not there is not compared, and without images
    nothing is proved. `stated` is the curvature from which the rows were computed, `version` that
    of their format.
    """

    def __init__(
        self,
        model: Model,
        *,
        curvature: np.ndarray,
        stated: np.ndarray,
        inputs: Inputs,
        deployment: str = "exact",
        region: str = "global",
        version: int = VERSIONS[-1],
        records: Path | None = None,
    ) -> None:
        self.records = records
        self.model, self.stated = model, stated
        self.inputs, self.version = inputs, version
        self.unit = DEPLOYMENTS[deployment]
        self.region = region
        self.prover = None
        if model.finite:
            self.prover = Prover(model, curvature=curvature, stated=stated, deployed=self.unit)

    def check_file(self, file: Place) -> Checked:
        """Check all rows of a Parquet file; a file that breaks the format is one finding.

        The result is written into the directory `records`, if there is one.
        """
        spans: list[tuple[int, int]] = []
        findings: list[Finding] = []
        count = 0
        try:
            model = self.model
            for rows in read_rows(
                file, model.features, model.classes, _AT_ONCE, version=self.version
            ):
                findings += self.check(rows)
                count += len(rows)
                spans += spans_of(rows.index)
        except Malformed as broken:
            findings.append(Finding(sentence=f"{file.name}: {broken}."))
        found = Checked.of(file.name, count, spans, findings)
        if self.records is not None:
            found.write(self.records)
        return found

    def check(self, rows: Rows) -> list[Finding]:
        """All findings about `rows`; of a row with another input, that it has one and no more."""
        notes = Notes(rows.index)
        known = (rows.index >= 0) & (rows.index < len(self.inputs))
        notes.must(known, "the data has no image with this index.")
        found = self.inputs.at(np.where(known, rows.index, 0))
        others = _check_inputs(rows, found, known)
        if found.labels is not None:
            labels = np.where(known, found.labels, rows.label)
            text = "the label is {} in the data, not {}."
            notes.must(rows.label == labels, text, labels, rows.label)
        if found.keys is not None and rows.key is not None:
            keys = np.where(known, found.keys, rows.key)
            notes.must(rows.key == keys, "the key is {!r} in the data, not {!r}.", keys, rows.key)
        certified = self._check_form(rows, notes) & known
        if self.prover is None:
            notes.must(
                rows.status == "non_finite_network",
                "the weights are not finite, but the status is {!r}.",
                rows.status,
            )
        elif found.images is not None:
            with np.errstate(all="ignore"):
                self._check_proof(rows, found.images.astype(np.float64), certified, notes)
        elsewhere = {finding.index for finding in others}
        return others + [f for f in notes.findings if f.index not in elsewhere]

    def _check_form(self, rows: Rows, notes: Notes) -> np.ndarray:
        """Check what does not depend on the network; mask of rows whose radius must be proved."""
        certified, constant = rows.status == "certified", rows.status == "constant"
        notes.must(np.isin(rows.status, STATUSES), "{!r} is not a known status.", rows.status)
        for name in ("radius", "radius_runner_up"):
            radius = getattr(rows, name)
            finite = np.isfinite(radius) | (name == "radius_runner_up")
            good = np.where(certified, (radius > 0) & finite, radius == 0)
            good = np.where(constant, np.isposinf(radius), good)
            notes.must(good, name + " is {} with the status {!r}.", radius, rows.status)
        enclosed = rows.enclosure_radius
        usable = certified & (self.region == "local") & (self.model.joined.depth > 2)
        notes.must(
            (enclosed == 0) | (usable & (enclosed > 0) & np.isfinite(enclosed)),
            "enclosure_radius is {}, which does not fit the manifest, model or status {!r}.",
            enclosed,
            rows.status,
        )
        certified |= constant
        inside = np.ones(len(rows), bool)
        for name in ("prediction", "binding", "runner_up"):
            number = getattr(rows, name)
            good = (number >= 0) & (number < self.model.classes)
            notes.must(good, name + " is {}, which is not a class.", number)
            inside &= good
            if name != "prediction":
                other = ~certified | (number != rows.prediction)
                notes.must(other, name + " is the predicted class itself.")
        first = rows.binding == rows.runner_up
        notes.must(
            np.where(
                first, rows.radius == rows.radius_runner_up, ~(rows.radius > rows.radius_runner_up)
            ),
            "radius is {} and radius_runner_up {}, but radius is the minimum over all classes.",
            rows.radius,
            rows.radius_runner_up,
        )
        self._check_witnesses(rows, certified, notes)
        return certified & inside

    def _check_witnesses(self, rows: Rows, certified: np.ndarray, notes: Notes) -> None:
        """Check that witnesses have distinct classes, and that rows without a claim have none."""
        row, target = rows.witness_row, rows.witness_class
        classes = np.zeros((len(rows), self.model.classes), int)
        known = (target >= 0) & (target < self.model.classes) & (target != rows.prediction[row])
        np.add.at(classes, (row[known], target[known]), 1)
        invalid = np.zeros(len(rows), bool)
        invalid[row[~known]] = True
        notes.must(
            ~invalid & (classes <= 1).all(1),
            "the witnesses must be of distinct classes other than the predicted one.",
        )
        given = np.bincount(row, minlength=len(rows)) > 0
        notes.must(
            certified | ~(given | np.isfinite(rows.region_radius)),
            "witnesses or a region are given with the status {!r}.",
            rows.status,
        )

    def _check_proof(self, rows: Rows, x: np.ndarray, certified: np.ndarray, notes: Notes) -> None:
        """Check against the network: ranks of the logits, radii and curvature."""
        assert self.prover is not None
        each, last, errors = np.arange(len(rows)), self.model.classes - 1, self.prover.errors
        prediction = np.clip(rows.prediction, 0, last)
        runner_up = np.clip(rows.runner_up, 0, last)
        binding = np.clip(rows.binding, 0, last)
        passed = self.model.forward(x)
        logits = passed[0]
        length = np.sqrt((x * x).sum(1))
        finite_input = np.isfinite(x).all(1)
        finite = finite_input & (np.isfinite(logits) | self.model.masked).all(1)
        notes.must(
            (rows.status != "non_finite_input") | ~finite_input,
            "the status is 'non_finite_input', but the image is finite.",
        )
        notes.must(
            (rows.status != "non_finite_network")
            | ~(finite & np.isfinite(self.stated[prediction]).all(1)),
            "the status is 'non_finite_network', but weights, logits and curvature are finite.",
        )
        tie = errors.margin(length, FLOAT32_UNIT) + self.prover.offsets[prediction, runner_up]
        apart = logits[each, prediction] - logits[each, runner_up]
        notes.must(
            (rows.status != "tied") | ~finite | (apart <= tie),
            "the status is 'tied', but the two largest logits are {} apart.",
            apart,
        )
        error = 2 * errors.margin(length)[:, None]
        ranked = logits - error - self.prover.offsets[prediction]
        notes.must(
            ~finite | (logits[each, prediction] >= ranked.max(1)),
            "the predicted class is {}, not {}.",
            logits.argmax(1),
            rows.prediction,
        )
        ranked = logits - error - self.prover.offsets[runner_up]
        ranked[each, prediction] = -np.inf
        notes.must(
            ~finite | (logits[each, runner_up] >= ranked.max(1)),
            "the runner-up {} does not have the second-largest logit.",
            rows.runner_up,
        )
        local = np.isfinite(rows.region_radius)
        notes.must(
            (rows.region_radius > 0) & ((self.region == "local") | ~local),
            "region_radius is {}, which does not fit the manifest.",
            rows.region_radius,
        )
        claims = np.repeat(rows.radius[:, None], self.model.classes, axis=1)
        claims[each, runner_up] = np.maximum(rows.radius, rows.radius_runner_up)
        proved = self.prover.radii(
            rows,
            x,
            passed=passed,
            prediction=prediction,
            claims=claims,
            certified=certified,
            notes=notes,
        )
        proved[each, prediction] = np.inf
        weakest = proved.argmin(1)
        if self.unit is not None:
            farthest = length + np.maximum(rows.radius, rows.radius_runner_up)
            notes.must(
                ~certified | errors.fits_float32(farthest, prediction),
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
            (rows.status == "non_finite_network") | (rows.curvature == stated),
            "the curvature is {}, but {} in the manifest.",
            rows.curvature,
            stated,
        )


def _check_inputs(rows: Rows, found: Found, known: np.ndarray) -> list[Finding]:
    """Check that the rows `found` in the data, where `known`, are those that were certified."""
    notes = Notes(rows.index)
    if rows.input_sha256 is not None and found.images is not None:
        own = np.array([_sha256(image) for image in found.images], object)
        notes.must(
            ~known | (own == rows.input_sha256),
            "the input is not the one that was certified: the SHA-256 of the one in the data is "
            "{}, that of the row {}.",
            np.array([digest.hex() for digest in own]),
            np.array([digest.hex() for digest in rows.input_sha256]),
        )
    return notes.findings


def _sha256(image: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image, "<f4").tobytes()).digest()


def check_files(checker: Checker, files: Iterable[Place]) -> Iterator[Checked]:
    """Check the files one by one in this process."""
    return (checker.check_file(file) for file in files)
