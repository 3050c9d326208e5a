"""Points of curves against the radius, in percent, with the intervals of the shares."""

from __future__ import annotations

from raycrt.evaluation.accuracy import Summary
from raycrt.evaluation.intervals import wilson

Point = dict[str, float]


def points(summary: Summary) -> list[Point]:
    """A point at each radius of `summary`: `radius`, `clean`, `certified` and Wilson's 95 %
    interval of the latter, `low` .. `high`."""
    found = []
    for radius, share in summary.certified.items():
        low, high = wilson(share, summary.rows)
        shares = {"clean": summary.clean, "certified": share, "low": low, "high": high}
        found.append({"radius": radius} | {name: 100 * value for name, value in shares.items()})
    return found
