"""The charts of a page, as Vega-Lite specifications made by Altair.

Colours are variables of the page's style sheet, so that they follow dark mode and print; each curve
has a dash pattern of its own too. Names in the data are values, never parts of expressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

# Each with its colour and its dashes.
_CURVES = {
    "clean": ("var(--clean)", [2, 3]),
    "attacked": ("var(--attacked)", [7, 4]),
    "certified": ("var(--certified)", [1, 0]),
}
_DASHES = ([1, 0], [7, 4], [2, 3], [9, 3, 2, 3])
# Runs that are told apart in one chart.
RUNS = 8
_HEIGHT = 300

Chart = dict[str, Any]


def curves(
    points: Sequence[Mapping[str, float]], stated: Sequence[float], unit: str, attacked: str
) -> Chart:
    """Clean, certified and attacked accuracy against the radius, in percent.

    A point has `radius`, `clean`, `certified`, the interval `low` .. `high` and, where rows were
    attacked, `attacked`: the accuracy of the rows that the text of this name names.
    """
    names = {
        "clean": "clean",
        "attacked": f"attacked, at most ({attacked})",
        "certified": "certified, all classes",
    }
    names = {name: text for name, text in names.items() if name in points[0]}
    base = alt.Chart(alt.Data(values=[dict(point) for point in points]))
    x = _radius(points[-1]["radius"], unit)
    band = base.mark_area(color="var(--certified)", opacity=0.2).encode(
        x=x, y=alt.Y("low:Q"), y2="high:Q"
    )
    texts, styles = list(names.values()), [_CURVES[name] for name in names]
    lines = (
        base.transform_fold(list(names), as_=["which", "share"])
        .transform_calculate(curve=f"{names}[datum.which]")
        .mark_line(strokeWidth=2)
        .encode(
            x=x,
            y=_percent("share"),
            color=_colours([colour for colour, _ in styles], texts),
            strokeDash=_dashes([dashes for _, dashes in styles], texts),
        )
    )
    rules = alt.Chart(alt.Data(values=[{"radius": r} for r in stated]))
    told = dict.fromkeys(("clean", "certified", "low", "high", "attacked"), ".2f")
    told = {"radius": ".4~g"} | {name: form for name, form in told.items() if name in points[0]}
    return finished(
        band
        + rules.mark_rule(color="var(--line)").encode(x="radius:Q")
        + lines
        + _hover(base, told)
    )


def comparison(runs: Mapping[str, Sequence[Mapping[str, float]]], unit: str) -> Chart:
    """Certified accuracy of several runs against the radius, in percent; each has a name, and
    points with `radius`, `certified`, `low` and `high`."""
    names = list(runs)
    values = [{"run": name, **point} for name, points in runs.items() for point in points]
    base = alt.Chart(alt.Data(values=values))
    x = _radius(max(point["radius"] for points in runs.values() for point in points), unit)
    colour = _colours([f"var(--run-{i})" for i in range(len(names))], names, "run")
    band = base.mark_area(opacity=0.15).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    dashes = _dashes([_DASHES[i % len(_DASHES)] for i in range(len(names))], names, "run")
    lines = base.mark_line(strokeWidth=2).encode(
        x=x, y=_percent("certified"), color=colour, strokeDash=dashes
    )
    return finished(band + lines)


def histogram(bins: Sequence[Mapping[str, float]], title: str) -> Chart:
    """Numbers of rows as bars; a bin has `low`, `high` and `rows`."""
    bars = (
        alt.Chart(alt.Data(values=[dict(each) for each in bins]))
        .mark_bar(color="var(--certified)", binSpacing=1)
        .encode(
            x=alt.X(
                "low:Q", bin="binned", title=title, scale=alt.Scale(nice=False, domain=_ends(bins))
            ),
            x2="high:Q",
            y=alt.Y("rows:Q", title="rows", axis=alt.Axis(tickCount=_ticks(bins), format="~s")),
            tooltip=[
                alt.Tooltip("low:Q", title="from", format=".4~g"),
                alt.Tooltip("high:Q", title="to", format=".4~g"),
                alt.Tooltip("rows:Q", title="rows", format=","),
            ],
        )
    )
    return finished(bars, height=200)


def _ends(bins: Sequence[Mapping[str, float]]) -> list[float]:
    return [bins[0]["low"], bins[-1]["high"]]


def _ticks(bins: Sequence[Mapping[str, float]]) -> int:
    """Ticks at whole numbers of rows."""
    return max(1, min(5, int(max(each["rows"] for each in bins))))


def _hover(base: alt.Chart, told: Mapping[str, str]) -> alt.LayerChart:
    """The numbers at the radius nearest to the pointer."""
    near = alt.selection_point(
        nearest=True, on="pointermove", fields=["radius"], empty=False, clear="pointerout"
    )
    tips = [alt.Tooltip(f"{name}:Q", format=form) for name, form in told.items()]
    targets = base.mark_point(opacity=0, size=1).encode(x="radius:Q", y="certified:Q", tooltip=tips)
    rule = base.mark_rule(color="var(--ink)").encode(x="radius:Q").transform_filter(near)
    dot = base.mark_point(color="var(--certified)", filled=True, size=60)
    return (
        targets.add_params(near)
        + rule
        + dot.encode(x="radius:Q", y="certified:Q").transform_filter(near)
    )


def _radius(largest: float, unit: str) -> alt.X:
    scale = alt.Scale(domain=[0, largest], nice=False)
    return alt.X("radius:Q", title=f"l2 radius{unit}", scale=scale, axis=alt.Axis(tickCount=10))


def _percent(field: str) -> alt.Y:
    return alt.Y(f"{field}:Q", title="share of test rows, %", scale=alt.Scale(domain=[0, 100]))


def _colours(colours: list[str], names: list[str], field: str = "curve") -> alt.Color:
    scale = alt.Scale(domain=names, range=colours)
    legend = alt.Legend(symbolType="stroke", symbolOpacity=1)
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=legend)


def _dashes(dashes: list[list[int]], names: list[str], field: str = "curve") -> alt.StrokeDash:
    scale = alt.Scale(domain=names, range=dashes)
    return alt.StrokeDash(f"{field}:N", title=None, scale=scale)


def finished(chart: alt.Chart | alt.LayerChart, height: int = _HEIGHT) -> Chart:
    """The chart as wide as its place on the page, in the colours of the page."""
    text = {"labelColor": "var(--ink)", "titleColor": "var(--ink)", "titleFontWeight": "normal"}
    lines = {"gridColor": "var(--line)", "domainColor": "var(--faint)", "tickColor": "var(--faint)"}
    styled = chart.properties(
        width="container",
        height=height,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    ).configure(
        background="transparent",
        font="system-ui, sans-serif",
        axis={
            **text,
            **lines,
            "labelFontSize": 12,
            "titleFontSize": 13,
            "labelOverlap": "greedy",
            "labelSeparation": 8,
        },
        view={"stroke": None},
        legend={
            **text,
            "orient": "top",
            "direction": "vertical",
            "labelFontSize": 13,
            "symbolSize": 400,
            "symbolStrokeWidth": 2,
            "labelLimit": 240,
        },
    )
    found: Chart = styled.to_dict()
    return found
