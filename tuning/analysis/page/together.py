"""Charts of several parameters together, of the complete trials.

Colours of `certified` are five steps, each of which can be told from white and from dark paper.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from raycrt.evaluation.page.charts import Chart, finished
from raycrt.specs import Spec
from raycrt.specs.search import Domain
from raycrt.specs.short_names import short_names
from raycrt.tuning.analysis.page.charts import Entries, axis, told

_COLOURS = [f"var(--level-{step})" for step in range(5)]
_MOST_LEVELS = 6
# Pixels of a parameter, and those on either side of its range, for the numbers at its ends.
_ROW, _MARGIN = 52, 24


def parallel(trials: Entries, spec: Spec) -> Chart:
    """A line for each complete trial through its values, the best on top: a parameter below the
    other, each from the low to the high end of its range, with values to read it by."""
    space, names = spec.search.space, short_names(spec.search.space)
    complete = [trial for trial in trials if trial["state"] == "complete"]
    lines = [
        {
            "trial": trial["number"],
            "parameter": names[path],
            "order": order,
            "place": _place(domain, trial["params"][path]),
            "value": _text(trial["params"][path]),
            "certified": 100 * trial["certified"],
        }
        for trial in sorted(complete, key=lambda trial: trial["certified"])
        for order, (path, domain) in enumerate(space.items())
        if path in trial["params"]
    ]
    ticks = [
        {"parameter": names[path], "place": _place(domain, value), "value": _text(value)}
        for path, domain in space.items()
        for value in _ticks(domain)
    ]
    ends = [{"parameter": name, "low": 0, "high": 1} for name in names.values()]
    x = alt.X(
        "place:Q",
        axis=None,
        scale=alt.Scale(domain=[0, 1], nice=False, zero=False, padding=_MARGIN),
    )
    y = alt.Y(
        "parameter:N",
        sort=list(names.values()),
        title=None,
        axis=alt.Axis(labelLimit=110, ticks=False, domain=False, grid=False),
    )
    rules = alt.Chart(alt.Data(values=ends)).mark_rule(color="var(--line)")
    marks = alt.Chart(alt.Data(values=ticks)).encode(x=x, y=y)
    drawn = alt.Chart(alt.Data(values=lines)).encode(
        x=x,
        y=y,
        detail="trial:N",
        order="order:Q",
        color=_colour(complete),
        tooltip=["trial:N", "parameter:N", "value:N", told("certified")],
    )

    def words(**style: Any) -> alt.Chart:
        return marks.mark_text(dy=14, fontSize=10, **style).encode(text="value:N")

    return finished(
        rules.encode(x=alt.X("low:Q", axis=None), x2="high:Q", y=y)
        + marks.mark_tick(color="var(--faint)", size=8, thickness=1)
        + drawn.mark_line(opacity=0.85, strokeWidth=1.5)
        + drawn.mark_point(filled=True, size=25, opacity=1)
        + words(color="var(--paper)", stroke="var(--paper)", strokeWidth=4)
        + words(color="var(--ink)"),
        _ROW * len(names),
    )


def contour(trials: Entries, spec: Spec, paths: tuple[str, str], every: Entries) -> Chart:
    """The complete `trials` by two parameters, coloured by `certified` on the scale of `every`."""
    values = [
        {
            "number": trial["number"],
            "x": trial["params"][paths[0]],
            "y": trial["params"][paths[1]],
            "certified": 100 * trial["certified"],
        }
        for trial in sorted(trials, key=lambda trial: trial["certified"])
        if set(paths) <= set(trial["params"])
    ]
    x, y = (spec.search.space[path] for path in paths)
    return finished(
        alt.Chart(alt.Data(values=values))
        .mark_point(filled=True, size=110, opacity=1)
        .encode(
            x=axis(x, paths[0], "x"),
            y=axis(y, paths[1], "y", alt.Y),
            color=_colour(every),
            tooltip=["number:N", "x:N", "y:N", told("certified")],
        ),
        220,
    )


def levels(spec: Spec, paths: tuple[str, str]) -> tuple[str, list[Any]] | None:
    """A searched parameter with few choices besides the two `paths`, and these, if there is one."""
    for path, domain in spec.search.space.items():
        if path not in paths and domain.choices and 1 < len(domain.choices) <= _MOST_LEVELS:
            return path, list(domain.choices)
    return None


def _colour(complete: Entries) -> alt.Color:
    """Steps of `certified` from the least to the best of the `complete` trials."""
    shares = [100 * trial["certified"] for trial in complete]
    scale = alt.Scale(type="quantize", domain=[min(shares), max(shares)], range=_COLOURS)
    legend = alt.Legend(
        title="certified, %", format=".1f", columns=3, symbolType="circle", symbolSize=100
    )
    return alt.Color("certified:Q", scale=scale, legend=legend)


def _ticks(domain: Domain) -> list[Any]:
    """The choices, or the ends of a range and what is half-way, whole where the ends are."""
    if domain.choices is not None:
        return list(domain.choices)
    low, high = domain.low, domain.high
    assert low is not None and high is not None
    middle = float(np.sqrt(low * high)) if domain.log else (low + high) / 2
    whole = isinstance(low, int) and isinstance(high, int)
    if low == high or (whole and not middle.is_integer()):
        return [low, high]
    return [low, middle, high]


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _place(domain: Domain, value: Any) -> float:
    """Where a value is between the ends of its domain, 0 to 1."""
    if domain.choices is not None:
        return domain.choices.index(value) / max(len(domain.choices) - 1, 1)
    ends = np.array([domain.low, value, domain.high], float)
    low, here, high = np.log(ends) if domain.log else ends
    return float((here - low) / (high - low)) if high > low else 0.5
