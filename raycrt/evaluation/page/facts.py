"""The facts of a run that its page states, as plain numbers and texts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite

import numpy as np

from raycrt import data
from raycrt.certification.certificate import Status
from raycrt.errors import InvalidInput
from raycrt.evaluation.certified import Certified
from raycrt.evaluation.page import ATTACKED, curve, gallery, scan, search
from raycrt.evaluation.page.attacked import CLASSES, Attacked, attacked
from raycrt.evaluation.page.curve import Point
from raycrt.evaluation.page.gallery import Exhibit
from raycrt.evaluation.page.scan import Row, Scan
from raycrt.evaluation.tally import Tally
from raycrt.specs import verdict
from raycrt.specs.data import Statistics
from raycrt.specs.verdict import Verdict
from raycrt.system.places.storage import Place

# Predictions whose limiting classes are shown as a matrix; of more classes the commonest pairs are.
_MATRIX = 20
_PAIRS = 30
_RATIO_BINS = 20
# Letters of the name of a class or a feature that are shown.
_NAME = 40


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the page of a run states.

    `edges` are those of the histogram's bins. `exhibits` and `sample` are rows that were attacked,
    those of the gallery and those drawn for the curve; `missing` says why none are, if so.
    `verified` is the note of the checker, `unchanged` whether it is about the files as they are.
    """

    run: Place
    found: Certified
    scan: Scan
    edges: list[float]
    exhibits: list[Exhibit] = field(default_factory=list)
    sample: dict[int, Attacked] = field(default_factory=dict)
    missing: str = ""
    verified: Verdict | None
    unchanged: bool
    tables: dict[str, search.Table]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, cut to a length that tables bear."""
        return _cut(data.class_names(self.found.spec.data))

    def name(self, label: int) -> str:
        """The name of a class, as in `names`."""
        return self.names[label] if 0 <= label < len(self.names) else str(label)

    @property
    def described(self) -> bool:
        """Whether a spec describes the model, so that the checker can prove it."""
        return self.found.manifest["spec"]["model"] is not None

    @property
    def tried(self) -> str:
        """The classes that an attack of a row tries, in words."""
        others = len(self.names) - 1
        if others == 1:
            return "the other class"
        which = "other" if others <= CLASSES else "nearest"
        return f"each of the {min(CLASSES, others)} {which} classes"

    @property
    def unit(self) -> str:
        """What follows `l2 radius` on an axis."""
        return " (std)" if self.found.spec.data.scale is not None else ""

    @cached_property
    def points(self) -> list[Point]:
        """The curves at each radius, in percent."""
        found = curve.points(self.scan.curve.summary())
        if self.attacked and not self.missing:
            reach = np.array([a.distance for a in self.sample.values()])
            for point in found:
                point["attacked"] = 100 * (int((reach > point["radius"]).sum()) / self.attacked)
        return found

    @property
    def attacked(self) -> int:
        """The number of rows that the attacked curve is about."""
        return len(self.scan.sample)

    @property
    def partial(self) -> bool:
        """Whether these are not all rows."""
        return self.attacked < self.found.summary.rows

    @property
    def attacked_of(self) -> str:
        """These rows in words."""
        return f"{self.attacked} of {self.found.summary.rows} rows" if self.partial else "all rows"

    def certified_of_sample(self, radius: float) -> float:
        """The share of the rows drawn that is certified at `radius`."""
        return sum(r.right and r.radius > radius for r in self.scan.sample) / self.attacked

    @property
    def stated(self) -> list[Point]:
        """The points at the radii that the spec states."""
        return [p for p in self.points if p["radius"] in self.found.spec.certify.at]

    @property
    def radii(self) -> list[Point]:
        """The histogram of the finite radii of the rows that are predicted correctly."""
        larger = dict(zip(self.scan.curve.radii, self.scan.curve.certified.tolist(), strict=True))
        return [
            {"low": low, "high": high, "rows": larger[low] - larger[high]}
            for low, high in zip(self.edges, self.edges[1:], strict=False)
        ]

    @cached_property
    def ratios(self) -> np.ndarray:
        """Certified radius over attacked distance of the rows drawn, where both are finite."""
        pairs = [(a.row.radius, a.distance) for a in self.sample.values() if a.row.proved]
        ratios = [r / d for r, d in pairs if isfinite(r) and isfinite(d) and d > 0]
        return np.array(ratios, np.float64)

    @property
    def ratio_bins(self) -> list[Point]:
        end = max(1.0, float(self.ratios.max(initial=0)))
        counts, edges = np.histogram(self.ratios, _RATIO_BINS, (0, end))
        return [
            {"low": low, "high": high, "rows": rows}
            for low, high, rows in zip(
                edges.tolist(), edges[1:].tolist(), counts.tolist(), strict=False
            )
        ]

    @property
    def contradictions(self) -> list[Attacked]:
        """Attacks within a certified radius: there are none unless a certificate is wrong."""
        shown = [e.attacked for e in self.exhibits if e.attacked is not None]
        found = {a.row.index: a for a in (*self.sample.values(), *shown) if a.contradicts}
        return list(found.values())

    @property
    def matrix(self) -> list[list[int]] | None:
        """How often each class limits the radius of each prediction; None of many classes."""
        return self.scan.binding.tolist() if len(self.names) <= _MATRIX else None

    @property
    def pairs(self) -> list[tuple[str, str, int]]:
        """The commonest pairs of a prediction and the class that limits its radius."""
        flat = self.scan.binding.ravel()
        order = np.argsort(-flat, kind="stable")[:_PAIRS]
        width = len(self.names)
        return [
            (self.name(int(i) // width), self.name(int(i) % width), int(flat[i]))
            for i in order
            if flat[i]
        ]

    @property
    def keyed(self) -> bool:
        """Whether rows have a key in their source."""
        return any(r.key for r in (*self.scan.wrong.rows, *self.scan.unproved.rows))

    def tally(self, label: int) -> Tally | None:
        return self.found.counts.by_class.get(label)

    def reason(self, row: Row) -> str:
        """Why a row does not count as certified."""
        if not row.proved:
            known = Status.__members__.get(row.status.upper())
            return row.status if known is None else known.sentence
        said = f"predicted as {self.name(row.prediction)}"
        if row.radius == inf:
            return f"{said}, as every input is"
        return f"{said}, and so is every input within {row.radius:.4g}"

    @property
    def commands(self) -> list[str]:
        """The commands that make this run again, in another directory."""
        out = "runs/again"
        made, run = self.found.training, self.run
        if not self.described:
            return [f"raycrt certify --model MODEL --recipe RECIPE --out {out}"]
        recipe = shlex.quote(str(run / "report" / "spec.yaml"))
        if made is None:
            model = shlex.quote(str(run / "train" / "model.safetensors"))
            lines = [f"raycrt certify --model {model} --recipe {recipe} --out {out}"]
        elif made.rows == "train":
            lines = [
                f"raycrt train --hold-out --recipe {recipe} --out {out}",
                f"raycrt certify --model {out}/hold-out --out {out}",
            ]
        else:
            lines = [f"raycrt train --recipe {recipe} --out {out}", f"raycrt certify --out {out}"]
        if self.tables:
            recipe = shlex.quote(str(run / "search" / "spec.yaml"))
            lines.insert(0, f"raycrt search --recipe {recipe} --out runs/search-again")
        return [*lines, f"raycrt verify {out}", f"raycrt report {out}"]


def facts(
    run: Place,
    found: Certified,
    *,
    number: int = ATTACKED,
    data_directory: Place | None = None,
    trusted: bool = False,
) -> Facts:
    """The facts of `run`, with attacks on the rows of the gallery and on `number` rows drawn from
    all; on none where `number` is 0."""
    spec = found.spec
    radii, edges = scan.grid(found.counts.reach, spec.certify.at)
    names = data.class_names(spec.data)
    drawn = scan.drawn(number, found.manifest["rows"])
    scanned = Scan.of(found.directory, radii, classes=len(names), drawn=drawn)
    shown = gallery.chosen(scanned)
    reached: dict[int, Attacked] = {}
    columns: tuple[str, ...] = ()
    missing = "" if number else "it was asked for without attacks (--attacked 0)"
    if number:
        rows = [*(row for row in scanned.sample if row.right), *(row for _, row in shown)]
        try:
            reached = attacked(
                found, run / "train", rows, data_directory=data_directory, trusted=trusted
            )
            columns = data.features(data.placed(spec, data_directory).data)
        except InvalidInput as error:
            missing = f"{error!s:.300}"
    said, scale = verdict.read(run), spec.data.scale
    kept = scale if isinstance(scale, Statistics) else None
    return Facts(
        run=run,
        found=found,
        scan=scanned,
        edges=edges,
        exhibits=gallery.exhibits(shown, reached, _cut(columns), kept) if reached else [],
        sample={row.index: reached[row.index] for row in scanned.sample if row.index in reached},
        missing=missing,
        verified=said,
        unchanged=said is not None and said.about(run),
        tables=search.tables(run),
    )


def _cut(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name if len(name) <= _NAME else name[: _NAME - 1] + "…" for name in names)
